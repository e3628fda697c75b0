"""The mean of the weights of several states of one run, which often serves better than its last state.

    python -m analysis.training.average BEFORE.safetensors AFTER.safetensors --out fine.safetensors

Stochastic weight averaging, Izmailov et al. 2018; of fine-tuned networks, Wortsman et al. 2022. It only makes sense for
networks of one run: those of different runs have other filters in the same places.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from analysis.errors import ModelError
from analysis.vbnet import LoadedNetwork, VBNet, load_network, save_network


def average_networks(networks: Sequence[LoadedNetwork]) -> VBNet:
    """A network whose every weight is the mean of theirs.

    Raises
    ------
    ModelError : fewer than two networks, or networks of different layout
    """
    layouts = {replace(network.config, training=networks[0].config.training) for network in networks}
    if len(networks) < 2 or len(layouts) > 1:
        stages = ", ".join(network.config.stage for network in networks) or "none"
        raise ModelError(f"weights to average are of {stages}; expected two or more networks of one stage and layout")
    states = [network.network.state_dict() for network in networks]
    mean = VBNet(networks[0].config)
    mean.load_state_dict({name: torch.stack([state[name] for state in states]).mean(dim=0) for name in states[0]})
    return mean.eval()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Average the weights of several states of one run.")
    parser.add_argument("weights", type=Path, nargs="+", help="the last one's summary of training is kept")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    networks = [load_network(path) for path in options.weights]
    summary = replace(networks[-1].config.training, metrics=())  # those were the last one's own
    sha256 = save_network(options.out, average_networks(networks), replace(networks[-1].config, training=summary))
    Console(soft_wrap=True).print(f"weights: {options.out}, SHA-256 {sha256}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""The card beside a weights file: what the network is, what made it, what it may be used for, its SHA-256.

    python -m analysis.training.model_card analysis/models/coarse.safetensors COMMAND NOTES.md

writes `coarse.md` beside the weights. NOTES.md holds data with licences, scores and limits, in the author's words.
"""

import sys
from pathlib import Path

from analysis.vbnet import LoadedNetwork, load_network


def card(loaded: LoadedNetwork, name: str, command: str, notes: str) -> str:
    """Markdown of one network."""
    config = loaded.config
    heads = "; ".join(f"{head.name}: {', '.join(head.classes)}" for head in config.heads)
    n_parameters = sum(p.numel() for p in loaded.network.parameters())
    facts = (
        ("file", f"`{name}`"),
        ("SHA-256", f"`{loaded.sha256}`"),
        ("stage", config.stage),
        ("grid", f"{config.spacing_mm} mm, patches of {' x '.join(map(str, config.patch_size))} voxels"),
        ("parameters", f"{n_parameters / 1e6:.2f} million, float16"),
        ("heads", heads),
        ("preset", f"{config.training.preset}, {config.training.iterations} iterations"),
        ("training data", ", ".join(config.training.data)),
        ("command", f"`{command}`"),
    )
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts)
    metrics = "\n".join(f"| {label.removeprefix('dice ')} | {value:.3f} |" for label, value in config.training.metrics)
    title = "Dice of held-out simulated samples at the end of training:"
    scores = f"{title}\n\n| class | Dice |\n|---|---|\n{metrics}\n\n" if metrics else ""
    return f"# {config.stage.capitalize()} VB-Net\n\n| | |\n|---|---|\n{rows}\n\n{scores}{notes}\n"


def main(arguments: list[str]) -> int:
    weights, command, notes = Path(arguments[0]), arguments[1], Path(arguments[2]).read_text().strip()
    weights.with_suffix(".md").write_text(card(load_network(weights), weights.name, command, notes))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

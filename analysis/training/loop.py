"""The training loop: batches by index, mixed precision, checkpoints that resume exactly, validation, history.

channels_last_3d on CPU and CUDA alike, bfloat16 where the processor or card computes it fast. A checkpoint holds
weights, moving average, optimiser and the number of the next iteration; sample numbers follow from that number, so
nothing else needs to be kept.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from analysis.training.losses import deep_loss, hard_dice, total_loss
from analysis.training.presets import Preset
from analysis.training.samples import Sample
from analysis.vbnet import Pointwise, VBNet, VBNetConfig, computes_bfloat16

SampleSource = Callable[[int], Sample]


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Files of one run."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    @property
    def history(self) -> Path:
        return self.path / "history.jsonl"


class DeepHeads(nn.Module):
    """1x1x1 heads on the decoder's lower resolutions, so that deep layers learn from the start; dropped afterwards.

    Deep supervision: Lee et al. 2015; with V-Net-like networks, Dou et al. 2016.
    """

    def __init__(self, config: VBNetConfig) -> None:
        super().__init__()
        widths = [2 * width for width in config.widths[-2:0:-1]]
        heads = [head for head in config.heads if len(head.classes) > 1]
        self.levels = nn.ModuleList(
            nn.ModuleDict({head.name: Pointwise(width, len(head.classes)) for head in heads}) for width in widths
        )

    def forward(self, decoded: list[Tensor]) -> list[dict[str, Tensor]]:
        return [
            {name: head(y) for name, head in heads.items()}  # type: ignore[operator]
            for heads, y in zip(self.levels, decoded, strict=True)
        ]


class Trainer:
    """Network, moving average and optimiser of one run."""

    def __init__(self, config: VBNetConfig, preset: Preset, device: str = "cpu", seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.config, self.preset, self.device = config, preset, torch.device(device)
        self.mixed = computes_bfloat16(self.device)
        self.network = self._place(VBNet(config))
        self.average = self._place(VBNet(config))
        self.average.load_state_dict(self.network.state_dict())
        self.average.eval()
        self.deep = DeepHeads(config).to(self.device)
        self.optimiser = torch.optim.AdamW(self._groups(), lr=preset.learning_rate, weight_decay=preset.weight_decay)
        self.iteration = 0

    def _place(self, network: VBNet) -> VBNet:
        return network.to(self.device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload,no-any-return]

    def _groups(self) -> list[dict[str, Any]]:
        """Convolutions that a normalisation follows, whose step is relative to their size; then all the rest."""
        named = list(self.network.named_parameters())
        slow = [p for name, p in named if p.ndim > 1 and not name.startswith("heads")]
        fast = [p for name, p in named if p.ndim == 1 or name.startswith("heads")]
        fast += list(self.deep.parameters())
        return [{"params": slow, "factor": 1.0}, {"params": fast, "factor": self.preset.head_rate}]

    def step(self, batch: list[Sample], share_of_time: float = 0.0) -> dict[str, float]:
        """One optimiser step on samples of any sizes; mean of each loss term. share_of_time : 0..1 of that allowed."""
        self._set_rate(share_of_time)
        sums: dict[str, float] = {}
        for sample in batch:
            terms = self._loss(sample)
            (terms["loss"] / len(batch)).backward()  # type: ignore[no-untyped-call]
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach()) / len(batch)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.iteration += 1
        self._update_average()
        return sums

    def _loss(self, sample: Sample) -> dict[str, Tensor]:
        targets = {name: value[None].to(self.device) for name, value in sample.targets.items()}
        weights = self.preset.weights
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.mixed):
            decoded = self.network.decode(self._image(sample))
            outputs = self.network.outputs(decoded[-1])
            lower = self.deep(decoded[:-1]) if weights.deep else []
        terms = total_loss(outputs, targets, weights)
        if lower:
            terms["deep"] = weights.deep * deep_loss(lower, targets, weights)
            terms["loss"] = terms["loss"] + terms["deep"]
        return terms

    def _image(self, sample: Sample) -> Tensor:
        return sample.image[None].to(self.device).contiguous(memory_format=torch.channels_last_3d)

    def _set_rate(self, share_of_time: float) -> None:
        preset, done = self.preset, self.iteration
        rate = preset.learning_rate * min(1.0, (done + 1) / max(1, preset.warmup))
        if preset.cosine:
            share = min(1.0, max(share_of_time, done / max(1, preset.iterations)))
            rate *= 0.5 * (1 + math.cos(math.pi * share))
            rate = max(rate, preset.learning_rate * 0.01)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["factor"]

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.preset.ema, self.iteration / (self.iteration + 10))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1 - decay)

    @torch.inference_mode()
    def validate(self, samples: list[Sample]) -> dict[str, float]:
        """Dice of each foreground class over all samples, with the averaged weights."""
        classes = next(head for head in self.config.heads if head.name == "tissue").classes
        totals: dict[int, list[float]] = {}
        for sample in samples:
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.mixed):
                logits = self.average(self._image(sample))["tissue"].float().cpu()
            for value, overlap, size in hard_dice(logits, sample.targets["tissue"][None]):
                total = totals.setdefault(value, [0.0, 0.0])
                total[0] += overlap
                total[1] += size
        return {f"dice {classes[value]}": overlap / size for value, (overlap, size) in totals.items() if size}

    def state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(), "average": self.average.state_dict(), "deep": self.deep.state_dict(),
            "optimiser": self.optimiser.state_dict(), "iteration": self.iteration,
        }  # fmt: skip

    def load_state(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.deep.load_state_dict(state["deep"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.iteration = state["iteration"]


def write_checkpoint(trainer: Trainer, folder: RunFolder) -> None:
    temporary = folder.checkpoint.with_suffix(".part")
    torch.save(trainer.state(), temporary)
    temporary.replace(folder.checkpoint)


def read_checkpoint(trainer: Trainer, folder: RunFolder) -> bool:
    """Load the run's checkpoint if there is one."""
    if not folder.checkpoint.exists():
        return False
    trainer.load_state(torch.load(folder.checkpoint, map_location=trainer.device, weights_only=True))
    return True


class _Indexed(torch.utils.data.Dataset[Sample]):
    def __init__(self, source: SampleSource) -> None:
        self.source = source

    def __getitem__(self, index: int) -> Sample:
        return self.source(index)


def batches(source: SampleSource, first: int, preset: Preset, total: int, workers: int) -> Iterator[list[Sample]]:
    """Batches of iterations `first` ... `total` - 1, made ahead by worker processes."""
    loader = torch.utils.data.DataLoader(
        _Indexed(source),
        batch_size=preset.batch,
        sampler=range(first * preset.batch, total * preset.batch),
        num_workers=workers,
        collate_fn=list,
        prefetch_factor=4 if workers else None,
    )
    yield from loader


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """total : iterations of the run; times in seconds and iterations between checkpoints and validations.

    limit_s : the run ends after this time if it comes first; the learning rate then falls with the clock
    """

    total: int
    workers: int = 1
    limit_s: float = math.inf
    checkpoint_every_s: float = 120.0
    validate_every: int = 100


def run(
    trainer: Trainer, source: SampleSource, folder: RunFolder, settings: LoopSettings,
    progress: Callable[[int, dict[str, float]], None],
) -> None:  # fmt: skip
    """Train to `settings.total` iterations or the end of the time; negative sample numbers are the validation set."""
    held_out = [source(-1 - i) for i in range(6)]
    started = last_saved = time.monotonic()
    for batch in batches(source, trainer.iteration, trainer.preset, settings.total, settings.workers):
        share_of_time = (time.monotonic() - started) / settings.limit_s
        record = trainer.step(batch, share_of_time)
        last = trainer.iteration == settings.total or share_of_time >= 1
        if trainer.iteration % settings.validate_every == 0 or last:
            record |= trainer.validate(held_out)
        with folder.history.open("a") as history:
            history.write(json.dumps({"iteration": trainer.iteration, **record}) + "\n")
        progress(trainer.iteration, record)
        if time.monotonic() - last_saved > settings.checkpoint_every_s:
            write_checkpoint(trainer, folder)
            last_saved = time.monotonic()
        if last:
            break
    write_checkpoint(trainer, folder)

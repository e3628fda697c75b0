"""Loss and Dice of a run as a PNG."""

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray


def read_history(path: Path) -> dict[str, NDArray[np.float64]]:
    """Every recorded quantity as (n, 2): iteration and value."""
    series: dict[str, list[tuple[float, float]]] = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        for name, value in record.items():
            if name != "iteration":
                series.setdefault(name, []).append((record["iteration"], value))
    return {name: np.array(points) for name, points in series.items()}


def smoothed(values: NDArray[np.float64], span: int = 25) -> NDArray[np.float64]:
    """Running mean over up to `span` values."""
    span = max(1, min(span, values.size))
    padded = np.pad(values, (span // 2, span - 1 - span // 2), mode="edge")
    return np.convolve(padded, np.ones(span) / span, mode="valid")


def draw_curves(history: Path, picture: Path, title: str) -> None:
    """Training loss terms on the left, Dice of the held-out samples on the right."""
    series = read_history(history)
    figure = Figure(figsize=(11, 4), layout="constrained")
    losses, dice = figure.subplots(1, 2)
    for name, points in series.items():
        if name.startswith("dice "):
            dice.plot(points[:, 0], points[:, 1], label=name.removeprefix("dice "))
        else:
            losses.semilogy(points[:, 0], smoothed(points[:, 1]), label=name)
    losses.set(xlabel="iteration", ylabel="loss (running mean)", title=title)
    dice.set(xlabel="iteration", ylabel="Dice, held-out simulated", ylim=(0, 1))
    for axes in (losses, dice):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    figure.savefig(picture, dpi=110)

"""Losses. Class targets of `IGNORE` and heat targets of NaN carry no gradient.

References: focal loss, Lin et al. 2017 (gamma 2); soft Dice, Milletari et al. 2016; heat maps with a penalty reduced
near the peak, Law and Deng 2018 (CornerNet), equation 1.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from analysis.training.samples import IGNORE


@dataclass(frozen=True, slots=True)
class LossWeights:
    """Weight of each term; `background` that of a background voxel; `focal_gamma` 0 is cross-entropy."""

    cross_entropy: float = 1.0
    background: float = 0.25
    dice: float = 1.0
    focal_gamma: float = 0.0
    centroid: float = 1.0
    level: float = 0.3
    level_smoothing: float = 0.1
    deep: float = 0.7


def classification_loss(
    logits: Tensor, target: Tensor, gamma: float, smoothing: float = 0.0, background: float = 1.0
) -> Tensor:
    """Weighted mean focal loss (cross-entropy for gamma 0) of the known voxels; logits (B, C, ...), target (B, ...)."""
    known = target != IGNORE
    if not bool(known.any()):
        return logits.sum() * 0.0
    rows = logits.movedim(1, -1)[known].float()
    loss = F.cross_entropy(rows, target[known], reduction="none", label_smoothing=smoothing)
    if gamma:
        loss = loss * (1 - torch.exp(-loss)) ** gamma
    weight = torch.where(target[known] == 0, background, 1.0)
    return (loss * weight).sum() / weight.sum()


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 - mean soft Dice of the foreground classes that occur in the target."""
    known = (target != IGNORE)[:, None]
    shares = logits.float().softmax(dim=1) * known
    truth = F.one_hot(torch.where(known[:, 0], target, 0), logits.shape[1]).movedim(-1, 1) * known
    axes = (0, *range(2, logits.ndim))
    overlap, size = (shares * truth).sum(axes), (shares + truth).sum(axes)
    present = truth.sum(axes)[1:] > 0
    if not bool(present.any()):
        return shares[:, 1:].mean()
    return 1 - ((2 * overlap[1:] + 1) / (size[1:] + 1))[present].mean()


def heat_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Penalty-reduced focal loss of a heat map, per peak; logits (B, 1, ...), target (B, ...)."""
    logits, known = logits[:, 0].float(), ~target.isnan()
    target = target.nan_to_num(0.0)
    share = logits.sigmoid().clamp(1e-5, 1 - 1e-5)
    hit = target > 0.8
    near = hit * (1 - share) ** 2 * -share.log() * target
    far = ~hit * (1 - target) ** 4 * share**2 * -(1 - share).log()
    return ((near + far) * known).sum() / hit.sum().clamp(min=1) / 3


def _tissue_loss(logits: Tensor, target: Tensor, weights: LossWeights) -> Tensor:
    return classification_loss(logits, target, weights.focal_gamma, background=weights.background)


def total_loss(outputs: dict[str, Tensor], targets: dict[str, Tensor], weights: LossWeights) -> dict[str, Tensor]:
    """Every term times its weight, and their sum as "loss"."""
    tissue, truth = outputs["tissue"], targets["tissue"]
    terms = {"tissue": weights.cross_entropy * _tissue_loss(tissue, truth, weights)}
    if weights.dice:
        terms["dice"] = weights.dice * dice_loss(tissue, truth)
    if "centroid" in outputs and weights.centroid:
        terms["centroid"] = weights.centroid * heat_loss(outputs["centroid"], targets["centroid"])
    if "level" in outputs and weights.level:
        smoothing = weights.level_smoothing
        terms["level"] = weights.level * classification_loss(outputs["level"], targets["level"], 0.0, smoothing)
    return {"loss": torch.stack(list(terms.values())).sum(), **terms}


def deep_loss(outputs: list[dict[str, Tensor]], targets: dict[str, Tensor], weights: LossWeights) -> Tensor:
    """Mean tissue and level loss of auxiliary heads at lower resolutions, targets sampled at their cell centres."""
    terms = []
    for output in outputs:
        step = targets["tissue"].shape[1] // output["tissue"].shape[2]
        cells = (slice(None), *(slice(step // 2, None, step),) * 3)
        term = _tissue_loss(output["tissue"], targets["tissue"][cells], weights)
        term = term + weights.dice * dice_loss(output["tissue"], targets["tissue"][cells])
        if "level" in output:
            term = term + weights.level * classification_loss(output["level"], targets["level"][cells], 0.0, 0.1)
        terms.append(term)
    return torch.stack(terms).mean()


def hard_dice(logits: Tensor, target: Tensor) -> list[tuple[int, float, float]]:
    """(class, twice the overlap, sum of sizes) of the argmax for every foreground class."""
    known, found = target != IGNORE, logits.argmax(dim=1)
    counts = []
    for value in range(1, logits.shape[1]):
        a, b = (found == value) & known, (target == value) & known
        counts.append((value, 2.0 * float((a & b).sum()), float(a.sum() + b.sum())))
    return counts

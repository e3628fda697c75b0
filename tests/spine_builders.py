"""Builders for spines without images: evidence chains, centroid maps and labelled anatomies made of simple shapes."""

import numpy as np
import torch
from numpy.typing import NDArray

from analysis.spine_detection import CoarseMaps
from analysis.spine_evidence import INDEX, LEVELS, SPACING_MM, VertebraEvidence

REGULAR = tuple(level for level in LEVELS if level not in ("T13", "L6"))


def chain_of(
    names: tuple[str, ...],
    *,
    ribs: bool = True,
    ribless: tuple[str, ...] = (),
    sacrum: float | None = None,
    network_shift: int | None = 0,
    missed: tuple[str, ...] = (),
    reaches_mm: dict[str, float] | None = None,
) -> tuple[VertebraEvidence, ...]:
    """Evidence of a spine that truly has `names`, at typical spacings.

    ribs : whether ribs are in view at all; ribless : thoracic vertebrae whose rib is not seen
    sacrum : what is seen below the last vertebra; network_shift : levels by which the network errs, None = no opinion
    reaches_mm : how far the ribs of some vertebrae reach
    """
    height_mm, evidence = 0.0, []
    for name in names:
        contact = float(name.startswith("T") and name not in ribless) if ribs else None
        if name not in missed:
            below = sacrum if name == names[-1] else None
            centroid = np.array([height_mm, 0.0, 0.0])
            reach_mm = (reaches_mm or {}).get(name)
            evidence.append(VertebraEvidence(centroid, network_opinion(name, network_shift), contact, reach_mm, below))
        height_mm -= SPACING_MM[INDEX[name]]
    return tuple(evidence)


def network_opinion(name: str, shift: int | None) -> NDArray[np.float64]:
    """19 probabilities with two thirds on the level `shift` below the true one; flat for None."""
    opinion = np.full(19, 1 / 19)
    if shift is not None:
        classes = [level for level in LEVELS if level != "T13"]
        true = classes.index(name) if name in classes else 12
        opinion[np.clip(true + shift, 0, 18)] += 2.0
    return opinion / opinion.sum()


def levels_between(first: str, last: str) -> tuple[str, ...]:
    return REGULAR[REGULAR.index(first) : REGULAR.index(last) + 1]


def coarse_maps(
    centroids_mm: list[tuple[float, float, float]], shape: tuple[int, int, int], heights: list[float] | None = None
) -> CoarseMaps:
    """Maps of a perfect coarse network: a Gaussian of 6 mm SD at each centroid, bodies of 14-mm radius; 4-mm voxels."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1) * 4.0
    heat, body = np.zeros(shape), np.zeros(shape)
    for centroid, height in zip(centroids_mm, heights or [1.0] * len(centroids_mm), strict=True):
        distance = np.linalg.norm(index - np.array(centroid), axis=-1)
        heat = np.maximum(heat, height * np.exp(-0.5 * (distance / 6.0) ** 2))
        body = np.maximum(body, (distance < 14.0).astype(float))
    tissue = torch.zeros((6, *shape))
    tissue[1] = torch.from_numpy(body)
    tissue[0] = 1 - tissue[1]
    level = torch.full((19, *shape), 1 / 19)
    return CoarseMaps(tissue, torch.from_numpy(heat).float(), level, 4.0)

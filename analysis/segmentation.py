"""Find the spine in a CT series, name its levels and outline each vertebra.

Order: resample to 4 mm and find the column of vertebral bodies; outline every vertebra of it with the fine network at
about 1 mm; gather the evidence on levels (network, ribs, sacrum, spacing) and let the chain name them; bring the
outlines back to the series' own grid. VerSe numbering (Sekuboyina et al., MedIA 2021): T1 = 8 ... T12 = 19, L1 = 20
... L5 = 24, L6 = 25, sacrum 26; T13 = 28, all cervical vertebrae 7.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.coarse_stage import coarse_volume, run_coarse
from analysis.errors import ModelError, NoVertebraError
from analysis.refusals import reason
from analysis.resampling import (
    CanonicalView,
    IsotropicGrid,
    axis_to_lps_mm,
    canonical_view,
    from_canonical,
)
from analysis.results import ModelUsed, Reason, Segmentation, VertebraLevel
from analysis.rib_contact import RibBox, rib_contact, rib_volumes_ml, sides_in_view, spine_axes
from analysis.rib_length import RibReach, rib_lengths_mm
from analysis.spine_chain import NamedChain, name_levels
from analysis.spine_detection import RIB as COARSE_RIB
from analysis.spine_detection import (
    CoarseMaps,
    DetectionLimits,
    Peak,
    find_peaks,
    pooled_levels,
    sacrum_below,
    spine_column,
)
from analysis.spine_evidence import ChainLimits, VertebraEvidence
from analysis.vbnet import LoadedNetwork, computes_bfloat16, load_network
from analysis.version import SOFTWARE_VERSION
from analysis.vertebra_labels import LABELS, assemble_maps, sacrum_on_view
from analysis.vertebra_outline import RIB, FineCrop, crop_grid, crop_input, summarise
from analysis.volume import CtVolume


@dataclass(frozen=True, slots=True, eq=False)
class Networks:
    """Both stages, loaded once at start."""

    coarse: LoadedNetwork
    fine: LoadedNetwork


@dataclass(frozen=True, slots=True)
class SegmentationLimits:
    """Settings of the segmentation.

    min_level_confidence : below this L1 and L2 may not be reported; the flag LEVEL_UNCERTAIN says so
    device : "cpu", "cuda", or "auto" (cuda where there is one)
    precision : "float32", "bfloat16", or "auto" (bfloat16 where the processor or card computes it fast)
    crops_at_once : fine crops in one pass; more is faster on a card and needs more memory
    body_ml : smallest and largest plausible volume of a whole vertebral body (T1 of a small woman to L5 of a tall man)
    """

    min_level_confidence: float = 0.9
    device: str = "auto"
    precision: str = "auto"
    crops_at_once: int = 2
    body_ml: tuple[float, float] = (3.5, 75.0)
    detection: DetectionLimits = field(default_factory=DetectionLimits)
    ribs: RibBox = field(default_factory=RibBox)
    rib_reach: RibReach = field(default_factory=RibReach)
    chain: ChainLimits = field(default_factory=ChainLimits)


def load_networks(coarse: Path, fine: Path) -> Networks:
    """Read both weights files; ModelError when one is missing, damaged or for the other stage."""
    networks = Networks(load_network(coarse), load_network(fine))
    _check_networks(networks)
    return networks


def models_used(networks: Networks) -> tuple[ModelUsed, ...]:
    """What identifies the networks in reports and DICOM objects."""
    stages = (("VB-Net coarse", networks.coarse), ("VB-Net fine", networks.fine))
    return tuple(ModelUsed(name, SOFTWARE_VERSION, network.sha256) for name, network in stages)


# The coarse network's maps, the CT on the same grid, and that grid.
Coarse = tuple[CoarseMaps, Tensor, IsotropicGrid]


class Stopwatch:
    """Durations of named stages, in order."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.timings_s: list[tuple[str, float]] = []

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.timings_s.append((name, now - self._last))
        self._last = now


def segment_vertebrae(volume: CtVolume, networks: Networks, limits: SegmentationLimits | None = None) -> Segmentation:
    """Label map, body map and named levels of a CT series.

    Raises
    ------
    NoVertebraError : NO_SPINE when the coarse network finds no column of vertebral bodies
    ModelError : the networks are not a coarse and a fine one, or the configured device is not there
    """
    limits = limits or SegmentationLimits()
    device, precision = choose_device(limits)
    _check_networks(networks)
    watch = Stopwatch()
    view = canonical_view(volume)
    hu, grid = coarse_volume(view, networks.coarse.config.spacing_mm, device)
    watch.lap("resampling")
    maps = run_coarse(hu, networks.coarse, precision)
    watch.lap("coarse network")
    column = _column(maps, limits)
    watch.lap("spine")
    crops = outline_vertebrae(view, [grid.to_axis_mm(peak.index) for peak in column], networks.fine, limits)
    column, crops = _plausible(column, crops, limits)
    watch.lap("fine network")
    evidence = _evidence(view, (maps, hu, grid), column, crops, limits)
    chain = name_levels(evidence, limits.chain, float(view.spacing_mm[0]))
    watch.lap("levels")
    sacrum = sacrum_on_view(view, maps, grid, crops[-1].centroid_mm, device)
    labels, body = assemble_maps(view, crops, chain.names, sacrum, device)
    watch.lap("label maps")
    levels = tuple(
        vertebra_level(view, crop, name, p) for crop, name, p in zip(crops, chain.names, chain.confidences, strict=True)
    )
    flags = level_flags(levels, chain, limits)
    return Segmentation(
        from_canonical(labels, view), from_canonical(body, view), levels, chain.anchors, flags, tuple(watch.timings_s)
    )


def choose_device(limits: SegmentationLimits) -> tuple[torch.device, torch.dtype]:
    """The configured device and precision with "auto" resolved.

    Raises ModelError when "cuda" is asked for and absent.
    """
    name = limits.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError("segmentation.device is cuda, but no CUDA device was found; use auto or cpu")
    if limits.precision != "auto":
        return torch.device(name), torch.bfloat16 if limits.precision == "bfloat16" else torch.float32
    return torch.device(name), torch.bfloat16 if computes_bfloat16(torch.device(name)) else torch.float32


def _check_networks(networks: Networks) -> None:
    stages = (networks.coarse.config.stage, networks.fine.config.stage)
    if stages != ("coarse", "fine"):
        raise ModelError(
            f"networks are for the stages {stages}; expected ('coarse', 'fine'): check the configured paths"
        )


# --- stages ---------------------------------------------------------------------------------------------------------


def _column(maps: CoarseMaps, limits: SegmentationLimits) -> list[Peak]:
    peaks = find_peaks(maps, limits.detection)
    column = spine_column(peaks, maps.spacing_mm, limits.detection)
    if not column:
        raise NoVertebraError(
            "NO_SPINE",
            f"no column of vertebral bodies was found ({len(peaks)} possible bodies, expected at least "
            f"{limits.detection.smallest_column} above one another); check that the series shows the spine",
        )
    return column


def outline_vertebrae(
    view: CanonicalView, centres_mm: list[NDArray[np.float64]], network: LoadedNetwork, limits: SegmentationLimits
) -> list[FineCrop]:
    """The fine network on a crop around each centre."""
    device, precision = choose_device(limits)
    model = network.network.to(device)
    crops = []
    for start in range(0, len(centres_mm), limits.crops_at_once):
        grids = [crop_grid(network, centre) for centre in centres_mm[start : start + limits.crops_at_once]]
        batch = torch.stack([crop_input(view, grid, network, device) for grid in grids])
        batch = batch.contiguous(memory_format=torch.channels_last_3d)
        with torch.inference_mode(), torch.autocast(device.type, precision, enabled=precision != torch.float32):
            logits = model(batch)["tissue"]
        probabilities = logits.float().softmax(dim=1)
        crops += [summarise(view, grid, p, network) for grid, p in zip(grids, probabilities, strict=True)]
    return crops


def _plausible(
    column: list[Peak], crops: list[FineCrop], limits: SegmentationLimits
) -> tuple[list[Peak], list[FineCrop]]:
    """Drop vertebrae whose body is missing or impossible, and doubles whose fine centroids fell on one body.

    Raises NoVertebraError when nothing plausible is left.
    """
    kept: list[tuple[Peak, FineCrop]] = []
    for peak, crop in zip(column, crops, strict=True):
        low, high = limits.body_ml
        size_fits = crop.body_ml <= high and (crop.body_ml >= low or (crop.touches_edge and crop.body_ml > 0.5))
        double = kept and np.linalg.norm(crop.centroid_mm - kept[-1][1].centroid_mm) < limits.detection.merge_mm
        if size_fits and not double:
            kept.append((peak, crop))
    if not kept:
        raise NoVertebraError(
            "NO_SPINE", "vertebra-like places were found, but none holds a vertebral body of plausible size"
        )
    return [peak for peak, _ in kept], [crop for _, crop in kept]


def _evidence(
    view: CanonicalView, coarse: Coarse, column: list[Peak], crops: list[FineCrop], limits: SegmentationLimits
) -> tuple[VertebraEvidence, ...]:
    """What the chain needs, per vertebra from head to feet; only the lowest can stand above the sacrum."""
    maps, hu, grid = coarse
    axes = spine_axes([crop.centroid_mm for crop in crops])
    below = sacrum_below(maps, column[-1], -axes[-1])
    frames = [(crop.centroid_mm, axis) for crop, axis in zip(crops, axes, strict=True)]
    lengths_mm = rib_lengths_mm(maps.tissue[COARSE_RIB], hu, grid, frames, limits.ribs, limits.rib_reach)
    return tuple(
        VertebraEvidence(
            crop.centroid_mm,
            pooled_levels(maps, peak),
            agreed_contact(
                fine_rib(view, crop, axis, limits),
                coarse_rib(view, coarse, crop.centroid_mm, axis, limits),
                cut=crop.touches_edge,
            ),
            length_mm,
            below if peak is column[-1] else None,
            crop.touches_edge,
        )
        for crop, peak, axis, length_mm in zip(crops, column, axes, lengths_mm, strict=True)
    )


def fine_rib(
    view: CanonicalView, crop: FineCrop, axis: NDArray[np.float64], limits: SegmentationLimits
) -> float | None:
    """Rib contact in a crop."""
    rib = (crop.probabilities[RIB] > 0.5).float()
    volumes_ml = rib_volumes_ml(rib, crop.grid, crop.centroid_mm, axis, limits.ribs)
    return rib_contact(volumes_ml, sides_in_view(view, crop.centroid_mm, axis, limits.ribs), limits.ribs)


def coarse_rib(
    view: CanonicalView,
    coarse: Coarse,
    centroid_mm: NDArray[np.float64],
    axis: NDArray[np.float64],
    limits: SegmentationLimits,
) -> float | None:
    """The same from the coarse map."""
    maps, _, grid = coarse
    volumes_ml = rib_volumes_ml(maps.tissue[COARSE_RIB], grid, centroid_mm, axis, limits.ribs)
    return rib_contact(volumes_ml, sides_in_view(view, centroid_mm, axis, limits.ribs), limits.ribs)


def agreed_contact(fine: float | None, coarse: float | None, *, cut: bool) -> float | None:
    """A rib that either network sees counts: each misses ribs (the coarse one short 12th ribs, the fine one those that
    join a transverse process) more often than it sees one where there is none.

    Beside a body cut by the edge of the series half a transverse process looks like a rib: there both must see it, and
    where they do not, nothing is known.
    """
    if fine is None or coarse is None:
        return None
    if cut:
        return min(fine, coarse) if min(fine, coarse) >= 0.5 else None
    return max(fine, coarse)


def vertebra_level(view: CanonicalView, crop: FineCrop, name: str, confidence: float) -> VertebraLevel:
    x, y, z = axis_to_lps_mm(view, crop.centroid_mm)
    return VertebraLevel(name, LABELS[name], confidence, (float(x), float(y), float(z)), not crop.touches_edge)


def level_flags(levels: tuple[VertebraLevel, ...], chain: NamedChain, limits: SegmentationLimits) -> tuple[Reason, ...]:
    """LEVEL_UNCERTAIN when L1 or L2 (or, without them, any level) is below the limit; TRANSITIONAL_ANATOMY."""
    wanted = [level for level in levels if level.name in ("L1", "L2")] or list(levels)
    lowest = min(wanted, key=lambda level: level.confidence)
    anchors = ", ".join(chain.anchors) or "none"
    flags = []
    if lowest.confidence < limits.min_level_confidence:
        text = f"{lowest.name} is named with probability {lowest.confidence:.2f}"
        expected = f"expected {limits.min_level_confidence:.2f}; landmarks in view: {anchors}"
        if not chain.discs_resolved:
            expected += f"; slices above {limits.chain.thickest_slice_mm:g} mm do not tell neighbours apart"
        flags.append(reason("LEVEL_UNCERTAIN", f"{text}, {expected}"))
    if chain.anchors_disagree or chain.variant > 0.3:
        text = f"last rib, sacrum and count do not fit five lumbar vertebrae (variant: {chain.variant:.2f})"
        flags.append(reason("TRANSITIONAL_ANATOMY", text))
    return tuple(flags)

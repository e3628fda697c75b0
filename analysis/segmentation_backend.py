"""The same segmentation by TotalSegmentator, for sites that have it installed (its own licence and weights).

Wasserthal et al., Radiology: AI 2023. It gives the vertebrae and their names; ribs, sacrum and spacing then pass
through the same chain as ever, so its names get a probability, and the fine network tells body from posterior elements,
cortex from cancellous bone. Nothing of it is imported until it is asked for.
"""

import importlib
import re
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from analysis.errors import ConfigError, ModelError, NoVertebraError
from analysis.resampling import CanonicalView, canonical_view, from_canonical
from analysis.results import Segmentation
from analysis.rib_contact import spine_axes
from analysis.segmentation import (
    Networks,
    SegmentationLimits,
    Stopwatch,
    agreed_contact,
    choose_device,
    fine_rib,
    level_flags,
    outline_vertebrae,
    segment_vertebrae,
    vertebra_level,
)
from analysis.spine_chain import NamedChain, name_levels
from analysis.spine_evidence import INDEX, VertebraEvidence
from analysis.vertebra_labels import LABELS, SACRUM_LABEL
from analysis.vertebra_outline import FineCrop, most_probable, on_view
from analysis.volume import CtVolume

BACKENDS = ("vbnet", "totalsegmentator")

# Smallest part of a sacrum that shows the chain stands on it.
SACRUM_ML = 8.0


def segment_with(
    backend: str, volume: CtVolume, networks: Networks, limits: SegmentationLimits | None = None
) -> Segmentation:
    """Segment with the configured backend: "vbnet" or "totalsegmentator".

    Raises what `segment_vertebrae` raises; ConfigError for an unknown backend; ModelError when it is not installed.
    """
    if backend == "vbnet":
        return segment_vertebrae(volume, networks, limits)
    if backend == "totalsegmentator":
        return segment_with_totalsegmentator(volume, networks, limits)
    raise ConfigError(f"segmentation.backend is {backend!r}; expected one of {', '.join(BACKENDS)}")


def segment_with_totalsegmentator(
    volume: CtVolume, networks: Networks, limits: SegmentationLimits | None = None
) -> Segmentation:
    """Vertebrae and sacrum by TotalSegmentator's task "total", body map by the fine network.

    Raises
    ------
    ModelError : TotalSegmentator is not installed
    NoVertebraError : it finds no vertebra
    """
    limits = limits or SegmentationLimits()
    watch = Stopwatch()
    view = canonical_view(volume)
    found = np.ascontiguousarray(_canonical(total_labels(volume, limits), view))
    watch.lap("totalsegmentator")
    names = [name for name in INDEX if name in LABELS and (found == LABELS[name]).any()]
    if not names:
        raise NoVertebraError("NO_SPINE", "TotalSegmentator found no vertebra; check that the series shows the spine")
    centres = [body_centre_mm(found == LABELS[name], view) for name in names]
    crops = outline_vertebrae(view, centres, networks.fine, limits)
    watch.lap("fine network")
    chain = _chain(view, names, crops, bool(_sacrum_ml(found, view) >= SACRUM_ML), limits)
    levels = tuple(vertebra_level(view, c, n, p) for c, n, p in zip(crops, names, chain.confidences, strict=True))
    body = _body_map(view, found, crops, names, limits)
    watch.lap("label maps")
    flags = level_flags(levels, chain, limits)
    labels = from_canonical(found, view)
    return Segmentation(labels, from_canonical(body, view), levels, chain.anchors, flags, tuple(watch.timings_s))


def total_labels(volume: CtVolume, limits: SegmentationLimits) -> NDArray[np.uint8]:
    """TotalSegmentator's labels in VerSe numbering on the volume's own grid; raises ModelError when not installed."""
    nibabel, api, classes = (
        _import("nibabel"),
        _import("totalsegmentator.python_api"),
        _import("totalsegmentator.map_to_binary"),
    )
    numbers = {number: verse_label(name) for number, name in classes.class_map["total"].items()}
    wanted = [name for name in classes.class_map["total"].values() if verse_label(name)]
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    image = nibabel.Nifti1Image(volume.hu, to_ras @ volume.affine)
    device = "gpu" if choose_device(limits)[0].type == "cuda" else "cpu"
    result = api.totalsegmentator(image, None, ml=True, task="total", roi_subset=wanted, device=device, quiet=True)
    values = np.asanyarray(result.dataobj).astype(np.uint8)
    table = np.zeros(256, dtype=np.uint8)
    for number, label in numbers.items():
        table[number] = label
    labels: NDArray[np.uint8] = table[values]
    return labels


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ModelError(
            f"segmentation.backend is totalsegmentator, but {name} cannot be imported ({error}); install it with "
            "'pip install TotalSegmentator nibabel' into this environment, or set segmentation.backend: vbnet"
        ) from error


def verse_label(class_name: str) -> int:
    """TotalSegmentator's class name -> VerSe number; 0 for what is no vertebra. S1 counts as sacrum."""
    if class_name in ("sacrum", "vertebrae_S1"):
        return SACRUM_LABEL
    match = re.fullmatch(r"vertebrae_(?:(C)\d|([TL]\d+))", class_name)
    return 0 if match is None else LABELS[match.group(1) or match.group(2)]


def _canonical(labels: NDArray[np.uint8], view: CanonicalView) -> NDArray[np.uint8]:
    flips = tuple(slice(None, None, -1 if flip else 1) for flip in view.flipped)
    return np.transpose(labels, view.permutation)[flips]


def body_centre_mm(mask: NDArray[np.bool_], view: CanonicalView) -> NDArray[np.float64]:
    """The middle of a vertebra's thickest part, which is the body; mm along the view's axes."""
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    padded = np.pad(mask[box], 1)
    depth = ndimage.distance_transform_edt(padded, sampling=view.spacing_mm)
    core = np.argwhere(depth >= 0.75 * depth.max()).mean(axis=0) - 1
    centre: NDArray[np.float64] = (core + [part.start for part in box]) * view.spacing_mm
    return centre


def _sacrum_ml(labels: NDArray[np.uint8], view: CanonicalView) -> float:
    return float((labels == SACRUM_LABEL).sum() * np.prod(view.spacing_mm) / 1000.0)


def _chain(
    view: CanonicalView, names: list[str], crops: list[FineCrop], sacrum: bool, limits: SegmentationLimits
) -> NamedChain:
    """The chain's view of the backend's names: their probabilities, with the evidence of ribs, sacrum and spacing."""
    evidence = []
    axes = spine_axes([crop.centroid_mm for crop in crops])
    for i, (name, crop) in enumerate(zip(names, crops, strict=True)):
        levels = np.full(19, 0.1 / 19)
        levels[sorted(set(INDEX) - {"T13"}, key=INDEX.__getitem__).index(name)] += 0.9
        below = float(sacrum) if i == len(names) - 1 else None
        rib = fine_rib(view, crop, axes[i], limits)
        contact = agreed_contact(rib, rib, cut=crop.touches_edge)
        evidence.append(VertebraEvidence(crop.centroid_mm, levels, contact, None, below, crop.touches_edge))
    chain = name_levels(tuple(evidence), limits.chain, float(view.spacing_mm[0]))
    ceiling = max(chain.confidences)
    own = tuple(min(ceiling, float(p[INDEX[name]])) for name, p in zip(names, chain.probabilities, strict=True))
    return replace(chain, names=tuple(names), confidences=own)


def _body_map(
    view: CanonicalView, labels: NDArray[np.uint8], crops: list[FineCrop], names: list[str], limits: SegmentationLimits
) -> NDArray[np.uint8]:
    """Posterior elements, cortex and cancellous bone inside the backend's outlines."""
    device, _ = choose_device(limits)
    body = np.where((labels > 0) & (labels != SACRUM_LABEL), np.uint8(1), np.uint8(0))
    for crop, name in zip(crops, names, strict=True):
        placed = on_view(crop, view, 1, device)
        if placed is not None:
            box, probabilities = placed
            classes = (1 + most_probable(probabilities[1:])).cpu().numpy()
            own = (labels[box.slices] == LABELS[name]) & (probabilities[0] < 0.5).cpu().numpy()
            body[box.slices][own] = classes[own]
    return body

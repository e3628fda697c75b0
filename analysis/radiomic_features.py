"""The 93 radiomic features of a trabecular VOI under one versioned, hashed extraction contract.

All preparation is ours (crop, one resampling, rounding, resegmentation, bin edges); pyradiomics receives a final array
and computes formulas only. That way its values agree with the IBSI reference values (Zwanenburg et al., Radiology 2020)
in all tagged features but Kurtosis, which it states without the excess of 3.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from radiomics import imageoperations
from radiomics.featureextractor import RadiomicsFeatureExtractor
from scipy.ndimage import map_coordinates

from analysis.extraction_contract import PAPER_CONTRACT, ExtractionContract
from analysis.feature_names import FEATURE_NAMES
from analysis.refusals import reason
from analysis.results import VertebraFeatures, Voi
from analysis.volume import CtVolume

logging.getLogger("radiomics").setLevel(logging.ERROR)
LABEL = 1
__all__ = ["PAPER_CONTRACT", "ExtractionContract", "compute_features", "extract_features", "resample_voi"]


def extract_features(
    volume: CtVolume,
    voi: Voi,
    contract: ExtractionContract | None = None,
    names: Sequence[str] = FEATURE_NAMES,
) -> VertebraFeatures:
    """Features of one VOI. A VOI that cannot be described gets a reason and no values, never a wrong number."""
    contract = contract or ExtractionContract()
    hu, mask = resample_voi(volume, voi, contract.grid_mm)
    inside = mask & (hu >= contract.resegment_hu[0]) & (hu <= contract.resegment_hu[1])
    if why := _not_describable(hu, mask, inside, contract):
        return VertebraFeatures(voi.level, (), (), contract.sha256, int(inside.sum()), reason("RADIOMICS_INPUT", why))
    values = compute_features(hu, inside, contract, names)
    return VertebraFeatures(voi.level, tuple(names), values, contract.sha256, int(inside.sum()))


def resample_voi(volume: CtVolume, voi: Voi, grid_mm: float) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """HU, rounded to integers, and mask of the VOI's box on an isotropic grid that shares the box's centre."""
    spacing_mm = np.array(volume.spacing_mm)
    shape = np.array(voi.weights.shape)
    n_fine = np.ceil(shape * spacing_mm / grid_mm).astype(int) + 2
    axes = [
        (np.arange(n) - (n - 1) / 2) * grid_mm / step + (size - 1) / 2
        for n, step, size in zip(n_fine, spacing_mm, shape, strict=True)
    ]
    index = np.stack(np.meshgrid(*axes, indexing="ij"))
    mask = map_coordinates(voi.weights, index, order=1, mode="constant", output=np.float32) >= 0.5
    crop, offset = _crop(volume.hu, voi)
    hu = map_coordinates(crop, index + offset[:, None, None, None], order=1, mode="nearest", output=np.float64)
    return np.rint(hu), mask


def _crop(hu: NDArray[np.float32] | NDArray[np.int16], voi: Voi) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The VOI's box with two voxels around it, and the index of the box's corner within the crop."""
    start = np.maximum(np.array(voi.start) - 2, 0)
    stop = np.minimum(np.array(voi.start) + voi.weights.shape + 2, hu.shape)
    box = tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    return hu[box].astype(np.float32), np.array(voi.start, float) - start


def _not_describable(
    hu: NDArray[np.float64], mask: NDArray[np.bool_], inside: NDArray[np.bool_], contract: ExtractionContract
) -> str | None:
    """What pyradiomics would answer with silent numbers: NaN, flat, thin, tiny or metal-filled input."""
    if not np.isfinite(hu[mask]).all():
        return "non-finite HU in the VOI; finite values expected"
    if (n := int(inside.sum())) < contract.minimum_voxels:
        return f"{n} voxels of {contract.grid_mm} mm in the VOI; at least {contract.minimum_voxels} expected"
    if (removed := 1 - inside.sum() / mask.sum()) > contract.maximum_removed_fraction:
        allowed = contract.maximum_removed_fraction
        return f"{removed:.1%} of the VOI outside {contract.resegment_hu} HU; {allowed:.0%} allowed"
    if (slices := int(inside.any(axis=(1, 2)).sum())) < contract.minimum_slices:
        return f"{slices} slice in the VOI; at least {contract.minimum_slices} expected"
    if np.ptp(hu[inside]) == 0:
        return "all voxels of the VOI are equal; texture expected"
    return None


def compute_features(
    hu: NDArray[np.float64], mask: NDArray[np.bool_], contract: ExtractionContract, names: Sequence[str] = FEATURE_NAMES
) -> tuple[float, ...]:
    """Features of a prepared array; the mask is padded so that it never fills the array."""
    rows = np.nonzero(mask)
    box = tuple(slice(int(r.min()), int(r.max()) + 1) for r in rows)
    image = _image(np.pad(hu[box], 1), contract.grid_mm)
    roi = _image(np.pad(mask[box], 1).astype(np.uint8), contract.grid_mm)
    with _bin_edges_at(contract.bin_anchor_hu):
        found = _extractor(contract.bin_width_hu, names).execute(image, roi, label=LABEL)
    return tuple(float(found[f"original_{name}"]) for name in names)


def _image(array: NDArray[np.generic], grid_mm: float) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((grid_mm, grid_mm, grid_mm))
    return image


def _extractor(bin_width_hu: float, names: Sequence[str]) -> RadiomicsFeatureExtractor:
    extractor = RadiomicsFeatureExtractor(binWidth=bin_width_hu, additionalInfo=False)
    extractor.disableAllFeatures()
    wanted: dict[str, list[str]] = {}
    for name in names:
        family, feature = name.split("_", 1)
        wanted.setdefault(family, []).append(feature)
    extractor.enableFeaturesByName(**wanted)
    return extractor


@contextmanager
def _bin_edges_at(anchor_hu: float | None) -> Iterator[None]:
    """Let pyradiomics use bin edges anchored at a fixed HU (IBSI "FBS") while one VOI is computed."""
    if anchor_hu is None:
        yield
        return
    library, lowest = imageoperations.getBinEdges, anchor_hu

    def anchored(values: NDArray[np.float64], **settings: float) -> NDArray[np.float64]:
        width = settings["binWidth"]
        return np.arange(lowest, values.max() + 2 * width, width)

    imageoperations.getBinEdges = anchored
    try:
        yield
    finally:
        imageoperations.getBinEdges = library

"""A received series on disk -> CT volume, header and slice headers in one order; refuses what cannot be trusted."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, tzinfo
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from analysis.errors import UnusableSeriesError
from analysis.refusals import reason
from analysis.results import Reason, SeriesHeader
from analysis.volume import CtVolume
from storage.ct_geometry import MINIMUM_SLICES, stack_slices
from storage.ct_header import number, read_header, text, values
from storage.enhanced_ct import ENHANCED_CT_CLASSES, split_frames

AIR_HU = -1024.0  # what padding becomes
UNSPECIFIED = "US"  # Rescale Type, PS3.3 C.11.1.1.2
PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


@dataclass(frozen=True, slots=True, eq=False)
class CtSeries:
    """One readable series. `datasets[k]` is the header (no pixels) of slice k of `volume.hu`.

    flags : UID_MISSING, results cannot refer to the images; and, in a series that was read for outlines only, what
        forbids a density
    """

    volume: CtVolume
    header: SeriesHeader
    datasets: tuple[Dataset, ...]
    flags: tuple[Reason, ...] = ()


def load_ct_series(
    paths: Iterable[Path],
    site_timezone: tzinfo = UTC,
    *,
    outlines_only: bool = False,
    minimum_slices: int = MINIMUM_SLICES,
) -> CtSeries:
    """Read the slices of one CT series.

    Parameters
    ----------
    outlines_only : no density is wanted, so the geometry alone must be sound; an unstated unit is taken as HU, and
        what would forbid a density stands in `flags`
    minimum_slices : fewer than these are refused; the look for a phantom has its own limits and takes any number

    Raises
    ------
    UnusableSeriesError : geometry (see `stack_slices`), NOT_HU, LOSSY, PIXELS_UNREADABLE, MIXED_GEOMETRY
    """
    datasets = _without_localizers(_without_copies(_read_all(paths)))
    series_uids = {str(ds.get("SeriesInstanceUID", "")) for ds in datasets}
    if len(series_uids) != 1:
        raise UnusableSeriesError(
            "MIXED_GEOMETRY", f"{len(series_uids)} series found in one volume; exactly one expected"
        )
    stack = stack_slices(datasets, minimum_slices)
    ordered = [datasets[i] for i in stack.order]
    flags = tuple({flag.code: flag for ds in ordered for flag in _unstated_hu(ds)}.values())
    if flags and not outlines_only:
        raise UnusableSeriesError(flags[0].code, flags[0].text)
    _check_rescale(ordered)
    hu = _read_hu(ordered)
    for ds in ordered:
        _drop_pixels(ds)
    header = read_header(ordered, stack.spacing_mm, site_timezone)
    return CtSeries(CtVolume(hu, stack.affine), header, tuple(ordered), (*flags, *_missing_uids(ordered)))


def _read_all(paths: Iterable[Path]) -> list[Dataset]:
    datasets: list[Dataset] = []
    for path in paths:
        try:
            ds = dcmread(path)
        except (InvalidDicomError, OSError, EOFError, ValueError) as error:
            raise UnusableSeriesError("PIXELS_UNREADABLE", f"an instance cannot be read as DICOM: {error}") from error
        enhanced = ds.get("SOPClassUID") in ENHANCED_CT_CLASSES
        datasets.extend(split_frames(ds) if enhanced else [ds])
    return datasets


def _without_copies(datasets: Sequence[Dataset]) -> list[Dataset]:
    """Each SOP Instance (and frame) once: an instance that arrived twice is no duplicate slice."""
    return list({_identity(ds, index): ds for index, ds in enumerate(datasets)}.values())


def _identity(ds: Dataset, index: int) -> tuple[str | int, int, str | None]:
    """SOP Instance UID, frame and position; where anonymising removed the UID, every file stands for itself."""
    uid, frame = ds.get("SOPInstanceUID") or index, int(ds.get("InConcatenationNumber", 0))
    return uid, frame, text(ds, "ImagePositionPatient")


def _without_localizers(datasets: list[Dataset]) -> list[Dataset]:
    """Some scanners file the scout under the series that was planned on it."""
    slices = [ds for ds in datasets if "LOCALIZER" not in values(ds, "ImageType")]
    return slices or datasets


def _missing_uids(datasets: Sequence[Dataset]) -> Iterator[Reason]:
    named = all(datasets[0].get(keyword) for keyword in ("StudyInstanceUID", "SeriesInstanceUID"))
    uids = {(ds.get("SOPInstanceUID"), ds.get("InConcatenationNumber")) for ds in datasets if ds.get("SOPInstanceUID")}
    if len(uids) < len(datasets) or not named:
        found = f"{len(uids)} SOP Instance UIDs in {len(datasets)} slices" if named else "study or series UID is absent"
        yield reason("UID_MISSING", f"{found}; results cannot refer to the images; send the scanner's own")


def _unstated_hu(ds: Dataset) -> Iterator[Reason]:
    slope, intercept = number(ds, "RescaleSlope"), number(ds, "RescaleIntercept")
    if slope is None or intercept is None:
        yield reason("NOT_HU", f"RescaleSlope {slope}, RescaleIntercept {intercept} found; finite numbers expected")
    if text(ds, "RescaleType") == UNSPECIFIED:
        said = "RescaleType US (unspecified; converters such as ITK and GDCM write it) found"
        yield reason("NOT_HU", f"{said}; HU or none expected; send the scanner's own images")
    if text(ds, "LossyImageCompression") == "01":
        yield reason("LOSSY", "LossyImageCompression 01 found; 00 expected; send images without lossy compression")


def _check_rescale(datasets: Sequence[Dataset]) -> None:
    for ds in datasets:
        slope, intercept = _rescale(ds)
        if not np.isfinite([slope, intercept]).all() or slope <= 0:
            found = f"RescaleSlope {slope}, RescaleIntercept {intercept} found; finite numbers expected"
            raise UnusableSeriesError("NOT_HU", found)
        if (kind := text(ds, "RescaleType")) not in (None, "HU", UNSPECIFIED):
            raise UnusableSeriesError("NOT_HU", f"RescaleType {kind} found; HU expected; send the original CT images")


def _rescale(ds: Dataset) -> tuple[float, float]:
    """Slope and intercept; stored values stand for themselves where none are given."""
    slope, intercept = number(ds, "RescaleSlope"), number(ds, "RescaleIntercept")
    return 1.0 if slope is None else slope, intercept or 0.0


def _read_hu(datasets: Sequence[Dataset]) -> NDArray[np.float32]:
    hu = np.empty((len(datasets), int(datasets[0].Rows), int(datasets[0].Columns)), np.float32)
    with ThreadPoolExecutor(max_workers=2) as pool:
        for index, plane in enumerate(pool.map(_slice_hu, datasets)):
            hu[index] = plane
    return hu


def _slice_hu(ds: Dataset) -> NDArray[np.float32]:
    """Rescaled pixels of one slice; padding and everything below air become -1024 HU."""
    try:
        stored = ds.pixel_array
    except (AttributeError, ValueError, RuntimeError, NotImplementedError, TypeError) as error:
        uid = ds.get("SOPInstanceUID", "unknown")
        raise UnusableSeriesError(
            "PIXELS_UNREADABLE", f"pixels of instance {uid} cannot be decoded: {error}"
        ) from error
    if stored.shape != (int(ds.Rows), int(ds.Columns)):
        raise UnusableSeriesError(
            "PIXELS_UNREADABLE", f"pixel array {stored.shape} found; {(ds.Rows, ds.Columns)} expected"
        )
    slope, intercept = _rescale(ds)
    hu: NDArray[np.float32] = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    if (padding := _padding_value(ds, stored.dtype)) is not None:
        hu[stored == padding] = AIR_HU
    np.maximum(hu, AIR_HU, out=hu)
    return hu


def _padding_value(ds: Dataset, dtype: np.dtype[Any]) -> int | None:
    """PixelPaddingValue in the pixels' own type: some scanners write -2000 as unsigned 63536 (PS3.3 C.7.5.1.1.2)."""
    padding = number(ds, "PixelPaddingValue")
    if padding is None:
        return None
    return int(np.array(int(padding) & 0xFFFF, np.uint16).astype(dtype))


def _drop_pixels(ds: Dataset) -> None:
    for keyword in PIXEL_KEYWORDS:
        if keyword in ds:
            delattr(ds, keyword)
    # pydicom caches the decoded array on the dataset
    ds._pixel_array = None

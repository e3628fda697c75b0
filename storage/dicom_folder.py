"""A folder of DICOM images, grouped into series by their headers; whatever is no DICOM image is passed over."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from analysis.errors import UnusableSeriesError


@dataclass(frozen=True, slots=True, eq=False)
class SeriesFiles:
    """The files of one series and the header of one of its slices. `n_slices` counts the frames of enhanced images."""

    header: Dataset
    paths: tuple[Path, ...]
    n_slices: int


def find_series(folder: Path) -> tuple[SeriesFiles, ...]:
    """Every series of images below a folder, or in one file; the one with most slices first.

    Raises
    ------
    UnusableSeriesError : NO_SUITABLE_SERIES when there is no DICOM image
    """
    groups: dict[str, list[tuple[Path, Dataset]]] = {}
    for path, ds in _headers(folder):
        groups.setdefault(str(ds.get("SeriesInstanceUID", "")), []).append((path, ds))
    if not groups:
        raise UnusableSeriesError(
            "NO_SUITABLE_SERIES", f"no DICOM image found in {folder}; a folder of CT images expected"
        )
    found = [_series(members) for members in groups.values()]
    return tuple(sorted(found, key=lambda series: -series.n_slices))


def _headers(folder: Path) -> Iterator[tuple[Path, Dataset]]:
    """Headers of the images: a DICOMDIR, a report or a plan has no Rows."""
    for path in [folder] if folder.is_file() else sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            ds = dcmread(path, stop_before_pixels=True)
        except (InvalidDicomError, EOFError):
            continue
        if "Rows" in ds:
            yield path, ds


def _series(members: list[tuple[Path, Dataset]]) -> SeriesFiles:
    frames = sum(int(ds.get("NumberOfFrames") or 1) for _, ds in members)
    return SeriesFiles(members[0][1], tuple(path for path, _ in members), frames)

"""A folder of DICOM files, grouped into series by their headers; files that are no DICOM are passed over."""

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
    """Every series below a folder, the one with most slices first.

    Raises
    ------
    UnusableSeriesError : NO_SUITABLE_SERIES when there is no DICOM file
    """
    groups: dict[str, list[tuple[Path, Dataset]]] = {}
    for path, ds in _headers(folder):
        groups.setdefault(str(ds.get("SeriesInstanceUID", "")), []).append((path, ds))
    if not groups:
        raise UnusableSeriesError(
            "NO_SUITABLE_SERIES", f"no DICOM file found in {folder}; a folder of CT images expected"
        )
    found = [_series(members) for members in groups.values()]
    return tuple(sorted(found, key=lambda series: -series.n_slices))


def _headers(folder: Path) -> Iterator[tuple[Path, Dataset]]:
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            yield path, dcmread(path, stop_before_pixels=True)
        except InvalidDicomError:
            continue


def _series(members: list[tuple[Path, Dataset]]) -> SeriesFiles:
    frames = sum(int(ds.get("NumberOfFrames") or 1) for _, ds in members)
    return SeriesFiles(members[0][1], tuple(path for path, _ in members), frames)

"""The table that a radiomics model is made of: one row per study, features of two vertebrae, class by bone density.

CSV: columns patient, level, class (or bmd_mg_cm3), the features; optional study, n_voxels and the acquisition.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from analysis.classification_model import CLASS_NAMES
from analysis.errors import ModelError
from analysis.feature_names import FEATURE_NAMES


@dataclass(frozen=True, slots=True)
class Acquisition:
    """How one study was made; None is unknown."""

    manufacturer: str | None = None
    kernel: str | None = None
    kvp: float | None = None
    slice_thickness_mm: float | None = None
    spacing_between_slices_mm: float | None = None
    pixel_spacing_mm: float | None = None


@dataclass(frozen=True, slots=True)
class StudyFeatures:
    """One study: `values` by level, each in the order of FEATURE_NAMES."""

    patient: str
    study: str
    classification: str
    bmd_mg_cm3: float | None
    values: Mapping[str, tuple[float, ...]]
    n_voxels: Mapping[str, float]
    acquisition: Acquisition = Acquisition()


@dataclass(frozen=True, slots=True, eq=False)
class Cohort:
    """Studies ready for training.

    vertebrae : (studies, levels, 93); values : (studies, 93), their mean over the levels
    classes : (studies,), index into CLASS_NAMES
    left_out : studies that lack a level, with the reason in words
    """

    patients: tuple[str, ...]
    levels: tuple[str, ...]
    vertebrae: NDArray[np.float64]
    n_voxels: NDArray[np.float64]
    classes: NDArray[np.intp]
    bmd_mg_cm3: NDArray[np.float64]
    acquisitions: tuple[Acquisition, ...]
    left_out: tuple[str, ...] = ()

    @property
    def values(self) -> NDArray[np.float64]:
        return np.asarray(self.vertebrae.mean(axis=1))

    @property
    def patients_per_class(self) -> tuple[int, ...]:
        """A patient whose class changed between studies counts in each."""
        people = np.asarray(self.patients)
        return tuple(len(set(people[self.classes == k])) for k in range(len(CLASS_NAMES)))

    def part(self, rows: NDArray[np.intp]) -> "Cohort":
        """Some of the studies."""
        return Cohort(
            tuple(self.patients[i] for i in rows), self.levels, self.vertebrae[rows], self.n_voxels[rows],
            self.classes[rows], self.bmd_mg_cm3[rows], tuple(self.acquisitions[i] for i in rows), self.left_out,
        )  # fmt: skip


def make_cohort(studies: Iterable[StudyFeatures], levels: tuple[str, ...] = ("L1", "L2")) -> Cohort:
    """The studies that have all levels and finite features.

    Raises
    ------
    ModelError : no study can be used
    """
    usable, left_out = [], []
    for study in studies:
        if missing := [level for level in levels if level not in study.values]:
            left_out.append(f"{study.study}: no features of {', '.join(missing)}")
        elif not np.isfinite([study.values[level] for level in levels]).all():
            left_out.append(f"{study.study}: features that are not finite")
        else:
            usable.append(study)
    if not usable:
        raise ModelError(f"no study with features of {' and '.join(levels)}; {len(left_out)} studies without")
    return Cohort(
        patients=tuple(s.patient for s in usable),
        levels=levels,
        vertebrae=np.array([[s.values[level] for level in levels] for s in usable]),
        n_voxels=np.array([[s.n_voxels[level] for level in levels] for s in usable], float),
        classes=np.array([CLASS_NAMES.index(s.classification) for s in usable]),
        bmd_mg_cm3=np.array([np.nan if s.bmd_mg_cm3 is None else s.bmd_mg_cm3 for s in usable]),
        acquisitions=tuple(s.acquisition for s in usable),
        left_out=tuple(left_out),
    )


def class_of(bmd_mg_cm3: float, limits_mg_cm3: tuple[float, float]) -> str:
    """Osteoporosis below the lower limit, normal above the upper one."""
    low, high = limits_mg_cm3
    if bmd_mg_cm3 < low:
        return CLASS_NAMES[0]
    return CLASS_NAMES[1] if bmd_mg_cm3 <= high else CLASS_NAMES[2]


# --- CSV --------------------------------------------------------------------------------------------------------------

_NUMBERS = ("kvp", "slice_thickness_mm", "spacing_between_slices_mm", "pixel_spacing_mm")
_TEXTS = ("manufacturer", "kernel")


def read_features(path: Path, limits_mg_cm3: tuple[float, float]) -> list[StudyFeatures]:
    """The studies of a CSV file.

    Raises
    ------
    ModelError : a column is missing or a value cannot be read; the message names line and column
    """
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            _check_columns(path, reader.fieldnames or ())
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"features file {path}: {error}; expected a CSV file") from error
    studies: dict[tuple[str, str], list[tuple[int, dict[str, str]]]] = {}
    for line, row in rows:
        studies.setdefault((row["patient"], row.get("study") or row["patient"]), []).append((line, row))
    return [_study(path, key, lines, limits_mg_cm3) for key, lines in studies.items()]


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    missing = [name for name in ("patient", "level", *FEATURE_NAMES) if name not in columns]
    if "class" not in columns and "bmd_mg_cm3" not in columns:
        missing.append("class or bmd_mg_cm3")
    if missing:
        said = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise ModelError(f"features file {path}: columns missing: {said}; expected patient, level, class, 93 features")


def _study(
    path: Path, key: tuple[str, str], lines: list[tuple[int, dict[str, str]]], limits_mg_cm3: tuple[float, float]
) -> StudyFeatures:
    values, voxels = {}, {}
    for line, row in lines:
        numbers = tuple(_number(path, line, row, name) for name in FEATURE_NAMES)
        values[row["level"]] = numbers
        voxels[row["level"]] = _number(path, line, row, "n_voxels") if row.get("n_voxels") else voxel_count(numbers)
    line, first = lines[0]
    bmd = [_number(path, n, row, "bmd_mg_cm3") for n, row in lines if row.get("bmd_mg_cm3")]
    mean_bmd = float(np.mean(bmd)) if bmd else None
    known = _class(path, line, first, mean_bmd, limits_mg_cm3)
    return StudyFeatures(*key, known, mean_bmd, values, voxels, _acquisition(path, line, first))


def _acquisition(path: Path, line: int, row: Mapping[str, str]) -> Acquisition:
    manufacturer, kernel = (row.get(name) or None for name in _TEXTS)
    numbers = (_number(path, line, row, name) if row.get(name) else None for name in _NUMBERS)
    return Acquisition(manufacturer, kernel, *numbers)


def _class(
    path: Path, line: int, row: Mapping[str, str], bmd_mg_cm3: float | None, limits_mg_cm3: tuple[float, float]
) -> str:
    said = (row.get("class") or "").strip().lower()
    if said in CLASS_NAMES:
        return said
    if said or bmd_mg_cm3 is None:
        raise ModelError(f"features file {path}:{line}: class {said!r}; expected {', '.join(CLASS_NAMES)}")
    return class_of(bmd_mg_cm3, limits_mg_cm3)


def _number(path: Path, line: int, row: Mapping[str, str], name: str) -> float:
    try:
        return float(row[name])
    except (TypeError, ValueError) as error:
        raise ModelError(f"features file {path}:{line}: {name} is {row[name]!r}; a number expected") from error


def voxel_count(values: Sequence[float]) -> float:
    """Voxels of the VOI, from the features themselves: energy over the squared root mean square."""
    energy, rms = (values[FEATURE_NAMES.index(f"firstorder_{name}")] for name in ("Energy", "RootMeanSquared"))
    return round(energy / rms**2) if rms else 0.0


def write_features(studies: Iterable[StudyFeatures], path: Path) -> None:
    """Write the table that `read_features` reads."""
    columns = ["patient", "study", "level", "class", "bmd_mg_cm3", "n_voxels", *_TEXTS, *_NUMBERS, *FEATURE_NAMES]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for study in studies:
            acquired = [getattr(study.acquisition, name) for name in (*_TEXTS, *_NUMBERS)]
            for level, values in study.values.items():
                head = [study.patient, study.study, level, study.classification, study.bmd_mg_cm3]
                writer.writerow([*head, study.n_voxels[level], *acquired, *values])

"""Files that training reads: anatomies, a pool of deformed torsos, labelled and annotated CT as cases.

Made once per run folder; a run that resumes finds them there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.training.anatomy import Anatomy, load_anatomy, read_torso
from analysis.training.annotation import Annotation, annotation_from_json
from analysis.training.coarse_samples import CoarseCase
from analysis.training.deform import coarse_target, deform
from analysis.training.labelled import RawLabels, annotated_case, coarse_case, labelled_scan
from analysis.training.procedural import FIRST_SEED, PROCEDURAL, by_kind, procedural_anatomy
from analysis.training.volume_files import read_image
from analysis.vbnet import VBNetConfig

HELD_OUT = 4  # deformed torsos kept for validation
ANNOTATIONS = Path(__file__).parent / "annotations"


@dataclass(frozen=True, slots=True)
class PreparedFolder:
    """Folders of one run's prepared files."""

    path: Path

    def made(self, name: str) -> Path:
        folder = self.path / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def files(self, name: str) -> list[Path]:
        return sorted(self.made(name).glob("*.npz"))


def torso_names(folder: Path) -> list[str]:
    """Names of whole-torso label maps in a folder (`<name>_all.nii.gz` with `_vert` and `_names.txt` beside it)."""
    return sorted(path.name.removesuffix("_all.nii.gz") for path in folder.glob("*_all.nii.gz"))


def prepare_anatomies(folders: list[Path], procedural: int, prepared: PreparedFolder) -> list[Anatomy]:
    """Read and store every whole-torso label map; build `procedural` torsos beside them."""
    target = prepared.made("anatomies")
    for folder in folders:
        for name in torso_names(folder):
            if not (target / f"{name}.npz").exists():
                read_torso(folder, name).save(target / f"{name}.npz")
    for number in range(procedural):
        path = target / f"{PROCEDURAL}{FIRST_SEED + number:04d}.npz"
        if not path.exists():
            procedural_anatomy(FIRST_SEED + number, spacing_mm=1.5).save(path)
    return [load_anatomy(path) for path in prepared.files("anatomies")]


def prepare_pool(
    anatomies: list[Anatomy], count: int, config: VBNetConfig, prepared: PreparedFolder, progress: Callable[[int], None]
) -> list[Path]:
    """`count` deformed torsos at half the coarse network's spacing, each a function of its number alone."""
    folder, kinds = prepared.made("pool"), by_kind(anatomies)
    for number in range(count):
        path = folder / f"{number:04d}.npz"
        if not path.exists():
            torso = deform(_anatomy_of(number, kinds), np.random.default_rng([7, number]), config.spacing_mm / 2)
            target, level = coarse_target(torso.anatomy, 2)
            _save_torso(path, torso.anatomy, (target, level))
        progress(number + 1)
    return prepared.files("pool")[:count]


def _anatomy_of(number: int, kinds: list[list[Anatomy]]) -> Anatomy:
    kind = kinds[number % len(kinds)]
    return kind[number // len(kinds) % len(kind)]


def _save_torso(path: Path, anatomy: Anatomy, targets: tuple[np.ndarray, np.ndarray]) -> None:
    centroids = np.array(list(anatomy.centroids().values())).reshape(-1, 3)
    np.savez(
        path, tissue=anatomy.tissue, vertebra=anatomy.vertebra, part=anatomy.part, depth=anatomy.depth,
        target=targets[0], level=targets[1], centroids=centroids,
    )  # fmt: skip


def prepare_labelled(raws: list[RawLabels], config: VBNetConfig, prepared: PreparedFolder) -> list[Path]:
    """Coarse cases of labelled CT."""
    folder = prepared.made("labelled")
    for raw in raws:
        path = folder / f"{raw.name}.npz"
        if not path.exists():
            save_case(path, coarse_case(labelled_scan(raw, config.spacing_mm / 2)))
    return [folder / f"{raw.name}.npz" for raw in raws]


def annotations_in(folders: list[Path]) -> list[tuple[Path, Annotation]]:
    """CT folders that carry the name of an annotation of this project."""
    marks = {path.stem: path for path in sorted(ANNOTATIONS.glob("*.json"))}
    found = [folder for folder in folders if folder.name in marks]
    return [(folder, annotation_from_json(marks[folder.name].read_text())) for folder in found]


def prepare_annotated(marked: list[tuple[Path, Annotation]], prepared: PreparedFolder) -> list[Path]:
    """Coarse cases of CT with marked vertebrae and no label map."""
    folder = prepared.made("annotated")
    paths = []
    for place, annotation in marked:
        path = folder / f"{place.name}.npz"
        ct = place / "ct.nii.gz"
        if not path.exists():
            save_case(path, annotated_case(place.name, read_image(ct if ct.exists() else place), annotation))
        paths.append(path)
    return paths


def save_case(path: Path, case: CoarseCase) -> None:
    arrays: dict[str, Any] = dict(case.fine)
    np.savez(
        path, target=case.target, level=case.level, centroids=case.centroids, centroids_known=case.centroids_known,
        **arrays,
    )  # fmt: skip

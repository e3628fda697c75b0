"""Procedurally built torsos (`analysis.simulation`) as anatomies to paint: more rib cages, variants and curvatures."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from analysis.simulation.marrow import BODY_POSTERIOR
from analysis.simulation.organs import Tissue
from analysis.simulation.patient import random_patient
from analysis.simulation.skeleton import Part
from analysis.simulation.torso import Torso, make_torso
from analysis.training.anatomy import BODY, CODE, POSTERIOR, Anatomy

# The simulated test sets draw their patients from 7000 upwards; training stays below.
FIRST_SEED, LAST_SEED = 100, 6999
PROCEDURAL = "procedural"  # names of built anatomies begin with this
FIELDS = (("T1", "S"), ("T10", "S"), ("T1", "L3"), ("T7", "S"))

_TISSUES = {
    Tissue.LUNG: "lung", Tissue.LIVER: "liver", Tissue.SPLEEN: "spleen", Tissue.KIDNEY: "kidney",
    Tissue.AORTA: "artery", Tissue.VEIN: "vein", Tissue.HEART: "heart", Tissue.BOWEL: "small bowel",
    Tissue.BOWEL_GAS: "colon", Tissue.STOOL: "colon", Tissue.STOMACH: "stomach", Tissue.PANCREAS: "gland",
    Tissue.GALLBLADDER: "gallbladder", Tissue.BLADDER: "bladder", Tissue.DISC: "disc", Tissue.CSF: "canal",
    Tissue.CORD: "canal", Tissue.CARTILAGE: "cartilage", Tissue.PARASPINAL: "back muscle", Tissue.MUSCLE: "muscle",
}  # fmt: skip
_PARTS = {Part.SACRUM: "sacrum", Part.RIB: "rib", Part.PELVIS: "other bone", Part.OTHER: "other bone"}
_OUTSIDE = (Tissue.AIR, Tissue.SKIN, Tissue.FAT, Tissue.TABLE, Tissue.MATTRESS)


def procedural_anatomy(seed: int, spacing_mm: float = 2.0) -> Anatomy:
    """The torso of one seed on a grid of `spacing_mm`; its fine spine grid has half of that."""
    if not FIRST_SEED <= seed <= LAST_SEED:
        raise ValueError(f"seed {seed} is not one of training's ({FIRST_SEED} to {LAST_SEED})")
    first, last = FIELDS[seed % len(FIELDS)]
    return anatomy_of(make_torso(random_patient(seed, first, last).torso, spacing_mm / 2), f"{PROCEDURAL}{seed}")


def anatomy_of(torso: Torso, name: str) -> Anatomy:
    """Label maps of a torso on its coarse grid, in the words of `Anatomy`."""
    table = np.zeros(256, np.uint8)
    for kind, code in _TISSUES.items():
        table[int(kind)] = CODE[code]
    soft = table[torso.organs.tissue]
    spacing_mm = torso.organs.grid.spacing_mm
    inside = ~np.isin(torso.organs.tissue, [int(t) for t in _OUTSIDE])
    depth = np.clip(ndimage.distance_transform_edt(~inside) * spacing_mm, 0, 255).astype(np.uint8)
    box = tuple(slice(c, c + n // 2) for c, n in zip(torso.corner, torso.spine.labels.shape, strict=True))
    soft[box] = table[torso.spine_tissue[::2, ::2, ::2]]
    tissue = _with_bone(soft, torso.bones.part, torso.bones.distance)
    tissue[box] = _with_bone(soft[box], torso.spine.part[::2, ::2, ::2], torso.spine.distance[::2, ::2, ::2])
    part, vertebra = np.zeros_like(tissue), np.zeros_like(tissue)
    body = torso.body[::2, ::2, ::2]
    part[box] = np.where(body == BODY_POSTERIOR, POSTERIOR, np.where(body > 0, BODY, 0))
    vertebra[box] = np.where(body > 0, torso.spine.labels[::2, ::2, ::2], 0)
    tissue[part > 0] = CODE["vertebra"]
    return Anatomy(name, spacing_mm, tissue, vertebra, part, depth, soft)


def _with_bone(soft: NDArray[np.uint8], part: NDArray[np.uint8], distance: NDArray[np.float32]) -> NDArray[np.uint8]:
    tissue = soft.copy()
    for kind, name in _PARTS.items():
        tissue[(part == int(kind)) & (distance <= 0)] = CODE[name]
    return tissue


def by_kind(anatomies: Sequence[Anatomy]) -> list[list[Anatomy]]:
    """Label maps of people, then built torsos, where there are any: many built ones shall not crowd out the others."""
    built = [anatomy for anatomy in anatomies if anatomy.name.startswith(PROCEDURAL)]
    real = [anatomy for anatomy in anatomies if not anatomy.name.startswith(PROCEDURAL)]
    return [kind for kind in (real, built) if kind]

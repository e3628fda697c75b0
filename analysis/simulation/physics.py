"""From label maps to CT numbers: tissue HU, bone painted with the share of cortex and marrow in each voxel, the table.

Tissue HU: means measured on native and contrast CT at 120 kV. Cancellous bone: HU = sigma * density + beta.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from analysis.simulation.organs import Tissue
from analysis.simulation.shapes import Field
from analysis.simulation.skeleton import BoneMap, Part
from analysis.simulation.torso import Torso


class Phase(StrEnum):
    NATIVE = "native"
    ARTERIAL = "arterial"
    PORTAL = "portal"


_NATIVE_HU = {
    Tissue.AIR: -1000, Tissue.SKIN: 20, Tissue.FAT: -105, Tissue.MUSCLE: 52, Tissue.LUNG: -830, Tissue.LIVER: 55,
    Tissue.SPLEEN: 45, Tissue.KIDNEY: 32, Tissue.AORTA: 42, Tissue.VEIN: 40, Tissue.HEART: 42, Tissue.BOWEL: 25,
    Tissue.BOWEL_GAS: -980, Tissue.STOOL: 10, Tissue.STOMACH: 25, Tissue.PANCREAS: 38, Tissue.GALLBLADDER: 8,
    Tissue.BLADDER: 5, Tissue.DISC: 78, Tissue.CSF: 12, Tissue.CORD: 36, Tissue.CARTILAGE: 110, Tissue.PARASPINAL: 42,
    Tissue.TABLE: -120, Tissue.MATTRESS: -890, Tissue.BONE: 700, Tissue.METAL: 3071, Tissue.CEMENT: 1900,
    Tissue.VISCERAL_FAT: -102,
}
_ENHANCED_HU = {
    Phase.ARTERIAL: {Tissue.AORTA: 320, Tissue.VEIN: 60, Tissue.HEART: 180, Tissue.KIDNEY: 150, Tissue.LIVER: 65,
                     Tissue.SPLEEN: 125, Tissue.PANCREAS: 90},
    Phase.PORTAL: {Tissue.AORTA: 155, Tissue.VEIN: 145, Tissue.HEART: 140, Tissue.KIDNEY: 190, Tissue.LIVER: 105,
                   Tissue.SPLEEN: 120, Tissue.PANCREAS: 85, Tissue.MUSCLE: 62, Tissue.PARASPINAL: 50},
}


@dataclass(frozen=True, slots=True)
class TissueSpec:
    """CT numbers of one patient."""

    phase: Phase = Phase.NATIVE
    fat_in_muscle: float = 0.1                   # of the paraspinal muscles, 0..0.6
    fat_in_liver: float = 0.0                    # steatosis lowers the liver by about 1 HU per percent
    cortex_hu: float = 1150.0
    body_cortex_mm: float = 0.45
    oral_contrast: bool = False
    sigma_hu_per_mg: float = 1.30                # the true line of this scan
    beta_hu: float = 2.0
    jitter_hu: float = 4.0                       # between patients, per tissue
    seed: int = 0


def tissue_table(spec: TissueSpec) -> NDArray[np.float32]:
    """HU by tissue code for one patient."""
    hu = {**_NATIVE_HU, **_ENHANCED_HU.get(spec.phase, {})}
    rng = np.random.default_rng([spec.seed, 17])
    table = np.zeros(max(Tissue) + 1, np.float32)
    for tissue in Tissue:
        soft = -50 < hu[tissue] < 400
        table[tissue] = hu[tissue] + (spec.jitter_hu * float(rng.normal()) if soft else 0.0)
    table[Tissue.PARASPINAL] -= 150 * spec.fat_in_muscle
    table[Tissue.LIVER] -= 100 * spec.fat_in_liver
    if spec.oral_contrast:
        table[Tissue.BOWEL], table[Tissue.STOMACH] = 140, 220
    return table


# shell thickness in mm (0: from the spec), and core HU above that of the marrow line, by bone part
_SHELL_MM = {Part.POSTERIOR: 1.0, Part.BODY: 0.0, Part.SACRUM: 0.8, Part.RIB: 0.9, Part.PELVIS: 1.3, Part.OTHER: 1.2}
_CORE_DENSITY_SHARE = {Part.POSTERIOR: 1.7, Part.BODY: 1.0, Part.SACRUM: 0.75, Part.RIB: 1.1, Part.PELVIS: 1.0,
                       Part.OTHER: 1.1}


def paint_bone(soft_hu: Field, bones: BoneMap, spec: TissueSpec, density_mg_cm3: Field | float) -> Field:
    """Bone over soft tissue: shell and core by their share of each voxel, from the distance to the surface."""
    codes = range(max(Part) + 1)
    shell = np.array([_SHELL_MM.get(Part(c), 0.0) or spec.body_cortex_mm if c else 0.0 for c in codes], np.float32)
    share = np.array([_CORE_DENSITY_SHARE[Part(c)] if c else 0.0 for c in codes], np.float32)
    near = np.flatnonzero(bones.distance.ravel() < bones.grid.spacing_mm)
    inward = -bones.distance.ravel()[near] / bones.grid.spacing_mm
    part = bones.part.ravel()[near]
    whole = np.clip(inward + 0.5, 0, 1)
    core = np.clip(inward - shell[part] / bones.grid.spacing_mm + 0.5, 0, 1)
    mean = density_mg_cm3 if isinstance(density_mg_cm3, float) else density_mg_cm3.ravel()[near]
    marrow = np.where(part == Part.BODY, mean, mean * share[part])
    core_hu = spec.sigma_hu_per_mg * marrow + spec.beta_hu
    out = soft_hu.ravel().copy()
    out[near] = (1 - whole) * out[near] + (whole - core) * spec.cortex_hu + core * core_hu
    return np.asarray(out.reshape(soft_hu.shape), dtype=np.float32)


def paint_torso(torso: Torso, spec: TissueSpec, mean_density_mg_cm3: float) -> tuple[Field, Field]:
    """HU on the coarse and on the fine grid."""
    table = tissue_table(spec)
    rng = np.random.default_rng([spec.seed, 23])
    coarse_soft = table[torso.organs.tissue]
    lung = torso.organs.tissue == Tissue.LUNG
    coarse_soft[lung] += np.abs(rng.normal(0, 60, int(lung.sum()))).astype(np.float32) - 35
    stool = torso.organs.tissue == Tissue.STOOL
    coarse_soft[stool] += rng.normal(-40, 90, int(stool.sum())).astype(np.float32)
    coarse = paint_bone(coarse_soft, torso.bones, spec, mean_density_mg_cm3)
    z, y, x = (slice(c, c + n // 2) for c, n in zip(torso.corner, torso.spine.grid.shape, strict=True))
    fine_soft = table[torso.spine_tissue]
    lung_fine = torso.spine_tissue == Tissue.LUNG
    fine_soft[lung_fine] = coarse_soft[z, y, x].repeat(2, 0).repeat(2, 1).repeat(2, 2)[lung_fine]
    density = np.where(torso.spine.part == Part.BODY, torso.density_mg_cm3, np.float32(mean_density_mg_cm3))
    fine = paint_bone(fine_soft, torso.spine, spec, density)
    np.copyto(fine, torso.special_hu, where=np.isfinite(torso.special_hu))
    return coarse, fine


def add_table(coarse_hu: Field, torso: Torso) -> None:
    """A mattress and a carbon-fibre table top (2-mm shells round foam) under the body, in the scanner's frame."""
    grid = torso.organs.grid
    body_rows = np.flatnonzero((torso.organs.tissue > 0).any(axis=(0, 2)))
    top = grid.axis_mm(1)[body_rows[-1]] + 1.0
    x, y = grid.axis_mm(2)[None, :], grid.axis_mm(1)[:, None]
    depth = y - top + 0.00035 * (x - x.mean()) ** 2
    table = np.full(depth.shape, -1000.0, np.float32)
    for low, high, hu in ((0, 7, -890), (7, 9.5, -60), (9.5, 24, -930), (24, 26.5, -60)):
        share = np.clip(np.minimum(depth - low, high - depth) / grid.spacing_mm + 0.5, 0, 1)
        table += (share * (hu + 1000)).astype(np.float32)
    np.copyto(coarse_hu, table[None], where=torso.organs.tissue == Tissue.AIR)

"""Calibration phantoms whose certificate values are public, and the empty form for the one whose values are not.

Certificates are made for each unit: these are the values of the units named here. Another unit of the same type needs
its own certificate in the configuration. Rod diameter and pitch are loose priors (no drawing is public), therefore
`geometry_verified` is False everywhere.

Sources: rod values of the units #4541A, #4408, #BDC-71, #BDC-106, #G2730 and of the B-MAS200 as published with the
open calibration code of the Bone Imaging Laboratory, Calgary (github.com/Bonelab/Ogo, `Helper.get_phantom`);
Siemens OSTEO: two-point insert, 0 and 200 mg/cm3 hydroxyapatite. Mindways equations: QCT PRO User Guide v5.0 (2011).
"""

from dataclasses import dataclass
from datetime import datetime

from analysis.results import Material, PhantomSpec, RodSpec


@dataclass(frozen=True, slots=True)
class PhantomType:
    """A kind of phantom. `rods` is empty where the certificate values are not public and the site must enter them."""

    name: str
    material: Material
    rods: tuple[RodSpec, ...]
    rod_diameter_mm: float
    rod_pitch_mm: float
    source: str


def _single_density(*densities_mg_cm3: float) -> tuple[RodSpec, ...]:
    return tuple(RodSpec(chr(ord("A") + i), density) for i, density in enumerate(densities_mg_cm3))


MINDWAYS_MODEL_3_CT = PhantomType(
    "Mindways Model 3 CT",
    Material.K2HPO4,
    (
        RodSpec("A", -51.83, 1012.25),
        RodSpec("B", -53.40, 1056.95),
        RodSpec("C", 58.88, 1103.57),
        RodSpec("D", 157.05, 1119.52),
        RodSpec("E", 375.83, 923.20),
    ),
    19.0,
    30.0,
    "units #4541A and #4560",
)
MINDWAYS_MODEL_3_QA = PhantomType(
    "Mindways Model 3 QA",
    Material.K2HPO4,
    (
        RodSpec("A", 58.88, 1103.57),
        RodSpec("B", -53.40, 1056.95),
        RodSpec("C", 157.05, 1119.52),
        RodSpec("D", 157.13, 1120.10),
    ),
    19.0,
    30.0,
    "unit #4408",
)
MINDWAYS_MODEL_4 = PhantomType(
    "Mindways Model 4", Material.K2HPO4, (), 19.0, 30.0, "no public values: enter the rods of your certificate"
)
QRM_BDC_3 = PhantomType("QRM-BDC/3", Material.HA, _single_density(100.0, 400.0, 800.0), 18.0, 30.0, "unit #BDC-71")
QRM_BDC_6 = PhantomType(
    "QRM-BDC/6", Material.HA, _single_density(0.0, 100.0, 200.0, 400.0, 600.0, 800.0), 18.0, 30.0, "unit #BDC-106"
)
IMAGE_ANALYSIS_QCT_3D_PLUS = PhantomType(
    "Image Analysis QCT-3D Plus", Material.HA, _single_density(8.0, 97.3, 189.8), 18.0, 35.0, "unit #G2730"
)
B_MAS200 = PhantomType(
    "Kyoto Kagaku B-MAS200", Material.HA, _single_density(0.0, 50.0, 100.0, 150.0, 200.0), 18.0, 30.0, "nominal values"
)
SIEMENS_OSTEO = PhantomType(
    "Siemens OSTEO",
    Material.HA,
    _single_density(0.0, 200.0),
    18.0,
    20.0,
    "nominal values; two points, no fit diagnostics",
)

PHANTOM_TYPES: dict[str, PhantomType] = {
    kind.name: kind
    for kind in (
        MINDWAYS_MODEL_3_CT,
        MINDWAYS_MODEL_3_QA,
        MINDWAYS_MODEL_4,
        QRM_BDC_3,
        QRM_BDC_6,
        IMAGE_ANALYSIS_QCT_3D_PLUS,
        B_MAS200,
        SIEMENS_OSTEO,
    )
}


def phantom_spec(
    serial: str, phantom_type: str, rods: tuple[RodSpec, ...] = (), valid_from: datetime | None = None
) -> PhantomSpec:
    """The specification of one unit; `rods` from its certificate replace the published values of its type.

    Raises
    ------
    ValueError : unknown type, or a type without public values and no `rods` given
    """
    if phantom_type not in PHANTOM_TYPES:
        raise ValueError(f"phantom type {phantom_type!r} is not one of {sorted(PHANTOM_TYPES)}")
    kind = PHANTOM_TYPES[phantom_type]
    if not (rods or kind.rods):
        raise ValueError(f"{phantom_type} has no public rod values; enter those of the certificate of unit {serial}")
    return PhantomSpec(
        serial=serial,
        phantom_type=kind.name,
        material=kind.material,
        rods=rods or kind.rods,
        rod_diameter_mm=kind.rod_diameter_mm,
        rod_pitch_mm=kind.rod_pitch_mm,
        valid_from=valid_from,
    )

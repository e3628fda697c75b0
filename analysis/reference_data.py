"""Published populations for Z-score and percentile: only tables whose numbers and scale are sourced.

K2HPO4- and hydroxyapatite-equivalent populations are kept apart and never converted. Where no table fits (age, sex,
material) there is no Z-score; nothing is interpolated between age groups and nothing is extrapolated.
No T-score: QCT must not be used with the WHO classes (ISCD positions).
"""

from dataclasses import dataclass
from math import erf, sqrt

from analysis.refusals import reason
from analysis.results import Material, Reason, Reference


@dataclass(frozen=True, slots=True)
class Population:
    """One age group of one published table; ages are completed years, `age_to` not included."""

    name: str
    source: str
    material: Material
    sex: str
    age_from: float
    age_to: float
    mean_mg_cm3: float
    sd_mg_cm3: float


ADULT_YEARS = 20.0

BUDOFF = "Budoff MJ et al., Acad Radiol 2012;19(2)"
BUDOFF_NAME = "US adults, L1-L3, QCT with an Image Analysis hydroxyapatite phantom"
CHINA_MEN = "China QCT programme, men (abstract: spine QCT criteria in 50 682 men)"
CHINA_NAME = "Chinese men, L1-L2, QCT with Mindways Model 4"

POPULATIONS: tuple[Population, ...] = (
    Population(BUDOFF_NAME, BUDOFF, Material.HA, "F", 35, 45, 177.4, 32.5),
    Population(BUDOFF_NAME, BUDOFF, Material.HA, "F", 45, 55, 159.8, 37.8),
    Population(BUDOFF_NAME, BUDOFF, Material.HA, "F", 55, 65, 140.5, 22.8),
    Population(BUDOFF_NAME, BUDOFF, Material.HA, "F", 65, 75, 120.0, 32.4),
    Population(BUDOFF_NAME, BUDOFF, Material.HA, "M", 35, 45, 164.1, 34.9),
    Population(BUDOFF_NAME, BUDOFF, Material.HA, "M", 45, 55, 149.5, 33.7),
    Population(BUDOFF_NAME, BUDOFF, Material.HA, "M", 55, 65, 131.8, 26.2),
    Population(BUDOFF_NAME, BUDOFF, Material.HA, "M", 65, 75, 129.5, 33.0),
    Population(CHINA_NAME, CHINA_MEN, Material.K2HPO4, "M", 20, 30, 173.11, 28.56),
)


def find_reference(bmd_mg_cm3: float, material: Material, sex: str | None, age_years: float | None) -> Reference | None:
    """Z-score and percentile in the first population that fits; None when none does or age or sex is unknown.

    The percentile assumes a normal distribution within the age group.
    """
    if sex is None or age_years is None:
        return None
    for group in POPULATIONS:
        if group.material == material and group.sex == sex and group.age_from <= age_years < group.age_to:
            z_score = (bmd_mg_cm3 - group.mean_mg_cm3) / group.sd_mg_cm3
            name = f"{group.name}, {sex}, {group.age_from:g}-{group.age_to - 1:g} years"
            return Reference(z_score, 50.0 * (1.0 + erf(z_score / sqrt(2.0))), name, group.source)
    return None


def unknown_person(sex: str | None, age_years: float | None) -> tuple[Reason, ...]:
    """Why no Z-score can be given whatever the population: sex or age missing, or younger than any adult."""
    if sex not in ("F", "M"):
        return (reason("REFERENCE_UNKNOWN", f"patient's sex {sex or 'absent'}; F or M expected for a Z-score"),)
    if age_years is None or age_years < ADULT_YEARS:
        age = "absent" if age_years is None else f"{age_years:.0f} years"
        return (reason("REFERENCE_UNKNOWN", f"patient's age {age}; at least {ADULT_YEARS:g} years expected"),)
    return ()

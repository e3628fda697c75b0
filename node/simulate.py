"""`qct-node simulate`: phantom scans and patients as DICOM CT series, with the truth beside them.

The truth of the series in `DIR` is `DIR.truth.json`, so that the folder holds nothing but DICOM and can be sent whole.

Phantom and patient share one physics: the same tube voltage gives both the same line between density and HU.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydicom import Dataset

from analysis.errors import ConfigError
from analysis.simulation.marrow import MarrowSpec
from analysis.simulation.organs import BuildSpec
from analysis.simulation.patient import PatientSpec, SimulatedPatient, simulate_patient
from analysis.simulation.phantom_scan import (
    WATER_MG_CM3,
    Acquisition,
    PhantomScanSpec,
    SimulatedPhantom,
    sigma_ct_of,
    simulate_phantom,
)
from analysis.simulation.physics import Phase, TissueSpec
from analysis.simulation.scanner import AcquisitionSpec
from analysis.simulation.torso import TorsoSpec
from node.analysis_setup import find_phantom, site_timezone
from node.config import Config
from node.nifti import write_nifti
from node.report import write_json
from node.simulated_series import SimulatedIdentity, default_header, header_like, write_series
from storage.ct_header import acquired_utc, number

BETA_CT_HU = 0.4  # HU of water with no salt on the simulated scanner: beta_ref + 999.6 below
PHANTOM_BEFORE_PATIENT = timedelta(days=2)


@dataclass(frozen=True, slots=True)
class PhantomOrder:
    """What `simulate phantom` was asked for."""

    out: Path
    like: Path | None = None
    serial: str = "4541A"
    kvp: float | None = None
    slices: int = 40
    noise_hu: float = 12.0
    acquired: datetime | None = None
    seed: int = 1


@dataclass(frozen=True, slots=True)
class PatientOrder:
    """What `simulate patient` was asked for."""

    out: Path
    like: Path | None = None
    bmd_mg_cm3: float = 110.0
    levels: str = "T10-S"
    thickness_mm: float = 1.25
    contrast: bool = False
    acquired: datetime | None = None
    seed: int = 1


def write_phantom(order: PhantomOrder, config: Config) -> SimulatedPhantom:
    """Simulate one phantom scan and write it; the truth holds the rods and the line."""
    like = header_like(order.like) if order.like else default_header()
    acquired = order.acquired or _when(like, order.like, config, PHANTOM_BEFORE_PATIENT)
    kvp = order.kvp or number(like, "KVP") or 120.0
    phantom = find_phantom(config, order.serial, acquired)
    acquisition = Acquisition(kvp=kvp, slices=order.slices, noise_hu=order.noise_hu, seed=order.seed)
    scan = simulate_phantom(PhantomScanSpec(phantom, beta_ref=BETA_CT_HU - WATER_MG_CM3, acquisition=acquisition))
    identity = SimulatedIdentity(
        "QCT-PHANTOM-1", "QCT^PHANTOM", f"QCT PHANTOM {order.serial}", _aware(acquired), kvp=kvp
    )
    write_series(scan.volume, like, identity, order.out)
    rods = zip(phantom.rods, scan.rod_hu, scan.rod_centres_lps_mm, strict=True)
    truth = {
        "phantom_serial": order.serial,
        "sigma_ref": scan.sigma_ref,
        "beta_ref": scan.beta_ref,
        "rods": [{"name": rod.name, "hu": hu, "centre_lps_mm": list(centre)} for rod, hu, centre in rods],
    }
    write_json(truth, beside(order.out, "truth.json"))
    return scan


def write_patient(order: PatientOrder, config: Config | None = None) -> SimulatedPatient:
    """Simulate one patient and write the CT, the truth and the true label map."""
    like = header_like(order.like) if order.like else default_header()
    acquired = order.acquired or _when(like, order.like, config or Config(), timedelta(0))
    kvp = number(like, "KVP") or 120.0
    patient = simulate_patient(patient_spec(order, kvp))
    identity = SimulatedIdentity(
        f"SIM-{order.seed:04d}", f"SIMULATED^{order.seed:04d}", "SIMULATED ABDOMEN", _aware(acquired), kvp=kvp,
        patient_sex="M" if patient.spec.torso.spine.male else "F", patient_birth_date=f"{acquired.year - 62}0101",
        contrast_bolus_agent="",
    )  # fmt: skip
    write_series(patient.volume, like, identity, order.out)
    write_json(_patient_truth(patient), beside(order.out, "truth.json"))
    write_nifti(beside(order.out, "labels.nii.gz"), patient.labels, patient.volume.affine)
    return patient


def patient_spec(order: PatientOrder, kvp: float) -> PatientSpec:
    """A usual patient of either sex with the ordered density in L1 and L2."""
    first, _, last = order.levels.partition("-")
    if not last:
        raise ConfigError(f"levels {order.levels!r} found; two levels such as T10-S expected")
    bmd = order.bmd_mg_cm3
    male = order.seed % 2 == 0
    base = TorsoSpec()
    torso = replace(
        base,
        spine=replace(base.spine, male=male, size=0.95 + 0.02 * (order.seed % 6)),
        build=BuildSpec(male=male, bowel_seed=order.seed),
        marrow=MarrowSpec(density_mg_cm3=bmd, densities_mg_cm3=(("L1", bmd + 1.0), ("L2", bmd - 1.0))),
        first=first,
        last=last,
        seed=order.seed,
    )
    phase = Phase.PORTAL if order.contrast else Phase.NATIVE
    tissue = TissueSpec(phase=phase, sigma_hu_per_mg=sigma_ct_of(kvp), beta_hu=BETA_CT_HU, seed=order.seed)
    acquisition = AcquisitionSpec(
        slice_interval_mm=order.thickness_mm, slice_thickness_mm=order.thickness_mm, seed=order.seed
    )
    return PatientSpec(torso, tissue, acquisition, model_spacing_mm=1.0)


def _patient_truth(patient: SimulatedPatient) -> dict[str, object]:
    tissue = patient.spec.tissue
    return {
        "sigma_ct": tissue.sigma_hu_per_mg,
        "beta_ct": tissue.beta_hu,
        "vertebrae": [
            {
                "level": v.name,
                "bmd_mg_cm3": v.density_mg_cm3,
                "centroid_lps_mm": list(v.centroid_lps_mm),
                "complete": v.complete,
            }
            for v in patient.truth
            if v.density_mg_cm3 == v.density_mg_cm3  # NaN: the core lies outside the volume
        ],
    }


def beside(folder: Path, name: str) -> Path:
    """A file next to a folder, named after it."""
    return folder.with_name(f"{folder.name}.{name}")


def _when(like: Dataset, folder: Path | None, config: Config, before: timedelta) -> datetime:
    acquired = acquired_utc(like, site_timezone(config)) if folder else None
    return (acquired or datetime.now(UTC)) - before


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

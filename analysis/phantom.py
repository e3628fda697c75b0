"""Find the calibration phantom in a CT volume, follow its rods, measure and name each of them.

Order of work: circles in a few thick sections (`rod_candidates`), chains that can be the phantom (`rod_pattern`),
straight parallel axes through the volume (`rod_tracking`), statistics (`rod_sampling`), set-up (`phantom_setup`).
Rods are named by their place in the row first; the certificate's least-squares residual must confirm the order.
"Not a phantom" (`PhantomNotFoundError`) and "a phantom, but unusable" (`PhantomUnusableError`) are different answers.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.errors import PhantomNotFoundError, PhantomUnusableError
from analysis.phantom_setup import Surroundings, describe_surroundings
from analysis.refusals import reason
from analysis.results import PhantomMeasurement, PhantomSpec, Reason, RodMeasurement
from analysis.rod_candidates import Section, section
from analysis.rod_fit import Assignment, assignment_of, best_assignment
from analysis.rod_pattern import Placement, physical_residual_hu
from analysis.rod_sampling import RodSample, sample_rods, usable_slices
from analysis.rod_search import POSSIBLE_HU, Find, find_phantom, looks_at
from analysis.rod_tracking import RodAxes, jump_mm, recentred, track_rods
from analysis.volume import CtVolume

QUICK_SECTIONS = 3
# Rods followed for less than this, or than this share of a short scan, are no rods
SHORTEST_RODS_MM, SHORTEST_RODS_SHARE = 40.0, 0.4


@dataclass(frozen=True, slots=True)
class PhantomLimits:
    """When a phantom scan cannot be measured at all."""

    min_slices: int = 5
    max_tilt_deg: float = 8.0
    max_misfit_mm: float = 1.5  # of the rods from straight parallel axes: the phantom moved
    max_disturbed_slices: float = 0.3
    max_sd_ratio: float = 2.5  # SD of one rod over the median SD of all: half of it is something else
    max_outliers: float = 0.01  # of a rod's voxels: void, metal
    max_air_gap_mm: float = 10.0
    max_identity_see_hu: float = 40.0  # beyond it the rods are not those of the certificate
    min_assignment_ratio: float = 4.0
    max_permuted_see_hu: float = 10.0  # of a naming that contradicts the unverified drawing


def looks_like_phantom(volume: CtVolume, specs: tuple[PhantomSpec, ...]) -> bool:
    """Quick answer from a few sections: do the rods of one of these phantoms lie in the volume?"""
    hu = volume.hu.astype(np.float32, copy=False)
    looks = tuple(looks_at(hu, volume.spacing_mm, QUICK_SECTIONS))
    finds = (find for spec in specs if len(spec.rods) >= 3 for find in find_phantom(looks, spec))
    return any(f.is_phantom and _first_straight(hu, volume.spacing_mm, f) is not None for f in finds)


def measure_phantom(volume: CtVolume, spec: PhantomSpec, limits: PhantomLimits | None = None) -> PhantomMeasurement:
    """Mean HU and its error of every certified rod.

    Raises
    ------
    PhantomNotFoundError : NOT_A_PHANTOM
    PhantomUnusableError : RODS_OUTSIDE_FOV, ROD_DISTURBED, TOO_FEW_PHANTOM_SLICES, WRONG_PHANTOM, PHANTOM_TILTED,
        PHANTOM_MOVED, AIR_GAP, ROD_ASSIGNMENT_AMBIGUOUS, PHANTOM_TYPE_UNSUPPORTED
    """
    limits = limits or PhantomLimits()
    _check_type(spec)
    hu = volume.hu.astype(np.float32, copy=False)
    placement, axes = _followed(hu, volume.spacing_mm, spec)
    _check_axes(axes, jump_mm(axes, hu, volume.spacing_mm), limits)
    slices = usable_slices(axes, len(hu), volume.spacing_mm[0])
    _check_slices(slices, limits)
    samples = sample_rods(hu, volume.spacing_mm, axes, slices)
    named = _name(samples, placement, spec, limits)
    around = describe_surroundings(
        _middle_section(hu, volume, slices), _middle_centres(axes, volume, slices), axes.radius_mm
    )
    _check_gap(around, limits)
    return _result(volume, spec, (axes, slices, samples), (named, around))


def _check_type(spec: PhantomSpec) -> None:
    if len(spec.rods) < 2:
        text = f"{spec.phantom_type} {spec.serial} has {len(spec.rods)} rods; a line needs two or more"
        raise PhantomUnusableError("PHANTOM_TYPE_UNSUPPORTED", text)


def _followed(
    hu: NDArray[np.float32], spacing_mm: tuple[float, float, float], spec: PhantomSpec
) -> tuple[Placement, RodAxes]:
    """The first row that goes straight through the slices, with its axes."""
    best = None
    for find in find_phantom(looks_at(hu, spacing_mm), spec):
        best = best or find
        straight = _first_straight(hu, spacing_mm, find) if find.is_phantom else None
        if straight is not None:
            placement, axes = straight
            _check_inside(placement)
            return placement, recentred(axes, hu, spacing_mm)
    raise _not_found(best, spec)


def _not_found(best: Find | None, spec: PhantomSpec) -> PhantomNotFoundError:
    if best is None or best.is_phantom:
        text = "circles in a row, but no straight rods along the slices; expected parallel rods; check the series"
    else:
        text = (
            f"{best.explanation}; expected the {len(spec.rods)} parallel rods of {spec.phantom_type} {spec.serial}; "
            "check that this series shows the phantom"
        )
    return PhantomNotFoundError("NOT_A_PHANTOM", text)


def _first_straight(
    hu: NDArray[np.float32], spacing_mm: tuple[float, float, float], find: Find
) -> tuple[Placement, RodAxes] | None:
    """Anatomy makes rows of circles too, but none that go on unchanged for centimetres."""
    enough_mm = min(SHORTEST_RODS_MM, SHORTEST_RODS_SHARE * len(hu) * spacing_mm[0])
    for placement in find.placements:
        axes = track_rods(hu, spacing_mm, find.section, placement.positions_mm, placement.radius_mm)
        if axes is not None and np.ptp(axes.blocks_mm) >= enough_mm:
            return placement, axes
    return None


def _check_inside(placement: Placement) -> None:
    outside = placement.inside.count(False)
    if outside:
        text = f"{outside} of {len(placement.inside)} rods lie outside the field of view; centre the phantom"
        raise PhantomUnusableError("RODS_OUTSIDE_FOV", text)


def _check_axes(axes: RodAxes, jump: float, limits: PhantomLimits) -> None:
    if axes.tilt_deg > limits.max_tilt_deg:
        text = f"rods lie {axes.tilt_deg:.1f} degrees oblique, at most {limits.max_tilt_deg:.0f} allowed; straighten it"
        raise PhantomUnusableError("PHANTOM_TILTED", text)
    misfit = max(float(axes.misfit_mm.max()), jump)
    if misfit > limits.max_misfit_mm:
        text = (
            f"rods lie up to {misfit:.1f} mm off straight lines, expected at most {limits.max_misfit_mm:.1f}; "
            "the phantom moved, scan it again"
        )
        raise PhantomUnusableError("PHANTOM_MOVED", text)


def _check_slices(slices: tuple[int, ...], limits: PhantomLimits) -> None:
    if len(slices) < limits.min_slices:
        raise PhantomUnusableError(
            "TOO_FEW_PHANTOM_SLICES",
            f"{len(slices)} usable slices show the rods, expected at least "
            f"{limits.min_slices}; scan the phantom with the whole protocol",
        )


def _check_gap(around: Surroundings, limits: PhantomLimits) -> None:
    if around.air_gap_mm > limits.max_air_gap_mm:
        raise PhantomUnusableError(
            "AIR_GAP",
            f"{around.air_gap_mm:.0f} mm of air between phantom and body, expected at most "
            f"{limits.max_air_gap_mm:.0f}; close the gap and scan again",
        )


def _name(samples: tuple[RodSample, ...], placement: Placement, spec: PhantomSpec, limits: PhantomLimits) -> Assignment:
    """Name the rods by their place, confirmed by their HU; disturbed rods and foreign phantoms are refused."""
    _check_uniform(samples, spec, limits)
    _check_disturbed(samples, placement, spec, limits)
    hu = np.array([s.hu for s in samples])
    forward = tuple(range(len(spec.rods)))
    by_place = min((assignment_of(o, spec.rods, hu) for o in (forward, forward[::-1])), key=lambda a: a.see_hu)
    best = best_assignment(spec.rods, hu)
    if best.order == by_place.order and best.see_hu <= limits.max_identity_see_hu:
        return by_place
    clear = best.see_hu <= limits.max_permuted_see_hu and best.ratio_to_next >= limits.min_assignment_ratio
    if clear and not spec.geometry_verified:
        return best
    if by_place.see_hu > limits.max_identity_see_hu and not clear:
        text = (
            f"rods of {', '.join(f'{v:.0f}' for v in hu)} HU lie {by_place.see_hu:.0f} HU about the line of serial "
            f"{spec.serial}, expected at most {limits.max_identity_see_hu:.0f}; check the serial and the certificate"
        )
        raise PhantomUnusableError("WRONG_PHANTOM", text)
    text = (
        f"rods in place order fit within {by_place.see_hu:.0f} HU, another naming within {best.see_hu:.0f} HU; "
        f"expected the place order of serial {spec.serial} to fit best; check the phantom"
    )
    raise PhantomUnusableError("ROD_ASSIGNMENT_AMBIGUOUS", text)


def _check_uniform(samples: tuple[RodSample, ...], spec: PhantomSpec, limits: PhantomLimits) -> None:
    """A row of ribs or organs goes straight through a short scan too; rods are as uniform as the noise lets them be.

    Not a phantom: most of the row is mottled, or what is uniform in it lies on no line of the certificate.
    """
    sds = np.array([s.sd_hu for s in samples])
    mottled = sds > limits.max_sd_ratio * max(float(sds.min()), 1.0)
    hu = np.where(mottled, np.nan, np.array([s.hu for s in samples]))
    forward = tuple(range(len(spec.rods)))
    orders = (forward, forward[::-1])
    foreign = (~mottled).sum() >= 3 and min(physical_residual_hu(spec.rods, hu, o) for o in orders) > POSSIBLE_HU
    if mottled.sum() > len(samples) / 2 or mottled.any() and foreign:
        text = (
            f"a row of round shapes of SD {', '.join(f'{sd:.0f}' for sd in sds)} HU; expected the {len(samples)} "
            f"uniform rods of {spec.phantom_type} {spec.serial}; check that this series shows the phantom"
        )
        raise PhantomNotFoundError("NOT_A_PHANTOM", text)


def _check_disturbed(
    samples: tuple[RodSample, ...], placement: Placement, spec: PhantomSpec, limits: PhantomLimits
) -> None:
    usual_sd = max(float(np.median([s.sd_hu for s in samples])), 1.0)
    for place, sample in enumerate(samples):
        ratio = sample.sd_hu / usual_sd
        within = sample.disturbed_slices <= limits.max_disturbed_slices and sample.outliers <= limits.max_outliers
        if within and ratio <= limits.max_sd_ratio:
            continue
        text = (
            f"rod {spec.rods[placement.order[place]].name}: {100 * sample.disturbed_slices:.0f} % of the slices and "
            f"{100 * sample.outliers:.1f} % of the voxels are disturbed, SD {ratio:.1f} times that of the other rods; "
            f"expected at most {100 * limits.max_disturbed_slices:.0f} %, {100 * limits.max_outliers:.1f} % and "
            f"{limits.max_sd_ratio:.1f}; look for air, metal or streaks and scan again"
        )
        raise PhantomUnusableError("ROD_DISTURBED", text)


def _middle_section(hu: NDArray[np.float32], volume: CtVolume, slices: tuple[int, ...]) -> Section:
    middle = slices[len(slices) // 2]
    reach = max(1, round(10.0 / volume.spacing_mm[0]) // 2)
    return section(hu, volume.spacing_mm, slice(max(middle - reach, 0), min(middle + reach + 1, len(hu))))


def _middle_mm(volume: CtVolume, slices: tuple[int, ...]) -> float:
    return 0.5 * (slices[0] + slices[-1]) * volume.spacing_mm[0]


def _middle_centres(axes: RodAxes, volume: CtVolume, slices: tuple[int, ...]) -> NDArray[np.float64]:
    return axes.centres_mm(_middle_mm(volume, slices))


def _result(
    volume: CtVolume,
    spec: PhantomSpec,
    followed: tuple[RodAxes, tuple[int, ...], tuple[RodSample, ...]],
    judged: tuple[Assignment, Surroundings],
) -> PhantomMeasurement:
    (axes, slices, samples), (named, around) = followed, judged
    centres = _centres_lps_mm(volume, axes, slices)
    by_certificate = sorted(range(len(samples)), key=lambda place: named.order[place])
    rods = tuple(_rod(spec.rods[named.order[p]].name, samples[p], centres[p]) for p in by_certificate)
    return PhantomMeasurement(
        phantom_serial=spec.serial,
        rods=rods,
        setup=around.setup,
        tilt_deg=axes.tilt_deg,
        water_equivalent_diameter_mm=around.water_equivalent_diameter_mm,
        assignment_ratio=named.ratio_to_next,
        findings=_findings(samples, named, spec),
    )


def _centres_lps_mm(volume: CtVolume, axes: RodAxes, slices: tuple[int, ...]) -> NDArray[np.float64]:
    """Rod centres at the middle of the slices used, (n_rods, 3)."""
    z_mm, spacing = _middle_mm(volume, slices), np.array(volume.spacing_mm)
    in_plane = axes.centres_mm(z_mm)
    index = np.column_stack([np.full(len(in_plane), z_mm), in_plane]) / spacing
    return np.asarray(volume.to_lps_mm(index))


def _rod(name: str, sample: RodSample, centre_lps_mm: NDArray[np.float64]) -> RodMeasurement:
    x, y, z = (float(v) for v in centre_lps_mm)
    return RodMeasurement(
        name=name,
        hu=sample.hu,
        sd_hu=sample.sd_hu,
        n_voxels=sample.n_voxels,
        centre_lps_mm=(x, y, z),
        axial_slope_hu_per_mm=sample.axial_slope_hu_per_mm,
        standard_error_hu=sample.standard_error_hu,
        axial_slope_se_hu_per_mm=sample.axial_slope_se_hu_per_mm,
    )


def _findings(samples: tuple[RodSample, ...], named: Assignment, spec: PhantomSpec) -> tuple[Reason, ...]:
    findings = []
    if list(named.order) not in (sorted(named.order), sorted(named.order, reverse=True)):
        names = " ".join(spec.rods[i].name for i in named.order)
        findings.append(reason("ROD_ORDER_DIFFERS", f"rods lie in the order {names}; the template is not verified"))
    dropped = max(s.disturbed_slices for s in samples)
    if dropped > 0:
        findings.append(
            reason("SLICES_DROPPED", f"up to {100 * dropped:.0f} % of a rod's slices were disturbed and left out")
        )
    return tuple(findings)

"""What lies with the rods in the scan: nothing, a homogeneous body, or a patient; its size; air in between.

Water-equivalent diameter after AAPM Report 220 (2014): A_w = sum (HU/1000 + 1) pixel area, D_w = 2 sqrt(A_w / pi).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from analysis.results import PhantomSetup
from analysis.rod_candidates import Section

BODY_HU = -300.0
SOFT_LOW_HU, SOFT_HIGH_HU = -250.0, 1500.0


@dataclass(frozen=True, slots=True)
class SetupLimits:
    """A body is there above this water-equivalent diameter; a patient is one whose tissue is not uniform."""

    body_diameter_mm: float = 170.0
    uniform_band_hu: float = 45.0
    patient_share: float = 0.2


@dataclass(frozen=True, slots=True)
class Surroundings:
    setup: PhantomSetup
    water_equivalent_diameter_mm: float
    air_gap_mm: float  # smallest distance between pad and body over the rods; 0: none


def describe_surroundings(
    image: Section, rods_mm: NDArray[np.float64], radius_mm: float, limits: SetupLimits | None = None
) -> Surroundings:
    """Set-up, size and air gap from one section; rods_mm is (n_rods, 2)."""
    limits = limits or SetupLimits()
    diameter = water_equivalent_diameter_mm(image)
    if diameter < limits.body_diameter_mm:
        return Surroundings(PhantomSetup.ALONE, diameter, 0.0)
    setup = (
        PhantomSetup.UNDER_PATIENT
        if _mixed_share(image, rods_mm, radius_mm, limits) > limits.patient_share
        else PhantomSetup.TORSO
    )
    return Surroundings(setup, diameter, _air_gap_mm(image, rods_mm, radius_mm))


def water_equivalent_diameter_mm(image: Section) -> float:
    """Of everything denser than -300 HU and what it encloses; the thin shell of the table counts little."""
    inside = ndimage.binary_fill_holes(_largest(image.hu > BODY_HU))
    area = float((image.hu[inside] / 1000.0 + 1.0).sum()) * image.pixel_mm[0] * image.pixel_mm[1]
    return 2.0 * float(np.sqrt(max(area, 0.0) / np.pi))


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    labels, count = ndimage.label(mask)
    if count == 0:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())


def _mixed_share(image: Section, rods_mm: NDArray[np.float64], radius_mm: float, limits: SetupLimits) -> float:
    """Share of the body, away from the rods, whose smoothed HU is far from the body's median."""
    sigma = [2.0 / p for p in image.pixel_mm]
    smooth = ndimage.gaussian_filter(image.hu, sigma)
    steps = [max(1, round(8.0 / p)) for p in image.pixel_mm]
    body = ndimage.binary_fill_holes(_largest(image.hu > BODY_HU))
    body = ndimage.binary_erosion(body[:: steps[0], :: steps[1]])
    values, kept = smooth[:: steps[0], :: steps[1]], body
    rows = np.arange(kept.shape[0])[:, None] * steps[0] * image.pixel_mm[0]
    columns = np.arange(kept.shape[1])[None, :] * steps[1] * image.pixel_mm[1]
    for rod in rods_mm:
        kept = kept & (np.hypot(rows - rod[0], columns - rod[1]) > 2.2 * radius_mm)
    inside = values[kept]
    return float(np.mean(np.abs(inside - np.median(inside)) > limits.uniform_band_hu)) if inside.size else 0.0


def _air_gap_mm(image: Section, rods_mm: NDArray[np.float64], radius_mm: float) -> float:
    """Air between pad and body, along the normal of the rods' line towards the body; smallest over the rods."""
    normal = _towards_body(image, rods_mm)
    distance = np.arange(radius_mm, 140.0, 1.0)
    gaps = []
    for rod in np.linspace(rods_mm[0], rods_mm[-1], 2 * len(rods_mm) - 1):
        at = rod[:, None] + normal[:, None] * distance
        profile = ndimage.map_coordinates(
            image.hu, [at[0] / image.pixel_mm[0], at[1] / image.pixel_mm[1]], order=1, mode="constant", cval=-1024.0
        )
        air = profile < -500.0
        if air.any() and not air[int(air.argmax()) :].all():
            start = int(air.argmax())
            gaps.append(float((~air[start:]).argmax()))
        elif not air.any():
            gaps.append(0.0)
    return min(gaps, default=0.0)


def _towards_body(image: Section, rods_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    along = rods_mm[-1] - rods_mm[0]
    normal = np.array([-along[1], along[0]]) / max(float(np.linalg.norm(along)), 1e-6)
    body = _largest(image.hu > BODY_HU)
    centre = np.array(ndimage.center_of_mass(body)) * np.array(image.pixel_mm)
    return np.asarray(normal if normal @ (centre - rods_mm.mean(axis=0)) > 0 else -normal)

"""A simulated CT of a calibration phantom whose line and rods are known.

Drawn from signed distances with partial volume, blurred by a reconstruction kernel, with cupping, correlated noise
and a table. Geometry is written here on its own: nothing of the rod finder is used. Physics: HU of a rod = rho_H2O +
sigma_ref rho_K + beta_ref (two-density) or sigma rho + beta; sigma per kVp and water path from spekpy 2.5.4 with NIST
coefficients, W target, 6 mm Al (table and power law below, valid for 20 to 40 cm of water).
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from analysis.results import PhantomSetup, PhantomSpec
from analysis.volume import CtVolume

# HU per mg/cm3 K2HPO4 behind 30 cm of water, and the exponent of the water path (spekpy + NIST, computed)
SIGMA_CT_AT_30_CM = {80: (1.807, -0.18), 100: (1.508, -0.19), 120: (1.329, -0.20), 140: (1.207, -0.21)}
WATER_DISPLACED_PER_MG, WATER_MG_CM3 = 0.2174, 999.6
AIR_HU = -1000.0


@dataclass(frozen=True, slots=True)
class PadGeometry:
    """The phantom as a body: rods in a pad. Lengths in millimetres, angles in degrees."""

    rod_diameter_mm: float = 19.0
    pitch_mm: float = 30.0
    pitch_jitter_mm: float = 0.0
    arc_radius_mm: float = 0.0  # 0: flat
    rod_length_mm: float = 300.0
    pad_width_mm: float = 280.0
    pad_height_mm: float = 28.0
    pad_hu: float = 0.0
    reversed_order: bool = False


@dataclass(frozen=True, slots=True)
class Pose:
    """Where the phantom lies: shift of its centre from the isocentre and its angles."""

    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)  # left, posterior, head
    tilt_lateral_deg: float = 0.0  # rods turned in the coronal plane
    tilt_vertical_deg: float = 0.0  # rods turned in the sagittal plane
    roll_deg: float = 0.0  # pad turned in the axial plane
    mirrored: bool = False  # feet first: columns run the other way in the patient
    upside_down: bool = False  # prone: rows run the other way in the patient


@dataclass(frozen=True, slots=True)
class Acquisition:
    """The scan. `kernel_sigma_mm` is the point spread in the plane."""

    kvp: float = 120.0
    slices: int = 40
    spacing_mm: float = 1.25
    matrix: int = 512
    fov_mm: float = 500.0
    noise_hu: float = 12.0
    kernel_sigma_mm: float = 0.7
    cupping_hu: float = 0.0
    table: bool = True
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Defects:
    """What is wrong with a bad scan."""

    metal_rod: int | None = None  # index across the phantom of the rod that a metal pin pierces
    air_rod: int | None = None  # rod with an air void along it
    air_gap_mm: float = 0.0  # between pad and body
    moved_mm: float = 0.0  # the pad jumps sideways in the middle of the scan
    insert_hu: float | None = None  # a table insert of this HU slid over the first two rods


@dataclass(frozen=True, slots=True)
class PhantomScanSpec:
    """Everything that the simulated scan shows."""

    phantom: PhantomSpec
    setup: PhantomSetup = PhantomSetup.TORSO
    sigma_ref: float | None = None  # None: from the tube voltage and 30 cm of water
    beta_ref: float | None = None  # None: -WATER_MG_CM3 for two-density rods, 0 for others
    rod_error_hu: tuple[float, ...] = ()  # per certified rod
    body_semi_axes_mm: tuple[float, float] = (150.0, 105.0)
    geometry: PadGeometry = field(default_factory=PadGeometry)
    pose: Pose = field(default_factory=Pose)
    acquisition: Acquisition = field(default_factory=Acquisition)
    defects: Defects = field(default_factory=Defects)


@dataclass(frozen=True, slots=True, eq=False)
class SimulatedPhantom:
    """The volume and what is true in it; rods in certificate order."""

    volume: CtVolume
    sigma_ref: float
    beta_ref: float
    rod_hu: tuple[float, ...]  # with cupping at the rod's centre
    rod_centres_lps_mm: tuple[tuple[float, float, float], ...]
    radius_mm: float


def sigma_ct_of(kvp: float, water_path_mm: float = 300.0) -> float:
    """HU per mg/cm3 K2HPO4 at a tube voltage behind a water path (table above, log-linear between voltages)."""
    voltages = sorted(SIGMA_CT_AT_30_CM)
    values = [SIGMA_CT_AT_30_CM[v][0] * (water_path_mm / 300.0) ** SIGMA_CT_AT_30_CM[v][1] for v in voltages]
    return float(np.exp(np.interp(kvp, voltages, np.log(values))))


def true_line(spec: PhantomScanSpec) -> tuple[float, float]:
    """sigma_ref and beta_ref of the scan."""
    two_density = spec.phantom.rods[0].water_mg_cm3 is not None
    displaced = WATER_DISPLACED_PER_MG if two_density else 0.0
    sigma = spec.sigma_ref if spec.sigma_ref is not None else sigma_ct_of(spec.acquisition.kvp) + displaced
    beta = spec.beta_ref if spec.beta_ref is not None else (-WATER_MG_CM3 if two_density else 0.0)
    return sigma, beta


def simulate_phantom(spec: PhantomScanSpec) -> SimulatedPhantom:
    """Draw the scan."""
    scene = _Scene(spec)
    hu = np.stack([scene.draw(index) for index in range(spec.acquisition.slices)])
    hu += scene.cupping()[None]
    hu += correlated_noise(hu.shape, spec.acquisition)
    volume = CtVolume(np.clip(np.round(hu), -1024, 3071).astype(np.float32), scene.affine())
    sigma, beta = true_line(spec)
    centres = scene.rod_centres_lps_mm(volume)
    return SimulatedPhantom(volume, sigma, beta, scene.rod_hu_with_cupping(), centres, scene.radius_mm)


def correlated_noise(shape: tuple[int, ...], acquisition: Acquisition) -> NDArray[np.float32]:
    """Noise with a band-pass spectrum in the plane and neighbouring slices correlated by 0.2, SD as asked."""
    rng = np.random.default_rng(acquisition.seed)
    fy, fx = fft.fftfreq(shape[1])[:, None], fft.rfftfreq(shape[2])[None, :]
    frequency = np.hypot(fy, fx)
    filter_ = (0.12 + frequency / 0.25) * np.exp(-((frequency / 0.28) ** 2))
    out = np.empty(shape, np.float32)
    for index in range(shape[0]):
        white = rng.standard_normal(shape[1:], dtype=np.float32)
        out[index] = fft.irfft2(fft.rfft2(white) * filter_, shape[1:])
    out[1:] = 0.98 * out[1:] + 0.2 * out[:-1]
    return out * np.float32(acquisition.noise_hu / out.std())


class _Scene:
    """Coordinates in millimetres from the isocentre: x to image right, y down, z along the slices."""

    def __init__(self, spec: PhantomScanSpec) -> None:
        self.spec = spec
        shot = spec.acquisition
        self.pixel_mm = shot.fov_mm / shot.matrix
        axis = (np.arange(shot.matrix) - (shot.matrix - 1) / 2) * self.pixel_mm
        self.x, self.y = axis[None, :].astype(np.float32), axis[:, None].astype(np.float32)
        self.radius_mm = spec.geometry.rod_diameter_mm / 2
        self.rods_xy = self._rod_positions()
        self.background: NDArray[np.float32] | None = None

    def _rod_positions(self) -> NDArray[np.float64]:
        """(n, 2) in the phantom's own frame, in order across the phantom, centred on the pad."""
        g, n = self.spec.geometry, len(self.spec.phantom.rods)
        rng = np.random.default_rng(self.spec.acquisition.seed + 7)
        across = (np.arange(n) - (n - 1) / 2) * g.pitch_mm + rng.uniform(-1, 1, n) * g.pitch_jitter_mm
        if not g.arc_radius_mm:
            return np.column_stack([across, np.zeros(n)])
        angle = across / g.arc_radius_mm
        return np.column_stack([g.arc_radius_mm * np.sin(angle), -g.arc_radius_mm * (1 - np.cos(angle))])

    def certificate_index(self, place: int) -> int:
        n = len(self.spec.phantom.rods)
        return n - 1 - place if self.spec.geometry.reversed_order else place

    def rod_hu(self, place: int) -> float:
        index = self.certificate_index(place)
        rod = self.spec.phantom.rods[index]
        sigma, beta = true_line(self.spec)
        error = self.spec.rod_error_hu[index] if self.spec.rod_error_hu else 0.0
        return (rod.water_mg_cm3 or 0.0) + sigma * rod.density_mg_cm3 + beta + error

    def pad_centre(self, z_mm: float) -> tuple[float, float]:
        """Where the pad's centre lies in the slice at z; the body rests on the pad."""
        pose, body = self.spec.pose, self.spec.body_semi_axes_mm[1]
        below = 0.0 if self.spec.setup is PhantomSetup.ALONE else body + self.spec.geometry.pad_height_mm / 2
        jump = self.spec.defects.moved_mm if z_mm > 0 else 0.0
        x = pose.shift_mm[0] + z_mm * np.tan(np.radians(pose.tilt_lateral_deg)) + jump
        y = pose.shift_mm[1] + z_mm * np.tan(np.radians(pose.tilt_vertical_deg)) + below * 0.75
        return x, y + (self.spec.defects.air_gap_mm if self.spec.setup is not PhantomSetup.ALONE else 0.0)

    def slice_z_mm(self, index: int) -> float:
        shot = self.spec.acquisition
        return (index - (shot.slices - 1) / 2) * shot.spacing_mm

    def rods_in_slice(self, z_mm: float) -> NDArray[np.float64]:
        roll = np.radians(self.spec.pose.roll_deg)
        turn = np.array([[np.cos(roll), np.sin(roll)], [-np.sin(roll), np.cos(roll)]])
        return np.asarray(self.rods_xy @ turn + np.array(self.pad_centre(z_mm)))

    def draw(self, index: int) -> NDArray[np.float32]:
        """One slice: three positions through its thickness, averaged, then blurred by the kernel."""
        z, step = self.slice_z_mm(index), self.spec.acquisition.spacing_mm / 3
        image = self._surroundings(z).copy()
        parts = [self._rod_windows(z + offset) for offset in (-step, 0.0, step)]
        for windows in parts:
            for place, (rows, columns, cover) in enumerate(windows):
                base = image[rows, columns]
                image[rows, columns] = base + cover / 3 * (self.rod_hu(place) - self.spec.geometry.pad_hu)
        self._spoil(image, z)
        sigma = self.spec.acquisition.kernel_sigma_mm / self.pixel_mm
        return np.asarray(ndimage.gaussian_filter(image, sigma, truncate=3.5), np.float32)

    def _surroundings(self, z_mm: float) -> NDArray[np.float32]:
        pose, moved = self.spec.pose, self.spec.defects.moved_mm
        still = not (pose.tilt_lateral_deg or pose.tilt_vertical_deg or moved)
        ends = abs(z_mm - pose.shift_mm[2]) > self.spec.geometry.rod_length_mm / 2 - 15.0
        if still and not ends and self.background is not None:
            return self.background
        image = self._draw_surroundings(z_mm)
        if still and not ends:
            self.background = image
        return image

    def _draw_surroundings(self, z_mm: float) -> NDArray[np.float32]:
        image = np.full((self.y.size, self.x.size), AIR_HU, np.float32)
        x0, y0 = self.pad_centre(z_mm)
        height = self.spec.geometry.pad_height_mm
        if self.spec.acquisition.table:
            self._paint(image, self._table_cover(), -150.0)
        if self.spec.setup is not PhantomSetup.ALONE:
            centre_y = y0 - height / 2 - self.spec.body_semi_axes_mm[1] - self.spec.defects.air_gap_mm + 1.0
            self._draw_body(image, (x0, centre_y))
        if abs(z_mm - self.spec.pose.shift_mm[2]) <= self.spec.geometry.rod_length_mm / 2 + 5.0:
            self._paint(image, self._pad_cover(x0, y0), self.spec.geometry.pad_hu)
        return image

    def _paint(self, image: NDArray[np.float32], cover: NDArray[np.float32], hu: float) -> None:
        image += cover * (np.float32(hu) - image)

    def _cover(self, distance_mm: NDArray[np.float32]) -> NDArray[np.float32]:
        """Share of the pixel inside a shape from the signed distance to its border."""
        return np.asarray(np.clip(0.5 - distance_mm / self.pixel_mm, 0.0, 1.0), np.float32)

    def _table_cover(self) -> NDArray[np.float32]:
        depth = self.pad_centre(0.0)[1] + self.spec.geometry.pad_height_mm / 2 + 6.0 + self._sag_mm()
        curved = self.y - depth + (self.x / 900.0) * self.x
        shell = np.abs(curved) - 2.0
        return self._cover(np.maximum(shell, np.abs(self.x) - 210.0))

    def _sag_mm(self) -> float:
        return float(np.ptp(self.rods_xy[:, 1]) + 150.0 * abs(np.sin(np.radians(self.spec.pose.roll_deg))))

    def _pad_cover(self, x0: float, y0: float) -> NDArray[np.float32]:
        g, roll = self.spec.geometry, np.radians(self.spec.pose.roll_deg)
        dx, dy = self.x - x0, self.y - y0
        u, v = dx * np.cos(roll) + dy * np.sin(roll), -dx * np.sin(roll) + dy * np.cos(roll)
        if g.arc_radius_mm:
            v = v + u**2 / (2 * g.arc_radius_mm)
        edge = np.maximum(np.abs(u) - g.pad_width_mm / 2, np.abs(v) - g.pad_height_mm / 2)
        return self._cover(edge)

    def _ellipse(self, centre: tuple[float, float], semi_axes: tuple[float, float]) -> NDArray[np.float32]:
        a, b = semi_axes
        level = np.hypot((self.x - centre[0]) / a, (self.y - centre[1]) / b)
        return self._cover((level - 1.0) * min(a, b))

    def _draw_body(self, image: NDArray[np.float32], centre: tuple[float, float]) -> None:
        a, b = self.spec.body_semi_axes_mm
        if self.spec.setup is PhantomSetup.TORSO:
            self._paint(image, self._ellipse(centre, (a, b)), 0.0)
            return
        x, y = centre
        organs = (
            ((x, y), (a, b), -100.0),
            ((x, y), (a - 22, b - 18), 45.0),
            ((x - 60, y - 15), (50, 45), 60.0),
            ((x + 65, y - 20), (35, 30), -90.0),
            ((x, y + b - 62), (23, 17), 280.0),
            ((x, y + b - 62), (20, 14), 140.0),
            ((x, y + b - 36), (8, 14), 350.0),
            ((x - 12, y + b - 92), (10, 10), 42.0),
            ((x - 85, y + b - 45), (16, 4), 400.0),
            ((x + 85, y + b - 45), (16, 4), 400.0),
            ((x - 38, y + b - 36), (20, 13), 55.0),
            ((x + 38, y + b - 36), (20, 13), 55.0),
        )
        for at, axes, hu in organs:
            self._paint(image, self._ellipse(at, axes), hu)

    def _rod_windows(self, z_mm: float) -> list[tuple[slice, slice, NDArray[np.float32]]]:
        """Rows, columns and cover of each rod in this plane."""
        length = self.spec.geometry.rod_length_mm / 2
        shows = 1.0 if abs(z_mm - self.spec.pose.shift_mm[2]) <= length else 0.0
        windows = []
        for x, y in self.rods_in_slice(z_mm):
            rows, columns = self._window(y), self._window(x)
            distance = np.hypot(self.x[:, columns] - x, self.y[rows] - y) - self.radius_mm
            windows.append((rows, columns, shows * self._cover(distance)))
        return windows

    def _window(self, at_mm: float, reach_mm: float | None = None) -> slice:
        reach = self.radius_mm + 2.0 if reach_mm is None else reach_mm
        origin = float(self.x[0, 0])
        low, high = ((at_mm + s * reach - origin) / self.pixel_mm for s in (-1, 1))
        return slice(max(int(low), 0), max(int(high) + 1, 0))

    def _spoil(self, image: NDArray[np.float32], z_mm: float) -> None:
        defects, rods = self.spec.defects, self.rods_in_slice(z_mm)
        if defects.metal_rod is not None:
            x, y = rods[defects.metal_rod]
            self._paint(image, self._ellipse((x + 2.0, y), (2.0, 2.0)), 3000.0)
            image += (
                60.0 * np.exp(-(((self.y - y) / 4.0) ** 2)) * np.sign(self.x - x) * np.exp(-np.abs(self.x - x) / 30.0)
            )
        if defects.air_rod is not None:
            x, y = rods[defects.air_rod]
            self._paint(image, self._ellipse((x, y - 3.0), (3.5, 2.5)), AIR_HU)
        if defects.insert_hu is not None:
            x, y = rods[:2].mean(axis=0)
            box = np.maximum(np.abs(self.x - x) - 40.0, np.abs(self.y - y - 6.0) - 8.0)
            self._paint(image, self._cover(box), defects.insert_hu)

    def cupping(self) -> NDArray[np.float32]:
        return self._cupping_at(self.x, self.y).astype(np.float32)

    def _cupping_at(self, x: NDArray[np.float32] | float, y: NDArray[np.float32] | float) -> NDArray[np.float64]:
        """Parabola: full depth at the isocentre, none beyond 200 mm."""
        squared = (np.asarray(x, float) ** 2 + np.asarray(y, float) ** 2) / 200.0**2
        return np.asarray(-self.spec.acquisition.cupping_hu * np.clip(1.0 - squared, 0.0, 1.0))

    def rod_hu_with_cupping(self) -> tuple[float, ...]:
        values = {}
        for place, (x, y) in enumerate(self.rods_in_slice(self.spec.pose.shift_mm[2])):
            values[self.certificate_index(place)] = self.rod_hu(place) + float(self._cupping_at(x, y))
        return tuple(values[i] for i in range(len(values)))

    def affine(self) -> NDArray[np.float64]:
        """Index to LPS; the isocentre is the origin. Mirrored or upside-down scans flip their axis."""
        shot, pose = self.spec.acquisition, self.spec.pose
        steps = (
            shot.spacing_mm,
            -self.pixel_mm if pose.upside_down else self.pixel_mm,
            -self.pixel_mm if pose.mirrored else self.pixel_mm,
        )
        slices_up = -1.0 if pose.mirrored != pose.upside_down else 1.0
        affine = np.zeros((4, 4))
        affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = slices_up * steps[0], steps[1], steps[2], 1.0
        middle = np.array([(shot.slices - 1) / 2, (shot.matrix - 1) / 2, (shot.matrix - 1) / 2])
        affine[:3, 3] = -affine[:3, :3] @ middle
        return affine

    def rod_centres_lps_mm(self, volume: CtVolume) -> tuple[tuple[float, float, float], ...]:
        """At the middle of the scan, certificate order."""
        middle = (self.spec.acquisition.slices - 1) / 2
        centres: dict[int, tuple[float, float, float]] = {}
        for place, (x, y) in enumerate(self.rods_in_slice(0.0)):
            half = (self.spec.acquisition.matrix - 1) / 2
            at = volume.to_lps_mm(np.array([middle, y / self.pixel_mm + half, x / self.pixel_mm + half]))
            centres[self.certificate_index(place)] = (float(at[0]), float(at[1]), float(at[2]))
        return tuple(centres[i] for i in range(len(centres)))

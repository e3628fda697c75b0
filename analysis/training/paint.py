"""CT numbers for a label map: tissues, bone with shell and trabecular texture, slice thickness, kernel and noise.

HU are calibrated, so the randomisation is narrow where CT is narrow (organs) and uniform where patients differ
(trabecular density 20-290 HU, contrast phase, noise SD).

Sources: organ HU, noise SD and its autocorrelation were measured on open CT (see docs/segmentation-training.md);
trabecular HU by age from Jang, Pickhardt et al. 2019 (226 HU below 30 years to 89 HU above 90); true cortical shell
0.35 mm, Silva et al. 1994, seen at least twice as thick in CT.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from analysis.training.anatomy import BODY, CODE, POSTERIOR

AIR_HU, FAT_HU, SKIN_HU = -1000.0, -100.0, 20.0

# Native mean HU and its spread between patients, and the texture SD inside the organ.
_NATIVE = {
    "disc": (85, 20, 10), "canal": (15, 15, 12), "muscle": (50, 10, 10), "back muscle": (35, 20, 22),
    "liver": (52, 13, 6), "spleen": (45, 8, 5), "kidney": (28, 8, 10), "gland": (32, 12, 14), "bladder": (5, 8, 3),
    "gallbladder": (6, 8, 3), "artery": (42, 6, 5), "vein": (42, 6, 5), "heart": (42, 6, 6), "lung": (-820, 40, 50),
    "airway": (-985, 8, 5), "stomach": (20, 25, 20), "small bowel": (22, 15, 22), "colon": (10, 25, 40),
    "cartilage": (105, 25, 25), "none": (-95, 12, 18),
}  # fmt: skip
# Added by intravenous contrast: arterial and portal-venous phase at full strength.
_ARTERIAL = {"artery": 340, "heart": 300, "kidney": 110, "spleen": 70, "liver": 15, "vein": 60, "gland": 40}
_VENOUS = {"artery": 105, "heart": 100, "kidney": 150, "spleen": 70, "liver": 55, "vein": 110, "gland": 45}
_WITHOUT_BLOOD = ("disc", "canal", "none", "cartilage", "lung", "airway")


class TextureBank:
    """Smooth Gaussian random fields, made once; a draw is a random window, mirrored at random."""

    def __init__(self, shape: tuple[int, int, int], scales: tuple[float, ...], seed: int = 5) -> None:
        rng = np.random.default_rng(seed)
        self.fields = [self._field(rng, shape, scale) for scale in scales]

    @staticmethod
    def _field(rng: np.random.Generator, shape: tuple[int, int, int], scale: float) -> Tensor:
        spectrum = torch.fft.rfftn(torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)))
        for axis, n in enumerate(shape):
            f = torch.fft.rfftfreq(n) if axis == 2 else torch.fft.fftfreq(n)
            kernel = torch.exp(-2 * (torch.pi * f * scale) ** 2)
            spectrum *= kernel.view([-1 if i == axis else 1 for i in range(3)])
        field: Tensor = torch.fft.irfftn(spectrum, s=shape)
        return field.div_(field.std())

    def draw(self, rng: np.random.Generator, scale_index: int, shape: tuple[int, ...]) -> Tensor:
        field = self.fields[scale_index]
        starts = [int(rng.integers(0, n - m + 1)) for n, m in zip(field.shape, shape, strict=True)]
        window = field[tuple(slice(s, s + m) for s, m in zip(starts, shape, strict=True))]
        axes = [axis for axis in range(3) if rng.uniform() < 0.5]
        return window.flip(axes) if axes else window


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """What is painted: label tensors (uint8) on one grid of `spacing_mm`; `bone_hu` is measured bone or None."""

    spacing_mm: float
    tissue: Tensor
    vertebra: Tensor
    part: Tensor
    depth: Tensor
    bone_hu: Tensor | None = None


def paint_body(scene: Scene, rng: np.random.Generator, bank: TextureBank) -> Tensor:
    """Noise-free HU of a scene, float32: soft tissue, bowel content, outline, bone, implants."""
    shape = tuple(scene.tissue.shape)
    fine, medium, wide = (bank.draw(rng, i, shape) for i in range(3))
    mean, sd = _tissue_tables(rng)
    codes = scene.tissue.long()
    hu = mean[codes] + sd[codes] * (medium if rng.uniform() < 0.5 else fine)
    _paint_filler(hu, scene, rng, wide)
    _paint_hollow_organs(hu, scene, rng, (medium, wide))
    _paint_bones(hu, scene, rng, (fine, medium, wide))
    if rng.uniform() < 0.06:
        _implant(hu, scene, rng)
    return hu.clamp_(-1024, 3071)


def _tissue_tables(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    mean, sd = np.zeros(256, np.float32), np.zeros(256, np.float32)
    phase = rng.choice(["native", "arterial", "venous"], p=[0.45, 0.2, 0.35])
    strength = rng.uniform(0.4, 1.4)
    gain = {"native": {}, "arterial": _ARTERIAL, "venous": _VENOUS}[phase]
    for name, (hu, spread, texture) in _NATIVE.items():
        added = gain.get(name, 8 if phase != "native" else 0) * strength * rng.uniform(0.8, 1.2)
        mean[CODE[name]] = hu + rng.normal(0, spread) + added * (name not in _WITHOUT_BLOOD)
        sd[CODE[name]] = texture * rng.uniform(0.5, 1.5)
    return torch.from_numpy(mean), torch.from_numpy(sd)


def _paint_filler(hu: Tensor, scene: Scene, rng: np.random.Generator, wide: Tensor) -> None:
    """Unlabelled voxels: visceral fat and muscle inside, then muscle wall, fat, skin and air by depth outside."""
    none = scene.tissue == CODE["none"]
    depth = scene.depth.float()
    wall, fat = rng.uniform(3, 16), rng.uniform(3, 45) * rng.uniform(0.3, 1)
    muscle = rng.normal(48, 10)
    near_rib = _dilate((scene.tissue == CODE["rib"]) | (scene.tissue == CODE["cartilage"]), 7.0 / scene.spacing_mm)
    inside = (depth < 1) & (near_rib | (wide > rng.uniform(0.3, 1.5)))
    in_wall = (depth >= 1) & (depth < wall) & (wide > -1.2)
    hu.copy_(torch.where(none & (inside | in_wall), muscle + 8 * wide, hu))
    hu.copy_(torch.where(none & (depth >= wall + fat), torch.tensor(SKIN_HU), hu))
    hu.copy_(torch.where(none & (depth >= wall + fat + 2.5), torch.tensor(AIR_HU), hu))


def _dilate(mask: Tensor, radius: float) -> Tensor:
    """Grow a mask by a cube of half width `radius` voxels, by shifts that double."""
    for axis in range(3):
        left = max(1, round(radius))
        step = 1
        while left > 0:
            step = min(step, left)
            grown = mask.clone()
            n = mask.shape[axis]
            grown.narrow(axis, step, n - step).logical_or_(mask.narrow(axis, 0, n - step))
            grown.narrow(axis, 0, n - step).logical_or_(mask.narrow(axis, step, n - step))
            mask, left, step = grown, left - step, 2 * step
    return mask


def _paint_hollow_organs(hu: Tensor, scene: Scene, rng: np.random.Generator, fields: tuple[Tensor, Tensor]) -> None:
    """Gas, stool and oral contrast in the bowel; vessels in the lungs."""
    contrast = rng.uniform(120, 600) if rng.uniform() < 0.3 else None
    flat, tissue = hu.view(-1), scene.tissue.reshape(-1)
    medium, wide = (field.reshape(-1) for field in fields)
    for name in ("colon", "small bowel", "stomach"):
        organ = torch.nonzero(tissue == CODE[name])[:, 0]
        value, near, far = flat[organ], medium[organ], wide[organ]
        if contrast is not None and rng.uniform() < 0.7:
            value = torch.where(far < rng.uniform(-0.5, 1.5), contrast + 30 * near, value)
        gas = rng.uniform(-0.2, 2.0) if name == "colon" else rng.uniform(0.8, 2.5)
        flat[organ] = torch.where(0.6 * far + 0.8 * near > gas, torch.tensor(-950.0), value)
    lung = torch.nonzero(tissue == CODE["lung"])[:, 0]
    vessels = lung[medium[lung] > rng.uniform(1.4, 2.2)]
    flat[vessels] = float(rng.uniform(-300, 60))


@dataclass(frozen=True, slots=True, eq=False)
class _Bone:
    """All bone voxels as flat lists: position, kind (see `_KINDS`), on the surface, VerSe level, random fields."""

    index: Tensor
    kind: Tensor
    surface: Tensor
    level: Tensor
    texture: Tensor
    medium: Tensor


# Kinds of bone: body, posterior elements, sacrum, rib, other. Interior HU above the marrow's and shell HU, as ranges.
_KINDS = (
    ((0, 0), (120, 450), 1.0), ((30, 220), (200, 650), 1.5), ((-60, 60), (150, 550), 1.3),
    ((20, 200), (150, 550), 1.3), ((-20, 160), (150, 550), 1.3),
)  # fmt: skip


def _kind_map(scene: Scene) -> Tensor:
    """1 + kind of bone, 0 elsewhere."""
    table = torch.zeros(256, dtype=torch.uint8)
    for name, kind in (("vertebra", 2), ("sacrum", 3), ("rib", 4), ("other bone", 5)):
        table[CODE[name]] = kind
    kinds = table[scene.tissue.long()]
    kinds[scene.part == BODY] = 1
    return kinds


def _collect_bone(scene: Scene, rng: np.random.Generator, fields: tuple[Tensor, Tensor, Tensor]) -> _Bone:
    kinds = _kind_map(scene)
    flat = kinds.reshape(-1)
    index = torch.nonzero(flat)[:, 0]
    kind = flat[index]
    surface = torch.zeros(index.shape, dtype=torch.bool)
    for step in (1, kinds.shape[2], kinds.shape[1] * kinds.shape[2]):
        for neighbour in (index + step, index - step):
            surface |= flat[neighbour.clamp(0, flat.numel() - 1)] != kind
    fine, medium, wide = (field.reshape(-1)[index] for field in fields)
    texture = rng.uniform(8, 45) * (0.7 * fine + 0.5 * medium) + 8 * wide
    return _Bone(index, kind.long() - 1, surface, scene.vertebra.reshape(-1)[index].long(), texture, medium)


def _paint_bones(hu: Tensor, scene: Scene, rng: np.random.Generator, fields: tuple[Tensor, Tensor, Tensor]) -> None:
    """Interior at the patient's trabecular HU, and on the outermost voxels a cortical shell on top of it."""
    bone = _collect_bone(scene, rng, fields)
    scale = rng.uniform(0.8, 1.25)  # tube voltage
    marrow = rng.uniform(20, 290)
    voxel = float(np.clip(scene.spacing_mm / 1.5, 0.7, 1.4))
    added = torch.tensor([rng.uniform(*interior) for interior, _, _ in _KINDS])
    share = torch.tensor([1.0, *rng.uniform(0.6, 1.1, 4)])
    shell = torch.tensor([rng.uniform(*shell) / voxel for _, shell, _ in _KINDS])
    grain = torch.tensor([texture for _, _, texture in _KINDS])
    per_level = torch.from_numpy(np.clip(rng.normal(marrow, 14, 256), -10, 330).astype(np.float32))
    interior = per_level[bone.level] * share[bone.kind].float() + added[bone.kind] + grain[bone.kind] * bone.texture
    surface = 0.4 * interior + 0.3 * marrow + shell[bone.kind] * (1 + 0.3 * bone.medium)
    value = (torch.where(bone.surface, surface, interior) * scale).float()
    if scene.bone_hu is not None and rng.uniform() < 0.6:
        real = scene.bone_hu.reshape(-1)[bone.index].float()
        value = torch.where(real > 60, real * float(scale * rng.uniform(0.75, 1.15)), value)
    hu.view(-1)[bone.index] = value


def _implant(hu: Tensor, scene: Scene, rng: np.random.Generator) -> None:
    """Bone cement in a body, or metal rods and screws behind it."""
    levels = torch.unique(scene.vertebra[scene.part == BODY])
    if levels.numel() == 0:
        return
    level = int(levels[int(rng.integers(levels.numel()))])
    inside = torch.nonzero((scene.vertebra == level) & (scene.part == (BODY if rng.uniform() < 0.6 else POSTERIOR)))
    if inside.shape[0] == 0:
        return
    point = inside[int(rng.integers(inside.shape[0]))].float()
    size = rng.uniform(3, 11, 3) / scene.spacing_mm
    distance = sum(
        ((torch.arange(n) - point[axis]) / size[axis]).pow(2).view([-1 if i == axis else 1 for i in range(3)])
        for axis, n in enumerate(hu.shape)
    )
    hu.copy_(torch.where(torch.as_tensor(distance) < 1, torch.tensor(float(rng.choice([700, 1400, 3000]))), hu))


# --- scanner --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scanner:
    """How a scan looks; drawn at random by `random_scanner`. Slice positions are relative to the grid's first slice."""

    slice_spacing_mm: float
    slice_thickness_mm: float
    noise_sd_hu: float
    noise_sigma_mm: float
    psf_sigma_mm: float
    sharpening: float


def random_scanner(rng: np.random.Generator, noise_sd_hu: tuple[float, float]) -> Scanner:
    spacing = float(rng.choice([0.7, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0]) * rng.uniform(0.9, 1.05))
    return Scanner(
        slice_spacing_mm=spacing,
        slice_thickness_mm=spacing * rng.uniform(0.9, 1.6),
        noise_sd_hu=float(np.exp(rng.uniform(*np.log(noise_sd_hu)))),
        noise_sigma_mm=float(rng.uniform(0.3, 0.8)),
        psf_sigma_mm=float(rng.uniform(0.3, 0.9)),
        sharpening=float(rng.uniform(0, 1.5)) if rng.uniform() < 0.4 else 0.0,
    )


def slice_matrices(n: int, spacing_mm: float, scanner: Scanner, phase: float) -> tuple[Tensor, Tensor]:
    """(slices, n) averaging over the slice profile and (n, slices) linear interpolation back to the grid."""
    z = np.arange(n) * spacing_mm
    positions = np.arange(phase * scanner.slice_spacing_mm, z[-1] + scanner.slice_spacing_mm, scanner.slice_spacing_mm)
    half = max(scanner.slice_thickness_mm, spacing_mm) / 2
    average = np.clip((half + spacing_mm / 2 - np.abs(z[None] - positions[:, None])) / spacing_mm, 0, 1)
    average[average.sum(axis=1) == 0, -1] = 1
    average /= average.sum(axis=1, keepdims=True)
    back = np.clip(1 - np.abs(z[:, None] - positions[None]) / scanner.slice_spacing_mm, 0, None)
    back /= np.maximum(back.sum(axis=1, keepdims=True), 1e-6)
    return torch.from_numpy(average.astype(np.float32)), torch.from_numpy(back.astype(np.float32))


def blur_rows_columns(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of the last two axes, sigma in voxels; image (slices, rows, columns)."""
    if sigma < 0.15:
        return image
    radius = max(1, int(np.ceil(2.5 * sigma)))
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    x = F.pad(image[:, None], (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(x, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))[:, 0]


def scan(hu: Tensor, spacing_mm: tuple[float, float], rng: np.random.Generator, scanner: Scanner) -> Tensor:
    """Image a painted body (slices, rows, columns): blur, kernel, slices, correlated noise, back to the same grid.

    spacing_mm : of the slices, and of rows and columns
    """
    average, back = slice_matrices(hu.shape[0], spacing_mm[0], scanner, float(rng.uniform()))
    pixel_mm = spacing_mm[1]
    image = torch.einsum("sz,zyx->syx", average, hu)
    image = blur_rows_columns(image, scanner.psf_sigma_mm / pixel_mm)
    if scanner.sharpening:
        image = image + scanner.sharpening * (image - blur_rows_columns(image, 1.0 / pixel_mm))
    noise = torch.from_numpy(rng.standard_normal(tuple(image.shape), dtype=np.float32))
    noise = blur_rows_columns(noise, scanner.noise_sigma_mm / pixel_mm)
    if scanner.sharpening:
        noise = noise - 0.6 * blur_rows_columns(noise, 1.5 / pixel_mm)
    noise *= scanner.noise_sd_hu / float(noise.std())
    image = image + noise * (0.8 + 0.4 * (image > -500))
    return torch.einsum("zs,syx->zyx", back, image)

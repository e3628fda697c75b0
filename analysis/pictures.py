"""The report's picture: the spine from the side with the VOIs, each VOI in its axial slice, and the density scale.

Drawn with matplotlib's Agg canvas into PNG bytes, without pyplot and its global state. Nothing in it names a patient.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from scipy import ndimage

from analysis.results import BmdSummary, Segmentation, VertebraBmd, Voi
from analysis.volume import CtVolume

WIDTH_INCHES, HEIGHT_INCHES, DOTS_PER_INCH = 12.0, 9.0, 100
BACKGROUND, INK, FAINT = "#11161c", "#eef2f5", "#9aa7b3"
VOI_COLOUR = "#ffb545"
BAND_COLOURS = ("#d9534f", "#e8b04a", "#4fae6d")  # osteoporosis, osteopenia, normal
ASPECT = WIDTH_INCHES / HEIGHT_INCHES
WINDOW_HU = (-160.0, 440.0)
STEP_MM = 0.6
SAGITTAL_FRONT_MM, SAGITTAL_BACK_MM, SAGITTAL_END_MM = 75.0, 80.0, 35.0
AXIAL_HALF_MM = 54.0
LABEL_FRONT_MM = 29.0  # of a level's name in front of the body's centre
SCALE_MG_CM3 = (0.0, 220.0)


@dataclass(frozen=True, slots=True, eq=False)
class SagittalView:
    """A curved cut through the bodies' centres. image : HU (head to feet, front to back); positions in mm."""

    image: NDArray[np.float32]
    y_mm: NDArray[np.float64]
    z_mm: NDArray[np.float64]


def report_picture(
    volume: CtVolume,
    segmentation: Segmentation,
    vois: Sequence[Voi],
    vertebrae: Sequence[VertebraBmd],
    summary: BmdSummary,
) -> bytes:
    """PNG, 1200 x 900 pixels."""
    figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), dpi=DOTS_PER_INCH, facecolor=BACKGROUND)
    _draw_heading(figure, summary)
    _draw_sagittal(_axes(figure, (0.03, 0.055, 0.355, 0.80)), volume, segmentation, vois)
    measured = {vertebra.level: vertebra for vertebra in vertebrae}
    width = min(0.275, 0.57 / max(len(vois), 1))
    for position, voi in enumerate(vois):
        rectangle = (0.415 + position * (width + 0.015), 0.855 - width * ASPECT, width, width * ASPECT)
        _draw_axial(_axes(figure, rectangle), volume, voi, measured.get(voi.level))
    _draw_scale(_axes(figure, (0.43, 0.105, 0.53, 0.22)), vertebrae, summary)
    return _png(figure)


def _axes(figure: Figure, rectangle: tuple[float, float, float, float]) -> Axes:
    axes = figure.add_axes(rectangle, facecolor=BACKGROUND)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", facecolor=BACKGROUND, metadata={"Software": None})
    return buffer.getvalue()


def headline(summary: BmdSummary) -> str:
    """Which levels, the value with its expanded uncertainty, and the class."""
    levels = " and ".join(summary.levels)
    name = f"Mean of {levels}" if len(summary.levels) > 1 else f"{levels} only"
    return f"{name}: {summary.bmd_mg_cm3:.1f} ± {2 * summary.u_bmd_mg_cm3:.1f} mg/cm³"


def _draw_heading(figure: Figure, summary: BmdSummary) -> None:
    figure.text(0.03, 0.945, headline(summary), color=INK, fontsize=21, fontweight="bold", va="center")
    parts = [f"trabecular BMD, {summary.material} equivalent, U with k = 2"]
    if summary.classification is not None:
        parts.append(f"{summary.classification}{', borderline' if summary.borderline else ''}")
    figure.text(0.03, 0.903, "   |   ".join(parts), color=FAINT, fontsize=13.5, va="center")


def sagittal_view(volume: CtVolume, segmentation: Segmentation) -> SagittalView:
    """Cut along the curve through the centres of the bodies, from above the first to below the last level shown."""
    centres = np.array(sorted((level.centroid_lps_mm for level in segmentation.levels), key=lambda c: c[2]))
    z = np.arange(centres[-1, 2] + SAGITTAL_END_MM, centres[0, 2] - SAGITTAL_END_MM, -STEP_MM)
    x_curve = np.interp(z, centres[:, 2], centres[:, 0])
    y = np.arange(centres[:, 1].min() - SAGITTAL_FRONT_MM, centres[:, 1].max() + SAGITTAL_BACK_MM, STEP_MM)
    points = np.stack(np.broadcast_arrays(x_curve[:, None], y[None, :], z[:, None]), axis=-1)
    image = _sample(volume, points)
    shown = np.flatnonzero((image > -1000.0).any(axis=1))
    rows = slice(shown[0], shown[-1] + 1) if len(shown) else slice(None)
    return SagittalView(image[rows], y, z[rows])


def _sample(volume: CtVolume, points_mm: NDArray[np.float64]) -> NDArray[np.float32]:
    """HU at LPS points (..., 3) from the smallest box that holds them; -1024 outside."""
    index = np.moveaxis(volume.to_index(points_mm), -1, 0)
    shape = np.array(volume.hu.shape)
    flat = index.reshape(3, -1)
    low = np.clip(np.floor(flat.min(axis=1)).astype(int) - 1, 0, shape - 1)
    high = np.clip(np.ceil(flat.max(axis=1)).astype(int) + 2, low + 1, shape)
    box = np.asarray(volume.hu[tuple(slice(a, b) for a, b in zip(low, high, strict=True))], dtype=np.float32)
    sampled: NDArray[np.float32] = ndimage.map_coordinates(
        box, index - low.reshape(3, *[1] * (index.ndim - 1)), order=1, cval=-1024.0
    )
    return sampled


def _draw_sagittal(axes: Axes, volume: CtVolume, segmentation: Segmentation, vois: Sequence[Voi]) -> None:
    view = _around_vois(sagittal_view(volume, segmentation), vois, axes)
    extent = (view.y_mm[0], view.y_mm[-1], view.z_mm[-1], view.z_mm[0])
    axes.imshow(view.image, cmap="gray", vmin=WINDOW_HU[0], vmax=WINDOW_HU[1], extent=extent, interpolation="bicubic")
    axes.set_xlim(extent[0], extent[1])
    axes.set_ylim(extent[2], extent[3])
    measured = {voi.level for voi in vois}
    for level in segmentation.levels:
        _, y, z = level.centroid_lps_mm
        if view.z_mm[-1] + 5 < z < view.z_mm[0] - 5 and view.y_mm[0] + 5 < y - LABEL_FRONT_MM:
            _label(axes, (y - LABEL_FRONT_MM, z), level.name, VOI_COLOUR if level.name in measured else INK)
    for voi in vois:
        corners = _sagittal_outline(voi)
        axes.plot(corners[:, 1], corners[:, 2], color=VOI_COLOUR, linewidth=1.8)


def _label(axes: Axes, place: tuple[float, float], text: str, colour: str) -> None:
    outline = [withStroke(linewidth=3.0, foreground=BACKGROUND)]
    axes.text(
        *place, text, color=colour, fontsize=14, fontweight="bold", ha="center", va="center", path_effects=outline
    )


def _around_vois(view: SagittalView, vois: Sequence[Voi], axes: Axes) -> SagittalView:
    """Crop to the axes' shape around the VOIs, so that millimetres stay square and the panel is filled."""
    box = axes.get_position()
    ratio = box.height * HEIGHT_INCHES / (box.width * WIDTH_INCHES)
    height_mm = min((view.y_mm[-1] - view.y_mm[0]) * ratio, view.z_mm[0] - view.z_mm[-1])
    width_mm = height_mm / ratio
    z, y = (float(np.mean([voi.centre_lps_mm[axis] for voi in vois])) for axis in (2, 1))
    z = float(np.clip(z, view.z_mm[-1] + height_mm / 2, view.z_mm[0] - height_mm / 2))
    rows = np.abs(view.z_mm - z) <= height_mm / 2
    columns = np.abs(view.y_mm - (y + 8.0)) <= width_mm / 2
    return SagittalView(view.image[np.ix_(rows, columns)], view.y_mm[columns], view.z_mm[rows])


def _sagittal_outline(voi: Voi) -> NDArray[np.float64]:
    """Closed outline (5, 3) of the VOI in its mid-sagittal plane, LPS mm."""
    normal = np.array(voi.normal_lps)
    forward = np.array([0.0, -1.0, 0.0]) + normal * normal[1]
    forward = forward / np.linalg.norm(forward) * voi.semi_axes_mm[1]
    half = normal * voi.depth_mm / 2
    signs = ((1, 1), (1, -1), (-1, -1), (-1, 1), (1, 1))
    return np.array([np.array(voi.centre_lps_mm) + a * half + b * forward for a, b in signs])


def _draw_axial(axes: Axes, volume: CtVolume, voi: Voi, vertebra: VertebraBmd | None) -> None:
    """The source slice through the VOI's middle, the oval, and the voxels used, tinted."""
    row, column = (volume.affine[:3, axis] / np.linalg.norm(volume.affine[:3, axis]) for axis in (1, 2))
    outline = np.array(voi.outlines_lps_mm[0])
    middle = outline[:-1].mean(axis=0) + row * 8.0 * np.sign(row[1])
    offsets = np.arange(-AXIAL_HALF_MM, AXIAL_HALF_MM, STEP_MM)
    points = middle + offsets[:, None, None] * row + offsets[None, :, None] * column
    extent = (-AXIAL_HALF_MM, AXIAL_HALF_MM, AXIAL_HALF_MM, -AXIAL_HALF_MM)
    axes.imshow(
        _sample(volume, points),
        cmap="gray",
        vmin=WINDOW_HU[0],
        vmax=WINDOW_HU[1],
        extent=extent,
        interpolation="bicubic",
    )
    axes.contourf(offsets, offsets, _used(volume, voi, points), levels=(0.5, 1.5), colors=[VOI_COLOUR], alpha=0.25)
    in_plane = np.stack([(outline - middle) @ column, (outline - middle) @ row], axis=1)
    axes.plot(in_plane[:, 0], in_plane[:, 1], color=VOI_COLOUR, linewidth=1.8)
    axes.set_xlim((-AXIAL_HALF_MM, AXIAL_HALF_MM) if column[0] > 0 else (AXIAL_HALF_MM, -AXIAL_HALF_MM))
    axes.set_ylim((AXIAL_HALF_MM, -AXIAL_HALF_MM) if row[1] > 0 else (-AXIAL_HALF_MM, AXIAL_HALF_MM))
    axes.text(
        0.03, 0.945, voi.level, color=VOI_COLOUR, fontsize=17, fontweight="bold", transform=axes.transAxes, va="center"
    )
    axes.text(0.02, 0.5, "R", color=FAINT, fontsize=11, transform=axes.transAxes, va="center")
    axes.text(0.98, 0.5, "L", color=FAINT, fontsize=11, transform=axes.transAxes, va="center", ha="right")
    axes.set_title(_axial_caption(voi, vertebra), color=INK, fontsize=12.5, y=-0.165, linespacing=1.45)


def _used(volume: CtVolume, voi: Voi, points: NDArray[np.float64]) -> NDArray[np.float32]:
    """1 where the voxel under a point is used for more than half, 0 elsewhere; for the tint."""
    index = np.moveaxis(volume.to_index(points) - np.array(voi.start), -1, 0)
    used: NDArray[np.float32] = ndimage.map_coordinates((voi.weights > 0.5).astype(np.float32), index, order=1)
    return used


def _axial_caption(voi: Voi, vertebra: VertebraBmd | None) -> str:
    covered = f"oval covers {voi.cancellous_fraction:.0%}, {voi.volume_mm3 / 1000:.1f} cm³"
    if vertebra is None:
        return covered
    return f"{vertebra.bmd_mg_cm3:.1f} ± {2 * vertebra.u_bmd_mg_cm3:.1f} mg/cm³\n{vertebra.mean_hu:.0f} HU, {covered}"


def _draw_scale(axes: Axes, vertebrae: Sequence[VertebraBmd], summary: BmdSummary) -> None:
    """Bands of the classes, each vertebra as a tick, the mean with its expanded uncertainty."""
    low, high = SCALE_MG_CM3[0], max(SCALE_MG_CM3[1], summary.bmd_mg_cm3 + 3 * summary.u_bmd_mg_cm3 + 5)
    axes.set_xlim(min(low, summary.bmd_mg_cm3 - 3 * summary.u_bmd_mg_cm3 - 5), high)
    axes.set_ylim(0.0, 1.0)
    edges = (axes.get_xlim()[0], *summary.limits_mg_cm3, high)
    _draw_bands(axes, edges, classified=summary.classification is not None)
    for vertebra in vertebrae:
        axes.plot([vertebra.bmd_mg_cm3] * 2, [0.28, 0.52], color=INK, linewidth=1.4, alpha=0.8)
    _label_vertebrae(axes, vertebrae)
    mean, expanded = summary.bmd_mg_cm3, 2 * summary.u_bmd_mg_cm3
    axes.plot([mean - expanded, mean + expanded], [0.78, 0.78], color=INK, linewidth=2.4, solid_capstyle="butt")
    for end in (mean - expanded, mean + expanded):
        axes.plot([end, end], [0.72, 0.84], color=INK, linewidth=2.4)
    axes.plot(mean, 0.78, "o", color=VOI_COLOUR, markersize=13, markeredgecolor=BACKGROUND)
    axes.text(mean, 0.93, f"{mean:.1f} ± {expanded:.1f}", color=INK, fontsize=13.5, fontweight="bold", ha="center")


def _draw_bands(axes: Axes, edges: tuple[float, ...], *, classified: bool) -> None:
    names = ("osteoporosis", "osteopenia", "normal")
    for name, colour, start, stop in zip(names, BAND_COLOURS, edges[:-1], edges[1:], strict=True):
        axes.add_patch(
            Rectangle((start, 0.28), stop - start, 0.24, color=colour if classified else "#3a4653", linewidth=0)
        )
        if classified:
            axes.text((start + stop) / 2, 0.40, name, color=BACKGROUND, fontsize=11.5, ha="center", va="center")
    for limit in edges[1:-1] if classified else ():
        axes.text(limit, 0.20, f"{limit:g}", color=FAINT, fontsize=11.5, ha="center", va="center")
    axes.text(edges[0], 0.20, f"{edges[0]:.0f}", color=FAINT, fontsize=11.5, ha="left", va="center")
    axes.text(edges[-1], 0.20, f"{edges[-1]:.0f} mg/cm³", color=FAINT, fontsize=11.5, ha="right", va="center")


def _label_vertebrae(axes: Axes, vertebrae: Sequence[VertebraBmd]) -> None:
    """Names above their ticks, pushed apart when they would overlap."""
    ordered = sorted(vertebrae, key=lambda vertebra: vertebra.bmd_mg_cm3)
    places = [vertebra.bmd_mg_cm3 for vertebra in ordered]
    for position in range(1, len(places)):
        overlap = 11.0 - (places[position] - places[position - 1])
        if overlap > 0:
            places[position - 1] -= overlap / 2
            places[position] += overlap / 2
    for vertebra, place in zip(ordered, places, strict=True):
        axes.text(place, 0.595, vertebra.level, color=INK, fontsize=11.5, ha="center", va="center")

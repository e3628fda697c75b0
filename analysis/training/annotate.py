"""Pictures to mark vertebrae by eye and to check the marks; rough body masks from them.

    python -m analysis.training.annotate look  VOLUME --out picture.png [--x MM --y MM]
    python -m analysis.training.annotate check ANNOTATION.json VOLUME --out picture.png
    python -m analysis.training.annotate grow  ANNOTATION.json VOLUME --out labels.nii.gz

`look` draws planes with a millimetre grid, from which centroids and endplates are read and typed into the JSON;
`check` draws the marks on planes that follow the spine; `grow` writes a label map in VerSe numbering.
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import SimpleITK as sitk
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from analysis.training.annotation import Annotation, annotation_from_json, centre_line, grow_bodies
from analysis.training.volume_files import image_affine, read_ct, read_image
from analysis.volume import CtVolume

matplotlib.use("Agg")

STEP_MM = 0.75
WINDOW_HU = (-100.0, 450.0)


def sample(volume: CtVolume, lps_mm: NDArray[np.float64]) -> NDArray[np.float32]:
    """HU at positions (..., 3), linear; -1024 outside."""
    index = np.moveaxis(volume.to_index(lps_mm), -1, 0)
    values: NDArray[np.float32] = map_coordinates(volume.hu, index, order=1, cval=-1024, output=np.float32)
    return values


def bounds_lps_mm(volume: CtVolume) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smallest and largest LPS coordinate of all voxel centres."""
    corners = np.array(np.meshgrid(*((0, n - 1) for n in volume.hu.shape), indexing="ij")).reshape(3, -1).T
    positions = volume.to_lps_mm(corners.astype(np.float64))
    return positions.min(axis=0), positions.max(axis=0)


def plane(
    volume: CtVolume, line: NDArray[np.float64], view: str, depth_mm: tuple[float, ...]
) -> tuple[NDArray[np.float32], list[float]]:
    """A sagittal or coronal picture through a line of (x, y, z), maximum over `depth_mm` behind it; with its extent.

    The plane follows the line across its own normal only, so in-plane distances stay true.
    """
    low, high = bounds_lps_mm(volume)
    z = np.arange(low[2], high[2], STEP_MM)
    across, along = (0, 1) if view == "sagittal" else (1, 0)
    h = np.arange(low[along], high[along], STEP_MM)
    points = np.zeros((len(z), len(h), 3))
    points[..., 2], points[..., along] = z[:, None], h[None, :]
    normal = np.interp(z, line[:, 2], line[:, across])[:, None]
    pictures = []
    for depth in depth_mm:
        points[..., across] = normal + depth
        pictures.append(sample(volume, points))
    return np.max(pictures, axis=0), [h[0], h[-1], z[0], z[-1]]


def draw(axes: Axes, picture: NDArray[np.float32], extent: list[float], title: str) -> None:
    axes.imshow(
        picture,
        cmap="gray",
        vmin=WINDOW_HU[0],
        vmax=WINDOW_HU[1],
        origin="lower",
        extent=(extent[0], extent[1], extent[2], extent[3]),
    )
    axes.set_yticks(np.arange(np.ceil(extent[2] / 20) * 20, extent[3], 20))
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.2)


def mark(axes: Axes, annotation: Annotation, horizontal: int) -> None:
    """Centroids as crosses with names, endplate centres as dots; doubtful levels with a question mark."""
    for vertebra in annotation.vertebrae:
        centroid = vertebra.centroid_lps_mm
        name = vertebra.level + ("?" if vertebra.level_confidence < 0.9 else "") + ("" if vertebra.complete else " cut")
        axes.plot(centroid[horizontal], centroid[2], "+", color="yellow", markersize=8)
        axes.annotate(
            name, (centroid[horizontal], centroid[2]), (30, 0), textcoords="offset points", color="yellow", fontsize=8
        )
        for endplate in (vertebra.upper_endplate_lps_mm, vertebra.lower_endplate_lps_mm):
            if endplate is not None:
                axes.plot(endplate[horizontal], endplate[2], ".", color="red", markersize=3)


def check_picture(annotation: Annotation, volume: CtVolume) -> Figure:
    """Sagittal and coronal planes along the marked spine, and the maximum behind it, which shows the ribs."""
    line = centre_line(annotation)
    low, high = bounds_lps_mm(volume)
    figure = Figure(figsize=(18, 3 + 12 * float((high - low)[2]) / 400))
    panels = (("sagittal", (0.0,), 1), ("coronal", (0.0,), 0), ("coronal", tuple(np.arange(8.0, 60.0, 3.0)), 0))
    for axes, (view, depth, horizontal) in zip(figure.subplots(1, 3), panels, strict=True):
        picture, extent = plane(volume, line, view, depth)
        draw(
            axes, picture, extent, view + (" maximum behind the bodies" if len(depth) > 1 else " through the centroids")
        )
        mark(axes, annotation, horizontal)
    figure.tight_layout()
    return figure


def look_picture(volume: CtVolume, x_mm: float, y_mm: float) -> Figure:
    """Straight sagittal plane at x and coronal plane at y."""
    line = np.array([[x_mm, y_mm, 0.0]])
    figure = Figure(figsize=(18, 12))
    for axes, view in zip(figure.subplots(1, 2), ("sagittal", "coronal"), strict=True):
        draw(axes, *plane(volume, line, view, (0.0,)), f"{view} at {x_mm if view == 'sagittal' else y_mm:.0f} mm")
    figure.tight_layout()
    return figure


def write_masks(annotation: Annotation, source: Path, out: Path) -> None:
    """Rough body masks on the source's own grid."""
    image = read_image(source)
    volume = CtVolume(sitk.GetArrayFromImage(image), image_affine(image))
    labels = sitk.GetImageFromArray(grow_bodies(annotation, volume))
    labels.CopyInformation(image)
    sitk.WriteImage(labels, str(out))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m analysis.training.annotate", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("look", "check", "grow"):
        command = commands.add_parser(name)
        if name != "look":
            command.add_argument("annotation", type=Path)
        command.add_argument("volume", type=Path)
        command.add_argument("--out", type=Path, required=True)
    commands.choices["look"].add_argument("--x", type=float, default=0.0)
    commands.choices["look"].add_argument("--y", type=float, default=0.0)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.command == "look":
        look_picture(read_ct(options.volume), options.x, options.y).savefig(options.out, dpi=80)
        return 0
    annotation = annotation_from_json(options.annotation.read_text())
    if options.command == "check":
        check_picture(annotation, read_ct(options.volume)).savefig(options.out, dpi=80)
    else:
        write_masks(annotation, options.volume, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Time and memory of the segmentation of a 400-slice series, beside a plain network of nnU-Net's size.

    python -m tests.studies.segmentation_benchmark [--models FOLDER] [--threads 2] [--device cpu] [--windows 2]

The series is built from a real volume resampled to 400 slices of 512 x 512, in memory. The comparison is a U-Net with
nnU-Net's usual plan for CT (Isensee et al., Nature Methods 2021: 32 to 320 features, two convolutions per stage,
patches of 128^3 at 1.5 mm, half overlap) with random weights; its time does not depend on them. `--windows` of its
windows are run and the sum over all windows is computed from their mean, unless `--windows 0` asks for all of them.
"""

import argparse
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from analysis.resampling import canonical_view, covering_grid, resample
from analysis.segmentation import SegmentationLimits, choose_device, segment_vertebrae
from analysis.volume import CtVolume
from node.process_memory import keep_freed_memory
from tests.studies.segmentation_accuracy import MODELS, networks_from
from tests.studies.segmentation_cases import load_case

PLAIN_FEATURES = (32, 64, 128, 256, 320, 320)
PLAIN_PATCH = 128
PLAIN_SPACING_MM = 1.5
PLAIN_CLASSES = 27


def large_series(name: str = "acrin-flt-001") -> CtVolume:
    """A real volume interpolated to 400 slices of 512 x 512: 421 mm at 1.05 mm."""
    volume = load_case(name).volume
    slices = volume.hu.shape[0]
    positions = np.linspace(0, slices - 1, 400)
    hu = np.empty((400, 512, 512), np.int16)
    for i, position in enumerate(positions):
        below = min(int(position), slices - 2)
        share = position - below
        hu[i] = (1 - share) * volume.hu[below] + share * volume.hu[below + 1]
    affine = volume.affine.copy()
    affine[:3, 0] *= (slices - 1) / 399
    return CtVolume(hu, affine)


def _stage(n_in: int, n_out: int, stride: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n, s in ((n_in, stride), (n_out, 1)):
        layers += [
            nn.Conv3d(n, n_out, 3, s, 1),
            nn.InstanceNorm3d(n_out, affine=True),
            nn.LeakyReLU(0.01, inplace=True),
        ]
    return nn.Sequential(*layers)


class PlainUNet(nn.Module):
    """Encoder and decoder of two convolutions per stage; written for its cost, not for its results."""

    def __init__(self, features: tuple[int, ...] = PLAIN_FEATURES, classes: int = PLAIN_CLASSES) -> None:
        super().__init__()
        pairs = list(zip((1, *features[:-1]), features, strict=True))
        self.encoder = nn.ModuleList(_stage(a, b, 1 if a == 1 else 2) for a, b in pairs)
        below = list(zip(features[:0:-1], features[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose3d(a, b, 2, 2) for a, b in below)
        self.decoder = nn.ModuleList(_stage(2 * b, b, 1) for _, b in below)
        self.head = nn.Conv3d(features[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        skips.pop()
        for up, decode in zip(self.up, self.decoder, strict=True):
            x = decode(torch.cat((up(x), skips.pop()), dim=1))
        result: Tensor = self.head(x)
        return result


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def time_ours(volume: CtVolume, options: argparse.Namespace) -> None:
    networks = networks_from(options.models)
    limits = SegmentationLimits(device=options.device)
    before = peak_mb()
    segment_vertebrae(volume, networks, limits)  # the first run loads kernels
    runs = []
    for _ in range(3):
        started = time.perf_counter()
        segmentation = segment_vertebrae(volume, networks, limits)
        runs.append((time.perf_counter() - started, segmentation))
    seconds, segmentation = min(runs, key=lambda run: run[0])
    print(f"\n| part | s |\n|---|---|\n| **all, best of 3** | **{seconds:.1f}** |")
    for stage, duration in segmentation.timings_s:
        print(f"| {stage} | {duration:.2f} |")
    slowest = max(run[0] for run in runs)
    print(f"\n{len(segmentation.levels)} vertebrae; slowest run {slowest:.1f} s")
    print(f"peak memory of the process {peak_mb():.0f} MB, {before:.0f} MB of it before (series and libraries)")
    if options.device.startswith("cuda"):
        print(f"peak memory of the card {torch.cuda.max_memory_allocated() / 2**20:.0f} MB")


def time_plain(volume: CtVolume, options: argparse.Namespace) -> None:
    """The same volume through the plain network: resampling, windows with half overlap, argmax back on the grid.

    In the same precision as ours.
    """
    device, precision = choose_device(SegmentationLimits(device=options.device))
    network = PlainUNet().eval().to(device, precision).to(memory_format=torch.channels_last_3d)
    started = time.perf_counter()
    view = canonical_view(volume)
    hu = resample(view, covering_grid(view, PLAIN_SPACING_MM), device) / 1000.0
    resampling = time.perf_counter() - started
    starts = [range(0, max(1, n - PLAIN_PATCH // 2), PLAIN_PATCH // 2) for n in hu.shape]
    total = int(np.prod([len(s) for s in starts]))
    chosen = total if options.windows == 0 else min(options.windows, total)
    window = torch.zeros(1, 1, *(PLAIN_PATCH,) * 3, device=device)
    part = hu[:PLAIN_PATCH, :PLAIN_PATCH, :PLAIN_PATCH]
    window[0, 0, : part.shape[0], : part.shape[1], : part.shape[2]] = part
    window = window.to(precision).contiguous(memory_format=torch.channels_last_3d)
    started = time.perf_counter()
    with torch.inference_mode():
        for _ in range(chosen):
            classes = network(window).argmax(dim=1)
    if device.type == "cuda":
        torch.cuda.synchronize()
    each = (time.perf_counter() - started) / chosen
    started = time.perf_counter()
    ndimage.zoom(classes[0].cpu().numpy().astype(np.uint8), 1.5, order=0)
    back = (time.perf_counter() - started) * total / 8
    parameters = sum(p.numel() for p in network.parameters()) / 1e6
    title = "all" if chosen == total else "all, extrapolated"
    print(f"\nplain network of nnU-Net's size, {parameters:.1f} M parameters, in {precision}:")
    print(f"{total} windows, {chosen} of them run")
    print(f"\n| part | s |\n|---|---|\n| **{title}** | **{resampling + each * total + back:.0f}** |")
    print(f"| resampling | {resampling:.2f} |\n| one window | {each:.2f} |\n| network | {each * total:.0f} |")
    print(f"| labels back | {back:.1f} |\n\npeak memory of the process {peak_mb():.0f} MB")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=MODELS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--windows", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as the worker process does
    volume = large_series()
    print(f"{volume.hu.shape} voxels of {', '.join(f'{s:.2f}' for s in volume.spacing_mm)} mm on {options.device}, "
          f"{options.threads} threads")  # fmt: skip
    time_ours(volume, options)
    time_plain(volume, options)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

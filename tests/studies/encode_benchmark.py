"""How long and how much memory the objects of a full-size study take: `python -m tests.studies.encode_benchmark`.

400 slices of 512 x 512, two vertebrae, SEG + measurement SR + readable report + radiomics SR + PDF, and the own checks
that run before anything is sent. Target: at most 4 s and 500 MB above what the inputs take, on 2 cores. Writes
docs/encode-benchmark.md when called with --write.
"""

import argparse
import os
import platform
import threading
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from node.encode_results import encode_patient_result
from node.encoded import Attachments, EncodingSettings, ObjectKind
from tests.result_builders import CREATED, Grid, make_headers, make_result

OBJECTS = frozenset({
    ObjectKind.SEGMENTATION, ObjectKind.MEASUREMENTS, ObjectKind.REPORT, ObjectKind.RADIOMICS, ObjectKind.PDF,
})
TARGET_S, TARGET_MB = 4.0, 500.0
REPORT = Path(__file__).resolve().parents[2] / "docs" / "encode-benchmark.md"


class PeakMemory:
    """Highest resident memory of this process while inside, sampled every 5 ms."""

    def __enter__(self) -> "PeakMemory":
        self.before_mb = self.peak_mb = _resident_mb()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.peak_mb = max(self.peak_mb, _resident_mb())


def _resident_mb() -> float:
    return psutil.Process().memory_info().rss / 1e6


def picture() -> bytes:
    """A PNG of the size of the report picture, as hard to compress as a CT."""
    noise = np.random.default_rng(0).integers(0, 255, (900, 1200, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(noise // 8 * 8).save(buffer, "png")
    return buffer.getvalue()


def measure() -> list[str]:
    # 65 mm of bodies and 20 mm of VOIs among 500 mm of slices, as in a real abdomen
    headers = make_headers(Grid(400, 512, 512, (1.25, 0.8, 0.8), origin_lps_mm=(-205.0, -205.0, -600.0)))
    result = make_result(headers)
    settings = EncodingSettings(objects=OBJECTS)
    attachments = Attachments(picture(), picture(), CREATED)
    small = make_headers()
    encode_patient_result(make_result(small), small, settings, attachments=attachments)  # import and font caches
    with PeakMemory() as memory:
        begin, cpu = time.perf_counter(), time.process_time()
        objects = encode_patient_result(result, headers, settings, attachments=attachments)
        for_files = [(item, BytesIO()) for item in objects]
        for item, buffer in for_files:
            item.dataset.save_as(buffer, enforce_file_format=True)
        wall_s, cpu_s = time.perf_counter() - begin, time.process_time() - cpu
    lines = [f"| {item.kind} | {len(buffer.getvalue()) / 1000:.0f} kB |" for item, buffer in for_files]
    frames = objects[0].dataset.NumberOfFrames
    return [
        f"Machine: {os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f} when measured.", "",
        f"- time: {wall_s:.2f} s on the clock, {cpu_s:.2f} s of processor time (target {TARGET_S:.0f} s)",
        f"- memory above the inputs: {memory.peak_mb - memory.before_mb:.0f} MB (target {TARGET_MB:.0f} MB)",
        f"- SEG frames: {frames}", "", "| object | size |", "|---|---|", *lines,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {REPORT.name} into docs/")
    arguments = parser.parse_args()
    text = "\n".join(measure())
    print(text)
    if arguments.write:
        title = "# Encoding a full-size study\n\n400 slices of 512 x 512: SEG, three SRs, PDF and the own checks.\n"
        REPORT.write_text(f"{title}Command: `python -m tests.studies.encode_benchmark --write`.\n\n{text}\n")


if __name__ == "__main__":
    main()

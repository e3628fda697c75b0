"""Every object through every validator, slow ones too: `python -m tests.studies.encode_validation [--dcmqi FOLDER]`.

dciodvfy, dsrdump and PixelMed on each object, and dcmqi as an independent reader: voxel counts of each segment and the
values of each measurement group. dcmqi comes from the package index in an environment of its own:

    python -m venv /tmp/dcmqi && /tmp/dcmqi/bin/pip install dcmqi

With --write the table goes to docs/encode-validation.md.
"""

import argparse
import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from pydicom import Dataset, dcmread

from analysis.results import PatientResult
from node.encode_results import encode_patient_result, encode_phantom_answer
from node.encoded import Attachments, EncodedObject, EncodingSettings, ObjectKind
from node.segments import measured_segments
from node.sr_checks import read_groups
from tests.result_builders import CREATED, Grid, make_calibration, make_headers, make_refusal, make_result
from tests.test_encode_report import make_png
from tests.test_encode_seg import GRIDS, written_ct
from tests.test_encode_validators import run, untolerated, validate_with_pixelmed

REPORT = Path(__file__).resolve().parents[2] / "docs" / "encode-validation.md"
TROUBLE = "error|warning|abort"
REPORTS = (
    ObjectKind.MEASUREMENTS, ObjectKind.REPORT, ObjectKind.RADIOMICS, ObjectKind.REFUSAL, ObjectKind.PHANTOM_REPORT,
)


def write_study(grid: Grid, folder: Path) -> tuple[PatientResult, dict[ObjectKind, Path], tuple[Dataset, ...]]:
    """CT slices and all objects of one study as files."""
    headers, pictures = make_headers(grid), Attachments(make_png(), make_png(), CREATED)
    settings = EncodingSettings(objects=frozenset(ObjectKind))
    result = make_result(headers)
    objects: list[EncodedObject] = [*encode_patient_result(result, headers, settings, attachments=pictures)]
    objects.extend(encode_patient_result(make_refusal(headers), headers, settings, attachments=pictures))
    objects.extend(encode_phantom_answer(make_calibration(), headers, make_png(), settings, pictures))
    (folder / "ct").mkdir(parents=True)
    for index, header in enumerate(headers):
        (folder / "ct" / f"{index:04}.dcm").write_bytes(written_ct(header))
    paths = {}
    for item in objects:
        paths[item.kind] = folder / f"{item.kind.value.replace(' ', '-')}.dcm"
        item.dataset.save_as(paths[item.kind], enforce_file_format=True)
    return result, paths, headers


def validate(paths: dict[ObjectKind, Path], *, with_pixelmed: bool) -> Iterator[tuple[str, str, str]]:
    """(object, validator, what it said beyond the tolerated warnings)."""
    for kind, path in paths.items():
        yield kind.value, "dciodvfy", _verdict(untolerated("dciodvfy", run("dciodvfy", str(path)), TROUBLE))
        if with_pixelmed and kind in REPORTS:
            output = validate_with_pixelmed(path, timeout_s=1800)
            yield kind.value, "PixelMed", _verdict(untolerated("pixelmed", output, TROUBLE))


def read_with_dcmqi(
    result: PatientResult, paths: dict[ObjectKind, Path], folder: Path, dcmqi: Path
) -> Iterator[tuple[str, str, str]]:
    """dcmqi's voxel counts and values against the result's."""
    target = folder / "dcmqi"
    target.mkdir()
    run(str(dcmqi / "segimage2itkimage"), "--inputDICOM", str(paths[ObjectKind.SEGMENTATION]), "--outputDirectory",
        str(target), "--prefix", "s", "-t", "nrrd")
    found = sorted(
        int(np.count_nonzero(sitk.GetArrayFromImage(sitk.ReadImage(str(path))))) for path in target.glob("s-*.nrrd")
    )
    expected = sorted(int(np.count_nonzero(segment.mask)) for segment in measured_segments(result))
    yield "segmentation", "dcmqi", "voxel counts equal" if found == expected else f"{found}; {expected} expected"
    for kind in (ObjectKind.MEASUREMENTS, ObjectKind.RADIOMICS):
        output = target / f"{kind}.json"
        done = subprocess.run(
            [str(dcmqi / "tid1500reader"), "--inputDICOM", str(paths[kind]), "--outputMetadata", str(output)],
            capture_output=True, timeout=300, check=False,
        )
        yield kind.value, "dcmqi", _read_values(output, paths[kind]) if output.exists() else done.stderr.decode()[-200:]


def _read_values(output: Path, path: Path) -> str:
    groups = [group for group in read_groups(dcmread(path)) if group.values]
    read = [group for group in json.loads(output.read_text())["Measurements"] if group.get("measurementItems")]
    found = sorted(round(float(item["value"]), 3) for group in read for item in group["measurementItems"])
    ours = sum(len(group.values) for group in groups)
    return f"{len(read)} groups, {len(found)} values read" + ("" if len(found) == ours else f"; {ours} expected")


def _verdict(lines: list[str]) -> str:
    return "no errors, no further warnings" if not lines else "; ".join(line[:200] for line in lines)


def _collect(rows: list[tuple[str, ...]], label: str, found: Iterator[tuple[str, str, str]]) -> None:
    """Keep and show each verdict as it comes."""
    for row in found:
        rows.append((label, *row))
        print(" | ".join(rows[-1]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dcmqi", type=Path, help="folder with dcmqi's programs")
    parser.add_argument("--fast", action="store_true", help="without PixelMed, which takes about 14 s for each report")
    parser.add_argument("--write", action="store_true", help=f"write docs/{REPORT.name}")
    arguments = parser.parse_args()
    rows: list[tuple[str, ...]] = []
    with tempfile.TemporaryDirectory() as name:
        for label, grid in GRIDS.items():
            folder = Path(name) / label.replace(" ", "-")
            result, paths, _ = write_study(grid, folder)
            if label == "ascending":
                _collect(rows, label, validate(paths, with_pixelmed=not arguments.fast))
            if arguments.dcmqi is not None:
                _collect(rows, label, read_with_dcmqi(result, paths, folder, arguments.dcmqi))
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    text = f"| study | object | validator | verdict |\n|---|---|---|---|\n{table}"
    if arguments.write:
        REPORT.write_text(
            "# Validators on every object\n\nCommand: `python -m tests.studies.encode_validation --dcmqi FOLDER "
            "--write`. Tolerated warnings and their\nreasons: `TOLERATED` in tests/test_encode_validators.py.\n\n"
            f"{text}\n"
        )


if __name__ == "__main__":
    main()

"""Independent validators on every kind of object: no errors, and only warnings that are listed here with a reason.

dicom3tools (dciodvfy, dcentvfy), DCMTK (dsrdump) and PixelMed's template validator, all from Debian.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from node.encode_results import encode_patient_result, encode_phantom_answer
from node.encoded import Attachments, EncodingSettings, MeasurementSrClass, ObjectKind, TextSrClass
from tests.result_builders import CREATED, make_calibration, make_headers, make_refusal, make_result
from tests.test_encode_report import make_png
from tests.test_encode_seg import written_ct

#: Warnings that every study may raise, with the reason why each is right to ignore.
TOLERATED = {
    "dciodvfy": (
        # PS3.16 section 8 allows private schemes from 99; the tool lists the registered designators only
        "Unrecognized defined term <99QCT> for value 1 of attribute <Coding Scheme Designator>",
    ),
    "dcentvfy": (
        # the tool files Accession Number under the study in some object definitions and under the series in others;
        # the values are equal, or it would say so
        "Different information entities for attribute - Element=<AccessionNumber> IE <",
    ),
    "pixelmed": (
        # TID 1411 is extensible: the tool warns of every item that its tables of 2022 do not list; the category of the
        # mean belongs to the group of the mean, so it stays there
        'CODE (BMD-CATEGORY,99QCT,"QCT BMD category"): Content Item not in template',
        'CODE (BORDERLINE,99QCT,"BMD within uncertainty of a category limit"): Content Item not in template',
        # the tables write "Source series for segmentation", the dictionary capitalises it
        "Source series for segmentation",
    ),
}
PIXELMED_OPTIONS = (
    "-Xss64m", "-Djdk.xml.xpathExprOpLimit=0", "-Djdk.xml.xpathTotalOpLimit=0", "-Djdk.xml.xpathExprGrpLimit=0",
)
PIXELMED_JAR = Path("/usr/share/java/pixelmed.jar")


def needs(tool: str, package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed (Debian package {package})")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Every kind of object, and the classes that a configuration can choose, as files; and one source slice."""
    folder = tmp_path_factory.mktemp("objects")
    headers, pictures = make_headers(), Attachments(make_png(), make_png(), CREATED)
    everything = EncodingSettings(objects=frozenset(ObjectKind))
    older = EncodingSettings(
        objects=frozenset({ObjectKind.MEASUREMENTS, ObjectKind.REPORT}), text_sr_class=TextSrClass.BASIC,
        measurement_sr_class=MeasurementSrClass.COMPREHENSIVE,
    )
    result = make_result(headers)
    first = encode_patient_result(result, headers, everything, attachments=pictures)
    amended = tuple(item.as_predecessor() for item in first)
    sets = {
        "": first,
        "older ": encode_patient_result(result, headers, older, attachments=pictures),
        "amended ": encode_patient_result(result, headers, older, amended, pictures),
        "refused ": encode_patient_result(make_refusal(headers), headers, everything, attachments=pictures),
        "answer ": encode_phantom_answer(make_calibration(), headers, make_png(), everything, pictures),
    }
    found = {}
    for prefix, objects in sets.items():
        for item in objects:
            path = folder / f"{prefix}{item.kind}.dcm".replace(" ", "-")
            item.dataset.save_as(path, enforce_file_format=True)
            found[f"{prefix}{item.kind}"] = path
    (folder / "ct.dcm").write_bytes(written_ct(headers[0]))
    return found


def run(*command: str, timeout_s: float = 280.0) -> str:
    done = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False)
    return (done.stdout + done.stderr).decode("utf-8", "replace")


def untolerated(tool: str, output: str, marks: str) -> list[str]:
    """Lines with a mark of trouble that no entry of the table explains."""
    lines = [line for line in output.splitlines() if re.search(marks, line, re.IGNORECASE)]
    return [line for line in lines if not any(text in line for text in TOLERATED[tool])]


@needs("dciodvfy", "dicom3tools")
def test_dciodvfy_finds_nothing_in_any_object(files) -> None:
    for name, path in files.items():
        output = run("dciodvfy", str(path))
        assert untolerated("dciodvfy", output, "error|warning|abort") == [], name


@needs("dcentvfy", "dicom3tools")
def test_dcentvfy_finds_patient_and_study_equal_across_ct_and_results(files) -> None:
    paths = [str(path) for path in files.values()] + [str(next(iter(files.values())).parent / "ct.dcm")]
    assert untolerated("dcentvfy", run("dcentvfy", *paths), "error|warning|abort") == []


@needs("dsrdump", "dcmtk")
def test_dsrdump_reads_every_report_without_complaint(files) -> None:
    reports = {name: path for name, path in files.items() if "picture" not in name and "chart" not in name
               and "segmentation" not in name and "pdf" not in name}
    assert len(reports) >= 8
    for name, path in reports.items():
        done = subprocess.run(["dsrdump", "-Ee", str(path)], capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, name
        assert done.stderr == b"", name
        assert b"=SEPARATE>" in done.stdout and b"=CONTINUOUS>" not in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not PIXELMED_JAR.exists(), reason="PixelMed is not installed (Debian package libpixelmed-java)")
@pytest.mark.parametrize("name", ["measurements", "report"])
def test_pixelmed_finds_no_error_in_the_templates(name: str, files) -> None:
    """About 14 s each, so only the two with the result; all of them by `python -m tests.studies.encode_validation`."""
    output = validate_with_pixelmed(files[name])
    assert "IOD validation complete" in output
    assert "Found Root Template" in output
    assert untolerated("pixelmed", output, "error|warning") == []


def validate_with_pixelmed(path: Path, timeout_s: float = 280.0) -> str:
    classes = ("-cp", f"{PIXELMED_JAR}:/usr/share/java/*", "com.pixelmed.validate.DicomSRValidator")
    output = run("java", *PIXELMED_OPTIONS, *classes, str(path), timeout_s=timeout_s)
    return "\n".join(line for line in output.splitlines() if not line.startswith("SLF4J"))

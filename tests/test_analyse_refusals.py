"""`qct-node analyse` on DICOM folders: refusals that need no segmentation, each with code, words and exit code 3.

Refusals that follow the segmentation (spine, level, vertebra, VOI) are reached in test_analyse_patients.py, those of
phantom scans in test_calibrate_refusals.py; test_refusal_codes.py holds the count.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from typer.testing import CliRunner

from analysis.results import Calibration
from node import offline
from node.commands import app
from node.config import Config
from node.simulate import PhantomOrder, write_phantom
from storage.ct_series import CtSeries
from tests.analyse_builders import analyse, calibrate, daily_phantom
from tests.synthetic import ACQUIRED, ramp_volume, write_ct

Change = Callable[[int, Dataset], None]


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return daily_phantom(tmp_path_factory.mktemp("phantom"))


@pytest.fixture(autouse=True)
def measured_once(monkeypatch: pytest.MonkeyPatch, phantom: Path, remembered: dict[Path, object]) -> None:
    """The same phantom scan is measured once for all tests."""
    measure = offline._measure_phantom_folder

    def remember(folder: Path, config: Config) -> tuple[Calibration, CtSeries]:
        if folder not in remembered:
            remembered[folder] = measure(folder, config)
        return remembered[folder]  # type: ignore[return-value]

    monkeypatch.setattr(offline, "_measure_phantom_folder", remember)


@pytest.fixture(scope="module")
def remembered() -> dict[Path, object]:
    return {}


def setting(**changes: object) -> Change:
    def change(index: int, ds: Dataset) -> None:
        for keyword, value in changes.items():
            if value is None:
                delattr(ds, keyword)
            else:
                setattr(ds, keyword, value)

    return change


def move_slice_3(distance_mm: float) -> Change:
    def change(index: int, ds: Dataset) -> None:
        if index == 3:
            x, y, z = (float(v) for v in ds.ImagePositionPatient)
            ds.ImagePositionPatient = [x, y, z + distance_mm]

    return change


def shear(index: int, ds: Dataset) -> None:
    x, y, z = (float(v) for v in ds.ImagePositionPatient)
    ds.ImagePositionPatient = [x, y + 0.4 * index, z]


def truncate(index: int, ds: Dataset) -> None:
    ds.PixelData = ds.PixelData[:64]


REFUSALS: dict[str, Change] = {
    "DUPLICATE_SLICE": move_slice_3(-2.5),
    "UNEVEN_SPACING": move_slice_3(0.7),
    "GANTRY_TILT": shear,
    "MIXED_GEOMETRY": lambda index, ds: setattr(ds, "PixelSpacing", [0.8 + 0.1 * (index == 2), 0.8]),
    "NOT_HU": setting(RescaleType="US"),
    "LOSSY": setting(LossyImageCompression="01"),
    "PIXELS_UNREADABLE": truncate,
    "UID_MISSING": setting(SOPInstanceUID="1.2.3"),
    "DERIVED_IMAGE": setting(ImageType=["DERIVED", "SECONDARY", "MPR"]),
    "PROTOCOL_ENERGY": setting(ImageType=["ORIGINAL", "PRIMARY", "AXIAL", "MONOENERGETIC"]),
    "PROTOCOL_KVP": setting(KVP="70"),
    "PROTOCOL_KERNEL": setting(ConvolutionKernel="BONEPLUS"),
    "PROTOCOL_THICKNESS": setting(SliceThickness="5"),
    "CONTRAST_TAG": setting(ContrastBolusAgent="IV"),
    "CALIBRATION_KEY_MISMATCH": setting(KVP="100"),
    "NO_CALIBRATION": setting(DeviceSerialNumber="ANOTHER"),
    "CALIBRATION_KEY_MISSING": setting(ConvolutionKernel=None),
    "CALIBRATION_EPOCH": setting(SoftwareVersions="2.0"),
    "CALIBRATION_TABLE_HEIGHT": setting(TableHeight="210"),
    "CALIBRATION_EXPIRED": setting(AcquisitionDate="20260401"),
}

# each has a test of its own below
SINGLE_CASES = (
    "SLICE_GAP",
    "TOO_FEW_SLICES",
    "NO_SUITABLE_SERIES",
    "NO_CALIBRATION",
    "UNKNOWN_PHANTOM_SERIAL",
    "NOT_A_PHANTOM",
)


@pytest.mark.parametrize("code", REFUSALS)
def test_a_scan_that_must_not_be_measured_is_refused_with_its_code(code: str, phantom: Path, tmp_path: Path) -> None:
    write_ct(tmp_path / "ct", ramp_volume((12, 16, 24)), REFUSALS[code])
    exit_code, report = analyse(tmp_path / "ct", [phantom], tmp_path / "out")
    assert exit_code == 3 and report["status"] == "refused"
    found = {reason["code"]: reason["text"] for reason in report["reasons"]}
    assert code in found, found
    assert report["vertebrae"] == []
    assert (tmp_path / "out" / "dicom" / "9003-refusal.dcm").is_file()


def test_images_that_are_no_ct_objects_are_refused_with_a_full_report_and_no_object(tmp_path: Path) -> None:
    """Converters write Secondary Capture, or leave the class out; SEG and SR could not cite such images."""
    for number, sop_class in enumerate(("1.2.840.10008.5.1.4.1.1.7", None)):
        write_ct(tmp_path / f"{number}", ramp_volume((12, 16, 24)), setting(SOPClassUID=sop_class))
        exit_code, report = analyse(tmp_path / f"{number}", [], tmp_path / f"out{number}")
        assert exit_code == 3 and report["reasons"][0]["code"] == "NO_SUITABLE_SERIES"
        assert not (tmp_path / f"out{number}" / "dicom").exists()
        assert {"protocol", "calibration", "bmd_mg_cm3", "radiomics", "timings_s", "models"} <= report.keys()


def test_a_scanner_without_a_name_is_vouched_for_by_whoever_gives_the_phantom_scan(tmp_path: Path) -> None:
    def nameless(index: int, ds: Dataset) -> None:
        del ds.Manufacturer, ds.ManufacturerModelName, ds.DeviceSerialNumber

    header = write_ct(tmp_path / "like", ramp_volume(), nameless)[0].parent
    write_phantom(PhantomOrder(tmp_path / "phantom", header, slices=16, acquired=ACQUIRED), Config())
    write_ct(tmp_path / "ct", ramp_volume((12, 16, 24)), nameless)
    _, report = analyse(tmp_path / "ct", [tmp_path / "phantom"], tmp_path / "out")
    codes = {reason["code"] for reason in report["reasons"]}
    assert not codes & {"CALIBRATION_KEY_MISSING", "NO_CALIBRATION"} and report["calibration"]


def test_a_missing_slice_is_refused_and_the_report_says_where(phantom: Path, tmp_path: Path) -> None:
    write_ct(tmp_path / "ct", ramp_volume((12, 16, 24)))[5].unlink()
    exit_code, report = analyse(tmp_path / "ct", [phantom], tmp_path / "out")
    (reason,) = report["reasons"]
    assert exit_code == 3 and reason["code"] == "SLICE_GAP" and "gap of 5.00 mm" in reason["text"]


def test_two_slices_are_too_few(phantom: Path, tmp_path: Path) -> None:
    for path in write_ct(tmp_path / "ct", ramp_volume((12, 16, 24)))[2:]:
        path.unlink()
    exit_code, report = analyse(tmp_path / "ct", [phantom], tmp_path / "out")
    assert exit_code == 3 and report["reasons"][0]["code"] == "TOO_FEW_SLICES"


def test_a_study_without_axial_ct_has_no_suitable_series(phantom: Path, tmp_path: Path) -> None:
    for name in ("scout", "mpr"):
        image_type = ["ORIGINAL", "PRIMARY", "LOCALIZER"] if name == "scout" else ["DERIVED", "SECONDARY", "MPR"]
        write_ct(tmp_path / "ct" / name, ramp_volume((12, 16, 24)), setting(ImageType=image_type))
    exit_code, report = analyse(tmp_path / "ct", [phantom], tmp_path / "out")
    assert exit_code == 3 and report["reasons"][0]["code"] == "NO_SUITABLE_SERIES"


def test_a_folder_without_images_is_answered_too(tmp_path: Path) -> None:
    (tmp_path / "ct").mkdir()
    (tmp_path / "ct" / "readme.txt").write_text("no image")
    exit_code, report = analyse(tmp_path / "ct", [], tmp_path / "out")
    assert exit_code == 3 and report["reasons"][0]["code"] == "NO_SUITABLE_SERIES"


def test_without_a_phantom_scan_nothing_is_measured(tmp_path: Path) -> None:
    write_ct(tmp_path / "ct", ramp_volume((12, 16, 24)))
    exit_code, report = analyse(tmp_path / "ct", [], tmp_path / "out")
    assert exit_code == 3 and {r["code"] for r in report["reasons"]} == {"NO_CALIBRATION"}


def test_a_phantom_of_unknown_serial_calibrates_nothing(phantom: Path, tmp_path: Path) -> None:
    write_ct(tmp_path / "unknown", ramp_volume((12, 16, 24)), series_description="QCT PHANTOM 9999")
    exit_code, answer = calibrate(tmp_path / "unknown", tmp_path / "out")
    assert exit_code == 3 and not answer["accepted"]
    assert answer["reasons"][0]["code"] == "UNKNOWN_PHANTOM_SERIAL"


def test_a_phantom_scan_without_uids_is_measured_but_gets_no_dicom_answer(tmp_path: Path) -> None:
    for path in daily_phantom(tmp_path / "ct").iterdir():
        ds = dcmread(path)
        del ds.SOPInstanceUID, ds.SeriesInstanceUID
        ds.save_as(path)
    done = CliRunner().invoke(app, ["calibrate", str(tmp_path / "ct"), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0 and "UID_MISSING" in done.output
    assert json.loads((tmp_path / "out" / "calibration.json").read_text())["accepted"]
    assert not (tmp_path / "out" / "dicom").exists()


def test_a_patient_labelled_as_phantom_is_no_phantom(tmp_path: Path) -> None:
    volume = ramp_volume((12, 64, 64))
    volume.hu[:] = np.random.default_rng(1).normal(40, 20, volume.hu.shape)
    write_ct(tmp_path / "ct", volume, series_description="QCT PHANTOM 4541A")
    exit_code, answer = calibrate(tmp_path / "ct", tmp_path / "out")
    assert exit_code == 3 and answer["reasons"][0]["code"] == "NOT_A_PHANTOM"

"""Reading a CT series: order by position, HU by each slice's own rescale, refusals with a code and words."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from analysis.errors import UnusableSeriesError
from analysis.volume import CtVolume
from storage.ct_series import load_ct_series
from tests.data import SHARED_DATA, needs_data
from tests.synthetic import ramp_volume, write_ct


def test_a_series_reads_back_as_the_volume_that_was_written(tmp_path: Path) -> None:
    volume = ramp_volume()
    series = load_ct_series(write_ct(tmp_path, volume))
    assert np.array_equal(series.volume.hu, volume.hu)
    assert np.allclose(series.volume.affine, volume.affine, atol=1e-5)


def test_the_order_of_files_and_instance_numbers_does_not_matter(tmp_path: Path) -> None:
    paths = write_ct(tmp_path, change=lambda i, ds: setattr(ds, "InstanceNumber", (7 * i) % 6))
    series = load_ct_series(reversed(paths))
    assert np.array_equal(series.volume.hu, ramp_volume().hu)
    heights_mm = [float(ds.ImagePositionPatient[2]) for ds in series.datasets]
    assert heights_mm == sorted(heights_mm)


def test_feet_first_slices_keep_their_place_in_the_patient(tmp_path: Path) -> None:
    volume = ramp_volume()
    affine = volume.affine.copy()
    affine[:3, 2] *= -1  # columns run towards the patient's right, so the slice normal points to the feet
    affine[:3, 0] *= -1
    series = load_ct_series(write_ct(tmp_path, CtVolume(volume.hu, affine)))
    corner = np.array([0.0, 0.0, 0.0])
    assert np.allclose(series.volume.to_lps_mm(corner), CtVolume(volume.hu, affine).to_lps_mm(corner), atol=1e-5)
    assert np.array_equal(series.volume.hu, volume.hu)


def test_each_slice_uses_its_own_rescale(tmp_path: Path) -> None:
    def shift(index: int, ds: Dataset) -> None:
        ds.RescaleIntercept = str(-1024 + 10 * index)

    series = load_ct_series(write_ct(tmp_path, change=shift))
    expected = ramp_volume().hu + 10 * np.arange(6)[:, None, None]
    assert np.array_equal(series.volume.hu, expected)


def test_padding_becomes_air_even_when_its_sign_is_wrong(tmp_path: Path) -> None:
    def pad(index: int, ds: Dataset) -> None:
        pixels = ds.pixel_array.astype(np.int16)
        pixels[0, 0] = -2000
        ds.PixelData = pixels.tobytes()
        ds.PixelRepresentation = 1
        ds.add_new(0x00280120, "US", 63536)

    series = load_ct_series(write_ct(tmp_path, change=pad))
    assert (series.volume.hu[:, 0, 0] == -1024).all()


def test_signed_and_unsigned_pixels_give_the_same_hu(tmp_path: Path) -> None:
    def signed(index: int, ds: Dataset) -> None:
        ds.PixelData = (ds.pixel_array.astype(np.int32) - 1024).astype(np.int16).tobytes()
        ds.PixelRepresentation, ds.RescaleIntercept = 1, "0"

    assert np.array_equal(load_ct_series(write_ct(tmp_path, change=signed)).volume.hu, ramp_volume().hu)


def move(axis: int, distance_mm: float, only: int | None = None):  # type: ignore[no-untyped-def]
    def change(index: int, ds: Dataset) -> None:
        if only is None or index == only:
            position = [float(v) for v in ds.ImagePositionPatient]
            position[axis] += distance_mm * (index if only is None else 1)
            ds.ImagePositionPatient = position

    return change


SPOILED = {
    "GANTRY_TILT": move(1, 0.4),
    "UNEVEN_SPACING": move(2, 0.6, only=3),
    "DUPLICATE_SLICE": move(2, -2.5, only=3),
    "NOT_HU": lambda i, ds: setattr(ds, "RescaleType", "US"),
    "LOSSY": lambda i, ds: setattr(ds, "LossyImageCompression", "01"),
    "PIXELS_UNREADABLE": lambda i, ds: setattr(ds, "PixelData", ds.PixelData[:100]),
    "MIXED_GEOMETRY": lambda i, ds: setattr(ds, "PixelSpacing", [0.8 + 0.1 * (i == 2), 0.8]),
}


@pytest.mark.parametrize("code", SPOILED)
def test_a_spoiled_series_is_refused_with_its_reason(code: str, tmp_path: Path) -> None:
    paths = write_ct(tmp_path, change=SPOILED[code])
    with pytest.raises(UnusableSeriesError) as refusal:
        load_ct_series(paths)
    assert refusal.value.code == code


def test_a_missing_slice_is_a_gap_and_says_where(tmp_path: Path) -> None:
    paths = write_ct(tmp_path)
    with pytest.raises(UnusableSeriesError, match=r"gap of 5.00 mm after -29[57]\.\d+ mm; 2.50 mm expected") as refusal:
        load_ct_series(paths[:2] + paths[3:])
    assert refusal.value.code == "SLICE_GAP"


def test_two_slices_are_too_few(tmp_path: Path) -> None:
    with pytest.raises(UnusableSeriesError, match="2 slices found"):
        load_ct_series(write_ct(tmp_path)[:2])


def test_an_instance_that_arrived_twice_is_no_duplicate_slice(tmp_path: Path) -> None:
    paths = write_ct(tmp_path)
    assert load_ct_series((*paths, paths[2])).volume.hu.shape[0] == 6


def test_a_series_without_rescale_is_not_in_hu(tmp_path: Path) -> None:
    paths = write_ct(tmp_path)
    datasets = [dcmread(p) for p in paths]
    for ds, path in zip(datasets, paths, strict=True):
        del ds.RescaleSlope
        ds.save_as(path)
    with pytest.raises(UnusableSeriesError) as refusal:
        load_ct_series(paths)
    assert refusal.value.code == "NOT_HU"


UNMEASURABLE: dict[str, Callable[[int, Dataset], None]] = {
    "NOT_HU": lambda i, ds: setattr(ds, "RescaleType", "US"),
    "LOSSY": lambda i, ds: setattr(ds, "LossyImageCompression", "01"),
}


@pytest.mark.parametrize("code", UNMEASURABLE)
def test_what_only_forbids_a_density_is_a_flag_where_outlines_are_wanted(code: str, tmp_path: Path) -> None:
    """SimpleITK and GDCM write RescaleType US into every CT."""
    paths = write_ct(tmp_path, change=UNMEASURABLE[code])
    series = load_ct_series(paths, outlines_only=True)
    assert np.array_equal(series.volume.hu, ramp_volume().hu)
    assert [flag.code for flag in series.flags] == [code]
    with pytest.raises(UnusableSeriesError) as refusal:
        load_ct_series(paths)
    assert refusal.value.code == code


def one_sop_instance_uid(index: int, ds: Dataset) -> None:
    ds.SOPInstanceUID = "1.2.3"


UNNAMED: dict[str, Callable[[int, Dataset], None]] = {
    "series": lambda i, ds: delattr(ds, "SeriesInstanceUID"),
    "study": lambda i, ds: delattr(ds, "StudyInstanceUID"),
    "instance": lambda i, ds: delattr(ds, "SOPInstanceUID"),
    "one for all instances": one_sop_instance_uid,
}


@pytest.mark.parametrize("absent", UNNAMED)
def test_images_without_uids_of_their_own_are_read_and_flagged(absent: str, tmp_path: Path) -> None:
    """Anonymising removes UIDs, and simple converters give every slice the same one."""
    series = load_ct_series(write_ct(tmp_path, change=UNNAMED[absent]))
    assert np.array_equal(series.volume.hu, ramp_volume().hu)
    assert [flag.code for flag in series.flags] == ["UID_MISSING"]


def test_a_scout_filed_under_the_series_is_no_slice_of_it(tmp_path: Path) -> None:
    def scout(index: int, ds: Dataset) -> None:
        if index == 0:
            ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
            ds.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]

    assert np.array_equal(load_ct_series(write_ct(tmp_path, change=scout)).volume.hu, ramp_volume().hu[1:])


def test_a_refusal_names_the_attribute_that_gives_no_place(tmp_path: Path) -> None:
    paths = write_ct(tmp_path, change=lambda i, ds: delattr(ds, "ImageOrientationPatient") if i else None)
    with pytest.raises(UnusableSeriesError, match="ImageOrientationPatient absent in 5 of 6 slices"):
        load_ct_series(paths)


def test_the_header_knows_when_and_how_the_scan_was_made(tmp_path: Path) -> None:
    header = load_ct_series(write_ct(tmp_path, patient_birth_date="19660302", patient_sex="F")).header
    assert header.acquired is not None and header.acquired.isoformat() == "2026-03-02T09:30:00+00:00"
    assert header.kvp == 120 and header.convolution_kernel == "STANDARD" and header.device_serial_number == "SIM-0001"
    assert header.patient_age_years == pytest.approx(60.0, abs=0.01)
    assert header.spacing_between_slices_mm == pytest.approx(2.5)


@needs_data
@pytest.mark.parametrize(
    ("folder", "shape"),
    [("acrin-flt-001", (99, 512, 512)), ("crlm-1004", (41, 512, 512)), ("slab-dicom", (20, 512, 512))],
)
def test_real_series_are_read_whole(folder: str, shape: tuple[int, int, int]) -> None:
    series = load_ct_series((SHARED_DATA / folder).glob("*"))
    assert series.volume.hu.shape == shape
    assert series.volume.hu.min() == -1024 and series.volume.hu.max() < 4000

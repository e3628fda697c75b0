"""A site's own labelled CT becomes training cases: layouts, numbering, what is unknown, and what is refused."""

from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
from pydicom.dataset import FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from analysis.errors import ModelError
from analysis.training.anatomy import BODY, CODE, POSTERIOR
from analysis.training.labelled import coarse_case, fine_targets, labelled_fine_sample, labelled_scan
from analysis.training.samples import IGNORE
from analysis.training.segmentation import TrainingRequest, train_segmentation
from analysis.training.site_data import as_verse, find_cases, level_number
from analysis.vbnet import fine_config
from tests.result_builders import Grid, make_headers
from tests.training_builders import SPACING_MM, small_labels

FINE = fine_config(patch_size=(24, 40, 40))


def image(array: np.ndarray) -> sitk.Image:  # type: ignore[type-arg]
    made = sitk.GetImageFromArray(array)
    made.SetSpacing((SPACING_MM,) * 3)
    return made


def write_site_case(folder: Path, levels: np.ndarray | None = None) -> Path:  # type: ignore[type-arg]
    """ct.nii.gz + labels.nii.gz of the small torso, and a piece of bone that nobody labelled."""
    folder.mkdir(parents=True)
    tissue, own = small_labels()
    own = np.where(own < 40, own, 0).astype(np.uint8)
    hu = np.where(own > 0, 250, 40).astype(np.int16)
    hu[:, 2:8, 2:8] = 700
    sitk.WriteImage(image(hu), str(folder / "ct.nii.gz"))
    sitk.WriteImage(image(own if levels is None else levels), str(folder / "labels.nii.gz"))
    return folder


def test_a_nifti_pair_is_found_in_a_subfolder_and_split_at_the_canal(tmp_path: Path) -> None:
    write_site_case(tmp_path / "p1")
    (raw,) = find_cases([tmp_path])
    scan = labelled_scan(raw, SPACING_MM)
    assert raw.name == "p1"
    assert {level for level, _ in fine_targets(scan)} == {18, 19, 20, 21, 22, 23}
    body, posterior = ((scan.anatomy.part == part).sum() for part in (BODY, POSTERIOR))
    assert 0.7 < body / posterior < 2.5


def test_unlabelled_bone_is_unknown_and_unlabelled_soft_tissue_is_background(tmp_path: Path) -> None:
    write_site_case(tmp_path / "p1")
    case = coarse_case(labelled_scan(find_cases([tmp_path])[0], SPACING_MM))
    assert (case.target[:, 2:3, 2:3] == IGNORE).all()
    assert (case.target[:, 10:15, 10:15] == 0).all()
    assert not case.centroids_known


def test_unlabelled_bone_has_no_target_in_a_fine_sample(tmp_path: Path) -> None:
    write_site_case(tmp_path / "p1")
    scan = labelled_scan(find_cases([tmp_path])[0], SPACING_MM)
    level, centre = fine_targets(scan)[0]
    sample = labelled_fine_sample(scan, centre, level, FINE, np.random.default_rng(0))
    classes = set(np.unique(sample.targets["tissue"].numpy()))
    assert {0, 2, 3} <= classes <= {0, 1, 2, 3, 4, 5, IGNORE}


def test_numbers_that_increase_towards_the_head_are_totalsegmentators(tmp_path: Path) -> None:
    _, own = small_labels()
    own = np.where(own < 40, own, 0)
    upward = np.where(own > 0, 51 - own.astype(int), 0).astype(np.uint8)
    assert np.array_equal(sitk.GetArrayFromImage(as_verse(image(upward))), own)
    assert np.array_equal(sitk.GetArrayFromImage(as_verse(image(own.astype(np.uint8)))), own)


@pytest.mark.parametrize(
    ("text", "number"),
    [("L1", 20), ("vertebra_L5", 24), ("T12 vertebra", 19), ("C7", 7), ("S1", 26), ("Sacrum", 26), ("Liver", None)],
)
def test_segment_labels_name_their_level(text: str, number: int | None) -> None:
    assert level_number(text) == number


def test_a_folder_without_labelled_ct_is_refused_with_the_layouts(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"ct\.nii\.gz"):
        find_cases([tmp_path])
    with pytest.raises(ModelError, match="does not exist"):
        find_cases([tmp_path / "absent"])


def test_an_unknown_stage_is_refused_before_anything_is_prepared(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="coarse or fine"):
        train_segmentation(TrainingRequest("middle", "default", (), tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_dicom_seg_beside_its_ct_becomes_a_label_map(tmp_path: Path) -> None:
    sources = write_dicom_series(tmp_path)
    masks = np.zeros((len(sources), sources[0].Rows, sources[0].Columns, 2), bool)
    masks[1:3, 4:9, 5:12, 0] = True
    masks[3:5, 4:9, 5:12, 1] = True
    write_seg(tmp_path / "seg.dcm", sources, masks)
    (raw,) = find_cases([tmp_path])
    labels = sitk.GetArrayFromImage(raw.levels)
    bottom_up = sorted(range(len(sources)), key=lambda i: float(sources[i].ImagePositionPatient[2]))
    expected = (20 * masks[..., 0] + 21 * masks[..., 1])[bottom_up]
    assert np.array_equal(labels, expected)


def write_dicom_series(folder: Path) -> list[pydicom.Dataset]:
    sources = []
    for number, header in enumerate(make_headers(Grid())):
        header = pydicom.Dataset(header)
        if "PixelData" not in header:
            header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
            header.BitsAllocated = header.BitsStored = 16
            header.HighBit, header.PixelRepresentation = 15, 1
            header.PixelData = np.zeros((header.Rows, header.Columns), np.int16).tobytes()
        header.file_meta = FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        pydicom.dcmwrite(folder / f"{number:03d}.dcm", header, enforce_file_format=True)
        sources.append(header)
    return sources


def write_seg(path: Path, sources: list[pydicom.Dataset], masks: np.ndarray) -> None:  # type: ignore[type-arg]
    segments = [
        SegmentDescription(
            number, name, codes.SCT.AnatomicalStructure, codes.SCT.Bone, SegmentAlgorithmTypeValues.MANUAL
        )
        for number, name in enumerate(("L1", "L2"), start=1)
    ]
    seg = hd.seg.Segmentation(
        sources, masks, SegmentationTypeValues.BINARY, segments, hd.UID(), 1, hd.UID(), 1, "maker", "model", "1", "1"
    )
    seg.save_as(path)


def test_own_outlines_come_back_with_their_parts_and_their_ribs_are_known_bone(tmp_path: Path) -> None:
    """The files of `qct-node segment` and of `self_labels` are a layout of their own."""
    folder = write_site_case(tmp_path / "p1")
    own = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "labels.nii.gz")))
    rows = np.arange(own.shape[1])[None, :, None]
    body = np.where(own > 0, np.where(rows < own.shape[1] // 2, 3, 1), 0).astype(np.uint8)
    ribs = np.zeros_like(own)
    ribs[:, 2:8, 2:8] = 1
    sitk.WriteImage(image(body), str(folder / "labels_body.nii.gz"))
    sitk.WriteImage(image(ribs), str(folder / "labels_ribs.nii.gz"))
    case = labelled_scan(find_cases([tmp_path])[0], SPACING_MM)
    assert ((case.anatomy.part == BODY) == (body == 3)).all()
    assert ((case.anatomy.part == POSTERIOR) == (body == 1)).all()
    assert (case.anatomy.tissue[:, 2:8, 2:8] == CODE["rib"]).all() and case.known[:, 2:8, 2:8].all()

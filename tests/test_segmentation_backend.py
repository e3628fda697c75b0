"""The optional backend: absent it says how to install it; present, its vertebrae pass through the same chain."""

import sys
import types

import numpy as np
import pytest
import torch

from analysis.errors import ConfigError, ModelError, NoVertebraError
from analysis.resampling import canonical_view
from analysis.segmentation import Networks, SegmentationLimits
from analysis.segmentation_backend import body_centre_mm, segment_with, total_labels, verse_label
from analysis.vbnet import LoadedNetwork, VBNet, coarse_config, fine_config
from analysis.volume import CtVolume, axial_affine

CLASSES = {
    1: "spleen",
    25: "sacrum",
    26: "vertebrae_S1",
    27: "vertebrae_L5",
    31: "vertebrae_L1",
    32: "vertebrae_T12",
    44: "vertebrae_C7",
}
LIMITS = SegmentationLimits(device="cpu")


@pytest.fixture
def networks() -> Networks:
    torch.manual_seed(0)
    small = fine_config(base_channels=8, patch_size=(32, 32, 32))
    coarse = coarse_config(base_channels=8)
    return Networks(LoadedNetwork(coarse, VBNet(coarse).eval(), "c"), LoadedNetwork(small, VBNet(small).eval(), "f"))


def install_fake(monkeypatch: pytest.MonkeyPatch, labels_xyz: np.ndarray) -> list[dict]:
    """Stand-ins for nibabel and TotalSegmentator with the interface that is used; returns the calls made."""
    calls: list[dict] = []

    class Image:
        def __init__(self, dataobj: np.ndarray, affine: np.ndarray) -> None:
            self.dataobj, self.affine = dataobj, affine

    def totalsegmentator(image: Image, output: None, **options: object) -> Image:
        calls.append(options | {"affine": image.affine, "shape": image.dataobj.shape})
        return Image(labels_xyz, image.affine)

    for name, content in (
        ("nibabel", {"Nifti1Image": Image}),
        ("totalsegmentator", {}),
        ("totalsegmentator.python_api", {"totalsegmentator": totalsegmentator}),
        ("totalsegmentator.map_to_binary", {"class_map": {"total": CLASSES}}),
    ):
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return calls


def test_without_totalsegmentator_the_error_says_how_to_install_it(networks: Networks) -> None:
    volume = CtVolume(np.zeros((4, 4, 4), np.int16), axial_affine((3.0, 3.0, 3.0), (0, 0, 0)))
    with pytest.raises(ModelError, match="pip install TotalSegmentator"):
        segment_with("totalsegmentator", volume, networks, LIMITS)


def test_an_unknown_backend_is_refused_with_the_known_ones(networks: Networks) -> None:
    volume = CtVolume(np.zeros((4, 4, 4), np.int16), np.eye(4))
    with pytest.raises(ConfigError, match="vbnet, totalsegmentator"):
        segment_with("nnunet", volume, networks, LIMITS)


@pytest.mark.parametrize(
    ("name", "label"),
    [("vertebrae_L1", 20), ("vertebrae_T12", 19), ("vertebrae_T1", 8), ("vertebrae_C3", 7), ("vertebrae_S1", 26),
     ("sacrum", 26), ("liver", 0), ("rib_left_12", 0)],
)  # fmt: skip
def test_class_names_become_verse_numbers(name: str, label: int) -> None:
    assert verse_label(name) == label


def test_positions_are_handed_over_in_ras_and_labels_come_back_in_verse_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """NIfTI is RAS, DICOM is LPS: x and y change sign and nothing else."""
    volume = CtVolume(np.zeros((6, 5, 4), np.int16), axial_affine((3.0, 2.0, 1.0), (10.0, 20.0, 30.0)))
    labels = np.zeros((6, 5, 4), np.uint8)
    labels[1], labels[2], labels[4] = 27, 31, 1
    calls = install_fake(monkeypatch, labels)
    found = total_labels(volume, LIMITS)
    assert found[1, 0, 0] == 24 and found[2, 0, 0] == 20 and found[4].max() == 0
    np.testing.assert_allclose(calls[0]["affine"] @ [0, 0, 0, 1], [-10, -20, 30, 1])
    assert calls[0]["ml"] is True and "spleen" not in calls[0]["roi_subset"]


def test_a_scan_without_vertebrae_is_no_spine(monkeypatch: pytest.MonkeyPatch, networks: Networks) -> None:
    volume = CtVolume(np.zeros((6, 5, 4), np.int16), axial_affine((3.0, 2.0, 1.0), (0, 0, 0)))
    install_fake(monkeypatch, np.zeros((6, 5, 4), np.uint8))
    with pytest.raises(NoVertebraError):
        segment_with("totalsegmentator", volume, networks, LIMITS)


def test_its_labels_are_kept_and_its_names_get_a_probability(
    monkeypatch: pytest.MonkeyPatch, networks: Networks
) -> None:
    shape = (60, 40, 40)
    labels = np.zeros(shape, np.uint8)
    labels[34:44, 14:26, 12:28], labels[18:28, 14:26, 12:28] = 32, 31
    labels[36:40, 26:38, 18:22] = 32
    install_fake(monkeypatch, labels)
    volume = CtVolume(np.where(labels > 0, 200, 20).astype(np.int16), axial_affine((2.0, 2.0, 2.0), (0, 0, 0)))
    result = segment_with("totalsegmentator", volume, networks, LIMITS)
    assert [level.name for level in result.levels] == ["T12", "L1"]
    assert set(np.unique(result.labels)) == {0, 19, 20}
    assert ((result.body > 0) == (result.labels > 0)).all()
    assert all(0 <= level.confidence < 0.9 for level in result.levels)


def test_the_body_is_found_as_the_thickest_part_of_a_vertebra() -> None:
    mask = np.zeros((40, 60, 40), bool)
    mask[10:26, 8:24, 8:30] = True
    mask[15:20, 24:55, 17:21] = True
    view = canonical_view(CtVolume(np.zeros(mask.shape, np.int16), axial_affine((1.5, 1.5, 1.5), (0, 0, 0))))
    np.testing.assert_allclose(body_centre_mm(mask, view) / 1.5, [17.5, 15.5, 18.5], atol=2.0)

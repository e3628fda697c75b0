"""What a radiologist sees: our objects in OHIF, run by headless Chromium against a real Orthanc.

Run by `tests/viewer/run.sh`, which fetches the prebuilt viewer; skipped elsewhere. Screenshots and what the viewer said
stay in the folder that it names.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from node.encoded import EncodedObject, EncodingSettings, ObjectKind
from node.segments import measured_segments
from tests.orthanc import needs_orthanc, running_orthanc
from tests.test_encode_orthanc import store
from tests.viewer.ohif_server import serving_ohif
from tests.viewer.study_files import viewer_study

DIST = os.environ.get("QCT_OHIF_DIST", "")
PLAYWRIGHT = os.environ.get("QCT_PLAYWRIGHT", "")
OUTPUT = Path(os.environ.get("QCT_VIEWER_OUT", "/tmp/qct-viewer"))

pytestmark = [
    pytest.mark.viewer, needs_orthanc, pytest.mark.timeout(1200),
    pytest.mark.skipif(not DIST or not PLAYWRIGHT, reason="no OHIF build given; run tests/viewer/run.sh"),
]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """(what the viewer said, the result, the objects)"""
    images, result, objects = viewer_study(EncodingSettings())
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as orthanc:
        store(orthanc, tuple(EncodedObject(ObjectKind.PICTURE, image) for image in images))
        store(orthanc, objects)
        with serving_ohif(Path(DIST), orthanc.url) as url:
            script = str(Path(__file__).parent / "look.cjs")
            study = str(images[0].StudyInstanceUID)
            subprocess.run(["node", script, PLAYWRIGHT, url, study, str(OUTPUT)], check=True, timeout=1100)
    return json.loads((OUTPUT / "facts.json").read_text()), result, {item.kind: item.dataset for item in objects}


def test_segments_are_shown_with_their_names_colours_and_every_voxel(seen) -> None:
    facts, result, objects = seen
    expected = {segment.name: int(np.count_nonzero(segment.mask)) for segment in measured_segments(result)}
    assert {item["label"]: item["voxels"] for item in facts["segments"]} == expected
    assert len({tuple(item["colour"]) for item in facts["segments"]}) == len(expected)
    for item, written in zip(facts["segments"], objects[ObjectKind.SEGMENTATION].SegmentSequence, strict=True):
        assert np.abs(np.array(item["colour"][:3]) - rgb_of(written.RecommendedDisplayCIELabValue)).max() <= 3


def test_measurement_report_is_painted_with_values(seen) -> None:
    facts, result, _ = seen
    measurements = facts["sr"]["measurements"]
    assert len(measurements) == 3
    assert all(item["loaded"] for item in measurements)
    labels = " ".join(label for item in measurements for label in item["labels"])
    for vertebra in result.vertebrae:
        assert f"{vertebra.bmd_mg_cm3:.1f}" in labels
    assert len(facts["annotations"]) == 3


def test_readable_report_is_shown_line_by_line(seen) -> None:
    text = seen[0]["report"]
    assert "For research use only" in text
    assert "L1: 92.4 mg/cm3 (K2HPO4), uncertainty +/- 6.4 (k=2)" in text
    assert "osteopenia (80 to 120 mg/cm3)" in text


def test_no_script_error_in_the_viewer(seen) -> None:
    assert seen[0]["errors"] == []


def rgb_of(encoded: list[int]) -> np.ndarray:
    """Scaled CIELab -> sRGB 0..255 as the viewer does it: white point D65, where PS3.3 C.10.7.1.1 means D50."""
    lightness = encoded[0] / 65535 * 100
    a, b = (value / 65535 * 255 - 128 for value in encoded[1:])
    y = (lightness + 16) / 116
    xyz = np.array([f**3 if f > 6 / 29 else 3 * (6 / 29) ** 2 * (f - 4 / 29) for f in (y + a / 500, y, y - b / 200)])
    xyz = xyz * (0.95047, 1.0, 1.08883)  # D65
    linear = np.array([[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]]) @ xyz
    linear = np.clip(linear, 0, 1)
    return np.round(np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255)

"""The 93 features of every vertebra of real CT that carries a VOI: finite, and their mean HU that of the VOI."""

import numpy as np
import pytest

from analysis.errors import VoiError
from analysis.extraction_contract import PAPER_CONTRACT, ExtractionContract
from analysis.feature_names import FEATURE_NAMES, SIGNATURE_SEED
from analysis.radiomic_features import extract_features
from analysis.results import Voi
from analysis.voi import place_voi
from analysis.volume import CtVolume
from tests.data import needs_data
from tests.test_voi_real_ct import SOURCES

#: Linear resampling keeps the mean but for the rim of the VOI, and of what was excluded from it (dense islands leak
#: into the voxels beside them), so only VOIs that are nearly whole are compared.
MEAN_WITHIN_HU, NEARLY_WHOLE = 3.0, 0.02


def placed(name: str) -> tuple[CtVolume, list[Voi]]:
    """The volume and the VOIs that its labels allow."""
    source, levels = SOURCES[name]
    volume, segmentation = source()
    vois = []
    for level in levels:
        try:
            vois.append(place_voi(volume, segmentation, level))
        except VoiError:
            continue  # a body too small for a VOI carries none
    return volume, vois


def mean_hu(volume: CtVolume, voi: Voi) -> float:
    box = tuple(slice(a, a + n) for a, n in zip(voi.start, voi.weights.shape, strict=True))
    return float((voi.weights * volume.hu[box]).sum() / voi.weights.sum())


@needs_data
@pytest.mark.parametrize(("name", "carry_a_voi"), [("abdomen-3mm", 6), ("l3-subregions", 1), ("cta-thoracic", 1)])
def test_every_vertebra_that_carries_a_voi_has_93_finite_features(name: str, carry_a_voi: int) -> None:
    volume, vois = placed(name)
    assert len(vois) == carry_a_voi
    for voi in vois:
        for contract in (ExtractionContract(), PAPER_CONTRACT):
            found = extract_features(volume, voi, contract)
            assert found.reason is None and found.names == FEATURE_NAMES, voi.level
            assert len(found.values) == 93 and np.isfinite(found.values).all(), voi.level
            values = dict(zip(found.names, found.values, strict=True))
            if voi.excluded_fraction < NEARLY_WHOLE:
                assert abs(values["firstorder_Mean"] - mean_hu(volume, voi)) < MEAN_WITHIN_HU, voi.level
        six = extract_features(volume, voi, PAPER_CONTRACT, SIGNATURE_SEED)
        assert six.values == pytest.approx([values[name] for name in SIGNATURE_SEED], rel=1e-12)

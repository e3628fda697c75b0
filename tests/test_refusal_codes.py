"""The table of reason codes: each is reached from a DICOM series through the commands, or says here why it is not."""

from pathlib import Path

import pytest

from analysis.refusals import REASONS
from tests import test_analyse_patients as patients
from tests import test_analyse_refusals as series
from tests import test_calibrate_refusals as phantoms
from tests import test_stored_calibrations as stored

REACHED = {
    *series.REFUSALS,
    *series.SINGLE_CASES,
    *phantoms.CASES,
    *(code for case in patients.CASES.values() for code in (*case.reasons, *case.flags, *case.texture)),
    *patients.FLAGGED,
    *patients.TEXTURE,
    *stored.REFUSALS,
    *(code for _, codes, _ in stored.VERDICTS.values() for code in codes),
    *stored.SINGLE_CASES,
}

# code -> why no single run of `analyse` or `calibrate` reaches it, and the test that does
ELSEWHERE: dict[str, tuple[str, str]] = {
    "PHANTOM_TYPE_UNSUPPORTED": ("the configuration asks for two rods, a check of its own", "test_phantom.py"),
    "VERTEBRA_MISSING": ("the chain only tries levels that the segmentation holds", "test_vertebra_checks.py"),
    "VOI_FRAME": ("the networks drop bodies so small that their endplates cannot be fitted", "test_voi.py"),
    "RADIOMICS_CONTRACT": ("a model of another extraction is refused when it is loaded", "test_classification.py"),
}


@pytest.mark.parametrize("code", REASONS)
def test_every_code_is_reached_through_the_commands_or_elsewhere_with_a_reason(code: str) -> None:
    if code in REACHED:
        assert code not in ELSEWHERE, "reached through the commands: take it off the list of exceptions"
        return
    assert code in ELSEWHERE, "reached by no test from a DICOM series, and no reason says why"
    _, module = ELSEWHERE[code]
    assert f'"{code}"' in (Path(__file__).parent / module).read_text(), f"{module} does not ask for it"


def test_the_lists_hold_only_codes_of_the_table() -> None:
    assert REACHED | set(ELSEWHERE) <= set(REASONS)

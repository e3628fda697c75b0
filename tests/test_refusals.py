"""The table of reasons: what the operator is told to do can be done."""

from pathlib import Path

import pytest
import yaml

from analysis.refusals import REASONS, SETTINGS, advice

CONFIG_YAML = yaml.safe_load((Path(__file__).parent.parent / "config.yaml").read_text())


@pytest.mark.parametrize("code", SETTINGS)
def test_a_setting_named_in_a_refusal_stands_in_the_reference_configuration(code: str) -> None:
    assert code in REASONS
    place = CONFIG_YAML
    for key in SETTINGS[code].split("."):
        place = place[key]


def test_the_advice_names_action_and_setting() -> None:
    thickness = advice("PROTOCOL_THICKNESS")
    assert "thinner slices" in thickness and "protocol.max_slice_thickness_mm" in thickness
    assert advice("NO_SPINE") == REASONS["NO_SPINE"].action

"""config.yaml as documentation and as input: every key in step, every fault on one line that a person can act on."""

import os
import subprocess
import sys
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from analysis.errors import ConfigError
from node.config import Config, load_config
from node.config_file import read_config_file
from node.destinations import Destination
from tests.timing import shortest_s

REFERENCE = Path(__file__).resolve().parents[1] / "config.yaml"
# set by the program, not by a site
NOT_KEYS = {"results.configuration_digest", "results.software_version"}


def load(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return load_config(path)


def faults(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, text)
    prefix = f"{tmp_path / 'config.yaml'}:"
    lines = str(raised.value).splitlines()
    assert all(line.startswith(prefix) for line in lines), lines
    return [line.removeprefix(prefix) for line in lines]


def keys_of(section: Any, prefix: str = "") -> list[str]:
    found = []
    for field in fields(section):
        key = f"{prefix}{field.name}"
        value = getattr(section, field.name)
        found += keys_of(value, f"{key}.") if is_dataclass(value) else [key]
    return [key for key in found if key not in NOT_KEYS]


def test_the_reference_file_holds_exactly_the_defaults() -> None:
    assert load_config(REFERENCE) == Config()


def test_every_key_stands_in_the_reference_file_with_a_comment_above_it() -> None:
    file = read_config_file(REFERENCE)
    text = REFERENCE.read_text().splitlines()
    for key in keys_of(Config()):
        path = tuple(key.split("."))
        assert path in file.lines, f"{key} is missing in config.yaml"
        above = text[file.lines[path] - 2].strip()
        assert above.startswith("#"), f"{key} has no comment above it"


def test_every_comment_of_a_value_names_its_default() -> None:
    file, text = read_config_file(REFERENCE), REFERENCE.read_text().splitlines()
    for key in keys_of(Config()):
        if key in ("destinations", "phantoms"):
            continue
        line = file.lines[tuple(key.split("."))] - 2
        comment: list[str] = []
        while text[line].strip().startswith("#"):
            comment.insert(0, text[line].strip("# "))
            line -= 1
        assert "default" in " ".join(comment), f"{key}: {comment}"


def test_the_commented_destination_becomes_a_valid_one_when_uncommented() -> None:
    lines = REFERENCE.read_text().splitlines()
    start = lines.index("# - name: pacs")
    end = next(i for i in range(start, len(lines)) if not lines[i].startswith("#"))
    (destination,) = yaml.safe_load("\n".join(line.removeprefix("# ") for line in lines[start:end]))
    assert set(destination) == {field.name for field in fields(Destination)}


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, "") == Config()


def test_a_misspelled_key_is_named_with_its_line_and_the_nearest_valid_key(tmp_path: Path) -> None:
    assert faults(tmp_path, "node:\n  ae_titel: X\n") == ["2 node.ae_titel: found an unknown key, expected 'ae_title'"]


def test_every_fault_is_listed_in_the_order_of_the_file(tmp_path: Path) -> None:
    found = faults(tmp_path, "node:\n  port: 0\nbmd:\n  borderline_factor: much\nzebra: 1\njobs:\n  lease_s: -1\n")
    assert [line.split(" ")[:2] for line in found] == [
        ["2", "node.port:"], ["4", "bmd.borderline_factor:"], ["5", "zebra:"], ["7", "jobs.lease_s:"],
    ]  # fmt: skip


PHANTOM = "phantoms:\n  - serial: {serial}\n    phantom_type: X\n    material: HA\n    rod_diameter_mm: 19\n" \
    "    rod_pitch_mm: 30\n    rods:\n      - {{name: A, density_mg_cm3: 0}}\n"  # fmt: skip
PACS = "destinations:\n  - {name: a, ae_title: P, host: h, port: 104%s}\n"

WRONG = {
    "not a mapping": ("[1, 2]\n", "1 (whole file)"),
    "not YAML": ("node: {\n", "found"),
    "tab as indentation": ("node:\n\tport: 1\n", "2 "),
    "a section that is no mapping": ("node: 3\n", "1 node"),
    "a key twice": ("node:\n  port: 1\n  port: 2\n", "3 node.port: found the key twice"),
    "port above 65535": ("node: {port: 70000}\n", "node.port: found 70000"),
    "port as a word": ("node: {port: dicom}\n", "found 'dicom', expected a valid integer"),
    "AE title too long": ("node: {ae_title: ABCDEFGHIJKLMNOPQ}\n", "at most 16 characters"),
    "AE title empty": ('node: {ae_title: ""}\n', "at least 1 character"),
    "AE title that YAML reads as no": ("node: {ae_title: no}\n", "found False, expected a valid string"),
    "unknown time zone": ("node: {timezone: Mars/Olympus}\n", "node.timezone: found 'Mars/Olympus'"),
    "network that is none": (
        "receiving:\n  peers:\n    - {ae_title: CT, addresses: [10.1.2.0/33]}\n", "3 receiving.peers[0].addresses[0]"),
    "peer without addresses": ("receiving:\n  peers:\n    - {ae_title: CT}\n", "peers[0].addresses: found nothing"),
    "TLS without a key": ("receiving: {tls: {enabled: true}}\n", "tls.key_file: found nothing"),
    "TLS on the same port": ("receiving: {tls: {enabled: true, port: 11112}}\n", "expected a port of its own"),
    "TLS file that is not there": ("receiving: {tls: {enabled: true, key_file: /no/key}}\n", "no file at /no/key"),
    "action that is none": ("completeness: {at_hard_cap: guess}\n", "completeness.at_hard_cap: found 'guess'"),
    "negative days": ("storage: {keep_delivered_days: -1}\n", "storage.keep_delivered_days: found -1"),
    "no worker at all": ("jobs: {worker_processes: 0}\n", "jobs.worker_processes: found 0"),
    "cluster without a port": ("jobs: {cluster: tcp://host}\n", "expected tcp://HOST:PORT"),
    "destination without a port": ("destinations:\n  - {name: a, ae_title: P, host: h}\n", "[0].port: found nothing"),
    "two destinations of one name": (
        PACS % "" + "  - {name: a, ae_title: P, host: h, port: 104}\n", "3 destinations[1].name: found 'a' twice"),
    "kind of object that is none": (PACS % ", objects: [seg]", "destinations[0].objects"),
    "no form of the report": (PACS % ", text_sr_classes: []", "text_sr_classes"),
    "commitment that is none": (PACS % ", commitment: maybe", "commitment: found 'maybe'"),
    "certificate without a key": (PACS % ", tls: {certificate_file: /c}", "expected both"),
    "retry key misspelled": (PACS % ", retry: {jiter: 1}", "retry.jiter: found an unknown key, expected 'jitter'"),
    "serial without quotes": (PHANTOM.format(serial=4541), "serial: found 4541, expected a valid string"),
    "material that is none": (PHANTOM.format(serial="S").replace("HA", "bone"), "material: found 'bone'"),
    "a phantom with one rod": (PHANTOM.format(serial="S"), "rods: found 1 rods, expected at least 2"),
    "pattern that does not compile": ("series: {phantom_serial_regex: '('}\n", "does not compile"),
    "pattern without a group": ("series: {phantom_serial_regex: x}\n", "expected one in round brackets"),
    "limits in the wrong order": ("bmd: {osteoporosis_below_mg_cm3: 130}\n", "less than normal_above_mg_cm3 (120)"),
    "environment variable that is not set": ("node: {ae_title: '${QCT_NOT_SET}'}\n", "QCT_NOT_SET to be set"),
    "credential that is not there": ("storage: {database_url: '${credential:none}'}\n", "systemd credential none"),
    "log level that is none": ("logging: {level: LOUD}\n", "logging.level: found 'LOUD'"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_file_is_refused_with_place_finding_and_expectation(tmp_path: Path, what: str) -> None:
    text, said = WRONG[what]
    assert any(said in line for line in faults(tmp_path, text)), faults(tmp_path, text)


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found no readable file"):
        load_config(tmp_path / "none.yaml")


def test_secrets_come_from_environment_and_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "database-password").write_text("hunter2\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("QCT_TITLE", "NODE7")
    config = load(tmp_path, "node: {ae_title: '${QCT_TITLE}'}\n"
                  "storage: {database_url: 'postgresql://u:${credential:database-password}@h/d'}\n")  # fmt: skip
    assert config.node.ae_title == "NODE7"
    assert config.database_url == "postgresql://u:hunter2@h/d"
    assert "hunter2" not in repr(config)


def test_dates_are_utc(tmp_path: Path) -> None:
    text = PHANTOM.format(serial="S") + "      - {name: B, density_mg_cm3: 100}\n    valid_from: 2026-02-01\n"
    assert load(tmp_path, text).phantoms[0].valid_from == datetime(2026, 2, 1, tzinfo=UTC)


def test_check_config_answers_within_two_seconds_with_exit_code_2(tmp_path: Path) -> None:
    """Processor time: the test machine may be busy with other work."""
    path = tmp_path / "config.yaml"
    path.write_text("node:\n  prot: 1\nbmd: {minimum_vertebrae: x}\n")

    def checked_s() -> float:
        before = os.times()
        done = subprocess.run([sys.executable, "-m", "node.commands", "check-config", str(path)],
                              capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
        after = os.times()
        assert done.returncode == 2
        said = done.stderr.replace("\n", " ")
        assert "node.prot" in said and "expected 'port'" in said and "bmd.minimum_vertebrae" in said
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert shortest_s(checked_s, 2.0) < 2.0


def test_reading_the_configuration_loads_nothing_that_takes_long() -> None:
    """`import scipy`, as the modules with limits have it, loads scipy.ndimage where it is first used."""
    heavy = ("torch", "highdicom", "SimpleITK", "radiomics", "scipy.ndimage")
    code = f"import node.config, sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"

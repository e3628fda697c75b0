"""The Conformance Statement says what the configuration says, in the template's order."""

import re
from pathlib import Path

from node.conformance import ConformanceFacts, PeerFacts, conformance_statement, created_sop_class_uid, private_codes
from node.encode_results import encode_patient_result
from node.encoded import EncodingSettings, ObjectKind, TextSrClass
from node.sr_checks import walk
from tests.result_builders import make_headers, make_result

CT = "1.2.840.10008.5.1.4.1.1.2"


def make_facts(**changes: object) -> ConformanceFacts:
    facts: dict[str, object] = {
        "ae_title": "QCT-NODE", "port": 11112, "accepted_sop_class_uids": (CT,),
        "accepted_transfer_syntax_uids": ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.70"),
        "destinations": (PeerFacts("pacs", "PACS", ("1.2.840.10008.5.1.4.1.1.66.4",), "when offered", True),),
    }
    return ConformanceFacts(**(facts | changes))  # type: ignore[arg-type]


def test_sections_are_numbered_from_the_overview_in_one_order() -> None:
    headings = re.findall(r"^## (\d+) ", conformance_statement(make_facts()), re.MULTILINE)
    assert headings == [str(number) for number in range(1, 12)]


def test_what_is_switched_off_is_not_claimed() -> None:
    only_text = EncodingSettings(objects=frozenset({ObjectKind.REPORT}), text_sr_class=TextSrClass.BASIC)
    statement = conformance_statement(make_facts(settings=only_text, destinations=()))
    assert "1.2.840.10008.5.1.4.1.1.88.11" in statement
    assert "1.2.840.10008.5.1.4.1.1.66.4" not in statement
    assert "1.2.840.10008.1.20.1" not in statement


def test_claimed_classes_are_those_of_the_objects_that_are_written() -> None:
    headers, settings = make_headers(), EncodingSettings()
    for item in encode_patient_result(make_result(headers), headers, settings):
        assert item.dataset.SOPClassUID == created_sop_class_uid(item.kind, settings)
        assert item.dataset.SeriesNumber == settings.series_numbers.of(item.kind)


def test_every_private_code_that_is_written_is_listed() -> None:
    headers = make_headers()
    listed = {code.value for code in private_codes()}
    assert len(listed) >= 15
    written = {
        sequence[0].CodeValue
        for item in encode_patient_result(make_result(headers), headers, EncodingSettings())
        if item.dataset.Modality == "SR" for node in walk(item.dataset)
        for sequence in (node.get("ConceptNameCodeSequence"), node.get("ConceptCodeSequence"))
        if sequence and sequence[0].CodingSchemeDesignator == "99QCT"
    }
    assert written and written <= listed


def test_tls_is_stated_only_where_configured() -> None:
    assert "no TLS port" in conformance_statement(make_facts())
    assert "TLS 1.2 or newer on port 2762" in conformance_statement(make_facts(tls_port=2762))


def test_the_documented_private_codes_are_those_of_the_code() -> None:
    page = (Path(__file__).parents[1] / "docs" / "conformance.md").read_text()
    listed = re.findall(r"^\| ([A-Z0-9-]+) \| ", page, re.MULTILINE)
    assert listed == [code.value for code in private_codes()]

"""The cohort that grows by itself: what stays of a study, who counts, what is replaced, and the models' trail."""

from dataclasses import replace
from pathlib import Path

from storage.cohort import (
    ModelDecision,
    count_cohort,
    count_patients,
    load_cohort,
    model_decisions,
    record_decision,
    save_features,
)
from storage.received_tables import StudyRow
from tests.database_builders import NOW, database
from tests.result_builders import Grid, make_features, make_headers, make_refusal, make_result, make_summary

HEADERS = make_headers(Grid(n_slices=8, rows=16, columns=16))


def result_of(study: str, **changes: object):
    result = make_result(HEADERS)
    header = replace(result.header, study_instance_uid=study, series_instance_uid=f"{study}.1")
    return replace(result, header=header, **changes)


def received(study: str, patient_id: str) -> StudyRow:
    return StudyRow(
        study_instance_uid=study, patient_id=patient_id, accession_number="", study_description="", version=1,
        taken_version=1, version_opened_at=NOW, first_arrival_at=NOW, last_arrival_at=NOW, delivered_version=0,
        released_version=0,
    )  # fmt: skip


def test_a_reported_study_leaves_features_density_and_acquisition(tmp_path: Path) -> None:
    result = result_of("1.2.1")
    with database(tmp_path) as sessions:
        with sessions.begin() as session:
            assert save_features(session, result, NOW)
        with sessions.begin() as session:
            (study,) = load_cohort(session)
    assert (study.bmd_mg_cm3, study.classification) == (89.3, "osteopenia")
    assert (study.convolution_kernel, study.kvp, study.acquired) == ("STANDARD", 120.0, result.header.acquired)
    assert [v.level for v in study.vertebrae] == ["L1", "L2"]
    first = result.features[0]
    assert study.vertebrae[0].features == dict(zip(first.names, first.values, strict=True))
    assert study.contract_sha256 == first.contract_sha256 and study.vertebrae[0].n_voxels == first.n_voxels


def test_a_study_that_is_analysed_again_replaces_its_own_row(tmp_path: Path) -> None:
    with database(tmp_path) as sessions, sessions.begin() as session:
        save_features(session, result_of("1.2.1"), NOW)
        save_features(session, result_of("1.2.1", summary=make_summary(bmd_mg_cm3=91.0)), NOW)
        assert [study.bmd_mg_cm3 for study in load_cohort(session)] == [91.0]


def test_a_study_that_is_refused_later_leaves_the_cohort(tmp_path: Path) -> None:
    refusal = make_refusal(HEADERS)
    refused = replace(refusal, header=replace(refusal.header, study_instance_uid="1.2.1"))
    with database(tmp_path) as sessions, sessions.begin() as session:
        save_features(session, result_of("1.2.1"), NOW)
        assert not save_features(session, refused, NOW)
        assert load_cohort(session) == ()


def test_a_study_whose_vois_cannot_be_described_is_not_kept(tmp_path: Path) -> None:
    empty = tuple(replace(make_features(level), names=(), values=()) for level in ("L1", "L2"))
    with database(tmp_path) as sessions, sessions.begin() as session:
        assert not save_features(session, result_of("1.2.1", features=empty), NOW)


def test_studies_of_one_patient_share_a_key_that_does_not_hold_the_id(tmp_path: Path) -> None:
    with database(tmp_path) as sessions, sessions.begin() as session:
        session.add_all([received("1.2.1", "PAT-7"), received("1.2.2", "PAT-7"), received("1.2.3", "PAT-8")])
        for study in ("1.2.1", "1.2.2", "1.2.3", "1.2.4"):
            save_features(session, result_of(study), NOW)
        keys = {study.study_instance_uid: study.patient_key for study in load_cohort(session)}
        counted = count_patients(session)
    assert keys["1.2.1"] == keys["1.2.2"] != keys["1.2.3"]
    assert len(set(keys.values())) == 3 and not any("PAT" in key for key in keys.values())
    assert counted == {"osteopenia": 3}


def test_patients_are_counted_per_scanner_month_and_class(tmp_path: Path) -> None:
    low = make_summary(bmd_mg_cm3=60.0)
    with database(tmp_path) as sessions, sessions.begin() as session:
        save_features(session, result_of("1.2.1"), NOW)
        save_features(session, result_of("1.2.2"), NOW)
        save_features(session, result_of("1.2.3", summary=replace(low, classification=None)), NOW)
        groups = {(g.scanner, g.month, g.classification): g.patients for g in count_cohort(session)}
    scanner = "GE MEDICAL SYSTEMS Revolution CT1"
    assert groups == {(scanner, "2026-03", "osteopenia"): 2, (scanner, "2026-03", "no limits"): 1}


def test_the_trail_keeps_every_decision_in_order(tmp_path: Path) -> None:
    first = ModelDecision(NOW, "a" * 64, "one", True, "nested macro AUC 0.91", 0.91, Path("a.json"), None)
    second = replace(first, sha256="b" * 64, activated=False, reason="too low", replaced_sha256="a" * 64)
    with database(tmp_path) as sessions:
        with sessions.begin() as session:
            record_decision(session, first)
            record_decision(session, second)
        with sessions.begin() as session:
            assert model_decisions(session) == (first, second)

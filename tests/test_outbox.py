"""Outbox and ledger: one row per object and destination, forms in reserve, one current result per study."""

from datetime import timedelta

from analysis.results import Reason
from storage.database import SessionFactory
from storage.outbox import (
    Delivery,
    OutboxItem,
    Wanted,
    count_items,
    due_items,
    fully_delivered,
    items_of_result,
    list_items,
    mark_dead,
    mark_delivered,
    mark_refused_for_now,
    mark_sent,
    requeue_dead,
    use_other_form,
)
from storage.study_results import (
    current_result,
    held_results,
    hold_results,
    provisional_results,
    recent_results,
    release_results,
    results_of_study,
    results_using,
)
from tests.database_builders import NOW, SEG, SR, SR_3D, outcome, report, stored

PACS = Wanted("pacs", frozenset({"segmentation", "measurements"}), (SEG, SR_3D, SR))
ARCHIVE = Wanted("archive", frozenset({"segmentation"}), (SEG,))
OBJECTS = (
    stored("segmentation", SEG, "1.1"),
    stored("measurements", SR, "1.3"),
    stored("measurements", SR_3D, "1.2"),
    stored("pdf", "1.2.840.10008.5.1.4.1.1.104.1", "1.4"),
)


def due(sessions: SessionFactory, destination: str = "pacs", now=NOW) -> list[OutboxItem]:
    with sessions.begin() as session:
        return due_items(session, destination, now, 100)


def test_each_destination_gets_what_it_wants_in_its_preferred_form(sessions: SessionFactory) -> None:
    report(sessions, outcome(objects=OBJECTS), PACS, ARCHIVE)
    assert {item.sop_instance_uid for item in due(sessions)} == {"1.1", "1.2"}
    assert [item.sop_instance_uid for item in due(sessions, "archive")] == ["1.1"]


def test_every_part_of_a_divided_object_is_sent(sessions: SessionFactory) -> None:
    parts = (stored("segmentation", SEG, "1.1"), stored("segmentation", SEG, "1.11"))
    report(sessions, outcome(objects=parts), PACS)
    assert {item.sop_instance_uid for item in due(sessions)} == {"1.1", "1.11"}


def test_a_form_that_is_not_accepted_is_replaced_by_the_next(sessions: SessionFactory) -> None:
    report(sessions, outcome(objects=OBJECTS), PACS)
    item = next(item for item in due(sessions) if item.kind == "measurements")
    with sessions.begin() as session:
        assert [other.sop_instance_uid for other in use_other_form(session, item.id, "no context", NOW)] == ["1.3"]
    (other,) = (item for item in due(sessions) if item.kind == "measurements")
    with sessions.begin() as session:
        assert use_other_form(session, other.id, "no context", NOW) == []


def test_an_object_refused_for_now_is_due_again_later(sessions: SessionFactory) -> None:
    report(sessions, outcome(objects=OBJECTS[:1]), PACS)
    (item,) = due(sessions)
    with sessions.begin() as session:
        mark_refused_for_now(session, item.id, "0xA700", NOW + timedelta(seconds=5))
    assert due(sessions) == []
    (again,) = due(sessions, now=NOW + timedelta(seconds=5))
    assert again.attempts == 1 and again.detail == "0xA700"


def test_one_destination_that_has_it_is_never_sent_it_again_for_the_others_sake(sessions: SessionFactory) -> None:
    report(sessions, outcome(objects=OBJECTS[:1]), PACS, ARCHIVE)
    with sessions.begin() as session:
        mark_delivered(session, [due_items(session, "pacs", NOW, 1)[0].id], "stored", NOW)
        mark_dead(session, due_items(session, "archive", NOW, 1)[0].id, "0xA900")
        assert requeue_dead(session, NOW) == 1
    assert due(sessions) == [] and len(due(sessions, "archive")) == 1


def test_a_study_is_delivered_when_nothing_of_it_waits_is_unconfirmed_or_dead(sessions: SessionFactory) -> None:
    report(sessions, outcome(objects=OBJECTS), PACS)
    first, second = due(sessions)
    with sessions.begin() as session:
        assert not fully_delivered(session, "1.2.3", 1)
        mark_delivered(session, [first.id], "stored", NOW)
        mark_sent(session, second.id, "stored", NOW)
        assert not fully_delivered(session, "1.2.3", 1)
        mark_delivered(session, [second.id], "committed", NOW)
        assert fully_delivered(session, "1.2.3", 1)


def test_a_newer_result_supersedes_the_older_and_what_still_waits_of_it(sessions: SessionFactory) -> None:
    first, _ = report(sessions, outcome(objects=OBJECTS), PACS)
    second, new = report(sessions, outcome(version=2, objects=(stored("segmentation", SEG, "2.1"),)), PACS)
    assert new
    with sessions.begin() as session:
        states = {item.state for item in items_of_result(session, first.id)}
        older, newer = results_of_study(session, "1.2.3")
        current = current_result(session, "1.2.3")
    assert states == {Delivery.SUPERSEDED}
    assert older.superseded_by == newer.id == second.id and current is not None and current.id == second.id
    assert [item.sop_instance_uid for item in due(sessions)] == ["2.1"]


def test_an_analysis_that_is_run_twice_gives_one_result_and_sends_nothing_twice(sessions: SessionFactory) -> None:
    first, new = report(sessions, outcome(objects=OBJECTS), PACS)
    again, also_new = report(sessions, outcome(objects=OBJECTS), PACS)
    assert new and not also_new and first.id == again.id
    assert len(due(sessions)) == 2


def test_an_amendment_is_a_new_revision_of_the_same_version(sessions: SessionFactory) -> None:
    report(sessions, outcome(objects=OBJECTS, provisional=True, calibration_ids=("a",)), PACS)
    amended, new = report(sessions, outcome(objects=(stored("measurements", SR_3D, "3.1"),)), PACS)
    assert new and (amended.version, amended.revision) == (1, 2)


def test_an_amendment_that_changes_nothing_makes_the_result_final(sessions: SessionFactory) -> None:
    report(sessions, outcome(objects=OBJECTS, provisional=True), PACS)
    with sessions.begin() as session:
        assert len(provisional_results(session)) == 1
    report(sessions, outcome(objects=OBJECTS), PACS)
    with sessions.begin() as session:
        assert provisional_results(session) == []


def test_results_are_found_by_the_calibration_they_rest_on_and_held(sessions: SessionFactory) -> None:
    doubtful, _ = report(sessions, outcome("1.1", calibration_ids=("monday", "next monday")))
    report(sessions, outcome("1.2", calibration_ids=("other scanner",)))
    with sessions.begin() as session:
        found = results_using(session, ["monday", "next monday"])
        assert [result.id for result in found] == [doubtful.id]
        assert found[0].calibration_ids == ("monday", "next monday")
        hold_results(session, [doubtful.id], "phantom scan of 9 March failed")
        (held,) = held_results(session)
        assert held.hold_reason == "phantom scan of 9 March failed"
        release_results(session, [doubtful.id])
        assert held_results(session) == []


def test_the_ledger_keeps_why_a_study_was_refused(sessions: SessionFactory) -> None:
    why = (Reason("SLICE_GAP", "gap at z = -312.5 mm"),)
    report(sessions, outcome(status="refused", reasons=why, report_json='{"status": "refused"}'))
    with sessions.begin() as session:
        (result,) = recent_results(session)
    assert result.reasons == why and result.report_json == '{"status": "refused"}'


def test_the_outbox_is_counted_and_listed_by_state(sessions: SessionFactory) -> None:
    report(sessions, outcome(objects=OBJECTS), PACS)
    with sessions.begin() as session:
        counts = count_items(session)
        assert counts == {("pacs", Delivery.WAITING): 2, ("pacs", Delivery.RESERVE): 1}
        assert len(list_items(session, Delivery.RESERVE)) == 1

"""When a study is due: every rule on real rows, with `now` given, so that no test waits."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from sqlalchemy.orm import Session

from storage.arrival import Arrival, Sender
from storage.completeness import CompletenessRules, DueStudy, due_studies, find_gaps, waiting
from storage.instance_header import InstanceHeader
from storage.instances import (
    ArrivalOutcome,
    close_association,
    record_arrival,
    recover_at_start,
    release_study,
    take_study,
)
from storage.received_tables import AssociationEnding
from storage.steady_clock import SteadyClock

START = datetime(2026, 1, 5, 12, tzinfo=UTC)
RULES = CompletenessRules(
    quiet_s=60.0, quiet_after_abort_s=300.0, quiet_with_gap_s=600.0, hard_cap_s=3600.0, at_hard_cap="analyse"
)
STUDY = "1.2.3"


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def sender(number: int = 1) -> Sender:
    return Sender(f"association-{number}", f"CT{number}", "QCT-NODE", "10.0.0.1", at(number))


def arrival(index: int, seconds: float, by: Sender | None = None, **changes: object) -> Arrival:
    """Slice `index` at z = -300 + 2.5 * index mm, arriving after so many seconds."""
    header = InstanceHeader(
        sop_class_uid=CTImageStorage,
        sop_instance_uid=f"1.2.3.4.{index + 1}",
        study_instance_uid=STUDY,
        series_instance_uid="1.2.3.4",
        modality="CT",
        patient_id="P1",
        accession_number="",
        study_description="",
        series_description="",
        image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
        instance_number=index + 1,
        number_of_frames=1,
        slice_position_mm=-300.0 + 2.5 * index,
        orientation="1.00 0.00 0.00 0.00 1.00 0.00",
    )
    header = replace(header, **changes)  # type: ignore[arg-type]
    digest = f"{header.sop_instance_uid:0<64}"
    return Arrival(header, ExplicitVRLittleEndian, digest, f"studies/a/{index}.dcm", 1000, by or sender(), at(seconds))


def receive(
    session: Session, *arrivals: Arrival, ending: AssociationEnding | None = AssociationEnding.RELEASED
) -> None:
    for one in arrivals:
        record_arrival(session, one)
    if ending is not None:
        last = arrivals[-1]
        close_association(session.connection(), last.sender.association_id, ending, last.arrived_at)


def verdict(session: Session, seconds: float, rules: CompletenessRules = RULES) -> str:
    """ "due" or the reason why not."""
    due, waits = due_studies(session, at(seconds), rules), waiting(session, at(seconds), rules)
    assert len(due) + len(waits) == 1, "a version is due or waits, never both"
    return "due" if due else waits[0].reason


def test_a_quiet_contiguous_released_study_is_due_after_the_quiet_time(session: Session) -> None:
    receive(session, *(arrival(i, i) for i in range(10)))
    assert verdict(session, 9 + 59) == "more images may come"
    assert due_studies(session, at(9 + 60), RULES) == (
        DueStudy(STUDY, 1, "quiet for 60 s", complete=True),
    )


def test_each_image_of_any_series_starts_the_quiet_time_again(session: Session) -> None:
    receive(session, *(arrival(i, i) for i in range(5)))
    receive(session, arrival(5, 54, series_instance_uid="1.2.3.5"))
    assert verdict(session, 4 + 61) == "more images may come"
    assert verdict(session, 54 + 60) == "due"


def test_an_open_association_that_sent_it_holds_the_study(session: Session) -> None:
    receive(session, *(arrival(i, i) for i in range(5)), ending=None)
    assert verdict(session, 500) == "association of CT1 is open"
    close_association(session.connection(), "association-1", AssociationEnding.RELEASED, at(500))
    assert verdict(session, 501) == "due"


def test_an_identical_resend_in_progress_holds_the_study_but_moves_no_clock(session: Session) -> None:
    receive(session, *(arrival(i, i) for i in range(5)))
    assert record_arrival(session, arrival(0, 50, sender(2))) is ArrivalOutcome.DUPLICATE
    assert verdict(session, 70) == "association of CT2 is open"
    close_association(session.connection(), "association-2", AssociationEnding.RELEASED, at(71))
    assert verdict(session, 72) == "due", "60 s after the last new image, not after the resend"


def test_a_gap_waits_longer_and_says_where_it_is(session: Session) -> None:
    receive(session, *(arrival(i, i) for i in range(10) if i != 4))
    assert verdict(session, 100) == "gap at z = -290.0 mm"
    assert waiting(session, at(100), RULES)[0].due_at == at(9 + 600)
    (due,) = due_studies(session, at(9 + 600), RULES)
    assert not due.complete and due.reason == "quiet for 600 s; gap at z = -290.0 mm"


def test_the_missing_slice_ends_the_wait(session: Session) -> None:
    receive(session, *(arrival(i, i) for i in range(10) if i != 4))
    receive(session, arrival(4, 100))
    assert verdict(session, 161) == "due"


def test_an_abort_waits_longer_until_a_resend_is_released(session: Session) -> None:
    receive(session, *(arrival(i, i) for i in range(5)), ending=AssociationEnding.ABORTED)
    assert verdict(session, 200) == "last association aborted"
    receive(session, *(arrival(i, 200 + i, sender(2)) for i in range(10)))
    assert verdict(session, 209 + 60) == "due"


def test_an_aborted_study_is_taken_after_the_longer_wait(session: Session) -> None:
    receive(session, *(arrival(i, 0) for i in range(5)), ending=AssociationEnding.ABORTED)
    assert verdict(session, 299) != "due"
    (due,) = due_studies(session, at(300), RULES)
    assert not due.complete


def test_a_restart_of_the_node_counts_as_a_lost_association(session: Session) -> None:
    receive(session, *(arrival(i, 0) for i in range(5)), ending=None)
    assert recover_at_start(session, at(10)) == 1
    assert verdict(session, 100) == "last association lost"


def test_the_hard_cap_takes_a_study_whose_association_never_ends(session: Session) -> None:
    receive(session, *(arrival(i, i) for i in range(5)), ending=None)
    assert verdict(session, 3599) == "association of CT1 is open"
    (due,) = due_studies(session, at(3600), RULES)
    assert due.reason.startswith("hard cap of 3600 s reached") and not due.complete


def test_the_hard_cap_can_hold_the_study_for_the_operator(session: Session) -> None:
    receive(session, *(arrival(i, i) for i in range(5)), ending=None)
    rules = replace(RULES, at_hard_cap="hold")
    assert verdict(session, 9000, rules).startswith("on hold after 3600 s")
    release_study(session, STUDY)
    assert verdict(session, 9000, rules) == "due"


def test_a_taken_version_is_neither_due_nor_waiting(session: Session) -> None:
    receive(session, *(arrival(i, i) for i in range(5)))
    assert take_study(session, STUDY, 1)
    assert due_studies(session, at(9999), RULES) == waiting(session, at(9999), RULES) == ()


def test_a_late_image_makes_version_2_due_after_its_own_quiet_time(session: Session) -> None:
    receive(session, *(arrival(i, i) for i in range(5)))
    take_study(session, STUDY, 1)
    receive(session, arrival(5, 7200))
    assert verdict(session, 7230) == "more images may come"
    assert [(d.version, d.complete) for d in due_studies(session, at(7261), RULES)] == [(2, True)]
    assert not take_study(session, STUDY, 1), "an old version cannot be taken again"


def test_an_identical_late_image_makes_nothing(session: Session) -> None:
    receive(session, *(arrival(i, i) for i in range(5)))
    take_study(session, STUDY, 1)
    assert record_arrival(session, arrival(2, 7200)) is ArrivalOutcome.DUPLICATE
    assert due_studies(session, at(9999), RULES) == waiting(session, at(9999), RULES) == ()


def test_a_changed_late_image_makes_nothing_but_a_conflict(session: Session) -> None:
    receive(session, *(arrival(i, i) for i in range(5)))
    take_study(session, STUDY, 1)
    assert record_arrival(session, replace(arrival(2, 7200), digest="f" * 64)) is ArrivalOutcome.CONFLICT
    assert due_studies(session, at(9999), RULES) == ()


def test_a_step_of_the_clock_back_over_a_restart_makes_nothing_early_or_endless(session: Session) -> None:
    receive(session, *(arrival(i, 3600 + i) for i in range(5)))
    recover_at_start(session, at(0))
    assert verdict(session, 59) != "due"
    assert verdict(session, 60) == "due"


def test_the_clock_of_the_process_does_not_follow_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SteadyClock()
    monkeypatch.setattr("time.time", lambda: 0.0)
    first = clock.now()
    assert timedelta(0) <= clock.now() - first < timedelta(seconds=5)


def test_localizers_and_objects_without_position_have_no_gaps(session: Session) -> None:
    scouts = [arrival(i * 40, 0, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER")) for i in range(3)]
    report = arrival(500, 0, slice_position_mm=None, orientation=None, modality="SR")
    receive(session, *scouts, report, arrival(1, 0), arrival(2, 0), arrival(3, 0))
    assert verdict(session, 61) == "due"


def test_two_stacks_of_one_series_are_judged_apart(session: Session) -> None:
    coronal = "1.00 0.00 0.00 0.00 0.00 -1.00"
    stack = [arrival(100 + i, 0, orientation=coronal, slice_position_mm=500.0 + i) for i in range(5)]
    receive(session, *(arrival(i, 0) for i in range(5)), *stack)
    assert verdict(session, 61) == "due"


@settings(deadline=None)
@given(
    spacing_mm=st.floats(0.3, 10.0),
    slices=st.integers(5, 200),
    data=st.data(),
)
def test_exactly_the_missing_inner_slices_are_gaps(spacing_mm: float, slices: int, data: st.DataObject) -> None:
    """Any contiguous stack has no gap; without one inner slice it has one, at that slice, in any order of arrival."""
    positions = [-512.0 + spacing_mm * i for i in range(slices)]
    assert find_gaps(data.draw(st.permutations(positions))) == ()
    missing = data.draw(st.integers(1, slices - 2))
    found = find_gaps(positions[:missing] + positions[missing + 1 :])
    assert found == pytest.approx((positions[missing],))


@pytest.mark.parametrize(
    ("positions_mm", "gaps"),
    [
        ((), ()),
        ((0.0,), ()),
        ((0.0, 50.0), ()),
        ((0.0, 1.0, 2.0, 0.0, 1.0, 2.0), ()),  # two reconstructions at the same positions
        ((0.0, 1.0, 2.0, 6.0, 7.0), (3.0,)),
        ((0.0, 1.004, 1.996, 3.0), ()),  # positions rounded by the scanner
    ],
)
def test_gaps_of_given_stacks(positions_mm: tuple[float, ...], gaps: tuple[float, ...]) -> None:
    assert find_gaps(positions_mm) == pytest.approx(gaps)

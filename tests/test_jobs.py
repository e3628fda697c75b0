"""The job table as a queue: leases, exactly one retry, dead letters, versions."""

import threading
from datetime import timedelta

from storage.database import SessionFactory
from storage.jobs import (
    Job,
    JobState,
    Lease,
    RetryRules,
    add_job,
    count_jobs,
    find_job,
    finish_job,
    list_jobs,
    put_back,
    reanalyse,
    reclaim_orphans,
    renew_lease,
    requeue,
    take_job,
    worker_died,
)
from tests.database_builders import NOW

RULES = RetryRules(worker_retries=1, orphan_retries=2)
LATER = NOW + timedelta(seconds=61)


def add(sessions: SessionFactory, *studies: str, version: int = 1) -> None:
    with sessions.begin() as session:
        for study in studies:
            add_job(session, study, version, NOW)


def take(sessions: SessionFactory, owner: str = "node", now=NOW) -> Job | None:
    with sessions.begin() as session:
        return take_job(session, Lease.starting(owner, now, 60), now)


def state(sessions: SessionFactory, study: str, version: int = 1) -> JobState:
    with sessions.begin() as session:
        job = find_job(session, study, version)
    assert job is not None
    return job.state


def test_a_version_of_a_study_is_queued_once(sessions: SessionFactory) -> None:
    with sessions.begin() as session:
        assert add_job(session, "1.2", 1, NOW)
        assert not add_job(session, "1.2", 1, NOW)
        assert count_jobs(session)[JobState.QUEUED] == 1


def test_the_oldest_job_is_taken_first(sessions: SessionFactory) -> None:
    add(sessions, "1.1", "1.2")
    taken = [take(sessions), take(sessions), take(sessions)]
    assert [job.study_instance_uid if job else None for job in taken] == ["1.1", "1.2", None]


def test_a_new_version_supersedes_one_that_still_waits(sessions: SessionFactory) -> None:
    add(sessions, "1.1")
    add(sessions, "1.1", version=2)
    assert state(sessions, "1.1") is JobState.SUPERSEDED
    job = take(sessions)
    assert job is not None and job.version == 2


def test_two_versions_of_a_study_never_run_at_once(sessions: SessionFactory) -> None:
    add(sessions, "1.1")
    first = take(sessions)
    add(sessions, "1.1", version=2)
    assert first is not None and take(sessions) is None
    with sessions.begin() as session:
        assert finish_job(session, first.id, "node", JobState.DONE, "", NOW)
    second = take(sessions)
    assert second is not None and second.version == 2


def test_many_takers_at_once_never_take_one_job_twice(sessions: SessionFactory) -> None:
    add(sessions, *(f"1.{n}" for n in range(12)))
    taken: list[str] = []

    def work(owner: str) -> None:
        while (job := take(sessions, owner)) is not None:
            taken.append(job.study_instance_uid)

    threads = [threading.Thread(target=work, args=(f"node{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 12 and len(set(taken)) == 12


def test_takers_at_once_never_get_two_versions_of_one_study(sessions: SessionFactory) -> None:
    """Both versions wait after the node died under the first: whoever is first gets one, everybody else nothing."""
    for number in range(10):
        study = f"1.{number}"
        add(sessions, study)
        take(sessions, "dead node")
        add(sessions, study, version=2)
        with sessions.begin() as session:
            reclaim_orphans(session, RULES, NOW, owner="dead node")
        start, taken = threading.Barrier(4), []

        def work(owner: str, start: threading.Barrier = start, taken: list[Job] = taken) -> None:
            start.wait()
            if (job := take(sessions, owner)) is not None:
                taken.append(job)

        threads = [threading.Thread(target=work, args=(f"node{n}",)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(taken) == 1, taken


def test_a_lease_that_is_renewed_is_not_reclaimed(sessions: SessionFactory) -> None:
    add(sessions, "1.1")
    job = take(sessions)
    assert job is not None
    with sessions.begin() as session:
        assert renew_lease(session, job.id, Lease.starting("node", LATER, 60))
        assert reclaim_orphans(session, RULES, LATER) == []


def test_a_lease_that_ran_out_gives_exactly_one_more_run(sessions: SessionFactory) -> None:
    add(sessions, "1.1")
    take(sessions)
    with sessions.begin() as session:
        assert [job.orphaned for job in reclaim_orphans(session, RULES, LATER)] == [1]
        assert reclaim_orphans(session, RULES, LATER) == []
    assert take(sessions, now=LATER) is not None
    assert take(sessions, now=LATER) is None


def test_the_answer_of_an_owner_whose_lease_was_lost_is_void(sessions: SessionFactory) -> None:
    add(sessions, "1.1")
    job = take(sessions, "old")
    assert job is not None
    with sessions.begin() as session:
        reclaim_orphans(session, RULES, LATER)
    again = take(sessions, "new", LATER)
    assert again is not None and again.id == job.id
    with sessions.begin() as session:
        assert not finish_job(session, job.id, "old", JobState.DONE, "", LATER)
        assert not renew_lease(session, job.id, Lease.starting("old", LATER, 60))
        assert finish_job(session, job.id, "new", JobState.DONE, "", LATER)


def test_a_node_takes_back_its_own_jobs_at_once_when_it_starts_again(sessions: SessionFactory) -> None:
    add(sessions, "1.1", "1.2")
    take(sessions, "this")
    take(sessions, "another")
    with sessions.begin() as session:
        assert [job.study_instance_uid for job in reclaim_orphans(session, RULES, NOW, owner="this")] == ["1.1"]


def test_a_study_under_which_the_node_dies_again_and_again_is_put_aside(sessions: SessionFactory) -> None:
    add(sessions, "1.1")
    for _ in range(RULES.orphan_retries + 1):
        assert take(sessions) is not None
        with sessions.begin() as session:
            reclaim_orphans(session, RULES, LATER)
    assert state(sessions, "1.1") is JobState.DEAD
    assert take(sessions) is None


def test_a_worker_that_dies_is_replaced_once_then_the_study_is_put_aside(sessions: SessionFactory) -> None:
    add(sessions, "1.1", "1.2")
    states = []
    for _ in range(2):
        job = take(sessions)
        assert job is not None and job.study_instance_uid == "1.1"
        with sessions.begin() as session:
            states.append(worker_died(session, job.id, "node", RULES, NOW))
    assert states == [JobState.QUEUED, JobState.DEAD]
    following = take(sessions)
    assert following is not None and following.study_instance_uid == "1.2"


def test_a_job_put_back_when_the_node_stops_costs_no_retry(sessions: SessionFactory) -> None:
    add(sessions, "1.1")
    for _ in range(10):
        job = take(sessions)
        assert job is not None
        with sessions.begin() as session:
            assert put_back(session, job.id, "node")
    assert job.worker_deaths == job.orphaned == 0


def test_the_operator_brings_a_study_back_with_fresh_retries(sessions: SessionFactory) -> None:
    add(sessions, "1.1")
    job = take(sessions)
    assert job is not None
    with sessions.begin() as session:
        finish_job(session, job.id, "node", JobState.DEAD, "fault", NOW)
        assert requeue(session, "9.9", NOW) is None
        brought_back = requeue(session, "1.1", NOW)
    assert brought_back is not None and brought_back.worker_deaths == 0
    assert take(sessions) is not None


def test_a_study_that_waits_or_runs_is_not_requeued(sessions: SessionFactory) -> None:
    add(sessions, "1.1")
    with sessions.begin() as session:
        assert requeue(session, "1.1", NOW) is None
    take(sessions)
    with sessions.begin() as session:
        assert requeue(session, "1.1", NOW) is None


def test_a_reported_study_is_analysed_again_when_a_phantom_scan_may_amend_it(sessions: SessionFactory) -> None:
    add(sessions, "1.1", "1.2")
    job = take(sessions)
    assert job is not None
    with sessions.begin() as session:
        finish_job(session, job.id, "node", JobState.DONE, "", NOW)
        assert reanalyse(session, "1.1", "a later phantom scan", LATER) is not None
        assert reanalyse(session, "1.2", "still queued", LATER) is None
    assert state(sessions, "1.1") is JobState.QUEUED


def test_jobs_are_listed_newest_first_and_by_state(sessions: SessionFactory) -> None:
    add(sessions, "1.1", "1.2", "1.3")
    take(sessions)
    with sessions.begin() as session:
        assert [job.study_instance_uid for job in list_jobs(session, JobState.QUEUED)] == ["1.3", "1.2"]
        assert len(list_jobs(session)) == 3

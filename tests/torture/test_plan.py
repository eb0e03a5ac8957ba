"""The schedule of disasters, and that each kind has somebody who does it."""

import itertools

import pytest

from mailq.torture.disasters import ACTS
from mailq.torture.hostile import ATTACKS
from mailq.torture.plan import BLOCK, KINDS, schedule


def test_the_same_seed_is_the_same_schedule():
    assert schedule(7, 200, tuple(KINDS), 5) == schedule(7, 200, tuple(KINDS), 5)
    assert schedule(7, 200, tuple(KINDS), 5) != schedule(8, 200, tuple(KINDS), 5)


def test_every_kind_comes_before_any_comes_again():
    first = schedule(3, len(KINDS), tuple(KINDS), 2)
    assert sorted(each.kind.name for each in first) == sorted(KINDS)


def test_calm_ones_come_together():
    calm = [each.kind.calm for each in schedule(3, len(KINDS) + 2 * BLOCK, tuple(KINDS), 2)]
    assert sum(one is not other for one, other in itertools.pairwise(calm)) == 5


def test_weights_decide_what_comes_often():
    kinds = [each.kind.name for each in schedule(1, 2000, tuple(KINDS), 1)]
    assert kinds.count("broker-kill") < kinds.count("kill-ack") / 2


def test_only_what_was_asked_for():
    assert {each.kind.name for each in schedule(1, 50, ("stop", "smtp-cut"), 1)} == {"stop", "smtp-cut"}
    assert len(schedule(1, 1, ("stop", "smtp-cut"), 1)) == 1


def test_every_job_has_an_id_of_its_own():
    ids = [job.identity for each in schedule(1, 300, tuple(KINDS), 9) for job in each.jobs]
    assert len(set(ids)) == len(ids)
    assert sum(identity.startswith("tx") for identity in ids) == 2700


def test_the_job_that_is_aimed_at_is_published_once_and_is_as_any_other():
    first = [each.jobs[0] for each in schedule(1, 300, tuple(KINDS), 9)]
    assert not any(job.grey or job.late or job.hostile or job.copies > 1 for job in first)


def test_jobs_are_greylisted_repeated_at_once_and_late_and_hostile_in_every_way():
    disasters = schedule(1, 300, tuple(KINDS), 9)
    jobs = [job for each in disasters for job in each.jobs]
    assert {job.copies for job in jobs} == {1, 2, 3}
    assert any(job.grey and job.copies > 1 for job in jobs)
    assert any(job.grey and job.late for job in jobs)
    assert {job.hostile for job in jobs} == {"", *ATTACKS}
    assert not any(job.late for each in disasters if each.kind.calm for job in each.jobs)


def test_there_is_no_such_kind():
    with pytest.raises(KeyError, match="flood"):
        schedule(1, 1, ("flood",), 1)


def test_somebody_does_each_kind():
    assert ACTS.keys() == KINDS.keys()

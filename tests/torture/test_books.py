"""The books count doctored records right: a missing, a lost, a doubled one, marked, unmarked and undue."""

from collections import Counter

import pytest

from mailq.torture.books import Books, Tally
from mailq.torture.plan import KINDS, Disaster, Job

JOBS = tuple(Job(f"tx00000-{index:02d}", grey=False) for index in range(3))
FIRST, SECOND, THIRD = (job.identity for job in JOBS)


def books(kind="kill-before-answer", *, jobs=JOBS, taken=(), finals=None, doubted=(), unsure=(), poisoned=()):
    """Records of one disaster whose publications were all delivered once, then doctored; a job stands for its first."""
    names = [name for job in jobs for name in job.publications]

    def first(name):
        return name if "." in name else f"{name}.0"

    return Books(
        [Disaster(0, KINDS[kind], jobs, 0)],
        Counter([*(name.partition(".")[0] for name in names), *taken]),
        frozenset(names),
        {name: [True] for name in names} | {first(name): ends for name, ends in (finals or {}).items()},
        Counter(map(first, doubted)),
        frozenset(map(first, unsure)),
        frozenset(map(first, poisoned)),
    )


def test_all_is_well():
    assert books().total() == Tally(disasters=1, jobs=3)
    assert books().total().holds


def test_a_double_that_is_marked():
    records = books(taken=[SECOND], doubted=[SECOND])
    assert records.total() == Tally(1, 3, doubled=1, in_doubt=1)
    assert records.total().holds


def test_a_double_that_is_not_marked():
    records = books(taken=[SECOND, SECOND], doubted=[FIRST])
    assert records.total() == Tally(1, 3, doubled=2, doubled_unmarked=2, in_doubt=1)
    assert not records.total().holds
    assert records.suspects(records.disasters[0]) == [SECOND]


def test_each_mail_too_many_needs_a_mark_of_its_own():
    assert books(taken=[SECOND, SECOND], doubted=[SECOND]).total().doubled_unmarked == 1
    assert books(taken=[SECOND, SECOND], doubted=[SECOND, SECOND]).total().holds


REPEATED = (JOBS[0], Job(SECOND, grey=False, copies=2, late=True))


def test_each_publication_of_one_id_is_a_job():
    assert books(jobs=REPEATED).total() == Tally(1, 4)


def test_a_copy_that_ends_in_silence_is_missing_though_its_id_has_results():
    records = books(jobs=REPEATED, finals={f"{SECOND}.1": [], f"{SECOND}.0": [True, True]})
    records.taken[SECOND] = 2
    assert records.total() == Tally(1, 4, lost=1, results_missing=1, results_doubled=1)
    assert not records.total().holds


def test_a_mail_more_than_there_are_copies_is_a_double():
    assert books(jobs=REPEATED, taken=[SECOND]).total() == Tally(1, 4, doubled=1, doubled_unmarked=1)


def test_a_copy_that_was_never_published_is_not_counted():
    records = books(jobs=REPEATED)
    published = records.published - {f"{SECOND}.2"}
    assert Books(records.disasters, records.taken, published, records.finals).total() == Tally(
        1, 3, doubled=1, doubled_unmarked=1
    )


HOSTILE = (JOBS[0], Job("hx00000-01", grey=False, hostile="copies"))


def test_a_hostile_job_may_fail_or_be_put_aside_but_not_in_silence():
    hostile = HOSTILE[1].identity
    assert books(jobs=HOSTILE, finals={hostile: [False]}).total().holds
    assert books(jobs=HOSTILE, finals={hostile: []}, poisoned=[hostile]).total().holds
    assert books(jobs=HOSTILE, finals={hostile: []}).total() == Tally(1, 2, results_missing=1)
    assert not books(jobs=HOSTILE, taken=[hostile]).total().holds


@pytest.mark.parametrize(("kind", "job", "undue"), [
    ("amqp-cut", FIRST, 1), ("amqp-cut", SECOND, 1), ("kill-publish", FIRST, 1), ("kill-publish", SECOND, 0),
    ("kill-before-answer", FIRST, 0), ("receiver-crash", SECOND, 0),
])  # fmt: skip
def test_a_mark_excuses_only_where_nobody_can_know(kind, job, undue):
    records = books(kind, taken=[job], doubted=[job])
    assert records.total() == Tally(1, 3, doubled=1, doubled_undue=undue, in_doubt=1)
    assert records.total().holds is not bool(undue)
    assert records.suspects(records.disasters[0]) == [job] * undue


def test_a_job_that_nobody_took_and_nobody_told_of():
    records = books(finals={THIRD: []})
    records.taken[THIRD] = 0
    assert records.total() == Tally(1, 3, lost=1, results_missing=1)
    assert not records.total().holds


def test_a_job_that_was_taken_but_not_told_of():
    assert books(finals={THIRD: []}).total() == Tally(1, 3, results_missing=1)


def test_a_job_that_is_said_to_be_delivered_but_was_not_taken():
    records = books()
    records.taken[SECOND] = 0
    assert records.total() == Tally(1, 3, lost=1)


def test_a_job_given_up_although_nothing_was_wrong_with_it():
    assert books(finals={SECOND: [False]}).total() == Tally(1, 3, lost=1)


def test_two_results_are_counted_and_forgiven():
    records = books(finals={SECOND: [True, True]})
    assert records.total() == Tally(1, 3, results_doubled=1)
    assert records.total().holds


def test_what_was_perhaps_never_published_proves_nothing():
    records = books(finals={THIRD: []}, unsure=[THIRD])
    records.taken[THIRD] = 0
    assert records.total() == Tally(1, 2)


def test_a_job_that_was_put_aside_is_that_and_nothing_else():
    records = books(finals={THIRD: []}, poisoned=[THIRD])
    records.taken[THIRD] = 0
    assert records.total() == Tally(1, 3, poisoned=1)
    assert not records.total().holds
    assert records.suspects(records.disasters[0]) == [THIRD]


def test_kinds_add_up():
    one, other = (Disaster(number, KINDS[kind], (job,), 0) for number, (kind, job) in enumerate(
        [("kill-ack", JOBS[0]), ("smtp-cut", JOBS[1])]
    ))  # fmt: skip
    names = frozenset(name for job in JOBS[:2] for name in job.publications)
    finals = {name: [True] for name in names}
    records = Books([one, other, one], Counter({FIRST: 1, SECOND: 2}), names, finals)
    assert records.by_kind() == {
        "kill-ack": Tally(2, 2),
        "smtp-cut": Tally(1, 1, doubled=1, doubled_unmarked=1),
    }
    assert records.total() == Tally(3, 3, doubled=1, doubled_unmarked=1)

"""First consumptions: what came of them is known until the broker is sure to have their acknowledgements."""

import asyncio
from contextlib import closing

import pytest
from support.broker import until

from mailq.config.journal import JournalConfig
from mailq.core.broker.messages import Consumed
from mailq.core.broker.provenance import Outbox, Provenance
from mailq.core.jobs.job import Job
from mailq.core.journal.records import DELAYED, EntryState
from mailq.core.smtp.failure import Delayed
from mailq.edges.journal import FileJournal, NullJournal
from mailq.worker.ack_tracker import AckTracker, marked
from mailq.worker.attempts import RunningAttempts
from mailq.worker.standstill import Standstill, moment


class Life:
    """A connection to the broker that says what it is told to say."""

    def __init__(self):
        self.alive = True
        self.silent = False
        self.asked = []

    def acknowledged(self):
        self.asked.append(asyncio.get_running_loop().create_future())
        return self.asked[-1]

    def lose(self):
        self.alive = False
        for each in self.asked:
            if not each.done():
                each.set_result(False)


@pytest.fixture
def journal(tmp_path):
    with closing(FileJournal(str(tmp_path), JournalConfig(size=256 * 1024), 0)) as journal:
        yield journal


@pytest.fixture
def attempts(journal):
    return RunningAttempts(journal, None, None, Standstill(15))


@pytest.fixture
def acks(journal, attempts):
    return AckTracker(journal, attempts)


JOB = Job.parse(b'{"recipient": "b@b.test"}', limit=100)
OUTBOX = Outbox("/", "outbox", "secret")


def key(number=1, mark=""):
    found = OUTBOX.read(Consumed(b"%d" % number, 1))
    return OUTBOX.key(found._replace(mark=mark), 1)


def delivered(journal, acks, broker, key):
    entry = journal.hand_over(key, contested=False)
    journal.answered(entry, b"told")
    acks.settled(key, broker, entry)
    return entry


def state(journal, key):
    return journal.take(key).state


async def test_an_entry_is_kept_until_a_look_after_the_broker_has_answered(journal, acks):
    broker = Life()
    delivered(journal, acks, broker, key(1))
    await until(lambda: broker.asked)
    delivered(journal, acks, broker, key(2))
    acks.poll()
    broker.asked[0].set_result(True)
    await until(lambda: len(broker.asked) == 2)  # one question at a time
    assert state(journal, key(1)) is EntryState.UNDERWAY
    acks.poll()
    assert state(journal, key(1)) is EntryState.UNDERWAY
    acks.poll()
    assert state(journal, key(1)) is EntryState.UNKNOWN
    assert state(journal, key(2)) is EntryState.UNDERWAY


@pytest.mark.parametrize("answered", [False, True])
async def test_what_a_lost_connection_acknowledged_is_told_again_or_in_doubt(journal, acks, answered):
    broker = Life()
    delivered(journal, acks, broker, key())
    await until(lambda: broker.asked)
    if answered:  # then it is another publication that comes, or the broker ended before it was on its disk
        broker.asked[0].set_result(True)
        await until(lambda: acks._batches[0].arrived)
    broker.lose()
    acks.poll()
    found = journal.take(key())
    assert (found.state, found.record) == ((EntryState.DOUBT, None) if answered else (EntryState.ANSWERED, b"told"))


async def test_what_arrived_together_ends_together_however_many_questions_there_were(journal, acks):
    broker = Life()
    for number in range(5):
        delivered(journal, acks, broker, key(number))
        await until(lambda: len(broker.asked) == number + 1)  # noqa: B023 - awaited at once
        broker.asked[number].set_result(True)
        await until(lambda: acks._batches[-1].arrived)
    assert len(acks._batches) == 1
    acks.poll()
    acks.poll()
    assert [state(journal, key(number)) for number in range(5)] == [EntryState.UNKNOWN] * 5


async def test_over_a_new_connection_it_may_be_the_same_job_at_once(journal, acks):
    lost = Life()
    delivered(journal, acks, lost, key())
    lost.lose()
    acks.duplicate_seen(key(), Life())
    assert state(journal, key()) is EntryState.ANSWERED


async def test_an_equal_publication_over_the_same_connection_is_another_one(journal, acks):
    broker = Life()
    delivered(journal, acks, broker, key())
    acks.duplicate_seen(key(), broker)
    assert state(journal, key()) is EntryState.UNKNOWN


async def test_of_equal_jobs_at_hand_none_is_taken_for_the_other(journal, attempts, acks):
    broker = Life()
    running = attempts.begin(JOB, key(), broker, 0, again=False)
    delivered(journal, acks, broker, key())
    assert state(journal, key()) is EntryState.UNKNOWN
    attempts.end(running)
    delivered(journal, acks, broker, key())
    delivered(journal, acks, broker, key())
    assert len(journal._open) == 1


async def test_a_marked_publication_is_settled_at_once(journal, acks):
    broker = Life()
    delivered(journal, acks, broker, key(mark="one"))
    await asyncio.sleep(0)
    assert broker.asked == []
    assert state(journal, key(mark="one")) is EntryState.SETTLED


async def test_in_the_end_all_that_is_known_is_settled_and_the_rest_left(journal, acks):
    broker, silent = Life(), Life()
    delivered(journal, acks, broker, key(1))
    delivered(journal, acks, silent, key(2))
    end = asyncio.create_task(acks.flush(0.05))
    await until(lambda: silent.asked)
    broker.asked[0].set_result(True)
    await end
    assert state(journal, key(1)) is EntryState.UNKNOWN
    assert state(journal, key(2)) is EntryState.ANSWERED


async def test_what_is_sent_back_is_marked_after_its_entry(journal, acks):
    entry = acks.delaying(key())
    first = marked(Provenance(requeued=True), entry)
    assert (first.mark, first.requeued) == (entry.name, False)
    assert marked(first, None) is first
    assert first != marked(Provenance(), acks.delaying(key()))
    broker = Life()
    acks.settled(key(), broker, entry)
    broker.lose()
    acks.poll()
    assert journal.take(key()).record == DELAYED


def test_without_a_journal_each_publication_has_a_mark_all_the_same():
    journal = NullJournal()
    acks = AckTracker(journal, RunningAttempts(journal, None, None, Standstill(15)))
    first, second = [marked(Provenance(), acks.delaying(key())) for _ in range(2)]
    assert first.mark
    assert first.mark != second.mark


def lost(broker):
    broker.lose()


def silent(broker):
    broker.silent = True


def stopped(_broker):
    standstill._woke = moment()


standstill = Standstill(15)


@pytest.mark.parametrize("what", [lost, silent, stopped])
@pytest.mark.parametrize("mark", ["", "m"])
async def test_what_the_broker_may_give_to_another_is_handed_over_only_where_a_rival_would_be_seen(journal, what, mark):
    standstill.__init__(15)
    broker = Life()
    running = RunningAttempts(journal, None, None, standstill).begin(JOB, key(mark=mark), broker, moment(), again=False)
    what(broker)
    if mark:
        running.hand_over()
        rival = RunningAttempts(journal, None, None, standstill).begin(
            JOB, key(mark=mark), broker, moment(), again=True
        )
        with pytest.raises(Delayed):
            rival.hand_over()
    else:
        with pytest.raises(Delayed):
            running.hand_over()
    assert len(journal._open) == bool(mark)

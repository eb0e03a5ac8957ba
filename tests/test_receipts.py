"""Jobs that nobody named: what came of them is known until the broker is sure to have their acknowledgements."""

import asyncio
from contextlib import closing

import pytest
from support.broker import until

from mailq.config.journal import JournalConfig
from mailq.core.failure import Postponed
from mailq.core.job import Job
from mailq.core.journal import PARKED, Standing, key_of
from mailq.edges.journal import FileJournal, NullJournal
from mailq.flights import Flights
from mailq.receipts import Receipts, named


class Life:
    """A connection to the broker that says what it is told to say."""

    def __init__(self):
        self.alive = True
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
def flights(journal):
    return Flights(journal, None, None)


@pytest.fixture
def receipts(journal, flights):
    return Receipts(journal, flights)


def job(number=1, **properties):
    return Job.parse(b'{"recipient": "b%d@b.test"}' % number, limit=100, **properties)


def delivered(journal, receipts, broker, job):
    entry = journal.hand_over(key_of(job), contested=False)
    journal.answered(entry, b"told")
    receipts.done(job, broker, entry)
    return entry


def standing(journal, job):
    return journal.take(key_of(job)).standing


async def test_an_entry_is_kept_until_a_look_after_the_broker_has_answered(journal, receipts):
    broker = Life()
    delivered(journal, receipts, broker, job(1))
    receipts.look()
    delivered(journal, receipts, broker, job(2))
    receipts.look()
    assert len(broker.asked) == 2
    broker.asked[0].set_result(True)
    assert standing(journal, job(1)) is Standing.UNDERWAY
    receipts.look()
    assert standing(journal, job(1)) is Standing.UNDERWAY
    receipts.look()
    assert standing(journal, job(1)) is Standing.UNKNOWN
    assert standing(journal, job(2)) is Standing.UNDERWAY


@pytest.mark.parametrize("answered", [False, True])
async def test_what_a_lost_connection_acknowledged_is_told_again(journal, receipts, answered):
    broker = Life()
    delivered(journal, receipts, broker, job())
    receipts.look()
    if answered:  # and the broker ended before it was on its disk
        broker.asked[0].set_result(True)
        receipts.look()
    broker.lose()
    receipts.look()
    found = journal.take(key_of(job()))
    assert (found.standing, found.record) == (Standing.ANSWERED, b"told")


async def test_over_a_new_connection_it_may_be_the_same_job_at_once(journal, receipts):
    lost = Life()
    delivered(journal, receipts, lost, job())
    lost.lose()
    receipts.equal(job(), Life())
    assert standing(journal, job()) is Standing.ANSWERED


async def test_an_equal_job_over_the_same_connection_is_another_one(journal, receipts):
    broker = Life()
    delivered(journal, receipts, broker, job())
    receipts.equal(job(), broker)
    assert standing(journal, job()) is Standing.UNKNOWN


async def test_of_equal_jobs_at_hand_none_is_taken_for_the_other(journal, flights, receipts):
    broker = Life()
    flight = flights.begin(job(), broker, again=False)
    delivered(journal, receipts, broker, job())
    assert standing(journal, job()) is Standing.UNKNOWN
    flights.end(flight)
    delivered(journal, receipts, broker, job())
    delivered(journal, receipts, broker, job())
    assert len(journal._open) == 1


async def test_a_job_with_an_identity_is_settled_at_once(journal, receipts):
    broker = Life()
    delivered(journal, receipts, broker, job(message_id="one"))
    receipts.look()
    assert broker.asked == []
    assert standing(journal, job(message_id="one")) is Standing.SETTLED


async def test_in_the_end_all_that_is_known_is_settled_and_the_rest_left(journal, receipts):
    broker, silent = Life(), Life()
    delivered(journal, receipts, broker, job(1))
    delivered(journal, receipts, silent, job(2))
    end = asyncio.create_task(receipts.last(0.05))
    await until(lambda: silent.asked)
    broker.asked[0].set_result(True)
    await end
    assert standing(journal, job(1)) is Standing.UNKNOWN
    assert standing(journal, job(2)) is Standing.ANSWERED


async def test_a_job_that_is_sent_back_is_named_after_its_entry(journal, receipts):
    entry = receipts.parking(job())
    first = named(job(), entry)
    assert (first.identified, first.identity) == (True, job().identity)
    assert first.alias == f"{entry.writer.hex()}-{entry.serial}"
    again = job(message_id=first.identity, unnamed=first.alias)
    assert key_of(again) == key_of(first) != key_of(named(job(), receipts.parking(job())))
    assert named(again, entry) is again
    broker = Life()
    receipts.done(job(), broker, entry)
    broker.lose()
    receipts.look()
    assert journal.take(key_of(job())).record == PARKED


def test_without_a_journal_there_are_no_names():
    journal = NullJournal()
    receipts = Receipts(journal, Flights(journal, None, None))
    assert not named(job(), receipts.parking(job())).identified


@pytest.mark.parametrize("properties", [{}, {"message_id": "one"}])
async def test_what_the_broker_gives_out_again_is_not_handed_over_where_nobody_could_tell_by_whom(
    journal, flights, properties
):
    broker = Life()
    flight = flights.begin(job(**properties), broker, again=False)
    broker.lose()
    if properties:
        flight.hand_over()
    else:
        with pytest.raises(Postponed):
            flight.hand_over()
    assert len(journal._open) == len(properties)

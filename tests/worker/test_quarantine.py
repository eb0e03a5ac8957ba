"""Trials: alone for a while, noted in the journal, and only what dies in its own time counts."""

import asyncio

import pytest

from mailq.config.journal import JournalConfig
from mailq.core.broker.messages import Consumed
from mailq.core.journal.records import JournalError
from mailq.edges.journal import FileJournal, NullJournal
from mailq.worker import quarantine
from mailq.worker.quarantine import Quarantine

KILLER = Consumed(b"killer", 1)
SLOW = Consumed(b"slow", 2)


@pytest.fixture
def journal(tmp_path):
    """Return a factory of journals in one directory; what is not closed by the test is in the end."""
    made = []

    def open_journal():
        made.append(FileJournal(str(tmp_path / "journal"), JournalConfig(), 0))
        return made[-1]

    yield open_journal
    for each in made:
        each.close()


async def test_trials_are_one_after_the_other_and_others_wait(journal):
    trials = Quarantine(journal())
    order = []

    async def tried(message):
        async with trials.trial(message, 0):
            order.append(("begun", message.tag))
            await asyncio.sleep(0.05)
            order.append(("ended", message.tag))

    async def idle():
        await trials.idle()
        order.append(("calm", 0))

    first, second = asyncio.create_task(tried(KILLER)), asyncio.create_task(tried(SLOW))
    await asyncio.sleep(0)
    await asyncio.gather(first, second, asyncio.create_task(idle()))

    trying = [each for each in order if each[1]]
    assert trying == [("begun", 1), ("ended", 1), ("begun", 2), ("ended", 2)]
    assert order.index(("calm", 0)) > order.index(("ended", 2))  # who waits for a trial is not alone before either


async def test_a_trial_that_lasts_lets_others_begin_and_counts_as_survived(journal, monkeypatch):
    monkeypatch.setattr(quarantine, "ALONE", 0.05)
    kept = []
    written = journal()
    monkeypatch.setattr(written, "tried", kept.append)
    trials = Quarantine(written)

    async with trials.trial(SLOW, 0):
        await asyncio.wait_for(trials.idle(), 5)
        assert len(kept) == 1
        async with trials.trial(KILLER, 0):
            pass
        assert len(kept) == 2
    assert len(kept) == 2


async def test_each_further_trial_is_alone_for_longer_up_to_a_limit(journal, monkeypatch):
    monkeypatch.setattr(quarantine, "ALONE", 0.05)
    monkeypatch.setattr(quarantine, "LONGEST", 0.2)
    trials = Quarantine(journal())
    loop = asyncio.get_running_loop()

    for earlier, alone in ((0, 0.05), (1, 0.1), (2, 0.2), (1000, 0.2)):
        async with trials.trial(SLOW, earlier):
            begun = loop.time()
            await asyncio.wait_for(trials.idle(), 5)
            assert alone - 0.01 <= loop.time() - begun < alone + 0.09


async def test_deaths_are_counted_by_message_and_identity(journal):
    one, other = journal(), journal()
    trials = Quarantine(other)
    async with Quarantine(one).trial(KILLER, 0):
        assert trials.crashes(KILLER) == 0  # it lives
        one._segment_writer._current.close(remove=False)  # as the kernel does for a process that is killed
        one._segment_writer._current = None
    assert trials.crashes(KILLER) == 1
    assert trials.crashes(SLOW) == 0
    assert trials.crashes(KILLER._replace(message_id="another")) == 0


async def test_a_trial_that_cannot_be_noted_is_none_and_holds_nobody_up(journal):
    closed = journal()
    closed.close()
    trials = Quarantine(closed)
    with pytest.raises(JournalError):
        async with trials.trial(KILLER, 0):
            pytest.fail("it began")
    await asyncio.wait_for(trials.idle(), 5)
    with pytest.raises(JournalError):
        trials.crashes(KILLER)


async def test_without_a_journal_no_death_is_known():
    trials = Quarantine(NullJournal())
    async with trials.trial(KILLER, 0):
        pass
    assert trials.crashes(KILLER) == 0

"""Journals of real processes that are killed, stopped, and run out of disk."""

import contextlib
import gc
import os
import shutil
import signal
import stat
import tempfile
import time
from pathlib import Path

import pytest
from support.puppet import Puppet

from mailq.config.journal import JournalConfig
from mailq.core.journal.records import (
    ANSWER_BODY,
    INTENT_SIZE,
    MAX_ANSWER,
    EntryId,
    EntryState,
    JobKey,
    JournalError,
    JournalStats,
    Mark,
    answer,
)
from mailq.core.smtp.failure import Delayed
from mailq.edges.journal import FileJournal, NullJournal, file_journal
from mailq.edges.journal.reader import LOOK

SMALL = 256 * 1024
PROCESS = """
import os, resource, sys
from mailq.config.journal import JournalConfig
from mailq.core.journal.records import JobKey
from mailq.edges.journal import FileJournal

def start(**more):
    global j
    j = FileJournal(sys.argv[1], JournalConfig(**{"size": int(sys.argv[2]), **more}), 7)

def key(number, marked=True):
    return JobKey(number.to_bytes(16), marked)

def take(number, marked=True):
    global entry
    entry = j.take(key(number, marked))
    return entry.state.value, entry.record

def give(number, contested=False, marked=True):
    global id
    id = j.hand_over(key(number, marked), contested=contested)

def say(number):
    print(number, flush=True)

def granted(numbers):
    got = []
    for number in numbers:
        try:
            give(number, contested=True)
        except Exception as error:
            assert type(error).__name__ == "Delayed", error
        else:
            got.append(number)
    return got

for line in sys.stdin:
    try:
        out = eval(line)
    except Exception as error:
        out = (type(error).__name__, str(error))
    print(repr(out), flush=True)
"""


@pytest.fixture
def home(tmp_path):
    return tmp_path / "journal"


@pytest.fixture
def spawn(home):
    """Start processes with journals in one directory; killed with the test."""
    with contextlib.ExitStack() as stack:

        def start(*, size=SMALL, directory=home, begin="start()"):
            process = Puppet(PROCESS, directory, size)
            stack.callback(process.close)
            assert process(begin) is None
            return process

        yield start


@pytest.fixture
def keep(home):
    """Make journals of this process; closed with the test."""
    with contextlib.ExitStack() as stack:

        def start(**more):
            journal = FileJournal(str(home), JournalConfig(**{"size": SMALL, **more}), 0)
            stack.callback(journal.close)
            return journal

        yield start


def key(number, *, marked=True):
    return JobKey(number.to_bytes(16), marked)


def handed(journal, number, record=None, *, marked=True, contested=False):
    entry = journal.hand_over(key(number, marked=marked), contested=contested)
    if record is not None:
        journal.answered(entry, record)
    return entry


def files(home):
    return sorted(path.name for path in home.iterdir())


@pytest.mark.parametrize("marked", [True, False])
def test_every_moment_at_which_a_process_is_killed_is_told(spawn, keep, marked):
    process, journal = spawn(), keep()
    process(f"give(1, marked={marked}), give(2, marked={marked}), j.answered(id, b'two')")
    process(f"give(3, marked={marked}), j.answered(id, b'three'), j.settled(id)")
    process(f"give(4, marked={marked}), j.withdrawn(id)")
    mine = [key(number, marked=marked) for number in range(6)]
    assert journal.take(mine[1]).state is EntryState.UNDERWAY
    process.kill()
    assert journal.take(mine[1]).state is EntryState.DOUBT
    found = journal.take(mine[2])
    assert (found.state, found.record) == (EntryState.ANSWERED, b"two")
    assert journal.take(mine[3]).state is (EntryState.SETTLED if marked else EntryState.UNKNOWN)
    assert journal.take(mine[4]).state is EntryState.UNKNOWN
    assert journal.take(mine[5]).state is EntryState.UNKNOWN
    assert journal.take(mine[2]).state is EntryState.UNDERWAY
    journal.settled(found.id)
    assert journal.take(mine[2]).state is (EntryState.SETTLED if marked else EntryState.UNKNOWN)


def test_a_claim_is_void_when_its_claimant_dies_or_gives_it_back(spawn, keep):
    process, claimant, journal = spawn(), spawn(), keep()
    process("give(1), j.answered(id, b'one')")
    process.kill()
    assert claimant("take(1)") == ("answered", b"one")
    assert journal.take(key(1)).state is EntryState.UNDERWAY
    claimant("j.released(entry.id)")
    found = journal.take(key(1))
    assert found.record == b"one"
    journal.withdrawn(found.id)
    assert claimant("take(1)") == ("answered", b"one")
    claimant.kill()
    found = journal.take(key(1))
    assert found.record == b"one"
    journal.settled(found.id)
    assert journal.take(key(1)).state is EntryState.SETTLED


def test_two_equal_jobs_are_two_messages(spawn, keep):
    process, journal = spawn(), keep()
    for record in (b"one", b"two"):
        process(f"give(1, marked=False), j.answered(id, {record})")
    twin = key(1, marked=False)
    assert journal.take(twin).state is EntryState.UNDERWAY
    process.kill()
    found = [journal.take(twin) for _ in range(2)]
    assert {each.record for each in found} == {b"one", b"two"}
    for each in found:
        journal.settled(each.id)
    assert journal.take(twin).state is EntryState.UNKNOWN


def test_what_the_broker_had_when_a_process_was_killed_is_in_doubt_for_an_equal_publication(spawn, keep):
    process, journal = spawn(), keep()
    process("give(1, marked=False), j.answered(id, b'told'), j.published([id]), j.published([id])")
    assert journal.take(key(1, marked=False)).state is EntryState.UNDERWAY
    process.kill()
    found = journal.take(key(1, marked=False))
    assert (found.state, found.record) == (EntryState.DOUBT, None)
    journal.settled(found.id)
    assert journal.take(key(1, marked=False)).state is EntryState.UNKNOWN


def test_what_is_published_stands_so_in_the_next_file_and_in_what_is_left_of_a_dead_writers(spawn, keep, home):
    process, journal = spawn(), keep()
    process("give(1, marked=False), j.answered(id, b'told'), j.published([id])")
    process("[(give(n), j.answered(id, b'x' * 60000), j.settled(id)) for n in range(100, 112)]")
    assert max(int(name.rpartition("-")[2].partition(".")[0]) for name in files(home)) > 2
    process.kill()
    journal.take(key(99))
    (item,) = journal._reader.index._open[key(1).digest]
    assert item.published
    assert bytes([Mark.PUBLISHED]) in {record[8:9] for record in journal._reader.index.open(item.writer)}
    assert journal.take(key(1, marked=False)).state is EntryState.DOUBT


@pytest.mark.parametrize("ahead", range(5))
def test_nothing_is_missed_where_a_read_ends_between_records_or_within_a_length(spawn, keep, ahead):
    """The length of the last record, 256, has no bit set in its first octet: that is not the end of the file."""
    process, journal = spawn(), keep()
    filling = LOOK - 2 * INTENT_SIZE - len(answer(1, b"")) - ahead
    process("give(1), globals().update(first=id), give(2)")
    process(f"j.answered(first, b'x' * {filling}), j.answered(id, b'y' * {256 - ANSWER_BODY.size})")
    process.kill()
    assert journal.take(key(2)).record == b"y" * (256 - ANSWER_BODY.size)
    assert journal.housekeep() == ()


def test_an_answer_of_the_living_is_taken_where_it_cannot_be_an_equal_jobs(spawn, keep):
    process, journal = spawn(), keep()
    process("give(1), j.answered(id, b'one'), give(2, marked=False), j.answered(id, b'two')")
    assert journal.take(key(1)).record == b"one"
    assert journal.take(key(2, marked=False)).state is EntryState.UNDERWAY
    process("j.released(id)")
    assert journal.take(key(2, marked=False)).record == b"two"


def test_of_two_who_contest_a_job_one_gives_way(spawn, keep):
    process, journal = spawn(), keep()
    process("give(1)")
    with pytest.raises(Delayed) as later:
        handed(journal, 1, contested=True)
    assert 2 <= later.value.wait <= 5
    process("j.withdrawn(id)")
    assert process("give(1, contested=True)") is None  # what was withdrawn is nobody's rival
    process.kill()
    handed(journal, 1, contested=True)


def test_one_gives_way_to_its_own_process_too(keep):
    journal = keep()
    first = handed(journal, 1, contested=True)
    with pytest.raises(Delayed):  # a retry that was published twice: two messages, one attempt
        handed(journal, 1, contested=True)
    journal.withdrawn(first)
    handed(journal, 1, contested=True)


def test_a_contested_job_that_was_settled_is_not_sent_again_if_it_has_an_identity(spawn, keep):
    process, journal = spawn(), keep()
    process("give(1), j.answered(id, b''), j.settled(id), give(2), j.answered(id, b'')")
    process("give(3, marked=False), j.answered(id, b''), j.settled(id)")
    for number in (1, 2):
        with pytest.raises(Delayed):
            handed(journal, number, contested=True)
    handed(journal, 3, marked=False, contested=True)


def test_never_do_two_go_ahead(spawn):
    one, other = spawn(size=48 << 20), spawn(size=48 << 20)
    one.ask("granted(range(300))")
    other.ask("granted(range(300))")
    first, second = set(one.hear()), set(other.hear())
    assert not first & second
    assert first | second


def test_never_do_two_take_one_entry(spawn):
    dead, one, other = spawn(), spawn(), spawn()
    dead("[(give(number), j.answered(id, b'x')) for number in range(200)]")
    dead.kill()
    takers = (one, other)
    for each in takers:
        each.ask("[number for number in range(200) if take(number)[0] == 'answered']")
    first, second = (set(each.hear()) for each in takers)
    assert not first & second
    assert first | second


@pytest.mark.alone
def test_a_process_that_stands_still_stops_nobody(spawn, keep):
    process, other, journal = spawn(), spawn(), keep()
    other("give(1), j.answered(id, b'one')")
    other.kill()
    process("take(1), give(2)")
    process.signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.process.pid, os.WSTOPPED)
    started = time.monotonic()
    assert [journal.take(key(number)).state for number in (1, 2)] == [EntryState.UNDERWAY] * 2
    journal.settled(handed(journal, 3, b"", contested=True))
    assert journal.take(key(3)).state is EntryState.SETTLED
    assert time.monotonic() - started < 1


def test_open_entries_are_carried_from_file_to_file(spawn, keep, home):
    process, dead, journal = spawn(), spawn(), keep()
    dead("give(5, marked=False), j.answered(id, b'five'), give(6), j.answered(id, b'six')")
    dead.kill()
    process("give(1), give(2), j.answered(id, b'two'), j.trial(b't' * 16)")
    assert process("take(5, False), j.settled(entry.id), take(6)")[2] == ("answered", b"six")
    work = "[(give(number), j.answered(id, b'x' * 700), j.settled(id), number % 50 or j.housekeep())"
    work += " for number in range({})]"
    process(work.format("100, 1700") + "[-1:]")
    numbers = [int(path.stem.split("-")[2]) for path in home.glob("7-*")]
    assert max(numbers) > 5
    assert len(numbers) <= 2 + 2
    assert journal.take(key(6)).state is EntryState.UNDERWAY
    process.kill()
    assert journal.take(key(1)).state is EntryState.DOUBT
    assert journal.take(key(2)).record == b"two"
    assert journal.take(key(6)).record == b"six"
    assert journal.take(key(5, marked=False)).state is EntryState.UNKNOWN
    assert journal.take(key(1699)).state is EntryState.SETTLED
    assert journal.trials(b"t" * 16) == 1


def test_a_reader_keeps_up_with_rotation(keep):
    writer, reader = keep(), keep()
    early = handed(writer, 1, b"early")
    assert reader.take(key(1)).record == b"early"
    for number in range(100, 2100):
        writer.settled(handed(writer, number, b"x" * 700))
        if number % 90 == 0:
            assert reader.take(key(number)).state is EntryState.SETTLED
    writer.settled(early)
    assert reader.take(key(1)).state is EntryState.SETTLED
    assert reader.take(key(2099)).state is EntryState.SETTLED
    assert not [item for writers in reader._reader.index._writers.values() for item in writers.items]


def test_room_for_answers_is_kept(keep):
    journal = keep()
    entries = [handed(journal, number) for number in range(3)]
    with pytest.raises(JournalError, match=r"journal\.size"):
        handed(journal, 3)
    assert journal.problem() is None
    for entry in entries:
        journal.answered(entry, b"r" * MAX_ANSWER)
    for entry in entries:
        journal.settled(entry)
    handed(journal, 3, b"r" * MAX_ANSWER)
    assert journal.take(key(3)).record == b"r" * MAX_ANSWER


def test_an_answer_that_is_too_long_is_an_answer_still(keep):
    journal = keep()
    handed(journal, 1, b"r" * (MAX_ANSWER + 1))
    found = journal.take(key(1))
    assert (found.state, found.record) == (EntryState.ANSWERED, b"")


def test_a_full_disk_is_trouble_and_recovers(spawn):
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, ({}, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))"
    process = spawn(begin=limit.format(100_000))
    assert process("start()") is None
    kind, text = process("give(1)")
    assert kind == "JournalError"
    assert text == process("j.problem()")
    assert "journal takes no file of 262144 octets; lower journal.size" in text
    assert process("take(1)")[0] == "JournalError"
    process(limit.format(1_000_000))
    assert process("j.housekeep(), j.problem()") == ((), None)
    process("give(0), j.answered(id, b'x' * 60000), j.settled(id)")
    process(limit.format(100_000))
    assert process("(give(1), globals().update(first=id), give(2), give(3), j.housekeep())")[-1] == ()
    assert "no file of" in process("j.problem()")
    assert process("give(4)")[0] == "JournalError"
    assert process("j.answered(id, b'y' * 60000), j.answered(first, b'z' * 60000)") == (None, None)
    assert process("j.housekeep(), 'no file of' in j.problem()") == ((), True)
    process(limit.format(1_000_000))
    assert process("j.housekeep(), j.problem(), give(4)") == ((), None, None)
    process.kill()
    other = spawn()
    assert [other(f"take({number})")[0] for number in range(1, 5)] == ["answered", "doubt", "answered", "doubt"]


def test_a_directory_that_may_not_be_written_is_trouble_and_recovers(spawn):
    open_to_all = Path(tempfile.mkdtemp(dir="/tmp"))  # a folder of pytest's could not be reached by another user
    try:
        open_to_all.chmod(0o555)
        process = spawn(directory="journal", begin=f"os.chdir({str(open_to_all)!r})")
        process("os.getuid() or os.setuid(65534)")
        assert process("start()") is None
        assert "journal is not to be written by this user" in process("j.problem()")
        assert process("give(1)")[0] == "JournalError"
        open_to_all.chmod(0o777)
        assert process("j.housekeep(), j.problem(), give(1)") == ((), None, None)
    finally:
        shutil.rmtree(open_to_all)


def test_what_was_removed_by_somebody_is_written_anew(keep, home):
    journal, other = keep(), keep()
    handed(journal, 1)
    shutil.rmtree(home)
    assert (journal.housekeep(), journal.problem()) == ((), None)
    other.housekeep()
    assert other.take(key(1)).state is EntryState.UNDERWAY


def test_only_the_owner_may_read(keep, home):
    keep()
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in home.iterdir()} == {0o600}


def test_what_was_settled_outlives_a_clean_end(keep, home):
    """A retry may have been published twice: the second copy comes when the worker has been restarted."""
    done, journal = keep(), keep()
    done.settled(handed(done, 1, b""))
    done.close()
    assert len(files(home)) == 2
    assert journal.take(key(1)).state is EntryState.SETTLED


def test_a_clean_end_leaves_nothing_but_what_may_be_asked_for(keep, home):
    done, left, journal = keep(), keep(), keep()
    done.settled(done.hand_over(key(1, marked=False), contested=False))
    done.trial(b"t" * 16)
    handed(left, 2)
    left.trial(b"t" * 16)
    done.close()
    left.close()
    assert len(files(home)) == 2
    assert journal.take(key(1, marked=False)).state is EntryState.UNKNOWN
    assert journal.take(key(2)).state is EntryState.DOUBT
    assert journal.trials(b"t" * 16) == 0


def test_what_was_settled_for_the_dead_outlives_who_settled_it(spawn, keep):
    dead, journal, last = spawn(), keep(), keep()
    dead("give(1, marked=False), j.answered(id, b'one')")
    dead.kill()
    journal.settled(journal.take(key(1, marked=False)).id)
    journal.close()
    assert last.take(key(1, marked=False)).state is EntryState.UNKNOWN


def test_trials_count_deaths(spawn, keep):
    journal = keep()
    for _ in range(2):
        process = spawn()
        process("j.trial(b't' * 16), j.trial(b'u' * 16), j.tried(b'u' * 16)")
        process.kill()
    journal.trial(b"t" * 16)
    assert (journal.trials(b"t" * 16), journal.trials(b"u" * 16)) == (2, 0)


def test_what_the_dead_leave_is_short_and_does_not_stay(spawn, keep, home, monkeypatch):
    process = spawn(begin="start(size=8 << 20)")
    process("give(1)")
    process.kill()
    journal = keep(keep=3600)
    (left,) = home.glob("7-*")
    assert left.stat().st_size < 1000
    assert journal.take(key(1)).state is EntryState.DOUBT
    now = time.monotonic
    monkeypatch.setattr(file_journal.time, "monotonic", lambda: now() + 3601)
    journal._keep_house()
    assert not list(home.glob("7-*"))
    assert journal.take(key(1)).state is EntryState.UNKNOWN


def test_a_clock_that_is_set_forward_makes_nothing_old(spawn, keep, monkeypatch):
    process, journal = spawn(), keep(keep=3600)
    process("give(1)")
    process.kill()
    entry = handed(journal, 2)
    now = time.time
    monkeypatch.setattr(file_journal.time, "time", lambda: now() + 90_000)
    journal._keep_house()
    journal.answered(entry, b"two")
    later = keep(keep=3600)
    assert later.take(key(1)).state is EntryState.DOUBT
    assert later.take(key(2)).record == b"two"


def test_the_number_of_dead_files_with_nothing_open_is_bounded(keep, home, monkeypatch):
    monkeypatch.setattr(file_journal, "MAX_DEAD", 3)
    early = keep()
    early.take(key(99))  # who was asked once reads on
    for number in range(6):
        left = keep()
        left.settled(handed(left, number, b""))
        left.close()
        early.housekeep()
    journal = keep()
    assert len(files(home)) == 5
    assert journal.take(key(9)).state is EntryState.UNKNOWN
    assert {early.take(key(number)).state for number in range(6)} == {EntryState.SETTLED}  # they were read in time


def test_what_many_dead_left_open_is_told_until_it_is_settled(keep, home, monkeypatch):
    monkeypatch.setattr(file_journal, "MAX_DEAD", 3)
    for number in range(40):
        left = keep()
        handed(left, number)
        left.close()
    before = len(list(Path("/proc/self/fd").iterdir()))
    journal = keep()
    assert len(list(Path("/proc/self/fd").iterdir())) < before + 10
    found = [journal.take(key(number)) for number in range(40)]
    assert {each.state for each in found} == {EntryState.DOUBT}
    for each in found:
        journal.settled(each.id)
    journal._keep_house()
    assert len(files(home)) == 4


def test_of_much_that_the_dead_left_what_is_open_stays(spawn, keep, home, monkeypatch):
    monkeypatch.setattr(file_journal, "MAX_DEAD_FILES", 1)
    early = keep()
    filling = (
        "[(give({}), j.answered(id, b'x' * 700), j.settled(id), number % 50 or j.housekeep()) for number in range(460)]"
    )
    for number in range(4):
        process = spawn()
        process(f"give({number}), give({10 + number}, marked=False), j.answered(id, b'answer {number}')")
        process(f"j.released(id), j.trial(b't' * 16), {filling.format(f'{1000 * (number + 1)} + number')}[-1:]")
        process.kill()
    keep()
    left = [path for path in home.glob("7-*") if path.stat().st_size < 4096]
    assert len(left) >= 2
    assert sum(path.stat().st_size for path in home.glob("7-*")) < SMALL + 4096 * len(left)
    for journal in (keep(), early):
        assert journal.trials(b"t" * 16) == 4
        for number in range(4):
            found = journal.take(key(number))
            assert found.state is EntryState.DOUBT
            journal.released(found.id)
    early._keep_house()
    for number in range(4):
        found = early.take(key(10 + number, marked=False))
        assert found.record == b"answer %d" % number
        early.settled(found.id)
    assert keep().take(key(10, marked=False)).state is EntryState.UNKNOWN


def test_of_many_who_clean_up_at_once_none_loses_sight(spawn, keep, home):
    """Each makes the files of the dead shorter where another looks, starts or does the same."""
    bound = "from mailq.edges.journal import file_journal; file_journal.MAX_DEAD_FILES = 0"
    several = [spawn() for _ in range(3)]
    for each in several:
        each(f"exec({bound!r})")
    for number in range(8):
        process = spawn()
        process(f"give({number}), [(give(1000), j.answered(id, b'x' * 700), j.settled(id)) for _ in range(100)][0]")
        process.kill()
        for each in several:
            each.ask(f"j._keep_house(), take({number})[0]")
        assert {each.hear()[1] for each in several} <= {"doubt", "underway"}
        for each in several:
            each("entry.id and j.released(entry.id)")
    assert all(path.stat().st_size < 200 for path in home.glob("7-*") if path.stat().st_size != SMALL)
    journal = keep()
    assert {journal.take(key(number)).state for number in range(8)} == {EntryState.DOUBT}


def test_a_file_that_may_not_be_read_is_trouble_and_recovers(spawn):
    open_to_all = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        open_to_all.chmod(0o777)
        left = FileJournal(str(open_to_all), JournalConfig(size=SMALL), 0)
        left.settled(handed(left, 1, b""))
        left.close()
        (path,) = open_to_all.iterdir()
        path.chmod(0)
        process = spawn(directory=".", begin=f"os.chdir({str(open_to_all)!r})")
        process("os.getuid() or os.setuid(65534)")
        assert process("start()") is None
        said = process("j.problem()")
        assert f"journal file {path.name} is not to be read by this user; change its owner, or remove it" in said
        assert process("take(1)") == ("JournalError", said)
        assert process("j.housekeep(), j.problem()") == ((), said)
        assert process("give(2), j.answered(id, b''), j.settled(id)") == (None, None, None)
        path.chmod(0o644)
        assert process("j.housekeep(), j.problem(), take(1)") == ((), None, ("settled", None))
        open_to_all.chmod(0o333)
        (open_to_all / "new.journal").touch()
        assert process("j.housekeep(), j.problem()")[1] == (
            "journal directory . is not to be read by this user; change its owner, "
            "or remove it if its jobs may be sent again"
        )
    finally:
        open_to_all.chmod(0o700)
        shutil.rmtree(open_to_all)


@pytest.mark.parametrize("asked", [True, False])
def test_what_others_settled_is_known_to_who_was_asked_when_their_files_are_gone(keep, home, asked):
    writer, reader = keep(), keep()
    if asked:
        reader.take(key(9999))
    for number in range(2000):
        writer.settled(handed(writer, number, b"x" * 700))
        if number % 50 == 0:
            writer.housekeep()
            reader.housekeep()
    assert len(files(home)) <= 4
    settled = [reader.take(key(number)).state is EntryState.SETTLED for number in range(2000)]
    assert all(settled) is asked  # reading costs every process a share of all jobs of the host
    assert settled[-1]


def test_a_damaged_file_is_told_of_once_and_read_up_to_the_damage(keep, home):
    left, journal = keep(), keep()
    for number in range(3):
        handed(left, number, b"x" * 100)
    left.close()
    (path,) = [path for path in home.iterdir() if path.stat().st_size < SMALL]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert journal.take(key(0)).record == b"x" * 100
    assert journal.take(key(2)).state is EntryState.UNKNOWN
    (said,) = journal.housekeep()
    assert f"{path} is damaged" in said
    assert journal.housekeep() == ()
    assert journal.stats().corrupt == 1


def test_strange_files_in_the_directory_hurt_nobody(keep, home):
    home.mkdir()
    (home / "noise.journal").write_bytes(os.urandom(5000))
    (home / "empty.journal").write_bytes(b"")
    (home / "link.journal").symlink_to("/nowhere")
    (home / "folder.journal").mkdir()
    os.mkfifo(home / "pipe.journal")
    journal = keep()
    assert journal.take(key(1)).state is EntryState.UNKNOWN
    assert not (home / "empty.journal").exists()
    assert (home / "noise.journal").exists()


def test_entries_that_nobody_asks_for_are_let_go(keep, monkeypatch):
    journal, other = keep(keep=3600), keep()
    twin = handed(journal, 1, b"one", marked=False)
    monkeypatch.setattr(file_journal, "ABANDONED", 0.0)
    journal._keep_house()
    found = other.take(key(1, marked=False))
    assert (found.id, found.record) == (twin, b"one")
    other.settled(found.id)
    journal._keep_house()
    assert not journal._open
    handed(journal, 2, b"two")
    now = time.monotonic
    monkeypatch.setattr(file_journal.time, "monotonic", lambda: now() + 3601)
    journal._keep_house()
    assert not journal._open
    assert journal._segment_writer.promised == 0


def test_promises_are_kept_exactly(keep):
    journal, other = keep(), keep()
    one, two, three = (handed(journal, number) for number in range(3))
    journal.answered(one, b"1")
    journal.released(one)
    journal.withdrawn(two)
    journal.answered(three, b"3")
    assert journal.take(key(0)).id == one
    journal.released(one)
    assert other.take(key(0)).id == one
    journal.settled(one)
    journal.settled(three)
    journal.settled(three)
    journal.trial(b"t" * 16)
    journal.tried(b"t" * 16)
    journal.tried(b"t" * 16)
    other.settled(one)
    assert (journal._segment_writer.promised, other._segment_writer.promised) == (0, 0)


def test_waiting_for_the_disk_changes_nothing_else(keep):
    journal, other = keep(sync="always"), keep()
    for number in range(400):
        journal.settled(handed(journal, number, b"x" * 700))
    handed(journal, 999, b"record")
    assert other.take(key(999)).record == b"record"
    assert journal.stats().records == 400 * 3 + 2


def test_no_journal_knows_nothing():
    journal = NullJournal()
    entry = journal.hand_over(key(1), contested=True)
    assert isinstance(entry, EntryId)
    journal.answered(entry, b"")
    journal.settled(entry)
    journal.trial(b"t" * 16)
    assert journal.take(key(1)).state is EntryState.UNKNOWN
    assert (journal.trials(b"t" * 16), journal.problem(), journal.housekeep()) == (0, None, ())
    assert journal.stats() == JournalStats()
    journal.close()


def test_a_dead_process_that_said_nothing_leaves_nothing(spawn, keep, home):
    process = spawn()
    process.kill()
    keep()
    assert not list(home.glob("7-*"))


def test_a_closed_journal_records_nothing(keep, home):
    journal = keep()
    journal.close()
    assert journal.housekeep() == ()
    with pytest.raises(JournalError, match="closed"):
        handed(journal, 1)
    assert files(home) == []


def test_no_descriptor_is_left_open(keep):
    gc.collect()  # what tests before this one have left to it
    before = len(list(Path("/proc/self/fd").iterdir()))
    one, other = keep(), keep()
    for number in range(1000):
        one.settled(handed(one, number, b"x" * 700))
        other.take(key(number))
    one.close()
    other.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_what_was_said_before_a_kill_at_any_moment_is_found(spawn, keep):
    """Each call that returned has its effect, over many files; the one that was cut short may have it."""
    journal = keep()
    work = "[(give(n), say(3 * n), j.answered(id, b'x' * 9000), say(3 * n + 1), j.settled(id), say(3 * n + 2),"
    work += " j.housekeep())"
    possible = (EntryState.UNKNOWN, EntryState.DOUBT, EntryState.ANSWERED, EntryState.SETTLED)
    for count in range(6):
        process = spawn()
        process.ask(work + f" for n in range({count} * 10**6, 10**7)]")
        calls = [int(process.process.stdout.readline()) for _ in range(500 + 37 * count)]
        process.kill()
        said = process.process.stdout.read()
        calls += map(int, said[: said.rfind("\n") + 1].split())
        job, call = divmod(calls[-1], 3)
        state = journal.take(key(job)).state
        assert state in possible[call + 1 : call + 3]
        assert journal.take(key(job - 1)).state is EntryState.SETTLED
        shutil.rmtree(journal._directory)
        journal.housekeep()

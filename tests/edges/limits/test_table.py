"""What processes of a host share: real processes, a real kernel, and death at any moment."""

import asyncio
import contextlib
import fcntl
import itertools
import os
import secrets
import signal
import struct
import time
from collections.abc import Callable

import pytest
from support.limits import beside, private_table

from mailq.core.traffic.rate import Rate, Slot
from mailq.edges.limits import SharedLimits
from mailq.edges.limits.table import WAYS
from mailq.ports.limits import Limits

PROCESSES = 4
SLOTS = WAYS * 8
NEVER = 1e9

# Python warns of threads at a fork from 3.12 on; what is forked here takes none of their locks.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def table(home):
    with contextlib.closing(opened(home)) as table:
        yield table


def opened(home):
    table = SharedLimits(home, slots=SLOTS)
    assert table.problem() is None
    return table


@pytest.fixture
def spawn(home):
    """Run a function in processes of their own, each with the host's table; killed with the test."""
    pids = []

    def start(work: Callable[[SharedLimits], None]) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                work(opened(home))
            except BaseException:  # noqa: BLE001 - a forked test must never run on as a second pytest
                os._exit(1)
            os._exit(0)
        pids.append(pid)
        return pid

    yield start
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def ended(pid):
    """Return the exit status of a process."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(awaitable):
    """Run a coroutine of the table, which never really waits."""
    with pytest.raises(StopIteration) as done:
        awaitable.send(None)
    return done.value.value


def do(awaitable):
    """Like `run`, for processes without pytest's help."""
    try:
        awaitable.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits")


def until(condition, seconds=20):
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "did not happen in time"
        time.sleep(0.001)


def test_it_is_the_port(table):
    limits: Limits = table
    assert limits


def test_as_many_may_enter_as_the_limit_lets(table):
    assert [run(table.enter("a", 2)) for _ in range(3)] == [True, True, False]
    table.leave("a")
    assert run(table.enter("a", 2)) is True
    assert run(table.enter("b", 1)) is True
    assert run(table.enter("c", 0)) is False


def test_who_leaves_without_being_in_makes_no_room(table):
    table.leave("a")
    assert run(table.enter("a", 1)) is True
    table.leave("b")
    assert run(table.enter("a", 1)) is False


def test_four_processes_with_a_limit_of_one_never_overlap(table, spawn, tmp_path):
    """A file lock is the witness: it is taken without waiting, so whoever overlaps fails."""
    witness, journal = tmp_path / "witness", tmp_path / "journal"
    stop = time.monotonic() + 2

    def work(mine):
        with witness.open("w") as file, journal.open("ab", buffering=0) as log:
            while time.monotonic() < stop:
                if not do(mine.enter("site", 1)):
                    continue
                begun = time.monotonic()
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                time.sleep(0.0005)
                fcntl.flock(file, fcntl.LOCK_UN)
                log.write(struct.pack("2d", begun, time.monotonic()))
                mine.leave("site")

    pids = [spawn(work) for _ in range(PROCESSES)]

    assert [ended(pid) for pid in pids] == [0] * PROCESSES
    spans = sorted(struct.iter_unpack("2d", journal.read_bytes()))
    assert len(spans) > 100
    assert all(left < entered for (_, left), (entered, _) in itertools.pairwise(spans))
    assert run(table.enter("site", 1)) is True


@pytest.mark.parametrize("burst", [1, 3])
def test_four_processes_together_never_exceed_five_a_second(table, spawn, tmp_path, burst):
    journal = tmp_path / "journal"
    rate, stop = Rate(5, burst), time.monotonic() + 3

    def work(mine):
        with journal.open("ab", buffering=0) as log:
            away = False
            while True:
                before = time.monotonic()
                slot = do(mine.take("site", rate, patience=0.5, returned=away))
                after = time.monotonic()
                if after + slot.wait > stop:
                    return
                time.sleep(slot.wait)
                away = slot.away
                if not away:
                    log.write(struct.pack("2d", before + slot.wait, after + slot.wait))

    pids = [spawn(work) for _ in range(PROCESSES)]

    assert [ended(pid) for pid in pids] == [0] * PROCESSES
    # The clock that decided was read between the two moments of an event.
    events = sorted(struct.iter_unpack("2d", journal.read_bytes()))
    assert 8 <= len(events) <= 15 + burst  # the rate is used, too
    for first, last in itertools.combinations(range(len(events)), 2):
        assert last - first + 1 <= (events[last][1] - events[first][0]) * 5 + burst + 1e-6
    assert sum(b[0] - a[1] > 0.19 for a, b in itertools.pairwise(events)) >= 5  # not an accident of slow processes


def test_the_pace_is_that_of_the_core(table):
    rate = Rate(10, burst=2)
    slots = [run(table.take("a", rate, patience=0.25, returned=False)) for _ in range(6)]

    assert [slot.away for slot in slots] == [False] * 4 + [True] * 2
    assert [slot.wait for slot in slots] == pytest.approx([0, 0, 0.1, 0.2, 0.3, 0.4], abs=0.05)
    assert run(table.take("b", rate, patience=0.25, returned=False)) == Slot(0.0)


def test_a_process_killed_while_it_is_in_is_counted_out_by_whoever_looks(table, spawn):
    def work(mine):
        assert do(mine.enter("a", 3))
        assert do(mine.enter("a", 3))
        assert do(mine.enter("b", 1))
        signal.pause()

    pid = spawn(work)
    until(lambda: not run(table.enter("b", 1)) or table.leave("b"))
    assert run(table.enter("a", 3)) is True
    assert run(table.enter("a", 3)) is False

    os.kill(pid, signal.SIGKILL)
    assert ended(pid) == -signal.SIGKILL
    assert run(table.enter("a", 3)) is False

    table.housekeep()
    assert [run(table.enter("a", 3)) for _ in range(3)] == [True, True, False]
    assert run(table.enter("b", 1)) is True
    table.housekeep()
    assert run(table.enter("b", 1)) is False


def test_death_at_any_moment_leaves_no_lock_and_no_damage(table, spawn):
    """Processes are killed at random moments in the middle of everything; a hundred rounds, bounded in time."""
    rate = Rate(1e6)

    def work(mine):
        for number in itertools.count():
            key = f"key {number % 40}"
            do(mine.take(key, rate, patience=0, returned=False))
            if do(mine.enter(key, 2)):
                mine.wanted(key, 2, 0)
                mine.leave(key)

    pids = [spawn(work) for _ in range(1, PROCESSES)]
    began = time.monotonic()
    for victim in itertools.islice(itertools.cycle(range(len(pids))), 100):
        time.sleep(secrets.randbelow(20) / 1000)
        os.kill(pids[victim], signal.SIGKILL)
        assert ended(pids[victim]) == -signal.SIGKILL
        table.housekeep()
        for key in range(40):  # no lock is left, and nobody is in who should not be
            run(table.take(f"key {key}", rate, patience=NEVER, returned=True))
        pids[victim] = spawn(work)
    assert time.monotonic() - began < 60
    assert table._top[0] <= PROCESSES + 1  # columns are used again

    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        ended(pid)
    table.housekeep()
    for key in (f"key {number}" for number in range(40)):
        assert [run(table.enter(key, 2)) for _ in range(3)] == [True, True, False]
        slot = run(table.take(key, rate, patience=NEVER, returned=True))
        assert 0 <= slot.wait < 10
        assert not slot.away
    assert table.overflows == 0


def test_a_key_that_has_nothing_to_say_gives_its_slot_to_another(table):
    """Far more keys than slots, one after the other: every limit is kept."""
    rate = Rate(1e4)
    for number in range(20 * WAYS * 8):
        assert run(table.enter(f"key {number}", 1)) is True
        assert run(table.enter(f"key {number}", 1)) is False or pytest.fail("the limit is not kept")
        table._moments[:] = memoryview(bytes(table._moments.nbytes)).cast("d")  # a second later
        table.leave(f"key {number}")
        assert run(table.take(f"pace {number}", rate, patience=0, returned=False)) == Slot(0.0)
        time.sleep(1e-4)

    assert table.overflows == 0


def test_a_slot_is_not_given_away_while_its_pace_matters():
    slow, fast = Rate(0.1), Rate(1e6)
    with contextlib.closing(private_table(slots=WAYS)) as table:
        for number in range(WAYS - 1):
            run(table.take(f"slow {number}", slow, patience=0, returned=False))
        for number in range(200):
            run(table.take(f"fast {number}", fast, patience=0, returned=False))
            time.sleep(1e-5)

        waits = [
            run(table.take(f"slow {number}", slow, patience=NEVER, returned=True)).wait for number in range(WAYS - 1)
        ]
        assert waits == pytest.approx([10] * (WAYS - 1), abs=2)


def test_keys_that_meet_in_one_bucket_are_told_apart_and_a_full_one_lets_mail_pass():
    with contextlib.closing(private_table(slots=WAYS)) as table:
        keys = [f"key {number}" for number in range(WAYS)]
        assert all(run(table.enter(key, 1)) for key in keys)
        assert not any(run(table.enter(key, 1)) for key in keys)
        assert table.overflows == 0

        assert [run(table.enter("one more", 1)) for _ in range(2)] == [True, True]
        assert run(table.take("one more", Rate(0.001), patience=0, returned=False)) == Slot(0.0)
        assert table.overflows == 3
        assert table.wanted("one more", 1, 0) is False

        table.leave(keys[0])
        table._moments[:] = memoryview(bytes(table._moments.nbytes)).cast("d")  # its refusal is long ago
        assert run(table.enter("one more", 1)) is True  # now it has a slot
        table.leave("one more")  # of the two that were not kept, and so is the next
        assert run(table.enter("one more", 2)) is True
        for _ in range(2):
            table.leave("one more")
        assert run(table.enter("one more", 1)) is False
        table.leave("one more")
        assert run(table.enter("one more", 1)) is True


def test_a_digest_across_two_neighbours_is_not_found():
    with contextlib.closing(private_table(slots=WAYS)) as table:
        digest, bucket, home = table._place("mine")
        start = table._digests
        for place in range(start, start + WAYS * 16 - 16, 16):
            table._map[place + 8 : place + 24] = digest  # neighbours overlap: only the last stays whole
        assert table._map.find(digest, start, start + WAYS * 16) >= 0
        assert table._find(digest, bucket, home) is None
        assert run(table.enter("mine", 1)) is True
        assert run(table.enter("mine", 1)) is False


def test_a_refusal_is_a_wish_for_a_second_that_others_see(table):
    other = beside(table, 2)
    assert run(table.enter("a", 1)) is True
    assert table.wanted("a", 1, 0) is False

    assert run(other.enter("a", 1)) is False
    refused = time.monotonic()
    assert table.wanted("a", 1, 0) is True
    assert other.wanted("a", 1, 0) is False
    assert table.wanted("b", 1, 0) is False
    until(lambda: not table.wanted("a", 1, 0))
    assert 0.9 < time.monotonic() - refused < 3

    assert run(other.enter("a", 1)) is False
    table.leave("a")
    assert run(other.enter("a", 1)) is True
    assert table.wanted("a", 1, 0) is False
    assert run(table.enter("a", 1)) is False
    assert other.wanted("a", 1, 0) is True


def test_no_more_is_due_elsewhere_than_makes_both_equal_and_nobody_takes_it_back(table):
    other = beside(table, 2)
    assert all(run(table.enter("a", 10)) for _ in range(10))
    assert run(other.enter("a", 10)) is False

    assert [table.wanted("a", 10, going) for going in range(11)] == [True] * 5 + [False] * 6
    for _ in range(5):
        table.leave("a")
    assert table.wanted("a", 10, 0) is False
    assert run(table.enter("a", 10)) is False  # what is free is for who waits with less
    assert [run(other.enter("a", 10)) for _ in range(6)] == [True] * 5 + [False]
    assert not table.wanted("a", 10, 0)
    assert not other.wanted("a", 10, 0)


def test_who_leaves_after_the_end_does_no_harm():
    table = private_table(slots=WAYS)
    assert run(table.enter("a", 1)) is True
    table.close()
    table.leave("a")


@pytest.mark.alone
async def test_a_call_costs_microseconds(table):
    """A loose bound against a search or a wait that crept in; the measured cost is about 3 to 7 µs."""
    rate = Rate(1e6)
    count = 5000
    began = time.process_time()
    for _ in range(count):
        await table.take("a", rate, patience=NEVER, returned=False)
        assert await table.enter("a", 1)
        table.wanted("a", 1, 0)
        table.leave("a")
    assert (time.process_time() - began) / count < 100e-6
    assert asyncio.get_running_loop().is_running()

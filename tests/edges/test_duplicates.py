"""Ids that were consumed lately: of two publications one is the first in every process, and stays so for a while."""

import asyncio
import sqlite3
import stat
import time

import pytest
from support.puppet import Puppet

from mailq.config import Config
from mailq.edges import duplicates
from mailq.edges.duplicates import NAME, PAGE, DuplicatesFile
from mailq.ports.journal import DuplicatesError

PROCESS = """
import asyncio, sys
from mailq.edges.duplicates import DuplicatesFile
ids = DuplicatesFile(sys.argv[1], 3600)
def first(number, content=b"c", again=False):
    return asyncio.run(ids.first(b"%d" % number, content, again=again)) is None
for line in sys.stdin:
    print(repr(eval(line)), flush=True)
"""


@pytest.fixture
def ids(tmp_path):
    made = []

    def make(seconds=3600, **more):
        made.append(DuplicatesFile(str(tmp_path / "journal"), seconds, **more))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def clock(monkeypatch):
    now = [time.time()]
    monkeypatch.setattr(duplicates.time, "time", lambda: now[0])

    def pass_by(seconds):
        now[0] += seconds

    return pass_by


async def test_the_second_publication_of_an_id_is_told_when_the_first_was_consumed(ids, tmp_path, clock):
    one, other = ids(), ids()
    begun = duplicates.time.time()
    assert await one.first(b"a", b"1", again=False) is None
    clock(10)
    for again in (False, True):
        assert (await other.first(b"a", b"2", again=again)).timestamp() == pytest.approx(begun, abs=1e-3)
    assert await other.first(b"a", b"1", again=False) is not None  # an equal copy
    assert await other.first(b"a", b"1", again=True) is None  # the first one itself, as far as anybody can tell
    assert await other.first(b"b", b"1", again=False) is None
    assert stat.S_IMODE((tmp_path / "journal" / NAME).stat().st_mode) == 0o600


async def test_an_id_is_free_again_when_its_time_is_over_and_its_row_is_removed(ids, tmp_path, clock):
    known = ids(60)
    for number in range(50):
        await known.first(b"%d" % number, b"1", again=False)
    clock(61)
    assert await known.first(b"0", b"2", again=False) is None
    assert await known.first(b"0", b"3", again=False) is not None
    with sqlite3.connect(tmp_path / "journal" / NAME) as file:
        assert file.execute("SELECT count(*) FROM consumed").fetchone() == (1,)
    file.close()


async def test_a_full_file_forgets_the_oldest_ids(ids, clock, monkeypatch):
    monkeypatch.setattr(duplicates, "BATCH", 100)
    known = ids(most=30 * PAGE)
    for number in range(3000):
        clock(0.001)
        assert await known.first(b"%016d" % number, b"c" * 32, again=False) is None
    assert await known.first(b"%016d" % 2999, b"d", again=False) is not None
    assert await known.first(b"%016d" % 0, b"d", again=False) is None


def test_of_two_processes_one_is_first_and_a_killed_one_is_not_forgotten(tmp_path):
    one, other = Puppet(PROCESS, tmp_path), Puppet(PROCESS, tmp_path)
    try:
        for each in (one, other):
            each.ask("[first(number) for number in range(200)]")
        assert all(a != b for a, b in zip(one.hear(), other.hear(), strict=True))
        one.kill()
        assert other("[first(number) for number in range(200)]") == [False] * 200
    finally:
        one.close()
        other.close()


async def test_a_file_that_cannot_be_used_is_trouble_that_names_the_remedy(ids, tmp_path):
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / NAME).write_bytes(b"no database" * 1000)
    with pytest.raises(DuplicatesError, match=r"unique.sqlite cannot be used: .*; set worker.journal_dir elsewhere"):
        await ids().first(b"a", b"1", again=False)


async def test_the_event_loop_is_not_held(ids, monkeypatch):
    known, turns = ids(), 0
    monkeypatch.setattr(known, "_first", lambda *_, **__: time.sleep(0.2))
    asking = asyncio.create_task(known.first(b"a", b"1", again=False))
    while not asking.done():
        await asyncio.sleep(0.01)
        turns += 1
    assert turns > 3


def test_ids_are_remembered_beside_the_journal():
    with pytest.raises(ValueError, match=r"delivery.unique_for needs worker.journal_dir"):
        Config.model_validate({"delivery": {"unique_for": 60}, "worker": {"journal_dir": ""}})

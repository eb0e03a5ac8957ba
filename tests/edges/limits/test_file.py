"""The file of the limits: found, made, refused and lost, by real processes that start, race and are killed."""

import contextlib
import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest
from support.puppet import Puppet

from mailq.config import Config
from mailq.config.load import ConfigError
from mailq.edges.limits.file import COLUMNS, NAME
from mailq.edges.limits.table import WAYS
from mailq.service.build import limits_of

SLOTS = WAYS * 8
PROCESS = """
import fcntl, os, pathlib, sys
from mailq.core.traffic.rate import Rate
from mailq.edges.limits import SharedLimits

def do(awaitable):
    try:
        awaitable.send(None)
    except StopIteration as done:
        return done.value

def start(slots=int(sys.argv[2])):
    global t
    t = SharedLimits(sys.argv[1], slots=slots)
    return t.problem()

def enter(key, limit=1):
    return do(t.enter(key, limit))

def wait(key, rate=0.01):
    return do(t.take(key, Rate(rate), patience=1e9, returned=False)).wait

def place():
    return os.fstat(t._descriptor).st_ino, t._index

def mount():
    global disk
    from mailq.torture.disk import make
    disk = make(pathlib.Path(sys.argv[1]))

def other():
    # What a process says that starts now; this one sees the disk, and so do those that it begets.
    mine, yours = os.pipe()
    if not os.fork():
        os.write(yours, str(start(65_536)).encode())
        os._exit(0)
    os.wait()
    return os.read(mine, 10_000).decode()

for line in sys.stdin:
    print(repr(eval(line)), flush=True)
"""


@pytest.fixture
def home(tmp_path):
    return tmp_path / "journal"


@pytest.fixture
def spawn(home):
    with contextlib.ExitStack() as stack:

        def start(*, begin="start()", directory=home):
            process = Puppet(PROCESS, directory, SLOTS)
            stack.callback(process.close)
            if begin:
                assert process(begin) is None
            return process

        yield start


def names(directory):
    return [path.name for path in directory.iterdir()]


def test_who_comes_later_shares_the_table_whoever_was_first(spawn, home):
    first, second = spawn(), spawn()
    assert (first("place()")[0], second("place()")[0]) == ((home / NAME).stat().st_ino,) * 2
    assert (first("place()")[1], second("place()")[1]) == (0, 1)
    assert (first("enter('a')"), second("enter('a')")) == (True, False)
    assert (first("wait('a')"), round(second("wait('a')"))) == (0, 100)
    assert first("t.wanted('a', 1, 0)") is True
    assert stat.S_IMODE((home / NAME).stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_it_takes_no_more_room_than_there_are_processes():
    with tempfile.TemporaryDirectory() as home:
        limits = limits_of(Config(worker={"journal_dir": home}))
        assert limits.problem() is None
        assert 3.5e6 < (Path(home) / NAME).stat().st_blocks * 512 < 4e6
        limits.close()


@pytest.mark.parametrize("before", [None, b"", b"garbage"])
def test_starters_at_once_end_up_with_one_file_and_a_column_each(spawn, home, before):
    processes = [spawn(begin=None) for _ in range(6)]
    for _ in range(5):
        if before is not None:
            home.mkdir(exist_ok=True)
            (home / NAME).write_bytes(before)
        for process in processes:
            process.ask("start() or place()")
        places = [process.hear() for process in processes]
        assert {inode for inode, _ in places} == {(home / NAME).stat().st_ino}
        assert sorted(column for _, column in places) == list(range(6))
        for process in processes:
            process("t.close()")
        (home / NAME).unlink()
    assert names(home) == []


def test_a_column_is_used_again_and_nothing_is_left_of_who_had_it(spawn):
    watcher, victim, third = spawn(), spawn(), spawn()
    assert victim("enter('a'), enter('a', 2)") == (True, True)
    assert third("enter('b')") is True
    victim.kill()
    third("t.close()")
    assert watcher("enter('b')") is True  # who leaves is out at once
    heir = spawn()
    assert heir("place()")[1] == 1
    assert heir("enter('a', 2), enter('a', 2), enter('a', 2)") == (True, True, False)


def test_what_dead_runs_had_in_is_free_when_somebody_looks(spawn):
    for victim in (spawn(), spawn(), spawn()):
        assert victim("enter('a', 3)") is True
    survivor = spawn()
    assert survivor("enter('a', 3)") is False
    victim.kill()
    assert survivor("t.housekeep(), enter('a', 3), enter('a', 3)") == (None, True, False)


def test_a_table_lives_as_long_as_somebody_has_it(spawn, home):
    """What is found after a restart of the host has moments of another clock, far ahead."""
    first, second = spawn(), spawn()
    inode = (home / NAME).stat().st_ino
    assert first("enter('a'), wait('a')") == (True, 0)
    first.kill()
    second("t.housekeep()")
    assert second("enter('a'), wait('a') > 99") == (True, True)
    second.kill()
    third = spawn()
    assert third("enter('a'), wait('a')") == (True, 0)
    assert (home / NAME).stat().st_ino != inode


def damage(path, how):
    with path.open("r+b") as file:
        match how:
            case "other version":
                file.write(b"mailq-1\0")
            case "other size":
                file.write(b"mailq-2\0\x10\0\0\0")
            case "truncated":
                file.truncate(path.stat().st_size - 1)
            case "header alone":
                file.truncate(10)


DAMAGES = ["other version", "other size", "truncated", "header alone"]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_file_that_does_not_count_is_replaced_if_nobody_has_it(spawn, home, how):
    spawn().kill()
    damage(home / NAME, how)
    first, second = spawn(), spawn()
    assert (first("enter('a')"), second("enter('a')")) == (True, False)
    assert names(home) == [NAME]


@pytest.mark.parametrize("how", DAMAGES[:3])
def test_a_file_of_another_version_is_not_torn_away_from_its_processes(spawn, home, how):
    user = spawn()
    inode = (home / NAME).stat().st_ino
    damage(home / NAME, how)
    newcomer = spawn(begin=None)
    assert newcomer("start()") == (
        f"table of limits {home / NAME} is in use by processes of another version of mailq; "
        "end them or set worker.journal_dir elsewhere"
    )
    assert (home / NAME).stat().st_ino == inode
    user.kill()
    assert newcomer("t.problem(), enter('a')") == (None, True)


def test_when_all_columns_are_taken_that_is_said_until_one_is_free(spawn, home):
    assert spawn(begin=None)("start() or place()")[1] == 0
    holder, late = spawn(begin=None), spawn(begin=None)
    whole = f"fcntl.lockf(os.open({str(home / NAME)!r}, os.O_RDWR), fcntl.LOCK_EX, {COLUMNS - 1}, {SLOTS + 1})"
    assert holder(whole) is None
    assert f"limits has {COLUMNS} processes already; run fewer" in late("start()")
    holder.kill()
    assert late("t.problem(), place()[1]") == (None, 1)


@pytest.mark.parametrize("what", ["file", "directory"])
def test_what_is_removed_is_made_anew_and_nobody_is_forgotten(spawn, home, what):
    first, second = spawn(), spawn()
    assert (first("enter('a', 3), enter('a', 3)"), second("enter('a', 3)")) == ((True, True), True)
    shutil.rmtree(home) if what == "directory" else (home / NAME).unlink()
    assert second("enter('a', 3)") is False  # they go on sharing what they have

    for process in (first, second):
        assert process("t.housekeep(), t.problem()") == (None, None)
    third = spawn()
    assert {process("place()") for process in (first, second, third)} == {
        ((home / NAME).stat().st_ino, column) for column in range(3)
    }
    assert third("enter('a', 3)") is False
    first("t.leave('a')")
    assert third("enter('a', 3), enter('a', 3)") == (True, False)
    first("t.leave('a'), t.leave('a')")
    assert third("enter('a', 3), enter('a', 3)") == (True, False)


def test_what_is_removed_and_cannot_be_made_anew_goes_on_until_it_can(spawn, home):
    process = spawn()
    shutil.rmtree(home)
    home.write_text("in the way")
    assert process("enter('a'), t.housekeep(), enter('a'), t.problem()") == (True, None, False, None)
    home.unlink()
    assert process("t.housekeep()") is None
    assert spawn()("enter('a')") is False


def test_a_link_is_not_followed(spawn, home, tmp_path):
    home.mkdir()
    (tmp_path / "elsewhere").touch()
    (home / NAME).symlink_to(tmp_path / "elsewhere")
    assert spawn(begin=None)("start()") == f"table of limits {home / NAME} is a symbolic link; remove it"
    assert (tmp_path / "elsewhere").read_bytes() == b""


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")
def test_what_may_not_be_written_is_named_with_the_remedy():
    place = Path(tempfile.mkdtemp(dir="/tmp"))  # a folder of pytest's could not be reached by another user
    remedy = "is not to be written by this user; change its owner or set worker.journal_dir elsewhere"
    process, owner = Puppet(PROCESS, ".", SLOTS), Puppet(PROCESS, place, SLOTS)
    try:
        process(f"os.chdir({str(place)!r}) or os.setuid(65534)")
        place.chmod(0o755)
        assert process("start()") == f"table of limits limits {remedy}"
        place.chmod(0o777)
        assert owner("start()") is None
        assert process("t.problem()") == f"table of limits limits {remedy}"  # it is root's
        owner.kill()
        (place / NAME).unlink()
        assert process("t.problem(), enter('a')") == (None, True)
    finally:
        process.close()
        owner.close()
        shutil.rmtree(place)


def test_a_full_disk_is_told_and_harms_nobody_who_has_the_table(spawn, home):
    """What is stored through a mapping where the disk has no room would kill the process."""
    process = spawn(begin="mount()")
    if not process("disk.mounted"):
        pytest.skip("no file system may be mounted here")
    assert process("start(65_536), disk.fill(), os.fstatvfs(disk.descriptor).f_bavail") == (None, None, 0)
    assert process("all(enter(str(n)) and not wait(str(n)) for n in range(3000))")
    assert process("other()") == (
        f"table of limits {home / NAME} has no room on its disk; free some or set worker.journal_dir to another one"
    )
    assert process("disk.free(), other(), enter('0')") == (None, "None", False)


def test_without_journals_a_directory_of_the_user_is_shared(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    config = Config(worker={"journal_dir": ""})
    with contextlib.closing(limits_of(config)) as limits:
        assert limits.problem() is None
        (directory,) = tmp_path.iterdir()
        assert (directory.name, stat.S_IMODE(directory.stat().st_mode)) == (f"mailq-{os.geteuid()}", 0o700)
        assert names(directory) == [NAME]


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give a directory away")
@pytest.mark.parametrize("made", ["directory", "link", "file"])
def test_one_that_somebody_else_made_is_not_used(monkeypatch, tmp_path, made):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    place = tmp_path / f"mailq-{os.geteuid()}"
    match made:
        case "directory":
            place.mkdir()
        case "link":
            place.symlink_to(tmp_path)
        case "file":
            place.touch()
    os.chown(place, 65534, 65534, follow_symlinks=False)
    with pytest.raises(ConfigError, match=r"worker.journal_dir: is empty, and .*/mailq-\d+, where"):
        limits_of(Config(worker={"journal_dir": ""}))

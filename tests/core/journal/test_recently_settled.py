"""What is settled is remembered for ten minutes at 2,500 a second, in little memory."""

import tracemalloc

from mailq.core.journal import recently_settled
from mailq.core.journal.recently_settled import CAPACITY, FEWEST, MEMORY, MOST, SettledWindow


def digest(number):
    return number.to_bytes(16)


def filled(pages, start=0, done=None):
    done = done or SettledWindow()
    for number in range(start * CAPACITY, (start + pages) * CAPACITY):
        done.add(digest(number))
    return done


def test_all_is_remembered_and_nothing_else():
    done = filled(2)
    assert all(done.has(digest(number)) for number in range(2 * CAPACITY))
    assert not any(done.has(digest(number)) for number in range(2 * CAPACITY, 2 * CAPACITY + 1000))


def test_what_is_settled_twice_takes_no_more_room():
    done = SettledWindow()
    for _ in range(CAPACITY + 1):
        done.add(digest(1))
    assert len(done._pages) == 1


def test_a_digest_takes_little_memory():
    tracemalloc.start()
    try:
        done = filled(1)
        assert tracemalloc.get_traced_memory()[0] < 24 * CAPACITY
    finally:
        tracemalloc.stop()
    assert done.has(digest(0))


def test_there_is_room_for_ten_minutes_of_a_busy_host():
    assert (MOST - 1) * CAPACITY >= 2_500 * 600
    assert MEMORY >= 600


def test_the_newest_are_remembered_where_there_are_too_many(monkeypatch):
    monkeypatch.setattr(recently_settled, "MOST", 3)
    done = filled(4)
    assert not done.has(digest(CAPACITY - 1))
    assert done.has(digest(CAPACITY))
    assert len(done._pages) == 3


def test_what_is_old_is_forgotten_where_there_is_much(monkeypatch):
    monkeypatch.setattr(recently_settled, "FEWEST", 2)
    done = SettledWindow()
    done.at(1000)
    filled(2, done=done)
    done.at(1500)
    filled(2, 2, done)
    done.at(1000 + MEMORY)
    assert done.has(digest(0))
    done.at(1001 + MEMORY)
    assert not done.has(digest(0))
    assert done.has(digest(CAPACITY))  # its page was in use still at 1500
    done.at(10**9)
    assert done.has(digest(2 * CAPACITY))
    assert len(done._pages) == 2


def test_little_is_remembered_for_long():
    done = filled(FEWEST - 1)
    done.at(10**9)
    assert done.has(digest(0))

"""The line before a limited number of connections."""

from collections import deque

from mailq.core.traffic.wait_queue import FIRST_ABSENCE, GRACE, LONGEST_ABSENCE, WaitQueue, owes


def line(waiting=0, holding=0.0, places=2, progress=0.0):
    return WaitQueue(places, progress, holding=holding, waiting=deque(range(waiting)))


def test_the_wait_grows_with_the_line_and_shrinks_with_the_places():
    assert line(waiting=9, holding=1.0, places=2).wait(0.0) == 5.0
    assert line(waiting=9, holding=1.0, places=10).wait(0.0) == 1.0


def test_while_nothing_is_given_back_the_wait_is_at_least_what_it_took_so_far():
    assert line(waiting=1, holding=0.1, progress=0.0).wait(60.0 + GRACE) == 60.0


def test_while_the_first_sessions_open_nobody_is_sent_away():
    assert line(waiting=1000, places=20).wait(GRACE) == 0.0


def test_while_nothing_is_known_who_is_sent_away_comes_back_soon():
    assert line(waiting=1000, places=2).send_away(30.0) == FIRST_ABSENCE


def test_an_empty_line_forgets_how_far_others_were_sent():
    queue = line(waiting=10, holding=4.0)
    assert queue.send_away(0.0) == 24.0
    queue.waiting.clear()
    queue.given_back(4.0, 1.0)
    queue.waiting.extend(range(10))
    assert queue.send_away(1.0) == 24.0


def test_an_empty_line_does_not_remember_an_old_standstill():
    assert line(waiting=0, holding=0.1, progress=0.0).wait(60.0) == 0.05


def test_who_stands_too_far_back_is_taken_out_in_order():
    queue = line(waiting=10, holding=2.0, places=2)
    assert queue.hopeless(0.0, 5.0) == [5, 6, 7, 8, 9]
    assert list(queue.waiting) == [0, 1, 2, 3, 4]
    assert queue.hopeless(0.0, 5.0) == []


def test_while_nothing_is_known_nobody_is_hopeless():
    assert line(waiting=1000, places=20).hopeless(GRACE, 5.0) == []


def test_a_line_from_which_all_were_sent_away_does_not_begin_anew_while_they_are():
    queue = line(waiting=1, places=20, progress=0.0)
    queue.send_away(10.0)
    queue.waiting.clear()
    queue.join(1, 11.0)
    assert queue.progress == 0.0
    queue.waiting.clear()
    queue.join(1, 10.0 + FIRST_ABSENCE)
    assert queue.progress == 10.0 + FIRST_ABSENCE


def test_holding_times_are_averaged_and_the_first_counts_fully():
    queue = line()
    queue.given_back(2.0, 1.0)
    assert queue.holding == 2.0
    queue.given_back(1.0, 2.0)
    assert queue.holding == 1.9
    assert queue.progress == 2.0


def test_when_the_process_pauses_nobody_is_sent_away_for_it():
    queue = line(waiting=480, holding=0.01, places=20)
    for _ in range(20):
        queue.given_back(3.0, 3.0)
    assert queue.wait(3.0) < 2.0


def test_lasting_slowness_is_learnt():
    queue = line(waiting=480, holding=0.01, places=20)
    for moment in range(200):
        queue.given_back(3.0, moment)
    assert 2.0 < queue.holding <= 3.0


def test_those_sent_away_come_back_one_after_the_other_and_not_never():
    queue = line(waiting=10, holding=4.0)
    waits = [queue.send_away(0.0) for _ in range(300)]

    assert waits[:3] == [24.0, 26.0, 28.0]
    assert max(waits) == LONGEST_ABSENCE


def test_the_time_before_anybody_waited_says_nothing():
    queue = line(holding=0.1, progress=0.0, places=1)
    queue.join("first", 400.0)
    assert queue.wait(400.5) == 0.2


def test_equal_shares_are_not_passed_to_and_fro():
    assert [owes(own, other) for own, other in ((10, 0), (1, 0), (3, 1), (2, 1), (1, 1), (0, 0))] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]


def test_a_place_that_is_held_for_next_to_no_time_is_no_reason_to_send_anybody_away():
    line = WaitQueue(20, 0.0, holding=1e-320)
    for who in range(3):
        line.join(who, 0.0)
    assert line.hopeless(0.0, 5.0) == []

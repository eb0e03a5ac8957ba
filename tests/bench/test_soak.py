"""`python -m bench --soak`, short: the load is mixed as it says, all books agree, and wrong books are noticed."""

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from bench import soak_mix, soak_watch
from bench.soak_books import LONG, Books
from bench.soak_mix import SITES, WORDS, Mix, domain, limits, word_of
from bench.soak_sinks import ignored
from bench.soak_watch import Sample, descriptors, fallen, rss_mb, slope
from mailq.core.jobs.job import Job
from mailq.sink.behaviours import of_recipient
from mailq.testbed.free_port import free_port

ROOT = Path(__file__).parents[2]
RATE, SECONDS = 50, 10


@pytest.mark.timeout(150)
def test_a_short_soak_comes_out_even(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--soak", str(SECONDS), "--soak-rate", str(RATE), "--dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=140,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    jobs = RATE * SECONDS
    delivered = sum(word.share for word in WORDS if word.delivered) * jobs // 100
    assert figures["ok"] is True
    assert figures["jobs"] == jobs
    assert (figures["success"], figures["failure"]) == (delivered, jobs - delivered)
    assert (figures["missing"], figures["doubled"]) == (0, 0)
    assert figures["taken"] > delivered  # what was taken and not said to be
    assert figures["attempts"] > jobs
    assert figures["fds_idle_end"] <= figures["fds_idle_start"]
    assert figures["fds_idle_start"] < figures["fds_peak"]
    assert 20 < figures["rss_start_mb"] <= figures["rss_peak_mb"] < 300
    assert list(tmp_path.iterdir()) == []


def test_a_hundred_jobs_hold_every_word_by_its_share():
    mix = Mix()
    jobs = [Job.parse(body, message_id=identity, limit=10**6) for identity, body in mix.take(100)]
    words = [word_of(str(job.recipient)) for job in jobs]
    assert sum(word.share for word in WORDS) == 100
    assert Counter(words) == Counter({word: word.share for word in WORDS})
    assert [job.identity for job in jobs] == mix.made == [str(job.recipient) for job in jobs]
    assert {word.site for word in words} == set(SITES)
    assert len({word.site for word in words[:20]}) > 3


@pytest.mark.parametrize(
    "word", [word for word in WORDS if word.site in ("plain", "rough")], ids=lambda word: word.local
)
def test_every_word_is_one_that_the_sink_knows(word):
    behaviour = of_recipient(f"{word.local}+1")
    assert (behaviour is None) == (word.local == "accept")
    assert behaviour is None or behaviour.code != 553


def test_the_limited_site_is_asked_for_a_little_more_than_it_takes():
    (rule,) = [rule for rule in limits(100) if rule["domain"] == domain("limited")]
    assert rule["message_rate"] == pytest.approx(5 * soak_mix.LIMITED_SHARE)


def test_the_dark_port_neither_takes_nor_refuses():
    port = free_port()
    with ignored(port), socket.socket() as caller:
        caller.settimeout(0.3)
        with pytest.raises(TimeoutError):
            caller.connect(("127.0.0.1", port))


GOOD, BAD, DOUBT = "accept+0@plain.soak.test", "reject-550+1@plain.soak.test", "drop-after-dot+2@rough.soak.test"
PAGE = {
    'mailq_verdicts_total{outcome="success"}': 1.0,
    'mailq_verdicts_total{outcome="failure"}': 2.0,
    'mailq_verdicts_total{outcome="retry"}': 1.0,
    'mailq_attempts_total{result="accepted",state="message"}': 1.0,
    'mailq_attempts_total{result="error",state="rcptto"}': 1.0,
    'mailq_attempts_total{result="lost",state="message"}': 2.0,
    'mailq_published_total{key="success"}': 1.0,
    'mailq_published_total{key="failure"}': 2.0,
    'mailq_published_total{key="retry"}': 2.0,
    'mailq_published_total{key="delay"}': 3.0,
    'mailq_delayed_total{cause="rate"}': 2.0,
    'mailq_delayed_total{cause="due"}': 1.0,
    **dict.fromkeys(("mailq_poisoned_total", "mailq_bugs_total", "mailq_broker_reconnects_total"), 0.0),
    **dict.fromkeys(("mailq_limits_overflows_total", "mailq_in_flight", "mailq_sessions"), 0.0),
    **{f'mailq_process_restarts_total{{process="{index}"}}': 0.0 for index in (0, 1)},
}
EVEN = Books(
    seconds=LONG,
    made=(GOOD, BAD, DOUBT),
    finals={GOOD: Counter({True: 1}), BAD: Counter({False: 1}), DOUBT: Counter({False: 1})},
    taken=Counter({GOOD: 1, DOUBT: 2}),
    depths={"success": 1, "failures": 2, "retry": 1, "poison": 0},
    page=PAGE,
    fallen=(),
    samples=tuple(Sample(float(second), min(60 + second, 100), 50) for second in range(int(LONG))),
    idle=(Sample(0.0, 60.0, 40), Sample(0.0, 100.0, 40)),
    statuses={"worker": 0, "receivers": 0},
)


def test_even_books_have_no_trouble_though_memory_grew_at_first():
    assert EVEN.troubles == []
    record = EVEN.record()
    assert (record["success"], record["failure"], record["attempts"], record["delayed"]) == (1, 2, 4, 3)
    assert (record["rss_start_mb"], record["rss_end_mb"], record["rss_peak_mb"]) == (60, 100, 100)
    assert (record["missing"], record["doubled"], record["ok"]) == (0, 0, True)


GROWING = tuple(Sample(float(second), 60 + second * 0.1, 50) for second in range(int(LONG)))


@pytest.mark.parametrize(
    ("change", "trouble"),
    [
        ({"made": (*EVEN.made, "accept+3@tls.soak.test")}, "without a result"),
        ({"finals": {**EVEN.finals, BAD: Counter({False: 2})}}, "more than one result"),
        ({"finals": {**EVEN.finals, "accept+9@plain.soak.test": Counter({True: 1})}}, "of no job"),
        ({"finals": {**EVEN.finals, GOOD: Counter({False: 1})}}, "should be others"),
        ({"finals": {**EVEN.finals, BAD: Counter({True: 1})}}, "should be others"),
        ({"taken": Counter({DOUBT: 2})}, "no receiver took"),
        ({"taken": Counter({GOOD: 2, DOUBT: 2})}, "too often"),
        ({"taken": Counter({GOOD: 1, BAD: 1})}, "too often"),
        ({"depths": {**EVEN.depths, "retry": 0}}, "queue retry holds 0 messages, not 1"),
        ({"depths": {**EVEN.depths, "poison": 1}}, "queue poison holds 1"),
        ({"page": PAGE | {"mailq_bugs_total": 1.0}}, "mailq_bugs_total is 1"),
        ({"page": PAGE | {"mailq_sessions": 1.0}}, "mailq_sessions is 1"),
        ({"page": PAGE | {'mailq_delayed_total{cause="due"}': 2.0}}, "published"),
        ({"page": PAGE | {'mailq_attempts_total{result="lost",state="data"}': 1.0}}, "verdicts"),
        ({"fallen": ("mailq_delayed_total",)}, "mailq_delayed_total fell"),
        ({"idle": (EVEN.idle[0], Sample(0.0, 100.0, 45))}, "45 descriptors"),
        ({"samples": GROWING}, "memory grew by 19.9"),
        ({"statuses": {"worker": -9, "receivers": 0}}, "worker ended with status -9"),
    ],
)
def test_what_does_not_agree_is_named(change, trouble):
    books = replace(EVEN, **change)
    assert any(trouble in line for line in books.troubles), books.troubles
    assert books.record()["ok"] is False


def test_memory_of_a_short_run_is_not_judged():
    assert replace(EVEN, seconds=LONG - 1, samples=GROWING).troubles == []


def test_counters_that_fall_are_told_and_gauges_may():
    before = {'a_total{x="1"}': 2.0, "b_count": 1.0, "c_gauge": 5.0}
    assert fallen(before, {'a_total{x="1"}': 1.0, "c_gauge": 1.0}) == ['a_total{x="1"}', "b_count"]
    assert fallen(before, before) == []


def test_slope_is_that_of_the_line():
    assert slope([Sample(float(x), 10 + 0.5 * x, 0) for x in range(10)]) == pytest.approx(0.5)
    assert slope([Sample(1.0, 3.0, 0)]) == 0


def test_memory_and_descriptors_are_those_of_the_process(tmp_path):
    before = descriptors(os.getpid())
    with socket.socket(), socket.socket(), (tmp_path / "0-1-1.journal").open("w"):
        assert descriptors(os.getpid()) == before + 2
    hoard = bytearray(os.urandom(1) * 50_000_000)
    assert rss_mb(os.getpid()) > len(hoard) / 1e6
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(20)
    assert (descriptors(ended.pid), rss_mb(ended.pid)) == (0, 0)
    assert soak_watch.sample(os.getpid(), 1.0).moment == 1.0

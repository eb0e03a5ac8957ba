"""Metrics as Prometheus reads them: every observation has an effect, none adds series."""

import os
import re
import time
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mailq.core.answers.actions import FLAGS, Actions
from mailq.core.answers.flags import NO_FLAGS, Flags, infer
from mailq.core.answers.verdict import Outcome, Verdict
from mailq.core.jobs.job import Job
from mailq.core.journal.records import JournalStats
from mailq.core.outcomes import Disposition
from mailq.core.results.result import Result
from mailq.core.smtp.failure import Cause
from mailq.core.states import Kind, State
from mailq.edges.metrics import BOUNDS, KEYS, SILENCE, STATES, Fleet, Heartbeat, Metrics
from mailq.ports.observer import Observer

NOW = datetime(2030, 1, 31, 12, tzinfo=UTC)
ALERTS = Path(__file__).parents[2] / "etc" / "prometheus" / "alerts.yml"


def job(recipient="someone@example.com"):
    return Job.parse(b'{"recipient":"%b","mime":"x"}' % recipient.encode(), limit=1000)


def result(state=State.MESSAGE, kind=Kind.ACCEPTED, timing=None, **more):
    return Result(state, kind, NOW, 1, 250, "2.0.0", "ok", {}, timing or {}, **more)


def samples(metrics):
    """Return {(name, labels): value} of a scrape."""
    _, body = metrics.page()
    families = text_string_to_metric_families(body.decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def read(metrics, name, **labels):
    return samples(metrics)[f"mailq_{name}", tuple(sorted(labels.items()))]


@pytest.fixture
def metrics():
    return Metrics()


def test_metrics_are_an_observer(metrics):
    observer: Observer = metrics
    assert observer


def test_an_attempt_is_counted_by_state_result_and_outcome(metrics):
    metrics.attempted(job(), result(State.RCPTTO, Kind.ERROR), Verdict(Outcome.FAILURE))
    metrics.attempted(job(), result(), Verdict(Outcome.SUCCESS))
    metrics.attempted(job(), result(), Verdict(Outcome.SUCCESS))

    assert read(metrics, "attempts_total", state="rcptto", result="error") == 1
    assert read(metrics, "attempts_total", state="message", result="accepted") == 2
    assert read(metrics, "attempts_total", state="data", result="lost") == 0
    assert read(metrics, "verdicts_total", outcome="failure") == 1
    assert read(metrics, "verdicts_total", outcome="success") == 2
    assert read(metrics, "verdicts_total", outcome="retry") == 0


def test_flags_are_counted_whether_inferred_or_set_by_a_pattern(metrics):
    inferred = infer(State.RCPTTO, Kind.ERROR, 499, "4.0.0")
    assert inferred.strange
    odd = result(State.RCPTTO, Kind.ERROR)
    metrics.attempted(job(), odd, Verdict(Outcome.RETRY, NOW, flags=inferred))
    metrics.attempted(job(), odd, Verdict(Outcome.FAILURE, flags=Actions(strange=True, fatal=True).over(NO_FLAGS)))
    metrics.attempted(job(), odd, Verdict(Outcome.RETRY, NOW, flags=Actions(strange=False).over(inferred)))
    metrics.attempted(job(), odd, Verdict(Outcome.RETRY, NOW, flags=Flags(greylisted=True)))
    metrics.attempted(job(), result(), Verdict(Outcome.SUCCESS))

    assert read(metrics, "flags_total", flag="strange") == 2
    assert read(metrics, "flags_total", flag="fatal") == 1
    assert read(metrics, "flags_total", flag="greylisted") == 1
    assert read(metrics, "flags_total", flag="fallback") == 0
    assert _labels(samples(metrics), "flags_total") == [*FLAGS]


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.ACCEPTED])
def test_every_ending_has_a_series(metrics, state, kind):
    metrics.attempted(job(), result(state, kind), Verdict(Outcome.RETRY, NOW))

    assert read(metrics, "attempts_total", state=state.value, result=kind.value) == 1


def test_milliseconds_become_seconds_in_the_right_buckets(metrics):
    timing = {State.EHLO: 1.0, State.MESSAGE: 250.1}
    metrics.attempted(job(), result(timing=timing), Verdict(Outcome.SUCCESS))
    metrics.attempted(job(), result(timing={State.MESSAGE: 700_000.0}), Verdict(Outcome.SUCCESS))

    assert read(metrics, "state_seconds_bucket", state="ehlo", le="0.001") == 1
    assert read(metrics, "state_seconds_bucket", state="message", le="0.25") == 0
    assert read(metrics, "state_seconds_bucket", state="message", le="0.5") == 1
    assert read(metrics, "state_seconds_bucket", state="message", le="600") == 1
    assert read(metrics, "state_seconds_bucket", state="message", le="+Inf") == 2
    assert read(metrics, "state_seconds_count", state="message") == 2
    assert read(metrics, "state_seconds_sum", state="message") == pytest.approx(700.2501)
    assert read(metrics, "state_seconds_count", state="rcptto") == 0


def test_the_buckets_reach_the_longest_timeout_of_smtp():
    assert BOUNDS[0] == 0.001
    assert BOUNDS[-1] == 600
    assert list(BOUNDS) == sorted(set(BOUNDS))


def test_a_job_whose_time_ran_out_is_counted_as_expired_whether_or_not_an_attempt_was_made(metrics):
    metrics.attempted(job(), result(State.RCPTTO, Kind.ERROR), Verdict(Outcome.FAILURE, expired=True))
    metrics.attempted(job(), result(State.PROCESS, Kind.TIMEOUT), Verdict(Outcome.FAILURE))
    metrics.attempted(job(), result(State.PROCESS, Kind.INVALID), Verdict(Outcome.FAILURE))

    assert read(metrics, "expired_total") == 2


def test_a_refused_document_is_a_failure_with_a_state(metrics):
    metrics.refused(result(State.PROCESS, Kind.INVALID))

    assert read(metrics, "attempts_total", state="process", result="invalid") == 1
    assert read(metrics, "verdicts_total", outcome="failure") == 1


def test_delayed_poisoned_and_bugs_are_counted(metrics):
    metrics.delayed(job(), NOW, Cause.RATE, "too fast")
    metrics.poisoned("not JSON")
    metrics.poisoned("no recipient")
    metrics.bug("settlement", ValueError("x"))

    assert [read(metrics, "delayed_total", cause=cause) for cause in Cause] == [cause is Cause.RATE for cause in Cause]
    assert read(metrics, "poisoned_total") == 2
    assert read(metrics, "bugs_total") == 1


def test_every_message_that_came_is_in_the_equation(metrics):
    """consumed = the sum of the ends + in flight, and drift is by how much it is not so."""
    for _ in range(len(Disposition) + 3):
        metrics.consumed()
    for end in Disposition:
        metrics.ended(end)
    metrics.in_flight(3, 1)

    assert read(metrics, "consumed_total") == len(Disposition) + 3
    for end in Disposition:
        assert read(metrics, "ended_total", end=end.value) == 1
    assert read(metrics, "drift") == 0
    metrics.in_flight(2, 1)
    assert read(metrics, "drift") == 1
    metrics.in_flight(4, 1)
    assert read(metrics, "drift") == -1


def test_the_journal_is_shown_as_it_is(metrics):
    assert read(metrics, "journal_writable") == 1
    metrics.journal("journal directory /x is full", (), JournalStats(1000, 20, 1))
    assert read(metrics, "journal_writable") == 0
    assert read(metrics, "journal_octets_total") == 1000
    assert read(metrics, "journal_records_total") == 20
    assert read(metrics, "journal_corrupt_total") == 1
    metrics.journal(None, ("note",), JournalStats(1001, 21, 1))
    assert (read(metrics, "journal_writable"), read(metrics, "journal_octets_total")) == (1, 1001)


def test_a_process_that_died_gives_back_what_it_had_in_flight():
    fleet, returned, drift = Fleet(1), ("mailq_ended_total", (("end", "returned"),)), ("mailq_drift", ())

    first = mailq_only(fleet.page({0: over_the_line(busy(2))}, {}))
    fleet.died(0)
    fleet.restarted(0)
    last = mailq_only(fleet.page({0: over_the_line(busy(1))}, {}))

    assert (first[returned], first[drift]) == (2, 0)
    assert (last[returned], last[drift]) == (2 + 20 + 1, 0)
    consumed = last["mailq_consumed_total", ()]
    ended = sum(value for (name, _), value in last.items() if name == "mailq_ended_total")
    assert consumed == ended + last["mailq_in_flight", ()]


def test_publications_are_counted_by_the_first_word_of_the_routing_key(metrics):
    metrics.published("failure.policy.hard", 2)
    metrics.published("failure", 1)
    metrics.published("delay", 5)
    metrics.published("a-queue-some-producer-made-up", 7)

    assert read(metrics, "published_total", key="failure") == 3
    assert read(metrics, "published_total", key="delay") == 5
    assert read(metrics, "published_total", key="other") == 7
    assert read(metrics, "published_total", key="success") == 0


def test_gauges_show_the_last_value(metrics):
    metrics.in_flight(500, 100)
    metrics.in_flight(3, 2)
    metrics.stalled(stalled=True)

    assert read(metrics, "in_flight") == 3
    assert read(metrics, "sessions") == 2
    assert read(metrics, "consumer_stalled") == 1
    metrics.stalled(stalled=False)
    assert read(metrics, "consumer_stalled") == 0


def test_lateness_of_the_loop_is_summed_over_processes(metrics):
    metrics.lagged(0.0004)
    metrics.lagged(0.3)
    metrics.stood_still(1.5)
    metrics.merge(metrics.snapshot())

    assert read(metrics, "loop_lag_seconds_count") == 4
    assert read(metrics, "loop_lag_seconds_bucket", le="0.25") == 2
    assert read(metrics, "loop_lag_seconds_bucket", le="0.5") == 4
    assert read(metrics, "loop_lag_seconds_sum") == pytest.approx(0.6008)
    assert read(metrics, "stood_still_seconds_total") == 3


def test_the_broker_gauges_follow_its_connection(metrics):
    def seen():
        return tuple(read(metrics, name) for name in ("broker_connected", "broker_blocked", "broker_reconnects_total"))

    assert seen() == (0, 0, 0)
    metrics.broker("connected", "")
    assert seen() == (1, 0, 0)
    metrics.broker("blocked", "low on disk")
    assert seen() == (1, 1, 0)
    metrics.broker("unblocked", "")
    assert seen() == (1, 0, 0)
    metrics.broker("blocked", "low on disk")
    metrics.broker("lost", "heartbeat")
    assert seen() == (0, 0, 0)
    metrics.broker("retrying", "in 1 s")
    metrics.broker("connected", "")
    assert seen() == (1, 0, 1)


def test_strangers_cannot_grow_the_number_of_series(metrics):
    before = samples(metrics).keys()
    for number in range(200):
        attempt = result(State.DNS, Kind.ERROR, {State.DNS: number * 10.0})
        metrics.attempted(job(f"u{number}@d{number}.example"), attempt, Verdict(Outcome.RETRY, NOW))
        metrics.published(f"queue-{number}", 1)
        metrics.poisoned(f"reason {number}")
        metrics.bug(f"place {number}", ValueError(str(number)))
        metrics.broker(f"event {number}", f"detail {number}")
        metrics.journal(f"trouble {number}", (f"note {number}",), JournalStats(number, number, number))

    assert samples(metrics).keys() == before
    assert all(value in {*map(str, KEYS)} for value in _labels(before, "published_total"))


def _labels(keys, name):
    return [value for found, labels in keys if found == f"mailq_{name}" for _, value in labels]


def test_two_instances_count_apart_and_both_show_the_process(metrics):
    other = Metrics()
    metrics.poisoned("x")

    assert read(other, "poisoned_total") == 0
    assert samples(other)["process_resident_memory_bytes", ()] > 0
    assert samples(metrics)["process_resident_memory_bytes", ()] > 0


def test_the_page_says_which_format_it_is(metrics):
    content_type, body = metrics.page()

    assert content_type.startswith("text/plain; version=")
    assert b"# TYPE mailq_state_seconds histogram" in body


def test_alert_rules_speak_of_metrics_that_exist(metrics):
    text = ALERTS.read_text()
    expressions = re.sub(r"#.*", "", text)
    used = set(re.findall(r"\bmailq_[a-z_]+", expressions))
    there = {name for name, _ in samples(metrics)}
    _, fleet = Fleet(1).page({0: over_the_line(busy(1))}, {})

    assert used <= there | set(re.findall(r"^mailq_[a-z_]+", fleet.decode(), re.MULTILINE))
    assert {
        "mailq_consumer_stalled",
        "mailq_broker_connected",
        "mailq_poisoned_total",
        "mailq_bugs_total",
        "mailq_verdicts_total",
        "mailq_flags_total",
    } <= used


def test_alert_rules_speak_of_label_values_that_exist(metrics):
    there = samples(metrics).keys()
    used = re.findall(r'(mailq_[a-z_]+)\{(\w+)="(\w+)"\}', ALERTS.read_text())

    assert used
    for name, label, value in used:
        assert (name, ((label, value),)) in there


def busy(times):
    """Return metrics that have seen everything so many times."""
    metrics = Metrics()
    for _ in range(times):
        metrics.broker("connected", "")
        metrics.attempted(job(), result(timing={State.EHLO: 1.0}), Verdict(Outcome.SUCCESS))
        odd = Verdict(Outcome.FAILURE, expired=True, flags=Flags(strange=True))
        metrics.attempted(job(), result(State.RCPTTO, Kind.ERROR), odd)
        metrics.delayed(job(), NOW, Cause.DUE, "not due yet")
        metrics.poisoned("x")
        metrics.bug("x", ValueError())
        metrics.published("success", 3)
        metrics.broker("lost", "")
        metrics.broker("connected", "")
        for end in Disposition:
            metrics.consumed()
            metrics.ended(end)
        for _ in range(10):
            metrics.consumed()
    metrics.journal(None, (), JournalStats(100 * times, 10 * times, times))
    metrics.in_flight(10 * times, times)
    return metrics


def mailq_only(page):
    """Return {(name, labels): value} of what mailq itself counts."""
    families = text_string_to_metric_families(page[1].decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
        if sample.name.startswith("mailq_")
    }


def over_the_line(metrics):
    return orjson.loads(orjson.dumps(metrics.snapshot()))


def test_every_figure_of_every_process_is_in_the_page_of_all():
    """The sum of two is what one would show that had seen the same; only states are told apart."""
    page = mailq_only(Fleet(2).page({0: over_the_line(busy(2)), 1: over_the_line(busy(3))}, {}))
    alone = mailq_only(busy(5).page())

    told_apart = {f"mailq_{name}" for name, _ in STATES}
    added = {"mailq_process_up", "mailq_process_restarts_total"}
    assert {key: value for key, value in alone.items() if key[0] not in told_apart} == {
        key: value for key, value in page.items() if key[0] not in told_apart | added
    }
    assert alone["mailq_verdicts_total", (("outcome", "success"),)] == 5
    assert alone["mailq_in_flight", ()] == 50
    assert alone["mailq_journal_records_total", ()] == 50
    assert alone["mailq_ended_total", (("end", "repeated"),)] == 5
    assert alone["mailq_flags_total", (("flag", "strange"),)] == 5
    assert alone["mailq_drift", ()] == 0
    for process in "01":
        assert page["mailq_broker_connected", (("process", process),)] == 1
        assert page["mailq_broker_blocked", (("process", process),)] == 0
        assert page["mailq_journal_writable", (("process", process),)] == 1


def test_counters_of_all_never_fall_though_processes_come_and_go():
    fleet, success = Fleet(2), ("mailq_verdicts_total", (("outcome", "success"),))
    jobs, up = ("mailq_in_flight", ()), ("mailq_process_up", (("process", "1"),))

    first = mailq_only(fleet.page({0: over_the_line(busy(2)), 1: over_the_line(busy(3))}, {}))
    silent = mailq_only(fleet.page({0: over_the_line(busy(2))}, {}))
    fleet.died(1)
    fleet.restarted(1)
    again = mailq_only(fleet.page({0: over_the_line(busy(2)), 1: over_the_line(busy(1))}, {}))
    fleet.died(1)
    fleet.restarted(1)
    fleet.died(1)
    fleet.restarted(1)
    last = mailq_only(fleet.page({}, {}))

    assert [page[success] for page in (first, silent, again, last)] == [5, 5, 6, 6]
    assert [page[jobs] for page in (first, silent, again, last)] == [50, 20, 30, 0]
    assert [page[up] for page in (first, silent, again, last)] == [1, 0, 1, 0]
    assert ("mailq_broker_connected", (("process", "1"),)) not in silent
    assert last["mailq_process_restarts_total", (("process", "1"),)] == 3
    assert last["mailq_process_restarts_total", (("process", "0"),)] == 0


def test_memory_and_time_of_each_process_are_shown():
    _, body = Fleet(1).page({}, {"0": os.getpid(), "supervisor": os.getppid(), "gone": 2**22 + 1})
    names = [family.name for family in text_string_to_metric_families(body.decode())]
    rows = {
        sample.labels["process"]: sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
        if sample.name == "process_resident_memory_bytes"
    }

    assert rows.keys() == {"0", "supervisor"}
    assert rows["0"] > 1_000_000
    assert len(names) == len(set(names))


def test_limits_that_are_not_kept_are_counted(metrics):
    metrics.overflows = 3
    other = Metrics()
    other.overflows = 4

    assert read(metrics, "limits_overflows_total") == 3
    page = mailq_only(Fleet(2).page({0: over_the_line(metrics), 1: over_the_line(other)}, {}))
    assert page["mailq_limits_overflows_total", ()] == 7


def test_a_worker_that_gives_no_sign_of_life_is_not_alive(metrics, monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr("mailq.edges.metrics.process.monotonic", lambda: now)
    metrics.in_flight(0, 0)
    assert metrics.heartbeat.problem() is None
    now += SILENCE
    assert metrics.heartbeat.problem() is None
    now += 1
    assert metrics.heartbeat.problem() == "the worker has given no sign of life for 31 s"
    metrics.in_flight(0, 0)
    assert metrics.heartbeat.problem() is None
    assert Heartbeat().problem() is None

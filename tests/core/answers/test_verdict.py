"""What results mean: by the first digit, within the job's time and number of attempts."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import product
from random import Random

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailq.config.classify import ruleset_of
from mailq.core.answers.actions import NOTHING, Actions
from mailq.core.answers.classify import Ruleset
from mailq.core.answers.deadline import back_at, deadline, expired
from mailq.core.answers.flags import Flags
from mailq.core.answers.interpreter import Interpreter
from mailq.core.answers.patterns import Pattern, Patterns
from mailq.core.answers.rules import read_reply
from mailq.core.answers.verdict import Outcome, Verdict, judge
from mailq.core.bounce_classes import CLASSES, About
from mailq.core.bounce_classes import TRANSIENT as PASSING
from mailq.core.jobs.job import Job
from mailq.core.results.result import Trail, accepted, failed, pack, unpack
from mailq.core.smtp.failure import Failure
from mailq.core.smtp.reply import Reply
from mailq.core.states import AUTH_STATES, Kind, State
from mailq.core.times import format_time
from mailq.core.traffic.routes import Login
from mailq.delivery.smtp.auth import secrets

NOW = datetime(2030, 1, 31, 12, tzinfo=UTC)
MEANING = Interpreter(ruleset_of(()), Patterns())
ENDINGS = [(state, kind) for state, kind in product(State, Kind) if kind is not Kind.ACCEPTED]


@dataclass(frozen=True)
class Policy:
    retries: tuple[int, ...] = (60, 600)
    retry_jitter: float = 0
    max_deliver_time: int = 86_400
    max_attempts: int = 0
    doubt_attempts: int = 3
    greylist_retry: int = 300
    hint_min: int = 60
    hint_max: int = 7200


def job(attempt=1, **properties):
    document = {"recipient": "to@example.org", "results": [{}] * (attempt - 1), **properties}
    return Job.parse(orjson.dumps(document), limit=1_000_000)


def answered(code, state=State.RCPTTO):
    return failed(Trail(), Failure(state, Kind.ERROR, reply=Reply(code, None, "x")), time=NOW, attempt=1)


def ended(state, kind):
    return failed(Trail(), Failure(state, kind), time=NOW, attempt=1)


def verdict(result, of=None, policy=None, now=NOW, effects=NOTHING, flags=None):
    return judge(of or job(), result, policy or Policy(), now, Random(1), effects, flags)


def said(code, text, *, attempt=1, policy=None, effects=NOTHING, state=State.RCPTTO, until=None, **properties):
    """Judge an answer with the flags inferred from it."""
    result = failed(Trail(), Failure(state, Kind.ERROR, reply=Reply(code, None, text)), time=NOW, attempt=1)
    flags = MEANING.of(job(), result).flags
    return verdict(result, useful(until, attempt=attempt, **properties), policy, effects=effects, flags=flags)


def useful(until, **properties):
    return job(**properties).model_copy(update={"useful_until": until})


def wait(found):
    return (found.at - NOW).total_seconds()


TRANSIENT = ended(State.CONNECT, Kind.TIMEOUT)


def in_(**time):
    return format_time(NOW + timedelta(**time))


@pytest.mark.parametrize("code", [250, 200, 252, 299])
def test_accepted_is_success(code):
    result = accepted(Trail(), Reply(code, None, "queued"), time=NOW, attempt=1)
    assert verdict(result) == Verdict(Outcome.SUCCESS)
    assert verdict(result, job(maxdelivertime=in_(days=-1), maxattempts=1)) == Verdict(Outcome.SUCCESS)


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (250, "retry"),
        (354, "retry"),
        (421, "retry"),
        (450, "retry"),
        (499, "retry"),
        (500, "failure"),
        (550, "failure"),
        (599, "failure"),
    ],
)
@pytest.mark.parametrize("state", [State.INTRO, State.EHLO, State.MAILFROM, State.RCPTTO, State.DATA, State.MESSAGE])
def test_an_answer_is_judged_by_its_first_digit(code, outcome, state):
    assert verdict(answered(code, state)).outcome == outcome


@pytest.mark.parametrize(("state", "kind"), ENDINGS)
def test_without_an_answer_the_table_of_defaults_decides(state, kind):
    expected = Outcome.FAILURE if Failure(state, kind).permanent else Outcome.RETRY
    assert verdict(ended(state, kind)).outcome is expected


@pytest.mark.parametrize(("state", "kind"), ENDINGS)
def test_nothing_but_an_accepted_message_is_success(state, kind):
    for reply in (None, Reply(250, "2.0.0", "ok")):
        result = failed(Trail(), Failure(state, kind, reply=reply), time=NOW, attempt=1)
        assert verdict(result).outcome is not Outcome.SUCCESS


@pytest.mark.parametrize(
    ("properties", "policy", "seconds"),
    [
        ({}, Policy(), 60),
        ({"attempt": 2}, Policy(), 600),
        ({"attempt": 9}, Policy(), 600),
        ({"retries": [5]}, Policy(), 5),
        ({"retries": [5, 10], "attempt": 2}, Policy(), 10),
        ({"maxattempts": 3, "attempt": 2}, Policy(), 600),
        ({"maxattempts": 0, "attempt": 50}, Policy(max_attempts=3), 600),
        ({"maxdelivertime": in_(seconds=60)}, Policy(), 60),
        ({"seen": in_(seconds=-30)}, Policy(max_deliver_time=90), 60),
    ],
)
def test_a_retry_has_its_time(properties, policy, seconds):
    expected = Verdict(Outcome.RETRY, NOW + timedelta(seconds=seconds), why="schedule")
    assert verdict(TRANSIENT, job(**properties), policy) == expected


@pytest.mark.parametrize(
    ("properties", "policy"),
    [
        ({"maxattempts": 1}, Policy()),
        ({"maxattempts": 3, "attempt": 3}, Policy()),
        ({"maxattempts": 3, "attempt": 4}, Policy()),
        ({"attempt": 3}, Policy(max_attempts=3)),
        ({"attempt": 1000, "maxattempts": 0}, Policy()),
        ({"attempt": 1000, "maxattempts": 5000}, Policy()),
        ({"maxdelivertime": in_(seconds=59)}, Policy()),
        ({"maxdelivertime": in_(days=-1)}, Policy()),
        ({"seen": in_(seconds=-31)}, Policy(max_deliver_time=90)),
        ({}, Policy(max_deliver_time=59)),
    ],
)
def test_a_retry_that_cannot_be_in_time_is_a_failure(properties, policy):
    found = verdict(TRANSIENT, job(**properties), policy)
    assert (found.outcome, found.at, found.expired) == (Outcome.FAILURE, None, True)
    assert found.why in ("attempts", "expired")


def test_a_permanent_answer_is_not_called_expired():
    assert verdict(answered(550), job(maxattempts=1)) == Verdict(Outcome.FAILURE, flags=Flags(fatal=True), why="code")


@pytest.mark.parametrize(
    ("properties", "policy", "moment"),
    [
        ({}, Policy(max_deliver_time=90), NOW + timedelta(seconds=90)),
        ({"seen": in_(hours=-1)}, Policy(max_deliver_time=90), NOW + timedelta(hours=-1, seconds=90)),
        ({"seen": in_(hours=-1), "maxdelivertime": in_(days=9)}, Policy(), NOW + timedelta(days=9)),
    ],
)
def test_deadline(properties, policy, moment):
    assert deadline(job(**properties), policy, NOW) == moment


@pytest.mark.parametrize(
    ("properties", "policy", "over"),
    [
        ({}, Policy(), False),
        ({"maxdelivertime": in_()}, Policy(), False),
        ({"maxdelivertime": in_(seconds=-1)}, Policy(), True),
        ({"seen": in_(days=-1)}, Policy(), False),
        ({"seen": in_(days=-1, seconds=-1)}, Policy(), True),
        ({"maxattempts": 2, "attempt": 2}, Policy(), False),
        ({"attempt": 1000}, Policy(), False),
        ({"attempt": 1001}, Policy(max_attempts=2000), True),
        ({"maxattempts": 2, "attempt": 3}, Policy(), True),
        ({"attempt": 3}, Policy(max_attempts=2), True),
        ({"attempt": 3, "maxattempts": 0}, Policy(max_attempts=2), False),
    ],
)
def test_expired(properties, policy, over):
    assert expired(job(**properties), policy, NOW) is over


@given(
    st.sampled_from(ENDINGS),
    st.none() | st.integers(200, 599),
    st.integers(1, 10),
    st.integers(0, 10),
    st.integers(1, 100_000),
    st.floats(0, 0.5),
    st.randoms(use_true_random=False),
)
def test_every_verdict_is_one_that_settlement_can_carry_out(ending, code, attempt, limit, time, jitter, rng):
    reply = Reply(code, None, "x") if code else None
    result = failed(Trail(), Failure(*ending, reply=reply), time=NOW, attempt=attempt)
    policy = Policy(retry_jitter=jitter, max_deliver_time=time, max_attempts=limit)
    asked = job(attempt)
    found = judge(asked, result, policy, NOW, rng)
    assert (found.outcome is Outcome.RETRY) is (found.at is not None)
    if found.at is not None:
        assert NOW < found.at <= deadline(asked, policy, NOW)
        assert not limit or attempt < limit
        assert not expired(job(attempt + 1, seen=format_time(NOW)), policy, found.at)
    if found.expired:
        assert found.outcome is Outcome.FAILURE
        assert result.code < 500


@pytest.mark.parametrize(
    ("text", "policy", "seconds", "why"),
    [
        ("later", Policy(), 60, "schedule"),
        ("try again in 300 seconds", Policy(), 300, "hint 300 s"),
        ("try again in 5 seconds", Policy(), 60, "hint 5 s"),
        ("try again in 24 hours", Policy(), 7200, "hint 86400 s"),
        ("try again in 300 seconds", Policy(hint_max=0), 60, "schedule"),
        ("Greylisted", Policy(retries=(900,)), 300, "greylisting"),
        ("Greylisted", Policy(retries=(900,), greylist_retry=0), 900, "schedule"),
        ("Greylisted", Policy(retries=(60,)), 60, "schedule"),
        ("Greylisted for 90 seconds", Policy(retries=(900,)), 90, "hint 90 s"),
    ],
)
def test_the_first_that_names_a_time_decides(text, policy, seconds, why):
    found = said(451, text, policy=policy)
    assert (found.outcome, wait(found), found.why) == (Outcome.RETRY, seconds, why)


def test_a_hint_counts_only_from_a_server_that_answered():
    result = failed(Trail(), Failure(State.CONNECT, Kind.ERROR, "try again in 300 seconds"), time=NOW, attempt=1)
    assert verdict(result, flags=Flags()).why == "schedule"
    assert verdict(answered(451), flags=None).why == "schedule"


def test_a_hint_is_jittered_but_never_early():
    found = said(451, "try again in 300 seconds", policy=Policy(retry_jitter=0.5))
    assert 300 <= wait(found) <= 451


@pytest.mark.parametrize(("attempt", "seconds"), [(1, 300), (2, 300), (3, 300), (4, 900), (9, 900)])
def test_greylisting_is_waited_for_sooner_only_at_first_and_always_from_the_same_source(attempt, seconds):
    found = said(451, "Greylisted", attempt=attempt, policy=Policy(retries=(900,)))
    assert wait(found) == seconds
    assert found.same_source
    assert not said(451, "later", attempt=attempt).same_source


def test_what_is_over_has_no_source():
    assert not said(451, "Greylisted", maxattempts=1).same_source


@pytest.mark.parametrize(
    ("code", "effects", "outcome", "why"),
    [
        (550, Actions(fatal=False, decider="p"), Outcome.RETRY, "schedule"),
        (450, Actions(fatal=True, decider="p"), Outcome.FAILURE, "pattern p"),
        (450, Actions(fail=True, decider="p"), Outcome.FAILURE, "pattern p"),
        (550, Actions(fail=True, decider="p"), Outcome.FAILURE, "pattern p"),
        (550, Actions(retry=77, decider="p"), Outcome.RETRY, "pattern p"),
        (450, Actions(retry=77, decider="p"), Outcome.RETRY, "pattern p"),
        (550, Actions(strange=True), Outcome.FAILURE, "code"),
    ],
)
def test_a_pattern_comes_before_the_code(code, effects, outcome, why):
    found = said(code, "x", effects=effects)
    assert (found.outcome, found.why) == (outcome, why)
    assert found.expired is False
    assert found.effects is effects
    assert found.flags.fatal is (outcome is Outcome.FAILURE and not (effects.fail and code < 500))
    if effects.retry:
        assert wait(found) == 77


def test_a_patterns_interval_comes_before_a_hint_and_greylisting():
    found = said(451, "Greylisted for 90 seconds", effects=Actions(retry=1000, decider="p"))
    assert (wait(found), found.why) == (1000, "pattern p")


def test_a_pattern_makes_and_unmakes_greylisting():
    policy = Policy(retries=(900,))
    assert said(451, "later", policy=policy, effects=Actions(greylisted=True)).why == "greylisting"
    assert said(451, "Greylisted", policy=policy, effects=Actions(greylisted=False)).why == "schedule"


def test_patterns_do_not_get_around_the_limits_of_a_job():
    retry = Actions(retry=600, decider="p")
    assert said(451, "x", effects=retry, maxattempts=1).expired
    assert said(451, "x", effects=retry, maxdelivertime=in_(seconds=599)).expired


def test_a_delivered_message_stays_delivered():
    result = accepted(Trail(), Reply(250, None, "queued"), time=NOW, attempt=1)
    assert verdict(result, effects=Actions(fail=True)) == Verdict(Outcome.SUCCESS)


@pytest.mark.parametrize("effects", [NOTHING, Actions(retry=5, decider="p")])
@pytest.mark.parametrize(("wanted", "outcome"), [("fail", Outcome.FAILURE), ("retry", Outcome.RETRY)])
def test_doubt_is_decided_by_the_job(wanted, outcome, effects):
    trail = Trail(in_doubt=True)
    result = failed(trail, Failure(State.MESSAGE, Kind.LOST), time=NOW, attempt=1)
    asked = job().model_copy(update={"on_doubt": wanted})
    found = verdict(result, asked, effects=effects)
    assert found.outcome is outcome
    assert not found.expired
    if outcome is Outcome.FAILURE:
        assert found.why == "on_doubt"
    assert verdict(TRANSIENT, asked, effects=effects).outcome is Outcome.RETRY


@pytest.mark.parametrize(
    ("schedule", "until", "seconds"),
    [
        (600, 100_000, 600),
        (600, 641, 600),  # 600 s, 5 % late, 10 s before the end
        (600, 639, 599),
        (600, 610, 571),
        (600, 300, 276),
        (600, 75, 61),
        (600, 72, None),  # what is left is not worth an attempt
        (600, 0, None),
        (600, -10, None),
        (7200, 900, 847),
        (7200, 760, None),  # less than a tenth of the wait
        (30, 42, 30),
        (30, 40, None),
    ],
)
def test_the_last_attempt_falls_before_useful_until(schedule, until, seconds):
    found = said(451, "x", until=NOW + timedelta(seconds=until), retries=[schedule])
    if seconds is None:
        assert (found.outcome, found.at, found.expired, found.why) == (Outcome.FAILURE, None, True, "expired")
    else:
        assert (wait(found), found.why) == (seconds, "schedule" if seconds == schedule else "useful_until")


def test_a_time_that_the_server_or_a_pattern_named_is_not_cut_short():
    until = NOW + timedelta(seconds=300)
    assert said(451, "x", until=until, retries=[600]).why == "useful_until"
    assert said(451, "try again in 600 seconds", until=until).expired
    assert said(451, "x", until=until, effects=Actions(retry=600, decider="p")).expired


def test_maxdelivertime_alone_cuts_off():
    assert said(451, "x", retries=[600], maxdelivertime=in_(seconds=599)).expired


def test_a_job_with_both_is_planned_to_the_earlier():
    found = said(451, "x", until=NOW + timedelta(days=1), retries=[600], maxdelivertime=in_(seconds=300))
    assert (wait(found), found.why) == (276, "useful_until")


def test_useful_until_ends_a_job_that_waits():
    assert expired(useful(NOW - timedelta(seconds=1)), Policy(), NOW)
    assert not expired(useful(NOW), Policy(), NOW)
    assert deadline(useful(NOW + timedelta(hours=1)), Policy(), NOW) == NOW + timedelta(hours=1)
    assert deadline(useful(NOW + timedelta(days=9)), Policy(), NOW) == NOW + timedelta(days=1)


@pytest.mark.parametrize(
    ("away", "until", "seconds"),
    [
        (3600, None, 3600),
        (60, 90, 60),  # in time
        (3600, 90, 76),  # as late as it may be: room for the attempt, and for queues that are late
        (3600, 11, None),
        (3600, -5, None),
    ],
)
def test_a_job_that_is_sent_away_comes_back_while_it_is_of_use(away, until, seconds):
    of = useful(until and NOW + timedelta(seconds=until))
    back = back_at(of, Policy(), NOW + timedelta(seconds=away), NOW)
    assert (back and int((back - NOW).total_seconds())) == seconds


@pytest.mark.parametrize(("end", "seconds"), [(7200, 3600), (90, 90), (-5, 0)])
def test_a_job_whose_time_is_over_before_its_turn_comes_back_to_be_told(end, seconds):
    of = job().model_copy(update={"maxdelivertime": NOW + timedelta(seconds=end)})
    assert back_at(of, Policy(), NOW + timedelta(hours=1), NOW) == NOW + timedelta(seconds=seconds)


def test_a_job_that_is_not_due_does_not_come_back_before():
    of = job(nextattempt={"time": in_(hours=1)}, maxdelivertime=in_(seconds=90))
    assert back_at(of, Policy(), of.due, NOW) == of.due


@pytest.mark.parametrize(("due", "back"), [(60, True), (3600, False)])
def test_a_job_that_is_of_no_use_when_it_is_due_is_not_sent_away(due, back):
    of = job(nextattempt={"time": in_(seconds=due)}).model_copy(update={"useful_until": NOW + timedelta(seconds=90)})
    assert back_at(of, Policy(), of.due, NOW) == (of.due if back else None)


UNTIL = st.integers(-100, 100_000)
TEXTS = st.sampled_from(["x", "Greylisted", "try again in 5 minutes", "wait 3 hours"])


@given(
    UNTIL, UNTIL, st.lists(st.integers(1, 50_000), min_size=1, max_size=4), TEXTS, st.integers(1, 5), st.floats(0, 0.5)
)
def test_planning_to_useful_until(one, other, retries, text, attempt, jitter):
    earlier, later = sorted((one, other))
    policy = Policy(retry_jitter=jitter)
    found, more = (
        said(451, text, attempt=attempt, policy=policy, retries=retries, until=NOW + timedelta(seconds=until))
        for until in (earlier, later)
    )
    for each, until in ((found, earlier), (more, later)):
        if each.at is not None:
            late = max(1, 0.05 * wait(each))
            assert wait(each) >= 1
            assert wait(each) + late <= until - 5
    if found.at is not None:
        assert more.at is not None
        assert found.at <= more.at


@given(st.integers(1, 100_000), st.integers(1, 50_000), st.booleans())
def test_a_wait_is_cut_short_only_once(until, schedule, late):
    """Whether the delay queues are late or not, no second attempt is squeezed in behind the last."""
    end = NOW + timedelta(seconds=until)
    now, cut = NOW, 0
    for _ in range(10):
        found = verdict(TRANSIENT, useful(end, retries=[schedule]), Policy(max_deliver_time=10**7), now)
        if found.at is None:
            break
        cut += found.why == "useful_until"
        wait = found.at - now
        now = found.at + (max(timedelta(seconds=1), wait * 0.05) if late else timedelta())
        assert now < end
    assert cut <= 1


def meant(result):
    """Return a result's class and what becomes of its job by the flags inferred from it."""
    reading = MEANING.of(job(), result)
    return reading.classification, judge(job(), result, Policy(), NOW, Random(1), reading.effects, reading.flags)


def told(text, state=State.RCPTTO):
    return failed(Trail(), Failure(state, Kind.ERROR, reply=read_reply(text)), time=NOW, attempt=1)


EXAMPLES = [
    (rule.id, example, state)
    for rule in MEANING.ruleset.rules
    for example in (*rule.examples, *rule.counters)
    for state in (State.INTRO, State.MAILFROM, State.RCPTTO, State.DATA, State.MESSAGE)
]
"""Every reply that the rules tell of, in every state in which a server may refuse mail."""


def test_what_is_taken_for_transient_is_never_final():
    seen = set()
    for rule, example, state in EXAMPLES:
        for code in ("4", "5"):
            text = f"{code}{example[1:]}" if example[:1].isdigit() else example
            classification, found = meant(told(text, state))
            wanted = code == "5" and classification.number not in PASSING
            assert found.outcome is (Outcome.FAILURE if wanted else Outcome.RETRY), (rule, text, classification)
            seen.add((classification.number, found.outcome))
    assert {number for number, outcome in seen if outcome is Outcome.FAILURE} >= set(CLASSES) - {
        70,
        24,
        60,
        100,
        20,
        30,
    }


@pytest.mark.parametrize("number", list(CLASSES))
@pytest.mark.parametrize("code", [450, 550])
def test_an_operators_rule_decides_by_its_class_whether_a_refusal_is_final(number, code):
    rule = f'version = "1"\n[[rule]]\nid = "own"\nclass = {number}\ntext = "special"\nsource = "own"\n'
    meaning = Interpreter(Ruleset.load([rule]), Patterns())
    result = told(f"{code} special")
    reading = meaning.of(job(), result)
    found = judge(job(), result, Policy(), NOW, Random(1), reading.effects, reading.flags)

    assert reading.classification.rule == "own"
    assert found.outcome is (Outcome.FAILURE if code == 550 and number not in PASSING else Outcome.RETRY)


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("552 5.5.3 Maximum limit of 100 recipients reached", Outcome.RETRY),
        ("552 Maximum limit of 100 recipients reached", Outcome.RETRY),
        ("552 Too many recipients", Outcome.RETRY),
        ("552 5.5.3 no", Outcome.RETRY),
        ("550 5.7.0 too many messages in this session", Outcome.RETRY),
        ("550 5.4.5 Daily SMTP relay limit exceeded for user.", Outcome.RETRY),
        ("552 5.2.2 mailbox full", Outcome.FAILURE),
        ("552 no", Outcome.FAILURE),
        ("550 5.1.1 user unknown", Outcome.FAILURE),
        ("530 5.7.0 Authentication required", Outcome.FAILURE),
    ],
)
def test_a_limit_that_passes_is_tried_again_whatever_its_code(text, outcome):
    assert meant(told(text))[1].outcome is outcome


@pytest.mark.parametrize("state", sorted(AUTH_STATES))
@pytest.mark.parametrize(
    "text",
    [
        "535 5.7.8 Authentication credentials invalid",
        "534 5.7.9 mechanism is too weak",
        "530 5.7.0 Must issue a STARTTLS command first",
        "504 5.7.4 Unrecognized authentication type",
        "504 Unknown mechanism",
        "503 AUTH command used when not advertised",
        "502 Invalid input",
        "501 5.5.4 Syntax error",
        "500 5.5.6 Authentication Exchange line is too long",
        "550 5.7.1 Relaying denied",
        "550 5.1.1 user unknown",
        "554 5.7.1 blocked using zen.spamhaus.org",
        "454 4.7.0 Temporary authentication failure",
        "432 4.7.12 A password transition is needed",
        "421 4.7.0 too many errors",
        "599 what",
    ],
)
def test_trouble_with_a_login_is_ours_and_keeps_the_job(text, state):
    classification, found = meant(told(text, state))

    assert (classification.number, classification.about) == (25, About.US)
    assert found.outcome is Outcome.RETRY
    assert not found.flags.fatal
    assert classification.rule != "unknown"


def test_a_login_that_never_comes_about_ends_with_the_jobs_time_or_attempts():
    result = told("535 5.7.8 no", State.AUTHPLAIN)
    flags = MEANING.of(job(), result).flags

    assert verdict(result, job(3, maxattempts=3), flags=flags).outcome is Outcome.FAILURE
    assert verdict(result, job(3, maxattempts=3), flags=flags).expired


def test_a_pattern_may_still_give_up_a_login():
    assert said(535, "no", state=State.AUTHPLAIN, effects=Actions(fatal=True)).outcome is Outcome.FAILURE


SECRET = "unknown"


def masked(text, *secrets, code=550, state=State.RCPTTO):
    trail = Trail(state)
    trail.conceal(secrets)
    reply = Reply(code, None, text)
    trail.heard(reply)
    return failed(trail, Failure(state, Kind.ERROR, reply=reply), time=NOW, attempt=1)


def test_an_answer_is_understood_as_it_came_and_told_without_the_password():
    result = masked("user unknown", SECRET)

    assert meant(result)[0].number == 10
    assert result.description == "user ***"
    assert SECRET not in orjson.dumps(result.as_json()).decode()
    assert result.transcript == ("S: 550 user ***",)
    assert SECRET.encode() not in pack(result)
    assert unpack(pack(result), job(), NOW).description == "user ***"


def test_a_hint_and_a_pattern_read_what_the_server_said():
    result = masked("unknown, try again in 5 minutes", "5 minutes", code=450)
    flags = MEANING.of(job(), result).flags

    assert verdict(result, flags=flags).why == "hint 300 s"
    pattern = Pattern("own", Actions(fatal=True), text="user unknown")
    assert Interpreter(MEANING.ruleset, Patterns([pattern])).of(job(), masked("user unknown", SECRET)).effects.fatal


def test_a_secret_is_masked_in_whatever_is_told():
    trail = Trail(State.DATA)
    trail.conceal(["geheim"])
    trail.heard(Reply(250, None, "x" * 2045 + "geheim"))
    trail.said.append("geheim")
    result = failed(trail, Failure(State.DATA, Kind.INVALID, "said geheim"), time=NOW, attempt=1)
    assert "gehe" not in orjson.dumps(result.as_json()).decode()

    taken = accepted(trail, Reply(250, "2.0.0", "queued, geheim"), time=NOW, attempt=1)
    assert taken.description == "queued, ***"


def test_the_secrets_of_every_login_of_an_attempt_are_masked():
    trail = Trail(State.DATA)
    trail.conceal(["geheim"])
    trail.forget_connection()
    trail.conceal(["geheimnis"])

    result = failed(trail, Failure(State.DATA, Kind.INVALID, "geheimnis, geheim"), time=NOW, attempt=1)
    assert result.description == "***, ***"


@pytest.mark.parametrize("password", ["", "e", "ab"])
def test_a_password_of_two_characters_masks_nothing(password):
    assert secrets(Login("jo", password)) == ()
    assert "abc" in secrets(Login("jo", "abc"))

"""What endings mean for those who read them: expiry, the smarthost or next target, rules replaced while running."""

import tomllib
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailq.config.classify import ruleset_of
from mailq.config.patterns import PatternConfig, patterns_of
from mailq.core.answers.classify import Ruleset
from mailq.core.answers.interpreter import Interpreter
from mailq.core.answers.rules import read_reply
from mailq.core.answers.verdict import Outcome, Verdict
from mailq.core.bounce_classes import CLASSES, About, Category
from mailq.core.broker.publications import with_result
from mailq.core.jobs.job import Job
from mailq.core.results.result import Trail, failed
from mailq.core.smtp.failure import Failure
from mailq.core.smtp.reply import Reply
from mailq.core.states import Kind, State
from mailq.core.times import parse_time
from mailq.data import bounces

JOB = Job.parse(b'{"recipient": "b@b.test", "mime": "x"}', limit=1000)
NOW = parse_time("2030-01-01 00:00:00")
RULES = ruleset_of(())
CORPUS = Path(__file__).parents[2] / "data" / "replies.toml"
EXPIRED = Failure(State.PROCESS, Kind.TIMEOUT)
OVER_QUOTA = {"state": "rcptto", "result": "error", "code": 452, "status": "4.2.2", "description": "over quota"}
TOLD = {"class": 51, "category": "block", "about": "sender", "rule": "own-rule", "ruleset": "own.1+2030.1"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)

GREYLISTING = [
    "<b@b.test>: Recipient address rejected: Greylisted, see http://postgrey.schweikert.ch/help/b.test.html",
    "Greylisting in action, please come back later",
    "Greylisted for 5 minutes",
    "temporarily rejected: graylisted, try later",
    "grey-listing, please retry",
    "This message has been grey listed",
    "Recipient address rejected: Intentional policy rejection, please try again later",
    "Policy Rejection- Please try later.",
    "GL - temporary problem. Try again later.",
    "Server busy. Please try again later from [192.0.2.1]. (S77719)",
    "Internal resources are temporarily unavailable - https://community.mimecast.com/docs/DOC-1369#451",
    "new triplet, come back",
    "you are retrying too soon",
    "GREYLISTED",
    "please wait,\nyou are grey\nlisted",
]


def meaning(**keys):
    return Interpreter(RULES, patterns_of([PatternConfig.model_validate({"id": "mine", **keys})] if keys else ()))


def refused(state, code):
    return Failure(state, Kind.ERROR, reply=Reply(code, None, "no"))


def after(*results):
    """Return the job with these results, back from the delay queue."""
    return Job.parse(orjson.dumps({"recipient": "b@b.test", "mime": "x", "results": results}), limit=100_000)


def reading(job, failure, trail=None, by=None):
    return (by or meaning()).of(job, failed(trail or Trail(), failure, time=NOW, attempt=job.attempt))


def answered(reply, hosts=(), *, state=State.RCPTTO, by=None):
    return reading(JOB, Failure(state, Kind.ERROR, reply=reply), Trail(hosts=hosts), by)


def transient():
    """Yield the transient replies of the corpus, each with a host that says so."""
    for page in tomllib.loads(CORPUS.read_text("utf-8"))["page"]:
        for _, _, text in page.get("replies", []) + page.get("held_out", []):
            if (reply := read_reply(text)).code // 100 == 4:
                yield reply, RULES.host_of(page.get("provider", ""))


def expiry(failure, trail):
    """Return what an attempt was taken for, and what the job that then expired was."""
    result = failed(trail, failure, time=NOW, attempt=1)
    live = meaning().of(JOB, result)
    verdict = Verdict(Outcome.RETRY, NOW, classification=live.classification, ruleset=live.ruleset)
    job = Job.parse(orjson.dumps(with_result(JOB.document, result, verdict)), limit=100_000)
    last = job.results[-1]
    expired = reading(job, EXPIRED)
    assert expired.ruleset == last["ruleset"]
    return live.classification, expired.classification


def test_an_expired_job_has_the_class_of_its_last_result():
    seen = 0
    for seen, (reply, hosts) in enumerate(transient(), 1):  # noqa: B007
        live, expired = expiry(Failure(State.RCPTTO, Kind.ERROR, reply=reply), Trail(hosts=hosts))
        assert (expired.number, expired.about, expired.rule) == (live.number, live.about, live.rule), reply
    assert seen > 100


@pytest.mark.parametrize("kind", [Kind.TIMEOUT, Kind.LOST, Kind.INVALID, Kind.ERROR])
@pytest.mark.parametrize("state", [State.DNS, State.BIND, State.CONNECT, State.STARTTLS, State.DATA])
def test_an_expired_job_that_no_server_answered_has_the_class_of_its_last_result(state, kind):
    live, expired = expiry(Failure(state, kind), Trail())

    assert expired == live


@pytest.mark.parametrize(
    ("last", "number", "about", "rule"),
    [
        (OVER_QUOTA | TOLD, 51, About.SENDER, "own-rule"),
        (OVER_QUOTA, 22, About.RECIPIENT, "over-quota"),
        (OVER_QUOTA | {"mta": "smtp-in.orange.fr", "description": "ofr_999"}, 51, About.SOURCE, "orange-blocked"),
        ({"state": "connect", "result": "timeout", "code": 451}, 24, About.RELAY, "connect/timeout"),
        ({"state": "process", "result": "timeout", "code": 554, "description": "expired"}, 24, About.US, None),
        ({"state": "dns", "result": "error", "code": 451, "status": "5.1.2"}, 21, About.DOMAIN, "dns/error"),
        ({"code": 451, "description": "busy"}, 70, About.RELAY, "code-transient"),
        (OVER_QUOTA | TOLD | {"class": 11}, 22, About.RECIPIENT, "over-quota"),
        (OVER_QUOTA | TOLD | {"class": True}, 22, About.RECIPIENT, "over-quota"),
        (OVER_QUOTA | TOLD | {"class": "51"}, 22, About.RECIPIENT, "over-quota"),
        (OVER_QUOTA | TOLD | {"class": [51]}, 22, About.RECIPIENT, "over-quota"),
        (OVER_QUOTA | TOLD | {"category": "soft"}, 22, About.RECIPIENT, "over-quota"),
        (OVER_QUOTA | TOLD | {"category": {}}, 22, About.RECIPIENT, "over-quota"),
        (OVER_QUOTA | TOLD | {"about": "nobody"}, 22, About.RECIPIENT, "over-quota"),
        (OVER_QUOTA | TOLD | {"rule": "x\nlevel=error"}, 22, About.RECIPIENT, "over-quota"),
        (OVER_QUOTA | TOLD | {"ruleset": "\x1b[0m"}, 22, About.RECIPIENT, "over-quota"),
        (OVER_QUOTA | TOLD | {"class": 10, "category": "hard"}, 22, About.RECIPIENT, "over-quota"),
        (OVER_QUOTA | TOLD | {"class": 10, "category": "hard", "code": 550}, 10, About.SENDER, "own-rule"),
        (OVER_QUOTA | {"code": 250}, 24, About.US, "process/timeout"),
        (OVER_QUOTA | {"state": "somewhere"}, 24, About.US, "process/timeout"),
        ({}, 24, About.US, "process/timeout"),
    ],
)
def test_what_earlier_results_tell_is_looked_at(last, number, about, rule):
    found = reading(after({"code": 451, "class": 70}, last), EXPIRED).classification

    assert (found.number, found.about, found.rule) == (number, about, rule or "process/timeout")
    assert (found.name, found.category) == CLASSES[number][:2]


def test_only_expiry_looks_at_earlier_results():
    invalid = reading(after(OVER_QUOTA | TOLD), Failure(State.PROCESS, Kind.INVALID))

    assert invalid.classification.rule == "process/invalid"
    assert reading(JOB, EXPIRED).classification.rule == "process/timeout"


@given(st.dictionaries(st.sampled_from([*OVER_QUOTA, *TOLD, "mta"]), JSON))
def test_any_earlier_result_is_borne(odd):
    found = reading(after(OVER_QUOTA | TOLD | odd), EXPIRED).classification

    assert found.category is CLASSES[found.number].category
    assert found.rule.isprintable()
    assert found.category is not Category.HARD or odd.get("code")


@pytest.mark.parametrize(
    ("failure", "keys", "falls"),
    [
        (Failure(State.CONNECT, Kind.TIMEOUT), {}, True),
        (Failure(State.CONNECT, Kind.TIMEOUT), {"states": ["connect"], "fallback": False}, False),
        (Failure(State.DNS, Kind.TIMEOUT), {}, True),
        (Failure(State.DNS, Kind.ERROR, code=451), {}, True),
        (Failure(State.DNS, Kind.ERROR, code=556), {}, False),
        (Failure(State.DNS, Kind.ERROR, code=556), {"states": ["dns"], "fallback": True}, True),
        (refused(State.RCPTTO, 550), {}, False),
        (refused(State.RCPTTO, 550), {"codes": [550], "fallback": True}, True),
        (refused(State.RCPTTO, 550), {"domains": ["a.test"], "fallback": True}, False),
        (refused(State.RCPTTO, 450), {"classes": [70], "fallback": True}, True),
        (refused(State.RCPTTO, 450), {"classes": [51], "fallback": True}, False),
        (Failure(State.CONNECT, Kind.TIMEOUT), {"classes": [24], "fallback": False}, False),
    ],
)
def test_what_falls_back(failure, keys, falls):
    assert meaning(**keys).falls_back(JOB, failure, Trail()) is falls


def test_what_falls_back_by_class_is_told_so():
    reply = read_reply("554 5.7.1 IP=192.0.2.1 (BL)")
    mine = meaning(classes=[51], fallback=True)
    failure, trail = Failure(State.RCPTTO, Kind.ERROR, reply=reply), Trail(facts={"mta": "mx00.t-online.de"})

    assert mine.falls_back(JOB, failure, trail)
    assert reading(JOB, failure, trail, mine).effects.patterns == ("mine",)


def test_what_is_final_by_class_keeps_others_from_falling_back():
    keys = [{"id": "a", "classes": [70], "final": True, "priority": 1}, {"id": "b", "codes": ["4xx"], "fallback": True}]
    mine = Interpreter(RULES, patterns_of([PatternConfig.model_validate(each) for each in keys]))

    assert not mine.falls_back(JOB, refused(State.RCPTTO, 450), Trail())
    assert mine.falls_back(JOB, Failure(State.RCPTTO, Kind.ERROR, reply=Reply(452, "4.2.2", "over quota")), Trail())


def test_only_patterns_that_fall_back_by_class_are_told_it():
    assert not meaning().patterns.fall_back_by_class
    assert not meaning(codes=[450], fallback=True).patterns.fall_back_by_class
    assert not meaning(classes=[70], retry=5).patterns.fall_back_by_class
    assert meaning(classes=[70], fallback=True).patterns.fall_back_by_class


@pytest.mark.parametrize("text", GREYLISTING)
def test_greylisting_is_recognised(text):
    for state in (State.INTRO, State.MAILFROM, State.RCPTTO, State.DATA, State.MESSAGE):
        for code in (421, 450, 451):
            assert answered(Reply(code, "4.7.1", text), state=state).flags.greylisted
    assert not answered(Reply(550, "5.7.1", text)).flags.greylisted


@pytest.mark.parametrize(
    "text",
    ["try again later", "Too many connections", "mailbox full", "Requested mail action aborted", "Access denied"],
)
def test_other_trouble_is_not_greylisting(text):
    assert not answered(Reply(451, "4.7.1", text)).flags.greylisted


def test_the_rules_about_greylisting_and_no_others_say_that_it_is():
    for rule in RULES.rules:
        hosts = RULES.host_of(rule.provider)
        for text in rule.examples:
            found = answered(read_reply(text), hosts)
            assert found.flags.greylisted is found.classification.greylisting, text
            assert found.flags.greylisted is rule.greylisting, text
        for text in rule.counters if rule.greylisting else ():
            assert not answered(read_reply(text), hosts).flags.greylisted, text
    assert {rule.id for rule in RULES.rules if rule.greylisting} == {
        "greylist", "mimecast-greylist", "exchange-greylist",
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "451 4.3.2 Please try again in 300 seconds",
        "450 Come back after 5 minutes",
        "421 Too many connections, try again in 10 min.",
        "451 4.7.1 Message temporarily delayed by policy",
    ],
)
def test_a_time_to_come_back_is_not_greylisting(text):
    found = answered(read_reply(text))

    assert (found.flags.greylisted, found.classification.number) == (False, 70)
    assert "greylist" not in found.classification.rule


def test_greylisting_decides_whatever_else_is_said():
    found = answered(read_reply("450 4.7.1 Greylisted: cannot find your reverse hostname; listed by dnsbl.example"))

    assert (found.classification.rule, found.flags.greylisted) == ("greylist", True)


def test_a_rule_of_ones_own_may_be_about_greylisting():
    own = """
version = "own.1"
[[rule]]
id = "own"
class = 70
code = "4xx"
text = 'un autre fois'
greylisting = {}
source = "our own"
"""
    for greylisting in ("true", "false"):
        mine = Interpreter(Ruleset.load([own.format(greylisting), bounces()]), patterns_of(()))
        found = answered(Reply(451, None, "un autre fois"), by=mine)
        assert found.flags.greylisted is (greylisting == "true")


def test_an_expired_job_is_not_greylisted():
    greylisted = {"code": 451, "status": "4.7.1", "description": "Greylisted, come back later"}

    assert reading(after(greylisted), EXPIRED).classification.rule == "greylist"
    assert not reading(after(greylisted), EXPIRED).flags.greylisted


def test_doubt_never_falls_back_but_an_answer_ends_it():
    everything = meaning(fallback=True)
    assert not everything.falls_back(JOB, Failure(State.MESSAGE, Kind.LOST), Trail(in_doubt=True))
    assert everything.falls_back(JOB, refused(State.MESSAGE, 451), Trail(in_doubt=True))


def test_replaced_rules_and_patterns_hold_from_then_on():
    mine, newest = meaning(), meaning(codes=[450], retry=5)
    result = failed(Trail(), refused(State.RCPTTO, 450), time=NOW, attempt=1)
    assert mine.of(JOB, result).effects.patterns == ()

    mine.replace(newest)

    assert mine.of(JOB, result).effects.patterns == ("mine",)


def test_only_patterns_that_say_so_pause():
    assert not meaning().patterns.pauses
    assert not meaning(codes=[450], individual=True).patterns.pauses
    assert meaning(codes=[450], individual=False).patterns.pauses
    assert (len(meaning().patterns), len(meaning(codes=[450], retry=5).patterns)) == (0, 1)

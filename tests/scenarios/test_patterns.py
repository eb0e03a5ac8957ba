"""Response patterns, inferred flags and deadlines through the whole worker: each action and flag once."""

from datetime import UTC, datetime, timedelta

import orjson
import pytest
from support.system import until

from mailq.core.states import State
from mailq.core.times import format_time, parse_time
from mailq.core.traffic import pause
from mailq.sink.behaviours import Action, Behaviour

SOURCES = [{"ip": f"127.0.0.{number}"} for number in range(11, 19)]


def pattern(**keys):
    return [{"id": "mine", **keys}]


def wait(document):
    """Return the seconds between the last attempt and the next."""
    return (parse_time(document["nextattempt"]["time"]) - parse_time(document["results"][-1]["time"])).total_seconds()


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"fatal": True}, {"fatal": True}),
        ({"fail": True}, {}),
        ({"fail": True, "individual": False, "strange": True}, {"individual": False, "strange": True}),
    ],
)
async def test_a_pattern_gives_up_on_4xx(keys, told, system, sink):
    mail = await system(await sink(), patterns=pattern(codes=["45x"], contains="AS ASKED", **keys))

    await mail.send(recipient="tempfail-450@a.test")

    result = (await mail.get("failures"))["results"][0]
    flags = ("fatal", "individual", "strange", "greylisted", "fallback")
    assert {name: result[name] for name in flags if name in result} == told
    assert (result["code"], result["patterns"]) == (450, ["mine"])
    assert "expired" not in result
    assert await mail.rabbit.count("retry") == 0


@pytest.mark.parametrize(("keys", "seconds"), [({"retry": 77}, 77), ({"fatal": False}, 600)])
async def test_a_pattern_goes_on_after_5xx(keys, seconds, system, sink):
    mail = await system(await sink(), patterns=pattern(statuses=["5.1.1"], **keys))

    await mail.send(recipient="reject-550@a.test", retries=[600])

    document = await mail.get("retry")
    assert seconds <= wait(document) <= seconds + 1
    assert document["results"][0]["patterns"] == ["mine"]
    assert await mail.rabbit.count("failures") == 0


async def test_a_pattern_is_only_for_what_its_triggers_say(system, sink):
    mail = await system(await sink(), patterns=pattern(tags=["urgent"], domains=["a.test"], states=["rcptto"], retry=5))

    for tags, domain in ((["urgent"], "b.test"), (["slow"], "a.test"), ([], "a.test")):
        await mail.send(recipient=f"reject-550@{domain}", tags=tags)
        assert "patterns" not in (await mail.get("failures"))["results"][0]
    await mail.send(recipient="reject-550-data@a.test", tags=["urgent"])
    assert "patterns" not in (await mail.get("failures"))["results"][0]
    await mail.send(recipient="reject-550@a.test", tags=["urgent"], retries=[600])
    assert (await mail.get("retry"))["results"][0]["patterns"] == ["mine"]


async def test_fallback_goes_to_the_next_target_now(system, sink):
    first = await sink(host="127.0.0.2", faults=["rcptto=550"])
    second = await sink(host="127.0.0.3", port=first.port)
    mail = await system(first, patterns=pattern(states=["rcptto"], codes=[550], fallback=True))

    await mail.send(recipient="accept@twomx.test")

    result = (await mail.get("success"))["results"][0]
    assert (result["attempt"], result["to"]) == (1, "127.0.0.3")
    assert (first.connections, len(second.messages)) == (1, 1)


async def test_without_fallback_a_refused_connection_is_the_end_of_the_attempt(system, sink):
    first = await sink(host="127.0.0.2", faults=["intro=554"])
    second = await sink(host="127.0.0.3", port=first.port)
    mail = await system(first, patterns=pattern(states=["intro"], fallback=False))

    await mail.send(recipient="accept@twomx.test")

    result = (await mail.get("failures"))["results"][0]
    assert (result["to"], result["fallback"]) == ("127.0.0.2", False)
    assert second.connections == 0


@pytest.mark.parametrize("patterns", [[], pattern(contains="greylisted", greylisted=True)])
async def test_greylisted_jobs_come_back_from_the_same_source(patterns, system, sink):
    mail = await system(await sink(), sources=SOURCES, patterns=patterns)

    for number in range(6):
        await mail.send(recipient=f"greylist+{number}@a.test", envelope=f"{number}@a.test", retries=[1])

    for _ in range(6):
        first, second = (await mail.get("success"))["results"]
        assert first["from"] == second["from"]


async def test_greylisting_is_tried_again_sooner(system, sink):
    mail = await system(await sink())

    await mail.send(recipient="greylist@a.test", retries=[3000])

    assert 300 <= wait(await mail.get("retry")) <= 301


async def test_the_time_that_a_server_names_is_kept(system, sink):
    receiver = await sink()
    receiver._options.faults[State.RCPTTO] = Behaviour(
        State.RCPTTO, Action.ANSWER, 451, text="Rate limit reached, try again in 2 minutes"
    )
    mail = await system(receiver)

    await mail.send(recipient="accept@a.test", retries=[3000])

    assert 120 <= wait(await mail.get("retry")) <= 121


async def test_properties_tags_and_addresses_are_changed_for_the_next_attempt(system, sink):
    mail = await system(
        await sink(),
        sources=SOURCES,
        patterns=pattern(
            codes=["4xx"],
            set_message={"/maxattempts": 2, "/own/seen": True},
            set_result={"/bounce-type": "slow"},
            add_tags=["late"],
            set_ips=["127.0.0.6"],
            retry=1,
        ),
    )

    await mail.send(recipient="tempfail-450@a.test", tags=["news"])

    document = await mail.get("failures")
    first, second = document["results"]
    assert (first["bounce-type"], second["bounce-type"]) == ("slow", "slow")
    assert (second["from"], second["expired"]) == ("127.0.0.6", True)
    assert (document["own"], document["tags"], document["ips"]) == ({"seen": True}, ["news", "late"], ["127.0.0.6"])


async def test_the_more_important_pattern_decides(system, sink):
    patterns = [
        {"id": "less", "codes": ["4xx"], "retry": 10, "strange": True},
        {"id": "more", "codes": ["450"], "retry": 1000, "priority": 5},
        {"id": "hidden", "codes": ["450"], "fallback": True, "priority": -1},
    ]
    patterns[0]["final"] = True
    mail = await system(await sink(), patterns=patterns)

    await mail.send(recipient="tempfail-450@a.test")

    document = await mail.get("retry")
    assert document["results"][0]["patterns"] == ["more", "less"]
    assert document["results"][0]["strange"] is True
    assert 1000 <= wait(document) <= 1001


async def test_the_last_attempt_falls_before_useful_until(system, sink):
    mail = await system(await sink())
    until = (datetime.now(UTC) + timedelta(seconds=300)).replace(microsecond=0)

    await mail.send(recipient="tempfail-450@a.test", retries=[600], useful_until=format_time(until))

    planned = parse_time((await mail.get("retry"))["nextattempt"]["time"])
    assert until - timedelta(seconds=60) < planned < until


async def test_a_job_fails_early_when_no_useful_attempt_is_left(system, sink):
    mail = await system(await sink())
    until = format_time(datetime.now(UTC) + timedelta(seconds=40))

    await mail.send(recipient="tempfail-450@a.test", retries=[600], useful_until=until)

    result = (await mail.get("failures"))["results"][0]
    assert (result["code"], result["expired"]) == (450, True)


async def test_a_job_that_is_due_when_it_is_of_no_use_fails_at_once(system, sink):
    mail = await system(await sink())
    now = datetime.now(UTC)
    times = {"nextattempt": {"time": format_time(now + timedelta(hours=1))}}

    await mail.send(recipient="accept@a.test", useful_until=format_time(now + timedelta(seconds=90)), **times)

    result = (await mail.get("failures"))["results"][0]
    assert (result["state"], result["result"], result["code"]) == ("process", "timeout", 554)
    assert mail.seen.parks == 0


async def test_a_job_that_limits_send_away_comes_back_while_it_is_of_use(system, sink, rabbit):
    mail = await system(await sink(), limits=[{"message_rate": 1 / 3600}])
    until = (datetime.now(UTC) + timedelta(seconds=90)).replace(microsecond=0)
    await mail.send(recipient="accept+1@a.test")
    await mail.get("success")

    await mail.send(recipient="accept+2@a.test", useful_until=format_time(until))
    delayed = orjson.loads((await rabbit.get("outbox.delay.1m")).body)
    await mail.send(recipient="accept+3@a.test", useful_until=format_time(datetime.now(UTC) + timedelta(seconds=8)))

    assert until - timedelta(seconds=30) < parse_time(delayed["nextattempt"]["time"]) < until
    assert (await mail.get("failures"))["results"][0]["code"] == 554


@pytest.mark.parametrize("target", ["refuses", "is left alone"])
async def test_a_source_triggers_patterns_before_there_is_a_connection(system, sink, target):
    sources = [{"ip": "127.0.0.11", "pool": "p"}]
    patterns = pattern(sources=["127.0.0.11"], pools=["p"], states=["connect"], add_tags=["x"])
    mail = await system(await sink(host="127.0.0.3"), sources=sources, patterns=patterns)
    for number in range(5 if target == "is left alone" else 1):
        await mail.send(recipient=f"accept+{number}@c.test", retries=[3600])
        document = await mail.get("retry")

    assert document["tags"] == ["x"]
    assert document["results"][0]["from"] == "127.0.0.11"
    assert ("untried" in document["results"][0]) is (target == "is left alone")


async def test_doubt_is_a_failure_where_the_job_says_so(system, sink):
    receiver = await sink()
    mail = await system(receiver)

    await mail.send(recipient="drop-after-dot@a.test", on_doubt="fail")

    result = (await mail.get("failures"))["results"][0]
    assert (result["state"], result["result"], result["in_doubt"]) == ("message", "lost", True)
    assert "expired" not in result


async def test_what_is_not_individual_stops_its_whole_destination(system, sink):
    receiver = await sink()
    mail = await system(receiver, patterns=pattern(codes=[450], individual=False), results={"delays": True})
    await mail.send(recipient="tempfail-450@a.test", retries=[600])
    assert (await mail.get("retry"))["results"][0]["individual"] is False

    for number in range(5):
        await mail.send(recipient=f"accept+{number}@a.test")
    await until(lambda: mail.seen.parks == 5)
    told = [(await mail.get("retry"))["results"][0] for _ in range(5)]
    assert {(each["code"], each["delayed"]) for each in told} == {(451, "pause")}

    assert len(mail.seen.attempts) == 1
    assert receiver.messages == []
    await mail.send(recipient="accept@b.test")  # of another site
    assert (await mail.get("success"))["recipient"] == "accept@b.test"


async def test_the_destination_is_free_again_when_the_message_that_met_it_is_tried_again(system, sink, monkeypatch):
    monkeypatch.setattr(pause, "LEAST", 1.0)
    mail = await system(await sink(), patterns=pattern(states=["rcptto"], individual=False))
    await mail.send(recipient="greylist@a.test", retries=[1])
    await mail.get("retry")

    await mail.send(recipient="accept@a.test")

    documents = {document["recipient"]: document for document in [await mail.get("success"), await mail.get("success")]}
    assert mail.seen.parks >= 1
    assert len(documents["greylist@a.test"]["results"]) == 2
    assert len(documents["accept@a.test"]["results"]) == 1  # to be sent away is no attempt


async def test_a_pause_is_for_a_pool_and_its_site_alone(system, sink):
    sources = [{"ip": "127.0.0.11", "pool": "bulk"}, {"ip": "127.0.0.12", "pool": "bulk"}, {"ip": "127.0.0.13"}]
    mail = await system(await sink(), sources=sources, patterns=pattern(codes=[450], individual=False))
    await mail.send(recipient="tempfail-450@a.test", pool="bulk", retries=[600])
    await mail.get("retry")

    await mail.send(recipient="accept+1@a.test", pool="bulk")
    await until(lambda: mail.seen.parks == 1)
    for number in range(4):
        await mail.send(recipient=f"accept+{number}@a.test")

    for _ in range(4):
        assert (await mail.get("success"))["results"][0]["from"] == "127.0.0.13"


async def test_what_is_inferred_or_gives_up_stops_no_other_message(system, sink):
    receiver = await sink()
    mail = await system(receiver, patterns=pattern(codes=[550], individual=False))

    await mail.send(recipient="tempfail-421@a.test")
    await mail.get("retry")
    await mail.send(recipient="reject-550@a.test")
    assert (await mail.get("failures"))["results"][0]["individual"] is False
    await mail.send(recipient="accept@a.test")

    assert (await mail.get("success"))["recipient"] == "accept@a.test"
    assert mail.seen.parks == 0


@pytest.mark.parametrize("pool", [None, "bulk"])
async def test_a_pinned_source_holds_for_pools_and_one_that_is_gone_for_nothing(pool, system, sink):
    sources = [{**source, "pool": "bulk"} for source in SOURCES]
    mail = await system(await sink(), sources=sources)
    job = {"pool": pool} if pool else {}
    past = format_time(datetime.now(UTC) - timedelta(seconds=5))

    for number in range(6):
        await mail.send(recipient=f"accept+{number}@a.test", nextattempt={"time": past, "ip": "127.0.0.17"}, **job)
        assert (await mail.get("success"))["results"][0]["from"] == "127.0.0.17"
    await mail.send(recipient="accept@a.test", nextattempt={"time": past, "ip": "192.0.2.1"}, **job)
    assert (await mail.get("success"))["results"][0]["from"] in {source["ip"] for source in SOURCES}

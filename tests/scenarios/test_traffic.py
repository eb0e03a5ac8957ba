"""Sessions reused, limits kept, and one slow destination that starves nobody."""

import asyncio
import itertools
import time
from collections import Counter
from datetime import UTC, datetime, timedelta

import orjson
import pytest
from support.system import MIME, until

from mailq.core.states import Kind
from mailq.core.times import format_time
from mailq.edges.resolver import DnsResolver


async def publish(mail, recipients, **properties):
    async def one(recipient):
        body = {"recipient": recipient, "envelope": "a@a.test", "mime": MIME, "id": recipient, **properties}
        await mail.rabbit.publish("outbox", orjson.dumps(body))

    for start in range(0, len(recipients), 500):
        await asyncio.gather(*(one(recipient) for recipient in recipients[start : start + 500]))


async def documents(mail, queue, count, deadline=60.0):
    await mail.rabbit.wait_for_count(queue, count, deadline=deadline)
    return [orjson.loads(message.body) for message in await mail.rabbit.get_many(queue, count)]


async def test_a_session_carries_many_messages_and_results_count_them(system, sink):
    receiver = await sink(tls=True)
    mail = await system(receiver, limits=[{"connections": 1}])

    await publish(mail, [f"accept+{number}@a.test" for number in range(20)])

    results = [document["results"][0] for document in await documents(mail, "success", 20)]
    assert sorted(result["messages"] for result in results) == list(range(1, 21))
    assert len({result["session"] for result in results}) == 1
    assert all(result["cipher"] and result["mta"] for result in results)
    assert {message.session.connection for message in receiver.messages} == {1}


async def test_a_session_ends_after_so_many_messages(system, sink):
    receiver = await sink()
    mail = await system(receiver, limits=[{"connections": 1, "messages_per_session": 3}])

    await publish(mail, [f"accept+{number}@a.test" for number in range(7)])

    await documents(mail, "success", 7)
    carried = Counter(message.session.connection for message in receiver.messages)
    assert sorted(carried.values()) == [1, 3, 3]


async def test_a_domain_that_shares_sessions_keeps_its_own_limit_of_messages(system, sink):
    receiver = await sink()
    overrides = {"a.test": ("127.0.0.1",), "b.test": ("127.0.0.1",)}
    limits = [{"connections": 1}, {"domain": "b.test", "messages_per_session": 2}]
    mail = await system(receiver, dns={"overrides": overrides}, limits=limits)

    await publish(mail, [f"accept+{number}@{'b' if number % 4 == 3 else 'a'}.test" for number in range(40)])

    done = await documents(mail, "success", 40)
    places = {"a": [], "b": []}
    for document in done:
        places[document["recipient"].partition("@")[2][0]].append(document["results"][0]["messages"])
    assert len(places["b"]) == 10
    assert max(places["b"]) <= 2 < max(places["a"])
    assert receiver.most_sessions == 1


async def test_a_refused_message_leaves_the_session_in_use_and_nothing_of_it_in_the_next(system, sink):
    receiver = await sink()
    mail = await system(receiver, limits=[{"connections": 1}])

    await mail.send(recipient="reject-550@a.test", envelope="first@a.test", mime="Subject: first\n\nsecret\n")
    refused = (await mail.get("failures"))["results"][0]
    await mail.send(recipient="accept@a.test", envelope="second@a.test")
    taken = (await mail.get("success"))["results"][0]

    assert taken["session"] == refused["session"]
    assert taken["messages"] == 2
    (message,) = receiver.messages
    assert message.sender == "second@a.test"
    assert [recipient.address for recipient in message.recipients] == ["accept@a.test"]
    assert b"secret" not in message.content


async def test_a_session_that_the_peer_closed_costs_no_attempt(system, sink):
    receiver = await sink(timeout=0.5)
    mail = await system(receiver, limits=[{"idle_timeout": 60}])

    await mail.send(recipient="accept+1@a.test")
    first = (await mail.get("success"))["results"]
    await asyncio.sleep(1)  # the receiver's own idle timeout
    await mail.send(recipient="accept+2@a.test")
    second = (await mail.get("success"))["results"]

    assert len(second) == 1
    assert second[0]["session"] != first[0]["session"]
    assert second[0]["messages"] == 1


async def test_idle_sessions_are_closed_with_quit(system, sink):
    receiver = await sink()
    mail = await system(receiver, limits=[{"idle_timeout": 0.1}])

    await mail.send(recipient="accept@a.test")
    await mail.get("success")

    await until(lambda: mail.worker.sessions == 0, deadline=5)


async def test_identities_never_share_a_session(system, sink):
    receiver = await sink(tls=True, users={"anna": "a", "bert": "b"})
    mail = await system(9, limits=[{"idle_timeout": 60}])
    wanted = {}
    for number in range(10):
        user, password = [("anna", "a"), ("bert", "b"), (None, None)][number % 3]
        smarthost = {"hostname": "127.0.0.1", "port": receiver.port}
        login = {"username": user, "password": password} if user else {}
        wanted[f"accept+{number}@a.test"] = user
        await mail.send(recipient=f"accept+{number}@a.test", smarthost=smarthost | login)
        await mail.get("success")

    seen = {message.recipients[0].address: message.session.user for message in receiver.messages}
    assert seen == wanted


async def test_one_connection_is_one_connection(system, sink):
    receiver = await sink()
    mail = await system(receiver, limits=[{"connections": 1, "messages_per_session": 2}])

    await publish(mail, [f"slow-5+{number}@a.test" for number in range(30)])

    await documents(mail, "success", 30)
    assert receiver.most_sessions == 1


@pytest.mark.alone
async def test_a_message_rate_is_kept_and_used(system, sink):
    receiver = await sink()
    mail = await system(receiver, limits=[{"message_rate": "20/s"}])

    await publish(mail, [f"accept+{number}@a.test" for number in range(80)])

    await documents(mail, "success", 80)
    moments = sorted(message.time.timestamp() for message in receiver.messages)
    for first, last in itertools.combinations(range(len(moments)), 2):
        assert last - first + 1 <= (moments[last] - moments[first]) * 20 + 2.5
    assert moments[-1] - moments[0] < 80 / 20 * 1.5 + 1


async def test_domains_of_one_site_share_its_limit(system, sink):
    receiver = await sink()
    overrides = {f"d{number}.test": ("127.0.0.1",) for number in range(4)}
    mail = await system(receiver, dns={"overrides": overrides}, limits=[{"connections": 1}])

    await publish(mail, [f"slow-5+{number}@d{number % 4}.test" for number in range(20)])

    await documents(mail, "success", 20)
    assert receiver.most_sessions == 1


@pytest.mark.alone
async def test_a_domains_own_rate_does_not_slow_its_site(system, sink):
    receiver = await sink()
    overrides = {"*": (f"127.0.0.1:{receiver.port}",)}
    limits = [{"message_rate": "20/s"}, {"domain": "b.test", "message_rate": "1/s"}]
    mail = await system(receiver, dns={"overrides": overrides}, limits=limits)
    others = [f"accept+{number}@a.test" for number in range(40)]

    await publish(mail, [f"accept+{number}@b.test" for number in range(30)])
    began = time.monotonic()
    await publish(mail, others)

    await until(lambda: {message.recipient for message in receiver.messages}.issuperset(others), deadline=30)
    assert time.monotonic() - began < 40 / 20 * 1.5 + 2
    slow = sum(message.recipient.endswith("@b.test") for message in receiver.messages)
    assert slow <= time.monotonic() - began + 3


async def test_a_domains_own_limit_of_connections_holds_beside_the_sessions_of_its_site(system, sink):
    receiver = await sink()
    overrides = {"*": (f"127.0.0.1:{receiver.port}",)}
    mail = await system(receiver, dns={"overrides": overrides}, limits=[{"domain": "b.test", "connections": 1}])

    await publish(mail, [f"slow-50+{number}@{domain}.test" for number in range(30) for domain in "ab"])

    results = [(each["recipient"], each["results"][0]) for each in await documents(mail, "success", 60)]
    own = {result["session"] for recipient, result in results if recipient.endswith("@b.test")}
    others = {result["session"] for recipient, result in results if recipient.endswith("@a.test")}
    assert len(own) == 1
    assert len(others) > 1
    assert own.isdisjoint(others)


async def test_the_rate_of_one_source_does_not_slow_another(system, sink):
    receiver = await sink()
    sources = [{"ip": "127.0.0.1"}, {"ip": "127.0.0.2"}]
    mail = await system(receiver, sources=sources, limits=[{"source": "127.0.0.1", "message_rate": "1/s"}])

    began = time.monotonic()
    await publish(mail, [f"accept+{number}@a.test" for number in range(60)])

    results = [document["results"][0] for document in await documents(mail, "success", 60, deadline=40)]
    seconds = time.monotonic() - began
    sent = Counter(result["from"] for result in results)
    assert sent["127.0.0.1"] <= seconds + 2
    assert sent["127.0.0.2"] > 30
    assert seconds < 40  # one a second for all would take a minute


async def test_a_providers_limit_holds_for_a_host_that_an_override_names_with_its_port(system, sink):
    receiver = await sink()
    overrides = {f"d{number}.test": (f"mx.a.test:{receiver.port}",) for number in range(4)}
    mail = await system(receiver, dns={"overrides": overrides}, limits=[{"mx": "a.test", "connections": 1}])

    await publish(mail, [f"slow-5+{number}@d{number % 4}.test" for number in range(20)])

    await documents(mail, "success", 20)
    assert receiver.most_sessions == 1


@pytest.mark.alone
async def test_a_slow_destination_does_not_starve_the_others(system, sink):
    """Three thousand jobs for a site limited to one message a second stand before three hundred for others."""
    receiver = await sink()
    mail = await system(receiver, limits=[{"domain": "b.test", "message_rate": "1/s"}], worker={"prefetch": 100})
    await mail.stop()
    await publish(mail, [f"accept+{number}@b.test" for number in range(3000)])
    await publish(mail, [f"accept+{number}@a.test" for number in range(300)])
    mail = await mail_again(system, receiver)

    started = time.monotonic()
    await until(lambda: sum(m.recipients[0].address.endswith("@a.test") for m in receiver.messages) == 300, 60)

    assert time.monotonic() - started < 30 * 0.3
    slow = [message for message in receiver.messages if message.recipients[0].address.endswith("@b.test")]
    assert len(slow) <= time.monotonic() - started + 3
    assert mail.seen.parks > 2700


@pytest.mark.alone
async def test_a_destination_that_is_not_so_slow_does_not_fill_the_window(system, sink):
    receiver = await sink()
    mail = await system(receiver, limits=[{"domain": "b.test", "message_rate": "50/s"}], worker={"prefetch": 150})
    await publish(mail, [f"accept+{number}@b.test" for number in range(600)])
    await publish(mail, [f"accept+{number}@a.test" for number in range(200)])

    await until(lambda: sum(m.recipient.endswith("@a.test") for m in receiver.messages) == 200, 40)
    assert sum(m.recipient.endswith("@b.test") for m in receiver.messages) < 300  # half of them
    await documents(mail, "success", 800)
    moments = sorted(m.time.timestamp() for m in receiver.messages if m.recipient.endswith("@b.test"))
    assert moments[-1] - moments[0] < 600 / 50 * 1.25


@pytest.mark.alone
async def test_many_slow_destinations_leave_room_in_memory_for_the_others(system, sink):
    receiver = await sink()
    sites = [f"slow{number}.test" for number in range(60)]
    limits = [{"domain": site, "message_rate": "1/s"} for site in sites]
    overrides = {"*": [f"127.0.0.1:{receiver.port}"]}
    mail = await system(receiver, limits=limits, worker={"prefetch": 100}, dns={"overrides": overrides})
    await publish(mail, [f"accept+{number}@{site}" for number in range(10) for site in sites])
    began = time.monotonic()
    await publish(mail, [f"accept+{number}@a.test" for number in range(300)])

    await until(lambda: sum(m.recipient.endswith("@a.test") for m in receiver.messages) == 300, 40)
    assert time.monotonic() - began < 4
    await documents(mail, "success", 900)


async def test_a_destination_that_never_greets_gives_way_to_the_others(system, sink):
    receiver, silent = await sink(), await sink(faults=["intro=stall"])
    overrides = {"*": [f"127.0.0.1:{receiver.port}"], "b.test": [f"127.0.0.1:{silent.port}"]}
    mail = await system(receiver, worker={"prefetch": 200, "drain_timeout": 0}, dns={"overrides": overrides})
    await publish(mail, [f"accept+{number}@b.test" for number in range(1500)])
    await publish(mail, [f"accept+{number}@a.test" for number in range(200)])
    began = time.monotonic()

    await until(lambda: receiver.accepted == 200, 60)
    assert time.monotonic() - began < 15  # a window of jobs after the other, 5 s each, takes 40


async def mail_again(system, receiver):
    return await system(
        receiver, limits=[{"domain": "b.test", "message_rate": "1/s"}], worker={"prefetch": 100, "drain_timeout": 5}
    )


async def test_postponed_jobs_come_back_without_an_attempt_spent(system, sink):
    receiver = await sink()
    mail = await system(receiver, limits=[{"message_rate": "2/s"}])

    await publish(mail, [f"accept+{number}@a.test" for number in range(24)])

    done = await documents(mail, "success", 24, deadline=60)
    assert mail.seen.parks > 0
    assert {result["attempt"] for document in done for result in document["results"]} == {1}
    assert all("nextattempt" not in document for document in done)


async def test_a_job_whose_time_is_over_before_its_turn_is_told_so_in_time(system, sink):
    mail = await system(await sink(), limits=[{"message_rate": "1/h"}])
    end = format_time(datetime.now(UTC) + timedelta(seconds=4))

    await publish(mail, [f"accept+{number}@a.test" for number in range(3)], maxdelivertime=end)

    results = [document["results"] for document in await documents(mail, "failures", 2, deadline=20)]
    assert [[(each["state"], each["result"]) for each in result] for result in results] == 2 * [
        [("process", "timeout")]
    ]


async def test_a_turn_that_never_comes_is_waited_for(system, sink):
    mail = await system(await sink(), limits=[{"message_rate": 1e-12}])

    await publish(mail, [f"accept+{number}@a.test" for number in range(3)])

    await mail.rabbit.wait_for_count("outbox.delay.24h", 2)
    await documents(mail, "success", 1)


async def test_a_destination_that_refuses_connections_is_left_alone(system, sink):
    receiver = await sink(host="127.0.0.3")
    mail = await system(receiver, limits=[{"connections": 1}])

    await publish(mail, [f"accept+{number}@c.test" for number in range(20)], retries=[3600])

    results = [document["results"][0] for document in await documents(mail, "retry", 20)]
    assert {(result["state"], result["result"]) for result in results} == {("connect", "error")}
    untried = [result for result in results if "untried" in result]
    assert len(untried) == 17
    assert all(0 < result["untried"] <= 30 for result in untried)
    assert {result["description"] for result in results} == {"Connection refused"}
    assert all(result["transcript"][-2].startswith("* not tried again; next probe in ") for result in untried)


async def test_who_did_not_try_gets_what_the_server_said_to_others(system, sink):
    """Patterns, classification and events take it for the server's words, which they are."""
    words = "as asked for at intro"
    receiver = await sink(faults=["intro=421"])
    patterns = [{"id": "busy", "exact": words, "add_tags": ["busy"]}]
    mail = await system(receiver, limits=[{"connections": 1}], patterns=patterns)

    await publish(mail, [f"accept+{number}@c.test" for number in range(5)], retries=[3600])

    done = await documents(mail, "retry", 5)
    results = [document["results"][0] for document in done]
    assert sum("untried" in result for result in results) == 2
    assert {(result["code"], result["description"]) for result in results} == {(421, words)}
    assert len({result["rule"] for result in results}) == 1
    assert all(document["tags"] == ["busy"] for document in done)


async def test_an_idle_session_makes_room_for_one_that_is_needed(system, sink):
    """One connection is allowed, and jobs by turns need it as somebody else."""
    receiver = await sink(tls=True, users={"anna": "a", "bert": "b"})
    mail = await system(9, limits=[{"connections": 1, "idle_timeout": 60}])
    smarthost = {"hostname": "127.0.0.1", "port": receiver.port}

    for number in range(4):
        user = {"username": "anna", "password": "a"} if number % 2 else {"username": "bert", "password": "b"}
        await mail.send(recipient=f"accept+{number}@a.test", smarthost=smarthost | user)
        await mail.get("success")

    assert mail.seen.parks == 0
    assert receiver.most_sessions == 1
    assert [message.session.user for message in receiver.messages] == ["bert", "anna", "bert", "anna"]


async def test_silent_name_servers_of_many_domains_keep_nobody_else_waiting(system, sink, knot, monkeypatch):
    query = DnsResolver._query

    async def silent(self, name, rdtype):
        if not name.endswith(".silent.test"):
            return await query(self, name, rdtype)
        await asyncio.sleep(self._config.lifetime)
        return self._trouble(Kind.TIMEOUT, "no answer")

    monkeypatch.setattr(DnsResolver, "_query", silent)
    mail = await system(await sink(), worker={"prefetch": 20}, dns={"servers": [knot.server], "lifetime": 12})
    began = time.monotonic()
    await publish(mail, [f"accept@d{number}.silent.test" for number in range(60)], retries=[3600])
    await publish(mail, ["accept@a.test"])

    await documents(mail, "success", 1)
    assert time.monotonic() - began < 12  # none of the questions has ended
    results = [document["results"][0] for document in await documents(mail, "retry", 60)]
    assert {(result["state"], result["result"], result["attempt"]) for result in results} == {("dns", "timeout", 1)}

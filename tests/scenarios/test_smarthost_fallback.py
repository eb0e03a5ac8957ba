"""`smarthost.fallback`: the smarthost gets what no MX target could be given, and nothing else."""

import pytest
from support.system import until

from mailq.config import Config
from mailq.core.traffic.breaker import THRESHOLD
from mailq.testbed.free_port import free_port


def smarthost(server, **keys):
    return {"hostname": "127.0.0.1", "port": server.port, "fallback": True, **keys}


async def test_an_unreachable_domain_goes_through_the_smarthost_in_the_same_attempt(system, sink):
    relay = await sink()
    mail = await system(free_port(), smarthost=smarthost(relay))

    await mail.send(recipient="accept@twomx.test")

    result = (await mail.get("success"))["results"][0]
    assert (result["attempt"], result["to"]) == (1, "127.0.0.1")
    assert [message.recipient for message in relay.messages] == ["accept@twomx.test"]


@pytest.mark.parametrize("fault", ["intro=421", "ehlo=drop", "rcptto=421"])
async def test_trouble_of_the_connection_falls_back(fault, system, sink):
    receiver, relay = await sink(faults=[fault]), await sink()
    mail = await system(receiver, smarthost=smarthost(relay))

    await mail.send(recipient="accept@a.test")

    assert (await mail.get("success"))["results"][0]["code"] == 250
    assert receiver.connections > 0
    assert len(relay.messages) == 1


async def test_an_answer_about_the_recipient_does_not_fall_back(system, sink):
    receiver, relay = await sink(), await sink()
    mail = await system(receiver, smarthost=smarthost(relay))

    await mail.send(recipient="reject-550@a.test")
    assert (await mail.get("failures"))["results"][0]["code"] == 550
    await mail.send(recipient="tempfail-450@a.test")
    assert (await mail.get("retry"))["results"][0]["code"] == 450
    await mail.send(recipient="accept@a.test")
    await mail.get("success")

    assert (relay.connections, len(receiver.messages)) == (0, 1)


async def test_a_pattern_sends_a_refused_message_through_the_smarthost(system, sink):
    receiver, relay = await sink(faults=["rcptto=550"]), await sink()
    mail = await system(
        receiver, smarthost=smarthost(relay), patterns=[{"id": "blocked", "states": ["rcptto"], "fallback": True}]
    )

    await mail.send(recipient="accept@a.test")

    await mail.get("success")
    assert len(relay.messages) == 1


async def test_what_may_have_been_taken_never_falls_back(system, sink):
    receiver, relay = await sink(), await sink()
    mail = await system(receiver, smarthost=smarthost(relay), patterns=[{"id": "all", "fallback": True}])

    await mail.send(recipient="drop-after-dot@a.test")

    assert (await mail.get("retry"))["results"][0]["in_doubt"] is True
    assert relay.connections == 0


async def test_doubt_at_the_smarthost_is_told(system, sink):
    receiver, relay = await sink(faults=["message=421"]), await sink(faults=["message=drop"])
    mail = await system(receiver, smarthost=smarthost(relay), delivery={"on_doubt": "fail"})

    await mail.send(recipient="accept@a.test")

    result = (await mail.get("failures"))["results"][0]
    assert (result["state"], result["result"], result["in_doubt"]) == ("message", "lost", True)


async def test_dns_trouble_that_may_pass_falls_back_and_a_domain_that_is_not_does_not(system, sink):
    relay = await sink()
    mail = await system(9, smarthost=smarthost(relay))

    await mail.send(recipient="accept@broken.test")
    assert (await mail.get("success"))["recipient"] == "accept@broken.test"
    await mail.send(recipient="accept@gone.test")
    assert (await mail.get("failures"))["results"][0]["state"] == "dns"

    assert len(relay.messages) == 1


@pytest.mark.parametrize("login", [{}, {"username": "anna", "password": "falsch", "plaintext_auth": True}])
async def test_a_smarthost_that_takes_nothing_makes_nothing_worse(login, system, sink):
    relay = await sink(users={"anna": "geheim"}, plaintext_auth=True, faults=[] if login else ["intro=554"])
    mail = await system(free_port(), smarthost=smarthost(relay, **login))

    await mail.send(recipient="accept@a.test")

    result = (await mail.get("retry"))["results"][0]
    assert (result["state"], result["code"]) == ("connect", 451)
    assert relay.connections == 1


async def test_a_login_that_the_smarthost_refuses_delays_nobody_without_a_result(system, sink):
    relay = await sink(users={"anna": "geheim"}, plaintext_auth=True)
    mail = await system(
        free_port(), smarthost=smarthost(relay, username="anna", password="falsch", plaintext_auth=True)
    )

    for number in range(THRESHOLD + 3):
        await mail.send(recipient=f"accept-{number}@a.test")
        assert (await mail.get("retry"))["results"][0]["state"] == "connect"

    assert relay.connections == THRESHOLD
    assert mail.seen.parks == 0


async def test_the_smarthosts_answer_about_the_message_is_told(system, sink):
    relay = await sink()
    mail = await system(free_port(), smarthost=smarthost(relay))

    await mail.send(recipient="reject-550@a.test")

    result = (await mail.get("failures"))["results"][0]
    assert (result["state"], result["code"]) == ("rcptto", 550)


async def test_a_jobs_own_smarthost_is_not_replaced(system, sink):
    relay = await sink()
    mail = await system(9, smarthost=smarthost(relay))

    await mail.send(recipient="accept@a.test", smarthost={"hostname": "127.0.0.1", "port": free_port()})

    assert (await mail.get("retry"))["results"][0]["state"] == "connect"
    await until(lambda: len(mail.seen.ends) == 1)
    assert relay.connections == 0


def test_there_must_be_a_smarthost_to_fall_back_to():
    with pytest.raises(ValueError, match="fallback needs a hostname"):
        Config.model_validate({"smarthost": {"fallback": True}})

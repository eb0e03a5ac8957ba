"""`mailq webhooks` with a real RabbitMQ and real HTTP servers that fail, hang, vanish and come back."""

import asyncio
import hashlib
import hmac
import time
from base64 import urlsafe_b64encode

import orjson
import pytest
from support.hooks import SECRET, document, until
from support.proxy import Proxy

from mailq.core.broker.messages import Publication
from mailq.core.webhooks import events
from mailq.edges.amqp.publisher import Publisher
from mailq.edges.webhook_client import Poster
from mailq.ports.broker import OversizedError
from mailq.webhooks.endpoint_queue import EndpointQueue


async def test_an_event_is_signed_and_says_everything(hooks, receiver):
    crm = await receiver()
    running = await hooks({"service_url": "https://mail.example", "account": "acme"},
                          crm={"url": crm.url, "emailengine_signature": True})  # fmt: skip
    await running.tell("job-1", tags=["news"], order=42)
    await until(lambda: crm.taken)
    (request,) = crm.requests
    (event,) = request.events
    assert event["event"] == "messageSent"
    assert (event["serviceUrl"], event["account"]) == ("https://mail.example", "acme")
    assert event["data"].pop("messageId").endswith("@mailq.invalid>")
    assert event["data"] == {
        "queueId": "job-1",
        "envelope": {"from": "a@a.test", "to": ["job-1@b.test"]},
        "response": "250 2.0.0 ok",
    }
    assert event["x-mailq"]["result"] == document("job-1")["results"][0]
    assert (event["x-mailq"]["tags"], event["x-mailq"]["properties"]) == (["news"], {"order": 42})
    assert request.headers["Idempotency-Key"] == event["x-mailq"]["id"]
    assert (request.headers["Content-Type"], request.headers["X-Mailq-Event"]) == ("application/json", "messageSent")
    moment, mac = (part.partition("=")[2] for part in request.headers["X-Mailq-Signature"].split(","))
    assert abs(int(moment) - time.time()) < 10
    expected = hmac.new(SECRET.encode(), moment.encode() + b"." + request.body, hashlib.sha256).hexdigest()
    assert mac == expected
    digest = hmac.new(SECRET.encode(), request.body, hashlib.sha256).digest()
    assert request.headers["X-EE-Wh-Signature"] == urlsafe_b64encode(digest).rstrip(b"=").decode()
    await running.rabbit.wait_for_count("webhooks.crm", 0)


async def test_filters_choose_by_event_category_and_tag(hooks, receiver):
    failed, soft, news, everything = [await receiver() for _ in range(4)]
    running = await hooks(
        failed={"url": failed.url, "events": ["messageFailed"]},
        soft={"url": soft.url, "events": ["messageDeliveryError"], "categories": ["soft"]},
        news={"url": news.url, "tags": ["news", "press"]},
        everything={"url": everything.url},
    )
    await running.tell("sent", tags=["news"])
    await running.tell("failed", last="failed", tags=["other"])
    await running.tell("again", last="retry")
    classified = document("soft", last="retry")
    classified["results"][-1]["category"] = "soft"
    await running.broker.publish([Publication("mailq", "retry.soft.greylisted", orjson.dumps(classified))])
    await until(lambda: len(everything.taken) == 5)  # the last failed attempt makes two events
    await until(lambda: failed.taken and soft.taken and news.taken)
    names = {each: [job for job, _ in each_receiver.jobs()] for each, each_receiver in
             {"failed": failed, "soft": soft, "news": news}.items()}  # fmt: skip
    assert names == {"failed": ["failed"], "soft": ["soft"], "news": ["sent"]}
    for name in ("failed", "soft", "news", "everything"):
        await running.rabbit.wait_for_count(f"webhooks.{name}", 0)


async def test_an_endpoint_that_fails_is_paused_and_gets_everything_in_order_of_each_job(hooks, receiver):
    crm = await receiver(answers=[500, 503, 429])
    running = await hooks(crm={"url": crm.url})
    for attempt in (1, 2, 3):
        for job in ("a", "b"):
            await running.tell(job, attempt, last="accepted" if attempt == 3 else "retry")
    await until(lambda: len(crm.taken) == 6)
    assert [attempt for job, attempt in crm.jobs() if job == "a"] == [1, 2, 3]
    assert [attempt for job, attempt in crm.jobs() if job == "b"] == [1, 2, 3]
    assert len(running.watching.pauses) == 3
    assert [seconds for _, seconds, _ in running.watching.pauses] == [
        pytest.approx(wait * 1.05, rel=0.05) for wait in (0.1, 0.2, 0.4)
    ]
    assert running.watching.resumes == ["crm"]


async def test_retry_after_is_honoured(hooks, receiver):
    crm = await receiver(answers=[(503, {"Retry-After": "1"})])
    running = await hooks(crm={"url": crm.url})
    await running.tell("a")
    await until(lambda: crm.taken)
    first, second = crm.requests
    assert second.at - first.at >= 1
    assert first.headers["Idempotency-Key"] == second.headers["Idempotency-Key"]
    assert first.body == second.body


@pytest.mark.alone
async def test_an_endpoint_that_hangs_slows_neither_another_nor_the_intake(hooks, receiver):
    async def hang(_):
        await asyncio.sleep(60)

    slow, fast = await receiver(answer=hang), await receiver()
    running = await hooks(slow={"url": slow.url, "timeout": 0.3}, fast={"url": fast.url})
    began = time.monotonic()
    for number in range(50):
        await running.tell(f"job-{number}")
    await until(lambda: len(fast.taken) == 50)
    assert time.monotonic() - began < 5
    await until(lambda: running.watching.pauses)
    assert running.watching.pauses[0][0] == "slow"
    assert running.watching.pauses[0][2] == "no answer within 0.3 s"
    slow.answer = 200
    await until(lambda: len(slow.taken) == 50)
    assert {job for job, _ in slow.jobs()} == {f"job-{number}" for number in range(50)}


async def test_after_an_outage_nothing_is_lost_and_nothing_floods(hooks, receiver):
    crm = await receiver()
    running = await hooks(crm={"url": crm.url, "concurrency": 8})
    await crm.stop()
    for number in range(40):
        await running.tell(f"job-{number}", 1, last="retry")
        await running.tell(f"job-{number}", 2)
    await until(lambda: len(running.watching.pauses) >= 2)
    steps = []

    async def slowly(_):
        steps.append(crm.under_way)
        await asyncio.sleep(0.02)
        return 200

    crm.answer, crm.most = slowly, 0
    await crm.start()
    await until(lambda: len(crm.taken) == 80)
    assert steps[0] == 1
    for place, under_way in enumerate(steps):
        assert under_way <= min(8, place + 1)
    assert crm.most <= 8
    for number in range(40):
        assert [attempt for job, attempt in crm.jobs() if job == f"job-{number}"] == [1, 2]


async def test_an_outage_costs_one_request_a_pause(hooks, receiver):
    crm = await receiver(answer=500)
    running = await hooks({"pause": 0.2, "pause_max": 0.2}, crm={"url": crm.url, "concurrency": 10})
    for number in range(30):
        await running.tell(f"job-{number}")
    await until(lambda: len(running.watching.pauses) >= 4)
    assert len(crm.requests) <= len(running.watching.pauses) + 1


async def test_a_refused_event_waits_and_later_ones_of_its_job_behind_it(hooks, receiver):
    def judge(request):
        (event,) = request.events
        refuse = event["data"]["queueId"] == "bad" and len(crm.requests) < 4
        return 422 if refuse else 200

    crm = await receiver()
    crm.answer = judge
    running = await hooks(crm={"url": crm.url})
    await running.tell("bad", 1, last="retry")
    await until(lambda: running.watching.count("refused") == 1)
    await running.tell("bad", 2, last="retry")
    await running.tell("good")
    await running.tell("bad", 3)
    await until(lambda: crm.taken)
    assert crm.jobs() == [("good", 1)]
    await until(lambda: len(crm.taken) == 4)
    assert crm.jobs() == [("good", 1), ("bad", 1), ("bad", 2), ("bad", 3)]
    assert running.watching.pauses == []


async def test_the_order_survives_a_restart(hooks, receiver, rabbit):
    crm = await receiver(answer=400)
    table = {"retries": [2]}
    running = await hooks(table, crm={"url": crm.url})
    await running.tell("a", 1, last="retry")
    await until(lambda: running.watching.count("refused") == 1)
    await rabbit.wait_for_count("webhooks.crm.delay.2s", 1)
    await running.stop()
    crm.answer = 200
    await running.tell("a", 2)
    again = await hooks(table, crm={"url": crm.url})
    await until(lambda: len(crm.taken) == 2)
    assert crm.jobs() == [("a", 1), ("a", 2)]
    assert again.watching.deaths == []


async def test_an_endpoint_that_refuses_everything_is_paused(hooks, receiver):
    crm = await receiver(answer=400)
    running = await hooks({"retries": [3600], "pause": 30}, crm={"url": crm.url, "concurrency": 1})
    for number in range(30):
        await running.tell(f"job-{number}")
    await until(lambda: running.watching.pauses)
    await running.rabbit.wait_for_count("webhooks.crm.delay.1h", 10)
    await running.rabbit.wait_for_count("webhooks.crm", 20)


async def test_410_switches_off_and_keeps_the_events(hooks, receiver, rabbit):
    gone, other = await receiver(answer=410), await receiver()
    running = await hooks(gone={"url": gone.url, "concurrency": 1}, other={"url": other.url})
    for number in range(5):
        await running.tell(f"job-{number}")
    await until(lambda: len(other.taken) == 5)
    await rabbit.wait_for_count("webhooks.gone", 5)
    assert running.watching.ended == ["gone"]
    assert len(gone.requests) == 1
    await running.stop()
    gone.answer = 200
    await hooks(gone={"url": gone.url})
    await until(lambda: len(gone.taken) == 5)


async def test_events_of_an_endpoint_that_is_gone_are_given_up_after_max_age(hooks, receiver, rabbit):
    gone = await receiver(answer=410)
    running = await hooks({"max_age": 2}, gone={"url": gone.url, "concurrency": 1})
    for number in range(5):
        await running.tell(f"job-{number}")
    await until(lambda: running.watching.ended)
    await rabbit.wait_for_count("webhooks.gone", 5)
    dead = await rabbit.get_many("webhooks.dead", 5)
    assert [orjson.loads(each.body)["data"]["queueId"] for each in dead] == [f"job-{number}" for number in range(5)]
    assert {each.headers["x-mailq-reason"] for each in dead} == {"is older than webhooks.max_age"}
    await running.tell("later")
    await rabbit.wait_for_count("webhooks.gone", 1)
    await rabbit.get_many("webhooks.dead", 1)
    assert len(gone.requests) == 1
    assert running.watching.ended == ["gone"]


async def test_redirects_are_refused_or_followed(hooks, receiver):
    target = await receiver()
    first = await receiver(answer=(307, {"Location": target.url}))
    running = await hooks(
        refusing={"url": first.url},
        following={"url": first.url, "follow_redirects": True, "headers": {"Authorization": "Bearer x"}},
    )
    await running.tell("a")
    await until(lambda: target.taken and running.watching.pauses)
    assert running.watching.pauses[0][0] == "refusing"
    assert "307" in running.watching.pauses[0][2]
    assert {each.headers.get("Authorization") for each in first.requests} == {None, "Bearer x"}
    (followed,) = target.requests
    assert "Authorization" not in followed.headers
    assert followed.headers["X-Mailq-Signature"]
    assert orjson.loads(followed.body)["data"]["queueId"] == "a"


async def test_what_nobody_takes_is_given_up_after_max_age(hooks, receiver, rabbit):
    crm = await receiver(answer=500)
    running = await hooks({"max_age": 1, "pause_max": 0.2}, crm={"url": crm.url})
    await running.tell("a")
    await running.tell("b")
    first, second = await rabbit.get_many("webhooks.dead", 2)
    assert [orjson.loads(each.body)["data"]["queueId"] for each in (first, second)] == ["a", "b"]
    assert first.headers["x-mailq-endpoint"] == "crm"
    assert first.headers["x-mailq-reason"] == "is older than webhooks.max_age"
    assert running.watching.deaths == [("crm", "is older than webhooks.max_age")] * 2
    crm.answer = 200
    await running.tell("c")
    await until(lambda: crm.jobs() == [("c", 1)])


async def test_what_is_no_result_is_put_aside(hooks, receiver, rabbit):
    crm = await receiver()
    running = await hooks(crm={"url": crm.url})
    for body in (b"\xff", b"[]", b'{"results": []}', b'{"results": [{"state": "moon", "result": "error"}]}'):
        await running.broker.publish([Publication("mailq", "success", body)])
    await rabbit.publish("webhooks.crm", b"by hand")
    await running.tell("a")
    await until(lambda: crm.taken)
    dead = {each.body: each.headers["x-mailq-reason"] for each in await rabbit.get_many("webhooks.dead", 5)}
    assert dead[b"by hand"] == "is no event made by mailq"
    assert dead[b'{"results": []}'] == "has no result of a delivery attempt"
    assert crm.jobs() == [("a", 1)]


class PanicException(BaseException):
    """As of a library in Rust (pyo3): no `Exception`."""


def nested(depth):
    return b"[" * depth + b"]" * depth


async def test_a_document_nested_too_deeply_for_an_event_is_put_aside_with_its_pointer(hooks, receiver, rabbit):
    crm = await receiver()
    running = await hooks(crm={"url": crm.url})
    for depth in (250, 251, 252):
        body = orjson.dumps(document(f"deep-{depth}")).removesuffix(b"}") + b',"a/b":' + nested(depth) + b"}"
        await running.broker.publish([Publication("mailq", "success", body)])
    await running.tell("a")
    await until(lambda: crm.taken)
    await until(lambda: ("a", 1) in crm.jobs())
    dead = await rabbit.get_many("webhooks.dead", len(running.watching.deaths))
    assert {each.headers["x-mailq-pointer"] for each in dead} == {"/a~1b"}
    # What is nested a level less is read, and no event of it can be written.
    reasons = ("cannot be written as an event", "is nested too deeply")
    assert all(each.headers["x-mailq-reason"].startswith(reasons) for each in dead)
    assert dead[-1].body.endswith(nested(252) + b"}")
    assert {job for job, _ in crm.jobs()} | {orjson.loads(each.body)["id"] for each in dead} == {
        "deep-250", "deep-251", "deep-252", "a",
    }  # fmt: skip
    assert running.watching.bugs == []


async def test_a_document_on_which_the_code_stumbles_ends_nothing(hooks, receiver, rabbit, monkeypatch):
    crm = await receiver()
    running = await hooks(crm={"url": crm.url})

    def events_of(document, *others):
        if "panic" in document:
            raise PanicException("index out of bounds")
        if "bug" in document:
            raise KeyError("x")
        return events.events_of(document, *others)

    monkeypatch.setattr("mailq.webhooks.intake.events_of", events_of)
    await running.tell("panic", panic=True)
    await running.tell("bug", bug=True)
    await running.tell("a")
    await until(lambda: crm.jobs() == [("a", 1)])
    dead = [each.headers["x-mailq-reason"] for each in await rabbit.get_many("webhooks.dead", 2)]
    assert dead == [
        "cannot be made an event: PanicException: index out of bounds", "cannot be made an event: KeyError: 'x'",
    ]  # fmt: skip
    assert running.watching.bugs == [("", "PanicException"), ("", "KeyError")]


async def test_an_event_on_which_the_client_stumbles_is_refused_alone(hooks, receiver, rabbit, monkeypatch):
    """A line end in the header of an event that somebody else published, and a panic: the event waits, others go."""
    crm, other = await receiver(), await receiver()
    running = await hooks({"max_age": 3}, crm={"url": crm.url}, other={"url": other.url})
    now = int(time.time())
    headers = {"x-mailq-job": "j", "x-mailq-attempt": 1, "x-mailq-time": now}
    await rabbit.publish("webhooks.crm", b"{}", message_id="1", headers=headers | {"x-mailq-event": "a\r\nX-Evil: 1"})
    send = Poster._post

    async def panicking(self, body, headers):
        if b"panic" in body:
            raise PanicException("boom")
        return await send(self, body, headers)

    monkeypatch.setattr(Poster, "_post", panicking)
    await running.tell("panic")
    await running.tell("a")
    await until(lambda: ("a", 1) in crm.jobs() and ("a", 1) in other.jobs())
    dead = await rabbit.get_many("webhooks.dead", 3)
    assert {each.headers["x-mailq-reason"] for each in dead} == {"is older than webhooks.max_age"}
    assert {(each.headers["x-mailq-endpoint"], each.message_id == "1") for each in dead} == {
        ("crm", True), ("crm", False), ("other", False),
    }  # fmt: skip
    assert {kind for _, kind in running.watching.bugs} == {"ValueError", "PanicException"}
    assert running.watching.pauses == []
    assert crm.jobs() == other.jobs() == [("a", 1)]


async def test_a_line_that_fails_begins_again_and_leaves_the_others_alone(hooks, receiver, monkeypatch):
    crm, other = await receiver(), await receiver()
    failing = True
    look_up = EndpointQueue._look_up_waits

    async def failing_look_up(self):
        if failing and self.endpoint.name == "crm":
            raise PanicException("boom")
        return await look_up(self)

    monkeypatch.setattr(EndpointQueue, "_look_up_waits", failing_look_up)
    running = await hooks(crm={"url": crm.url}, other={"url": other.url})
    await running.tell("a")
    await until(lambda: other.taken and len(running.watching.bugs) >= 2)
    assert set(running.watching.bugs) == {("crm", "PanicException")}
    assert running.webhooks.not_ready == "webhooks.crm met a bug: PanicException: boom"
    assert crm.taken == []
    failing = False
    await until(lambda: crm.jobs() == [("a", 1)] and running.webhooks.not_ready is None)


async def test_a_batch_in_which_one_event_cannot_be_published_loses_only_that(hooks, receiver, rabbit, monkeypatch):
    crm = await receiver()
    running = await hooks(crm={"url": crm.url})
    publish = Publisher.publish

    async def refusing(self, publications):
        for each in publications:
            if each.routing_key == "webhooks.crm" and b"large" in each.body:
                raise OversizedError(len(each.body), 1)
        return await publish(self, publications)

    monkeypatch.setattr(Publisher, "publish", refusing)
    jobs = ["a", "large", "b", "c"]
    await running.broker.publish(
        [Publication("mailq", "success", orjson.dumps(document(job)), message_id=job) for job in jobs]
    )
    await until(lambda: crm.jobs() == [("a", 1), ("b", 1), ("c", 1)])
    (dead,) = await rabbit.get_many("webhooks.dead", 1)
    assert (dead.message_id, dead.body) == ("large", orjson.dumps(document("large")))
    assert "its event cannot be published: OversizedError" in dead.headers["x-mailq-reason"]


async def test_a_dry_run_makes_no_event(hooks, receiver, rabbit):
    crm = await receiver()
    running = await hooks(crm={"url": crm.url})
    dry = document("dry")
    dry["results"][-1] |= {"state": "rcptto", "dryrun": True}
    await running.broker.publish([Publication("mailq", "success", orjson.dumps(dry))])
    await running.tell("a")
    await until(lambda: crm.taken)
    await rabbit.wait_for_count("webhooks", 0)
    assert crm.jobs() == [("a", 1)]


async def test_batches_are_arrays_and_one_bad_event_is_found_in_them(hooks, receiver):
    def judge(request):
        return 413 if any(event["data"]["queueId"] == "job-3" for event in request.events) else 200

    crm = await receiver(answer=judge)
    running = await hooks({"retries": [3600]}, crm={"url": crm.url, "batch": 5, "batch_wait": 0.3, "concurrency": 1})
    for number in range(12):
        await running.tell(f"job-{number}")
    await until(lambda: len(crm.taken) == 11)
    assert max(len(request.events) for request in crm.requests) == 5
    assert all(request.body.startswith(b"[") for request in crm.requests)
    assert "Idempotency-Key" not in crm.requests[0].headers
    assert {job for job, _ in crm.jobs()} == {f"job-{number}" for number in range(12)} - {"job-3"}
    await running.rabbit.wait_for_count("webhooks.crm.delay.1h", 1)


async def test_concurrency_is_bounded(hooks, receiver):
    async def slowly(_):
        await asyncio.sleep(0.03)
        return 200

    crm = await receiver(answer=slowly)
    running = await hooks(crm={"url": crm.url, "concurrency": 3})
    for number in range(20):
        await running.tell(f"job-{number}")
    await until(lambda: len(crm.taken) == 20)
    assert crm.most == 3


async def test_a_lost_broker_loses_nothing_and_sends_nothing_twice(hooks, receiver, rabbit):
    async def slowly(_):
        await asyncio.sleep(0.05)
        return 200

    crm = await receiver(answer=slowly)
    async with Proxy("127.0.0.1", rabbit.server.port) as proxy:
        running = await hooks(crm={"url": crm.url, "concurrency": 4}, url=rabbit.url_at(proxy.port))
        for number in range(60):
            await running.tell(f"job-{number}", 1, last="retry")
            await running.tell(f"job-{number}", 2)
        for place in (20, 60):
            await until(lambda place=place: len(crm.taken) >= place)
            proxy.cut()
        await until(lambda: len(set(crm.jobs())) == 120)
        await rabbit.wait_for_count("webhooks.crm", 0)
        await running.stop()
    lost = [queue for queue, event in running.watching.events if event == "lost"]
    assert {"webhooks", "webhooks.crm"} <= set(lost)
    for number in range(60):
        assert [attempt for job, attempt in crm.jobs() if job == f"job-{number}"] == [1, 2]

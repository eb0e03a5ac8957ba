"""A panic of a library in Rust, which is a BaseException, costs one attempt or one message, never the worker."""

from cryptography import x509

from mailq.core.jobs import job as jobs
from mailq.core.states import State


class PanicException(BaseException):
    """As PyO3 raises it: derived from BaseException, so that `except Exception` does not see it."""


async def test_a_panic_over_a_certificate_is_the_bug_of_that_attempt(system, sink, monkeypatch):
    def panic(_der):
        raise PanicException("called `Option::unwrap()` on a `None` value")

    server = await sink(tls=True)
    mail = await system(server, delivery={"retries": [1], "max_attempts": 10})
    load = x509.load_der_x509_certificate
    monkeypatch.setattr(x509, "load_der_x509_certificate", panic)
    await mail.send(recipient="accept@a.test", id="hostile")
    document = await mail.get("retry")
    (result,) = document["results"]
    assert (result["state"], result["result"], result["code"]) == ("starttls", "error", 451)
    assert result["bug"] == "PanicException: called `Option::unwrap()` on a `None` value"
    monkeypatch.setattr(x509, "load_der_x509_certificate", load)
    document = await mail.get("success")
    assert [each["state"] for each in document["results"]] == ["starttls", "message"]
    seen, mail.seen.bugs = mail.seen.bugs, []
    assert [type(each) for each in seen] == [PanicException]


async def test_a_panic_outside_the_attempt_puts_that_message_aside_and_others_go_on(system, sink, rabbit, monkeypatch):
    read = jobs.Job.read.__func__

    def panicking(cls, unpacked, body, **others):
        if b"panic" in body:
            raise PanicException("recursion")
        return read(cls, unpacked, body, **others)

    mail = await system(await sink())
    monkeypatch.setattr(jobs.Job, "read", classmethod(panicking))
    await mail.send(recipient="panic@a.test", id="hostile")
    await mail.send(recipient="accept@a.test", id="good")
    document = await mail.get("success")
    assert document["id"] == "good"
    poison = await rabbit.get("outbox.poison")
    assert poison.headers["x-mailq-exception"] == "PanicException: recursion"
    assert poison.headers["x-mailq-state"] == State.PROCESS
    seen, mail.seen.bugs = mail.seen.bugs, []
    assert {type(each) for each in seen} == {PanicException}

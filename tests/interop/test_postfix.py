"""A real Postfix as receiver and as smarthost: what arrives is what was sent, octet for octet."""

import importlib.util
import re
from email import policy
from email.errors import MultipartInvariantViolationDefect
from email.parser import BytesParser
from pathlib import Path

import pytest
from support.receivers import PASSWORD, USER


def normalized(text: str) -> bytes:
    """Return the message as it travels: every line ending CRLF, and one at the end."""
    lines = re.sub(r"\r\n|\r|\n", "\r\n", text)
    return (lines if lines.endswith("\r\n") else lines + "\r\n").encode()


def samples() -> list[tuple[str, str]]:
    """Return CPython's own e-mail test messages that are legal: UTF-8 text, a header, no NUL, lines that SMTP takes."""
    spec = importlib.util.find_spec("test.test_email")
    assert spec is not None, "the interpreter's test.test_email is missing; run `make test`, which installs it"
    found = []
    for file in sorted((Path(str(spec.origin)).parent / "data").glob("msg_*.txt")):
        raw = file.read_bytes()
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            continue
        found_defects = BytesParser(policy=policy.default).parsebytes(raw, headersonly=True).defects
        # Older Pythons call a multipart whose body was not parsed a defect.
        defects = [each for each in found_defects if not isinstance(each, MultipartInvariantViolationDefect)]
        longest = max(map(len, re.split(rb"\r\n|\r|\n", raw)))
        if "\0" not in text and not defects and longest <= 998 and not text.startswith((" ", "\t", "\n", "From ")):
            found.append((file.stem, text))
    return found


SAMPLES = samples()


def test_there_are_samples():
    assert len(SAMPLES) >= 35


async def test_every_sample_message_arrives_octet_for_octet(system, postfix):
    mail = await system(postfix.port, delivery={"port": postfix.port}, dns={"overrides": {"*": ("127.0.0.1",)}})

    for name, text in SAMPLES:
        await mail.send(recipient=f"sample-{name}@postfix.test", mime=text)
    for _ in SAMPLES:
        result = (await mail.get("success"))["results"][0]
        assert result["cipher"]["protocol"] == "TLSv1.3"

    for name, text in SAMPLES:
        (arrived,) = await postfix.wait(f"sample-{name}@postfix.test")
        assert arrived == normalized(text), name


@pytest.mark.parametrize("recipient", ["anybody@postfix-two.test"])
async def test_postfix_as_a_smarthost_takes_a_login(recipient, system, postfix):
    mail = await system(9)
    smarthost = {"hostname": "127.0.0.1", "port": postfix.port, "username": USER, "password": PASSWORD}

    await mail.send(recipient=recipient, smarthost=smarthost)

    result = (await mail.get("success"))["results"][0]
    assert result["authentication"] == "PLAIN"
    assert result["cipher"]["bits"] >= 128
    assert await postfix.wait(recipient)


async def test_postfix_refuses_a_wrong_password(system, postfix):
    mail = await system(9)
    smarthost = {"hostname": "127.0.0.1", "port": postfix.port, "username": USER, "password": "wrong"}

    await mail.send(recipient="x@postfix-two.test", smarthost=smarthost)

    result = (await mail.get("retry"))["results"][0]
    assert (result["state"], result["code"]) == ("authplain", 535)


async def test_postfix_refuses_to_relay(system, postfix):
    mail = await system(postfix.port, dns={"overrides": {"*": ("127.0.0.1",)}})

    await mail.send(recipient="x@elsewhere.test", mime="Subject: x\n\nhi\n")

    result = (await mail.get("failures"))["results"][0]
    assert (result["state"], result["code"] // 100) == ("rcptto", 5)

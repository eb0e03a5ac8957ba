"""The dialogue files' own machinery, met by the standard library's SMTP client."""

import smtplib
import ssl

import pytest
from support.dialogue import DialogueError, parse
from support.dialogue_server import DialogueServer, authority

GOOD = """
# greeting in two lines
@ mime=hello
@ timeouts.data=0.5
S: 220-mx.example
S: 220 ESMTP
C: (?i)ehlo .*
S: 250-mx.example
S: 250 STARTTLS
C: STARTTLS
S: 220 go ahead
S! starttls
C: (?i)ehlo .*
S:- 250-mx.exa
S! pause
S:- mple\\r\\n250 8BITMIME\\r\\n
C: (?i)mail FROM:<a@example.com>
S: 250 ok
C: (?i)rcpt TO:<b@example.com>
S: 250 ok
C: (?i)data
S: 354 go
C: <payload> Subject: x.*\\r\\n\\.\\.dot
S: 250 2.0.0 taken
=> message accepted 250 2.0.0
"""


def client(server, **more):
    return smtplib.SMTP(*server.addresses[0], local_hostname="client.example", timeout=10, **more)


def test_a_whole_conversation_with_tls():
    context = ssl.create_default_context()
    authority().configure_trust(context)
    with DialogueServer(parse(GOOD)) as server, client(server) as smtp:
        smtp._host = "127.0.0.1"
        smtp.starttls(context=context)
        assert smtp.sendmail("a@example.com", ["b@example.com"], "Subject: x\r\n\r\n.dot\r\n") == {}
        smtp.quit()
        assert server.finish() is None


def test_what_the_client_does_wrong_is_told_with_the_line():
    with DialogueServer(parse(GOOD)) as server:
        with client(server) as smtp, pytest.raises(smtplib.SMTPServerDisconnected):
            smtp.docmd("HELP")
        problem = server.finish()

    assert problem == "line 7: expected '(?i)ehlo .*', the client said 'HELP'"


def test_a_client_that_leaves_too_early_is_told():
    with DialogueServer(parse(GOOD)) as server:
        smtp = client(server)
        smtp.close()
        assert "line 7" in server.finish()


def test_a_client_that_does_not_wait_for_an_answer_is_told():
    with DialogueServer(parse("S: 220 hi\nC: NOOP\nS: 250 ok\nC: NOOP\nS: 250 ok\n=> a b")) as server:
        smtp = client(server)
        smtp.send("NOOP\r\nNOOP\r\n")
        assert "out of turn" in server.finish()
        smtp.close()


def test_a_client_may_run_ahead_where_pipelining_was_offered():
    with DialogueServer(parse("S: 220 hi\nC: X\nS: 250 PIPELINING\nC: NOOP\nC: NOOP\nS: 250 ok\n=> a b")) as server:
        smtp = client(server)
        smtp.docmd("X")
        smtp.send("NOOP\r\nNOOP\r\n")
        assert smtp.getreply()[0] == 250
        smtp.close()
        assert server.finish() is None


def test_what_is_said_after_the_end_is_told_unless_it_is_polite():
    with DialogueServer(parse("S: 220 hi\n=> a b")) as server:
        smtp = client(server)
        assert smtp.docmd("RSET")[0] == 250
        smtp.send("VRFY x\r\n")
        assert server.finish() == "the client said 'VRFY x' after the end of the dialogue"
        smtp.close()


@pytest.mark.parametrize(("action", "error"), [("close", smtplib.SMTPServerDisconnected), ("reset", OSError)])
def test_the_server_closes_and_resets(action, error):
    with DialogueServer(parse(f"S: 220 hi\nC: noop\nS! {action}\n=> a b")) as server:
        smtp = client(server)
        with pytest.raises(error):
            smtp.noop()
        smtp.close()
        assert server.finish() is None


def test_several_connections_and_servers_are_one_dialogue():
    with DialogueServer(parse("@ servers=2\nS: 220 one\nS! next\nS: 220 two\n=> a b")) as server:
        for address, word in zip(server.addresses, (b"one", b"two"), strict=True):
            with smtplib.SMTP(local_hostname="x") as smtp:
                assert smtp.connect(*address) == (220, word)
        assert server.finish() is None


def test_a_client_that_must_go_and_talks_is_told():
    with DialogueServer(parse("S: 220 hi\nC! close\n=> a b")) as server:
        smtp = client(server)
        smtp.send("NOOP\r\n")
        smtp.close()
        assert "should be gone" in server.finish()


def test_escapes_and_repetition():
    [steps] = parse("S: 250 a\\0\\x9b\\\\{ab*3}\\r\\nb\n=> a b").connections

    assert steps[0].said == b"250 a\x00\x9b\\ababab\r\nb\r\n"


def test_options_are_json_or_text():
    options = parse('@ a.b=0.5\n@ c=plain text\n@ d="x\\r\\ny"\n@ e=true\n=> a b').options

    assert options == {"a.b": 0.5, "c": "plain text", "d": "x\r\ny", "e": True}


@pytest.mark.parametrize(
    "text",
    ["S: 220 hi", "X: what\n=> a b", "S! explode\n=> a b", "=> a", "=> a b\nS: 220 late", "C! stay\n=> a b"],
)
def test_what_is_no_dialogue_is_refused(text):
    with pytest.raises(DialogueError):
        parse(text)

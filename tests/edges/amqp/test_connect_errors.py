"""What is said of a broker that cannot be reached: the place, the reason in words, and what to do about it."""

import errno
import socket
import ssl

import pytest

from mailq.edges.amqp.connect_errors import again, hung_up, silent, turned_away, unknown_host, unreachable
from mailq.edges.amqp.consumer import _ended
from mailq.ports.broker import BrokerError

WHERE = "127.0.0.1:5672"


def tls(reason):
    error = ssl.SSLError(1, f"[SSL: {reason}] (_ssl.c:992)")
    error.reason = reason
    return error


def untrusted():
    error = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] (_ssl.c:992)")
    error.verify_message = "self-signed certificate"
    return error


@pytest.mark.parametrize(
    ("error", "reason", "remedy"),
    [
        (unreachable(WHERE, ConnectionRefusedError(111, f"Connect call failed ('{WHERE}')")), ": connection refused",
         "systemctl enable --now rabbitmq-server"),
        (unreachable(WHERE, OSError(errno.EHOSTUNREACH, "x")), ": no route to host", "firewalls"),
        (unreachable(WHERE, TimeoutError()), ": no answer in time", "firewalls"),
        (unreachable(WHERE, OSError("it has no address")), ": it has no address", "rabbitmq.url"),
        (unreachable(WHERE, tls("WRONG_VERSION_NUMBER")), ": it does not speak TLS on this port", "amqp://"),
        (unreachable(WHERE, tls("NO_SHARED_CIPHER")), ": TLS failed: NO_SHARED_CIPHER", "5671"),
        (unreachable(WHERE, untrusted()), "not trusted: self-signed certificate", "rabbitmq.ca_file"),
        (unknown_host("mq.test", socket.gaierror(-2, "Name or service not known")), "'mq.test' cannot be resolved",
         "resolver"),
        (silent(WHERE, 3), f"no AMQP connection to {WHERE} within 3 s", "rabbitmq.connect_timeout"),
        (hung_up(WHERE, "closed by the peer"), "lost before the login", "amqps://"),
        (turned_away("403 ACCESS_REFUSED", 403), "403 ACCESS_REFUSED", "guest may log in from the broker's own host"),
        (turned_away("530 NOT_ALLOWED - vhost x not found", 530), "vhost x not found", "rabbitmqctl add_vhost"),
        (turned_away("541 INTERNAL_ERROR", 541), "541", "the broker's log"),
    ],
)  # fmt: skip
def test_each_cause_has_its_words_and_its_remedy(error, reason, remedy):
    assert reason in error.seen
    assert remedy in error.remedy
    assert str(error) == f"{error.seen}; {error.remedy}"
    assert "_ssl.c" not in str(error)
    assert "Connect call" not in str(error)
    copy = again(error)
    assert (copy.seen, copy.remedy) == (error.seen, error.remedy)


def test_another_error_anew_is_the_same():
    assert str(again(BrokerError("it was lost"))) == "it was lost"


@pytest.mark.parametrize(
    ("server", "timeout"), [("3.10.8", False), ("4.0.5", False), ("4.3.0", True), ("5.0.0", True), ("", False)]
)
def test_the_consumer_timeout_is_named_where_it_ends_consuming(server, timeout):
    text = _ended("outbox", server)
    assert text.startswith("RabbitMQ ended consuming: queue 'outbox' was deleted")
    assert ("consumer_timeout" in text) is timeout

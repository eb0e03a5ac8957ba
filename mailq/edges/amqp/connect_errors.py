"""A broker that cannot be reached: the words for each cause, and what to do about it.

Every command, the worker's log and `/readyz` show the text; `mailq check` shows its two halves apart.
"""

import errno
import os
import socket
import ssl

from mailq.core.smtp.reply import printable
from mailq.ports.broker import BrokerError

_START = "start RabbitMQ (systemctl enable --now rabbitmq-server), or set rabbitmq.url to the broker that runs"
_ADDRESS = "look at host and port in rabbitmq.url, and at firewalls on the way"
_NAME = "look at the host in rabbitmq.url, and at the system's resolver"
_NO_TLS = "write amqp:// in rabbitmq.url, or the port on which the broker speaks TLS (5671)"
_CERTIFICATE = (
    "set rabbitmq.ca_file to the CA that issued the broker's certificate; rabbitmq.url names the host that is in it"
)
_HUNG_UP = "look at the port in rabbitmq.url: a port for TLS wants amqps://; the broker's log tells more"
_SLOW = "look at host and port in rabbitmq.url; a broker that starts or is overloaded needs rabbitmq.connect_timeout"
OTHER_PROTOCOL = "set rabbitmq.url to the AMQP port of the broker, 5672, or 5671 with amqps://"
_LOGIN = (
    "set user and password in rabbitmq.url; `rabbitmqctl list_users` names the users; guest may log in from the"
    " broker's own host only"
)
_VHOST = (
    "the path of rabbitmq.url is the virtual host: `rabbitmqctl add_vhost NAME`, then"
    " `rabbitmqctl set_permissions -p NAME USER '.*' '.*' '.*'`"
)
_CLOSED = "the broker's log tells more"

ACCESS_REFUSED, NOT_ALLOWED = 403, 530
"""Reply codes of AMQP 0-9-1 with which RabbitMQ refuses a login, and a virtual host."""

_BY_CODE = {ACCESS_REFUSED: _LOGIN, NOT_ALLOWED: _VHOST}
_BY_ERRNO = {errno.ECONNREFUSED: _START, errno.ECONNRESET: _HUNG_UP, errno.EPIPE: _HUNG_UP}


class UnreachableError(BrokerError):
    """There is no connection to the broker, or no login: what was `seen`, and the `remedy`."""

    def __init__(self, seen: str, remedy: str) -> None:
        super().__init__(f"{seen}; {remedy}")
        self.seen = seen
        self.remedy = remedy


def unreachable(address: object, trouble: OSError) -> UnreachableError:
    """Return why no connection to an address (as it is shown) came about."""
    reason, remedy = _cause(trouble)
    return UnreachableError(f"cannot connect to RabbitMQ at {address}: {printable(reason.encode())}", remedy)


def unknown_host(host: str, trouble: OSError) -> UnreachableError:
    """Return why a host name leads nowhere."""
    return UnreachableError(f"host name {host!r} cannot be resolved: {trouble.strerror}", _NAME)


def silent(address: object, seconds: float) -> UnreachableError:
    """Return what is wrong with a server that does not log anybody in in time."""
    return UnreachableError(f"no AMQP connection to {address} within {seconds:g} s", _SLOW)


def hung_up(address: object, reason: str) -> UnreachableError:
    """Return what is wrong with a server that ends the connection before the login."""
    return UnreachableError(f"connection to {address} lost before the login: {reason}", _HUNG_UP)


def turned_away(text: str, code: int | None) -> UnreachableError:
    """Return what is wrong with a login that the broker refuses with this code."""
    return UnreachableError(text, _BY_CODE.get(code or 0, _CLOSED))


def again(error: BrokerError) -> BrokerError:
    """Return the same error anew, without the traceback of the first time."""
    return (
        UnreachableError(error.seen, error.remedy) if isinstance(error, UnreachableError) else BrokerError(str(error))
    )


def _cause(trouble: OSError) -> tuple[str, str]:
    """Return reason and remedy of a connection that did not come about."""
    if isinstance(trouble, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {trouble.verify_message}", _CERTIFICATE
    if isinstance(trouble, ssl.SSLError):
        if trouble.reason == "WRONG_VERSION_NUMBER":
            return "it does not speak TLS on this port", _NO_TLS
        return f"TLS failed: {trouble.reason or trouble}", _NO_TLS
    if isinstance(trouble, TimeoutError):
        return "no answer in time", _ADDRESS
    if isinstance(trouble, socket.gaierror) or not trouble.errno:
        return str(trouble.strerror or trouble), _ADDRESS
    return os.strerror(trouble.errno).lower(), _BY_ERRNO.get(trouble.errno, _ADDRESS)

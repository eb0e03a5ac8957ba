"""The server that speaks a dialogue (`support.dialogue`): one thread, blocking sockets, a straight line.

Blocking on purpose: it shares nothing with the asynchronous client under test, so neither can wait
for the other by accident. What the client does wrong is kept and told by `finish`.
"""

import contextlib
import re
import selectors
import socket
import ssl
import struct
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from typing import Self

import trustme

from support.dialogue import DEADLINE, Dialogue, Step

PAUSE = 0.02
"""Seconds of `S! pause`. The outcome must not depend on it: a client may see the parts apart or together."""


class BrokenDialogueError(Exception):
    """The client did not do what the dialogue says."""


@cache
def authority() -> trustme.CA:
    """Return the CA of the dialogues' certificates, one for the whole test run."""
    return trustme.CA()


@cache
def _issued() -> trustme.LeafCert:
    return authority().issue_cert("mx.example", "127.0.0.1")


def certificate() -> bytes:
    """Return the dialogues' certificate (DER)."""
    return ssl.PEM_cert_to_DER_cert(_issued().cert_chain_pems[0].bytes().decode())


@cache
def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _issued().configure_cert(context)
    return context


class DialogueServer:
    """Speaks a dialogue once, in a thread, inside `with`; `finish` tells what went wrong.

    There are as many `addresses` as the option `servers` says (1), all of which lead to it; the
    connections of the dialogue are made in order, to whichever.
    """

    def __init__(self, dialogue: Dialogue) -> None:
        self._dialogue = dialogue
        self._listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(dialogue.options.get("servers", 1))]
        self.addresses: list[tuple[str, int]] = [listener.getsockname() for listener in self._listeners]
        self._problem: str | None = None
        self._thread = threading.Thread(target=self._run, name="dialogue", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(2 * DEADLINE)

    def finish(self) -> str | None:
        """Wait for the end of the dialogue; return what the client did wrong, None if nothing."""
        self._thread.join(2 * DEADLINE)
        return "the dialogue did not end" if self._thread.is_alive() else self._problem

    def _run(self) -> None:
        with ExitStack() as stack:
            for listener in self._listeners:
                stack.enter_context(listener)
            try:
                for number, steps in enumerate(self._dialogue.connections, 1):
                    last = number == len(self._dialogue.connections)
                    self._serve(self._accept(number, last=last), steps)
            except BrokenDialogueError as problem:
                self._problem = str(problem)

    def _accept(self, number: int, *, last: bool) -> socket.socket:
        with selectors.DefaultSelector() as selector:
            for listener in self._listeners:
                selector.register(listener, selectors.EVENT_READ)
            ready = selector.select(DEADLINE)
        if not ready:
            raise BrokenDialogueError(f"connection {number} was not made")
        listener = next(each for each in self._listeners if each is ready[0][0].fileobj)
        peer, _ = listener.accept()
        if last:
            for each in self._listeners:
                each.close()
        return peer

    def _serve(self, peer: socket.socket, steps: Sequence[Step]) -> None:
        conversation = _Conversation(peer)
        try:
            conversation.walk(steps)
        finally:
            conversation.end()


class _Conversation:
    def __init__(self, peer: socket.socket) -> None:
        self._peer = peer
        self._peer.settimeout(DEADLINE)
        self._peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._heard = b""
        self._unsaid = b""
        self._pipelining = False
        self._over = False

    def walk(self, steps: Sequence[Step]) -> None:
        """Take the steps in order, then be polite until the client leaves."""
        for step in steps:
            try:
                self._take(step)
            except (OSError, EOFError) as trouble:
                name = step.text or repr(step.said)
                raise BrokenDialogueError(f"line {step.number} ({name}): {type(trouble).__name__} {trouble}") from None
        self._flush_quietly()
        while not self._over:
            self._part()

    def end(self) -> None:
        self._peer.close()

    def _take(self, step: Step) -> None:
        if step.kind != "say":
            self._flush()
        match step.kind:
            case "say":
                self._unsaid += step.said
                self._pipelining |= re.search(rb"^250[- ]PIPELINING\r?$", step.said, re.MULTILINE) is not None
            case "do":
                getattr(self, f"_{step.text}")()
            case "hear":
                line = self._line()
                if not re.fullmatch(step.text, line):
                    raise BrokenDialogueError(f"line {step.number}: expected {step.text!r}, the client said {line!r}")
            case "message":
                message = self._until(b"\r\n.\r\n").decode("latin-1")
                if not re.search(step.text, message, re.DOTALL):
                    raise BrokenDialogueError(f"line {step.number}: {step.text!r} is not in {message[:2000]!r}")
            case "gone":
                rest = self._rest()
                if rest:
                    raise BrokenDialogueError(f"line {step.number}: the client should be gone, but said {rest!r}")

    def _flush(self) -> None:
        if not self._unsaid:
            return
        if self._heard and not self._pipelining:
            raise BrokenDialogueError(f"the client spoke out of turn: {self._heard!r} before {self._unsaid!r}")
        said, self._unsaid = self._unsaid, b""
        self._peer.sendall(said)

    def _flush_quietly(self) -> None:
        """Say what is left to a client that may have gone already."""
        try:
            self._flush()
        except OSError:
            self._over = True

    def _more(self) -> bytes:
        data = self._peer.recv(65536)
        if not data:
            raise EOFError("the client closed the connection")
        return data

    def _until(self, end: bytes) -> bytes:
        while end not in self._heard:
            self._heard += self._more()
        found, _, self._heard = self._heard.partition(end)
        return found

    def _line(self) -> str:
        return self._until(b"\r\n").decode("latin-1")

    def _rest(self) -> bytes:
        """Return what the client says until it closes."""
        data, self._heard, self._over = self._heard, b"", True
        try:
            while chunk := self._peer.recv(65536):
                data += chunk
        except TimeoutError:
            raise
        except OSError:
            pass
        return data

    def _part(self) -> None:
        try:
            line = self._line()
        except TimeoutError:
            raise BrokenDialogueError("the client does not leave") from None
        except (OSError, EOFError):
            self._over = True
            return
        if line.upper() not in ("RSET", "QUIT"):
            raise BrokenDialogueError(f"the client said {line!r} after the end of the dialogue")
        leaving = line.upper() == "QUIT"
        self._unsaid = b"221 bye\r\n" if leaving else b"250 reset\r\n"
        self._flush_quietly()
        if leaving and not self._over:
            with contextlib.suppress(OSError):  # the client may have closed first
                self._close()

    def _close(self) -> None:
        self._peer.shutdown(socket.SHUT_WR)
        self._rest()

    def _reset(self) -> None:
        self._peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._peer.close()
        self._over = True

    def _stall(self) -> None:
        self._rest()

    def _pause(self) -> None:
        time.sleep(PAUSE)

    def _starttls(self) -> None:
        if self._heard:
            raise BrokenDialogueError(f"the client said {self._heard!r} before the TLS handshake")
        self._peer = _context().wrap_socket(self._peer, server_side=True)
        self._pipelining = False

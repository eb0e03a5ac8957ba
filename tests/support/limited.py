"""A receiver that takes a limited number of messages in one session, for `support.hostile.Hostile`."""

HELLO = b"250-mx.test\r\n250 PIPELINING\r\n"
PLAIN = b"250 mx.test\r\n"


class Receiver:
    """Takes `most` messages a session and then gives `refusal` to `verb`; the session stays open unless it `closes`.

    As a strict server does, it refuses RCPT and DATA after a refused MAIL. It counts what it took and refused.
    """

    def __init__(self, most, verb, refusal, *, hello=PLAIN, closes=False):
        self.most, self.verb, self.refusal = most, verb, refusal
        self.hello, self.closes = hello, closes
        self.taken = self.refused = 0
        self.polite = 0

    async def __call__(self, peer):
        taken, sender, recipient = 0, False, False
        await peer.say(b"220 mx.test\r\n")
        await peer.hear()
        await peer.say(self.hello)
        while (verb := (await peer.hear())[:4]) != b"QUIT":
            if verb == self.verb and taken >= self.most and (sender or verb == b"MAIL"):
                self.refused += 1
                await peer.say(self.refusal + b"\r\n")
                if self.closes:
                    peer.hang_up()
                    return
            elif verb == b"MAIL":
                sender = True
                await peer.say(b"250 ok\r\n")
            elif verb == b"RSET":
                sender = recipient = False
                await peer.say(b"250 ok\r\n")
            elif verb == b"RCPT":
                recipient = sender
                await peer.say(b"250 ok\r\n" if sender else b"503 5.5.1 MAIL first\r\n")
            elif not recipient:
                await peer.say(b"554 5.5.1 no valid recipients\r\n")
            else:
                await peer.say(b"354 ok\r\n")
                await peer.hear(b"\r\n.\r\n")
                await peer.say(b"250 ok\r\n")
                sender = recipient = False
                taken += 1
                self.taken += 1
        self.polite += 1
        await peer.say(b"221 bye\r\n")
        peer.hang_up()  # RFC 5321 section 4.1.1.10: the server closes first

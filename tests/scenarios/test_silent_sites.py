"""Sites that take connections and never greet, beside a good one: they hold no more than half of the worker."""

import socket
import time

from support.system import MIME, until

SITES = 30
PREFETCH = 60
GOOD = 100


async def test_silent_sites_do_not_hold_up_a_good_one(system, sink):
    """Each silent site has more jobs than the window; with all timeouts by default the good site's jobs go out."""
    receiver = await sink()
    with socket.create_server(("", 0), backlog=4096) as silent:
        port = silent.getsockname()[1]
        overrides = {f"s{n}.test": [f"127.0.1.{n}:{port}"] for n in range(1, SITES + 1)}
        mail = await system(
            receiver,
            dns={"overrides": overrides},
            worker={"prefetch": PREFETCH, "drain_timeout": 0},
            timeouts={"quit": 0.1},
        )
        hopeless = [f"accept+{job}@{domain}" for job in range(20) for domain in overrides]
        good = [f"accept+{job}@a.test" for job in range(GOOD)]
        begin = time.monotonic()
        for recipient in hopeless[:-SITES] + good + hopeless[-SITES:]:
            await mail.send(recipient=recipient, mime=MIME, id=recipient)

        await mail.rabbit.wait_for_count("success", GOOD, deadline=30)
        assert time.monotonic() - begin < 30
        assert 0 < mail.worker.sessions <= PREFETCH // 2 + 20  # what is open to the good site may still be idle
        assert len(mail.seen.attempts) == GOOD, "no silent site costs an attempt before its time"
        await until(lambda: mail.seen.causes["silence"] > SITES)

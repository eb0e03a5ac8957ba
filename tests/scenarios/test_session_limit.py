"""A receiver of ten messages a session costs four hundred jobs no attempt, with all defaults."""

from support.hostile import Hostile
from support.limited import HELLO, Receiver
from support.system import until

JOBS = 400


async def test_four_hundred_jobs_are_delivered_and_none_is_put_off(system, rabbit):
    receiver = Receiver(10, b"DATA", b"452 4.4.5 Maximum number of messages per session exceeded.", hello=HELLO)
    async with Hostile(receiver) as mx:
        mail = await system(mx.address[1])
        for number in range(JOBS):
            await mail.send(recipient=f"b{number}@a.test", id=str(number))
        await until(lambda: len(mail.seen.attempts) >= JOBS)
        await mail.stop()

    assert [result.delivered for _, result in mail.seen.attempts] == [True] * JOBS
    assert receiver.taken == JOBS
    assert mail.seen.parks == 0
    assert mail.seen.session_limits == [10]
    assert await rabbit.count("success") == JOBS
    assert await rabbit.count("retry") == 0

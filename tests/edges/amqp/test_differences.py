"""The costs of a queue that differs, without a broker."""

import pytest

from mailq.edges.amqp.differences import LIMIT, NONE, Difference, costs


@pytest.mark.parametrize(
    ("found", "cost"),
    [
        ("5", "the limit of the queue holds, and rabbitmq.delivery_limit has no effect"),
        (NONE, "without x-delivery-limit the broker's own default bounds a job that ends workers"),
    ],
)
def test_another_delivery_limit_of_the_outbox_is_told(found, cost):
    different = [Difference(LIMIT, "9", found)]
    assert costs(different, takes_jobs=True, delays=False, quorum=True) == [cost]
    assert costs(different, takes_jobs=False, delays=False, quorum=True) == []

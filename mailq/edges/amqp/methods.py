"""Those of pamqp's methods that carry names, without pamqp's own idea of a name.

pamqp allows little more than ASCII letters and digits; RabbitMQ takes any UTF-8 of up to 255 octets
(`fields.short` has the limit), and answers for itself what it does not like.
"""

from pamqp import commands


class QueueDeclare(commands.Queue.Declare):
    """queue.declare of any name."""

    def validate(self) -> None:
        """Leave it to RabbitMQ."""


class QueueBind(commands.Queue.Bind):
    """queue.bind of any names."""

    def validate(self) -> None:
        """Leave it to RabbitMQ."""


class ExchangeDeclare(commands.Exchange.Declare):
    """exchange.declare of any name."""

    def validate(self) -> None:
        """Leave it to RabbitMQ."""


class BasicConsume(commands.Basic.Consume):
    """basic.consume of a queue of any name."""

    def validate(self) -> None:
        """Leave it to RabbitMQ."""


class ConnectionOpen(commands.Connection.Open):
    """connection.open of a virtual host of any name."""

    def validate(self) -> None:
        """Leave it to RabbitMQ."""

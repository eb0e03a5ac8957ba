"""mailq delivers e-mail from a RabbitMQ queue and tells, for every attempt, what happened."""

__version__ = "0.1.0"

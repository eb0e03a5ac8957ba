"""Messages as mailq reads them from RabbitMQ and publishes them. Pure."""

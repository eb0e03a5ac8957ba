"""The outside world: one third-party library per module, and nobody else imports it."""

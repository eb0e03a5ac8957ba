"""A message of the outbox, from its consumption to its acknowledgement."""

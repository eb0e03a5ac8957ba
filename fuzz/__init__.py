"""Fuzzing with coverage: what strangers send to mailq, and what must hold whatever they send. See README.md."""

"""A job: its JSON document, its addresses, and the reading of both. Pure."""

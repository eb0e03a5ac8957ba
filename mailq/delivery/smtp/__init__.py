"""The states on the wire: session, transaction, login, envelope parameters."""

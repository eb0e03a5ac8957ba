"""Private servers for demos, tests and benches: unprivileged, on loopback, in directories of their own."""

"""The result of an attempt and its JSON Schema. Pure."""

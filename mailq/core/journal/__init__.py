"""The journal's records, and the state of an entry that they amount to. Pure."""

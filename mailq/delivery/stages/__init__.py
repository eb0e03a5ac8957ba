"""The states before the wire; each file is named as the state it makes happen, but for `destinations`."""

"""The meaning of a receiver's reply: rules, patterns, verdict and schedule. Pure."""

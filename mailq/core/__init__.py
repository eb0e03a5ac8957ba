"""The pure heart: no await, no clock, no dice, no socket, no log. `now` and `rng` are arguments."""

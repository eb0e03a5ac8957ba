"""How much, how fast, from where."""

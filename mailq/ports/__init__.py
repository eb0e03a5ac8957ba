"""The protocols through which the flow reaches the world, one module for each peer."""

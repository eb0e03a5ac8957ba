"""Traffic decisions: limits, rates, routes, pauses, circuit breakers, wait queues. Pure."""

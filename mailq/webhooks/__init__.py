"""The way from results to HTTP endpoints."""

"""Events about results, and the endpoints that receive them. Pure."""

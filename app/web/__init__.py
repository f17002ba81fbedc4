"""The HTTP side: handlers, middleware, health."""

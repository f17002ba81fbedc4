"""The embedded store: one SQLite file, one writing connection, whole units of work."""

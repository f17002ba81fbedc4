"""The only SQL: one protocol of whole units of work, and SQLite behind it."""

"""The journal: on disk (SQLite) and, as its twin for tests, in memory."""

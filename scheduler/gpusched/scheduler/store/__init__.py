"""Durable state: `database.DatabaseStore` (SQLite, PostgreSQL) and `memory.MemoryStore`. See docs/state.md."""

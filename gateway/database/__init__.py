"""SQLite: one connection, one writer, migrations in order. Nothing outside this folder and the stores speaks SQL."""

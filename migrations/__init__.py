"""The records database's schema, as a sequence of Alembic migrations."""

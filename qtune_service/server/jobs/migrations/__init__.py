"""Migrate the service's database with Alembic."""

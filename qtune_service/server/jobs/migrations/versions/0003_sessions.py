"""Create the table of browser sessions, a column for a job's model and an index of outputs.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this revision."""
    op.create_table(
        "sessions",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("token_id", sa.String(32), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_sessions_token_id", "sessions", ["token_id"])
    op.create_index("ix_jobs_output", "jobs", ["output"], postgresql_using="hash")
    # The default serves servers of the version before, which insert jobs until they are stopped.
    op.add_column("jobs", sa.Column("model", sa.Text, nullable=False, server_default=""))
    jobs = sa.table("jobs", sa.column("spec", sa.JSON), sa.column("model", sa.Text))
    name = jobs.c.spec["model"]["name"].as_string()
    op.execute(jobs.update().values(model=sa.func.coalesce(name, "")))


def downgrade() -> None:
    """Restore the revision before."""
    op.drop_index("ix_jobs_output", "jobs")
    op.drop_column("jobs", "model")
    op.drop_table("sessions")

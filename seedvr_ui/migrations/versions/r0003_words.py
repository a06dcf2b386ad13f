"""What people search finished jobs by: name, state and settings in words."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the column and an index for the latest jobs; the empty stamps make the next reconciliation fill it."""
    op.add_column("jobs", sa.Column("words", sa.Text, nullable=False, server_default=""))
    op.create_index("jobs_finished", "jobs", ["owner", "finished_at", "id", "status"])
    op.execute("UPDATE jobs SET stamp = ''")

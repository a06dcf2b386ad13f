"""What people search finished jobs by: name, state and settings in words."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the column; the empty stamps make the next reconciliation read every manifest and fill it."""
    op.add_column("jobs", sa.Column("words", sa.Text, nullable=False, server_default=""))
    op.execute("UPDATE jobs SET stamp = ''")

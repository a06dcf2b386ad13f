"""What limits and retention ask for without opening manifests: a job's bytes, and whether its result was seen."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add both columns; the empty stamps make the next reconciliation read every manifest and fill them."""
    op.add_column("jobs", sa.Column("num_bytes", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("is_unseen", sa.Boolean, nullable=False, server_default=sa.false()))
    op.execute("UPDATE jobs SET stamp = ''")

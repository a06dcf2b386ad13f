"""What the webhook has still to tell, found without opening manifests."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the column and its index; the empty stamps make the next reconciliation fill it."""
    op.add_column("jobs", sa.Column("news_at", sa.Float))
    op.create_index("jobs_with_news", "jobs", ["news_at"])
    op.execute("UPDATE jobs SET stamp = ''")

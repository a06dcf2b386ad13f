"""The tables of the index, as they are now. `migrations/` is how they became so; a test holds the two together.

Everything here follows from the manifests. Only the lease and the newest progress of running jobs are of the index
alone, and both may be lost.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Float, Index, Integer, MetaData, String, Table, Text, false

METADATA = MetaData()

JOBS = Table(
    "jobs",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("status", String(16), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("place", Float, nullable=False),
    Column("token", Integer, nullable=False),
    Column("holder", String(200), nullable=False),
    Column("lease_until", Float, nullable=False),
    Column("wish", String(32), nullable=False),
    Column("started_at", Float),
    Column("finished_at", Float),
    Column("progress", Text),
    Column("stamp", String(64), nullable=False),
    Column("document", Text, nullable=False),
    Column("num_bytes", BigInteger, nullable=False, server_default="0"),
    Column("is_unseen", Boolean, nullable=False, server_default=false()),
    Column("words", Text, nullable=False, server_default=""),
    Column("news_at", Float),
    Index("jobs_of_owner", "owner"),
    Index("jobs_in_line", "status", "priority", "place"),
    Index("jobs_finished", "owner", "finished_at", "id", "status"),
    Index("jobs_with_news", "news_at"),
)
"""One row a job. `document` is the manifest; `stamp` tells which one; `token`, `holder` and `lease_until` are its
lease; `words` are what it is found by, `news_at` is the time of the latest change that a webhook has still to tell."""

OWNERS = Table(
    "owners",
    METADATA,
    Column("owner", String(64), primary_key=True),
    Column("served_at", Float, nullable=False),
)
"""When a job of this owner was last taken from the queue: who waited longest is next."""

STATE = Table(
    "state",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("revision", BigInteger, nullable=False),
)
"""One row. `revision` grows with every change of the index."""

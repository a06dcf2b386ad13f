"""Alembic's entry: it migrates over the connection, and within the transaction, that `seedvr_ui.database` hands in."""

from __future__ import annotations

from alembic import context

from seedvr_ui.tables import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
context.run_migrations()

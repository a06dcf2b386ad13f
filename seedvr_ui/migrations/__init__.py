"""How the tables of the index came to be: an Alembic environment that `seedvr_ui.database` runs when the app starts."""

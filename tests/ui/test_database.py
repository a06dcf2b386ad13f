"""The database of the index: its tables, older and damaged ones, its journal, and that readers do not wait."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import text

from inference.errors import RestoreError
from seedvr_ui import database, manifest
from seedvr_ui.database import HEAD, NAME, Database, choose_journal, file_system, migrate
from seedvr_ui.jobs import JobStatus
from seedvr_ui.storage import Storage
from seedvr_ui.store import Store
from seedvr_ui.tables import METADATA
from tests.ui.server import ROOT
from tests.ui.stores import OpenStore, database_url, make_job, open_store, postgres, storage, store

__all__ = ["database_url", "open_store", "postgres", "storage", "store"]  # fixtures

ANN = "a" * 32


def _open(storage: Storage) -> Store:
    store = Store(storage)
    store.open()
    return store


def _damaged(storage: Storage) -> list[Path]:
    return list(storage.root.glob(f"{NAME}.damaged-*"))


def test_the_migrations_lead_to_the_tables_of_the_program(storage: Storage, database_url: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.config import Config
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    opened = Database(storage.root, database_url)
    opened.open()
    with opened.write() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    opened.close()
    config = Config()
    config.set_main_option("script_location", str(ROOT / "seedvr_ui" / "migrations"))
    config.set_main_option("path_separator", "os")
    scripts = ScriptDirectory.from_config(config)
    assert scripts.get_heads() == [HEAD]
    assert len(list(scripts.walk_revisions())) >= 2


def test_an_older_index_is_migrated_and_filled_up(storage: Storage, database_url: str) -> None:
    """An index as revision 0001 made it, with a job in it whose new columns are not there yet."""
    old = Database(storage.root, database_url)
    with old.write() as connection:
        migrate(connection, "0001")
        connection.execute(
            text(
                "INSERT INTO jobs (id, owner, status, priority, place, token, holder, lease_until, wish, stamp,"
                " document) VALUES (:id, :owner, 'queued', 0, 1.0, 0, '', 0.0, '', 'x', '{}')"
            ),
            {"id": "f" * 32, "owner": ANN},
        )
    old.close()
    job = make_job(storage, ANN)
    manifest.write(job)
    store = Store(storage, database_url)
    store.open()
    assert store.jobs(ANN) == [job]  # and the row without a folder is gone
    assert store.usage(ANN).num_bytes == 6
    store.close()


def test_a_current_index_opens_without_alembic(storage: Storage) -> None:
    _open(storage).close()
    program = """
import sys
from pathlib import Path
from seedvr_ui.storage import Storage
from seedvr_ui.store import Store
store = Store(Storage(Path(sys.argv[1])))
store.open()
store.close()
sys.exit("alembic" in sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-c", program, str(storage.root)], cwd=ROOT, capture_output=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr.decode()


def _overwrite_middle(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096 : len(content)] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"this is no database" * 500),
        lambda path: path.write_bytes(path.read_bytes()[:5000]),
        _overwrite_middle,
    ],
    ids=["another file", "cut off", "overwritten"],
)
def test_a_damaged_index_is_kept_and_built_again(storage: Storage, damage: object) -> None:
    store = _open(storage)
    jobs = [store.add(make_job(storage, ANN, number)) for number in range(3)]
    running = store.claim()
    store.close()
    assert callable(damage)
    damage(storage.root / NAME)
    again = _open(storage)
    assert {job.id for job in again.jobs(ANN)} == {job.id for job in jobs}
    assert running is not None
    assert again.job(running.id).status is JobStatus.RUNNING
    assert len(_damaged(storage)) >= 1
    again.close()


@pytest.mark.parametrize("change", ["DROP TABLE jobs", "UPDATE alembic_version SET version_num = '9999'"])
def test_an_index_of_another_program_is_kept_and_built_again(storage: Storage, change: str) -> None:
    store = _open(storage)
    job = store.add(make_job(storage, ANN))
    store.close()
    connection = sqlite3.connect(storage.root / NAME)
    connection.execute(change)
    connection.commit()
    connection.close()
    again = _open(storage)
    assert again.jobs(ANN) == [job]
    again.close()


def test_a_missing_index_is_built(storage: Storage) -> None:
    store = _open(storage)
    job = store.add(make_job(storage, ANN))
    store.close()
    (storage.root / NAME).unlink()
    again = _open(storage)
    assert again.jobs(ANN) == [job]
    assert _damaged(storage) == []
    again.close()


def test_a_process_notices_that_another_one_has_replaced_the_index(storage: Storage) -> None:
    store = _open(storage)
    store.add(make_job(storage, ANN))
    job = store.claim()
    assert job is not None
    (storage.root / NAME).rename(storage.root / "moved")
    other = _open(storage)
    store.renew(job, None)
    assert other.recover() == []
    assert other.claim() is None
    for opened in (store, other):
        opened.close()


def test_a_reader_does_not_wait_for_a_writer(store: Store, storage: Storage) -> None:
    job = store.add(make_job(storage, ANN))
    begun, done = threading.Event(), threading.Event()

    def write_slowly() -> None:
        def edit(job: object) -> object:
            begun.set()
            assert done.wait(20)
            return job

        store.change(job.id, edit)  # type: ignore[arg-type]

    thread = threading.Thread(target=write_slowly)
    thread.start()
    try:
        assert begun.wait(20)
        before = time.monotonic()
        assert store.jobs(ANN) == [job]
        assert store.counts()["queued"] == 1
        assert time.monotonic() - before < 10  # far below the 30 s that a locked database would be waited for
    finally:
        done.set()
        thread.join(20)


def test_two_processes_may_open_a_new_index_at_the_same_time(storage: Storage, open_store: OpenStore) -> None:
    stores: list[Store] = []
    threads = [threading.Thread(target=lambda: stores.append(open_store())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [store.jobs(ANN) for store in stores] == [[]] * 4


# --- the journal ---


def _journal_of(path: Path) -> str:
    connection = sqlite3.connect(path)
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    connection.close()
    return str(mode)


def test_a_disk_of_this_machine_gets_a_write_ahead_log(storage: Storage) -> None:
    _open(storage).close()
    assert _journal_of(storage.root / NAME) == "wal"
    assert list(storage.root.glob(".journal-probe*")) == []


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.juicefs", "fuse", "9p"])
def test_a_network_file_system_gets_a_rollback_journal(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    _open(storage).close()
    monkeypatch.setattr(database, "file_system", lambda folder: kind)
    store = _open(storage)
    job = store.add(make_job(storage, ANN))
    store.close()
    assert _journal_of(storage.root / NAME) == "delete"
    again = _open(storage)
    assert again.jobs(ANN) == [job]
    again.close()


def test_where_a_real_write_fails_there_is_no_write_ahead_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(sqlite3.Connection):
        def execute(self, statement: str, *values: object) -> sqlite3.Cursor:
            if statement.startswith("INSERT"):
                raise sqlite3.OperationalError("disk I/O error")
            return super().execute(statement, *values)  # type: ignore[arg-type]

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **values: connect(path, factory=Refusing, **values))
    assert choose_journal(tmp_path) == "delete"


def test_the_file_system_of_a_folder_is_known(tmp_path: Path) -> None:
    assert file_system(tmp_path) != ""
    assert file_system(Path("/proc")) == "proc"


# --- addresses ---


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("mysql://u@h/d", "only postgresql:// works"),
        ("nonsense", "is no address"),
        ("postgresql://studio:secret@127.0.0.1:1/none", "check SEEDVR_DATABASE_URL"),
    ],
)
def test_a_wrong_address_is_a_sentence_without_the_password(storage: Storage, url: str, sentence: str) -> None:
    with pytest.raises(RestoreError, match=sentence) as caught:
        Store(storage, url).open()
    assert "secret" not in str(caught.value)

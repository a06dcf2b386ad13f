"""The database of the index: where it is, how it is opened, migrated, and replaced when it is damaged. Without jobs.

SQLite in `<data>/index.sqlite3`, or the Postgres that a URL names. Writers use one engine whose transactions take the
write lock at once (BEGIN IMMEDIATE), readers a second one without transactions, so that a page that looks never waits
for, or holds up, one that writes.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock
from sqlalchemy import Connection, Engine, create_engine, event, inspect, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, NoResultFound, SQLAlchemyError

from inference.errors import RestoreError
from seedvr_ui.tables import JOBS, OWNERS, STATE

log = logging.getLogger(__name__)

NAME = "index.sqlite3"
HEAD = "0004"
_MIGRATIONS = Path(__file__).with_name("migrations")
_BUSY_LIMIT_S = 30.0
_OPEN_LIMIT_S = 60.0
_NETWORK = ("nfs", "cifs", "smb", "9p", "fuse", "ceph", "gluster", "lustre", "beegfs", "gpfs", "afs", "virtiofs")


class DatabaseFailure(RestoreError):
    """The database did not do what was asked; nothing of the transaction was kept."""

    def __init__(self) -> None:
        super().__init__("The index of jobs does not answer; try again, and look into the log if it happens twice.")


class Database:
    """The index as a database; `open` before use, `close` at the end."""

    def __init__(self, root: Path, url: str = "") -> None:
        self._root = root
        self._path = None if url else root / NAME
        self._url = _postgres_url(url) if url else make_url(f"sqlite:///{root / NAME}")
        self._writing = threading.RLock()
        self._inode: int | None = None
        self._reader, self._writer = self._make_engines()

    @property
    def is_sqlite(self) -> bool:
        """Whether the index is a file of our own."""
        return self._path is not None

    def lock(self) -> FileLock:
        """What a process holds while it opens or rebuilds the index, so that two that start together do not both."""
        return FileLock(self._root / "index.lock", timeout=_OPEN_LIMIT_S)

    def open(self) -> None:
        """Make the database ready, under `lock`. Raises RestoreError where that is not possible."""
        if self._path is None:
            self._prepare_server()
            return
        if self._path.exists() and not _is_sound(self._path):
            self.set_aside()
        _set_journal(self._path, choose_journal(self._root))
        try:
            self._prepare()
        except (DatabaseError, NoResultFound, UnknownRevisionError) as error:
            if isinstance(error, DatabaseError) and not _is_damage(error.orig):
                raise _failure(error) from error
            log.warning("the index cannot be used: %s", error)
            self.set_aside()
            _set_journal(self._path, choose_journal(self._root))
            self._prepare()
        self._inode = self._path.stat().st_ino

    def set_aside(self) -> None:
        """Rename the damaged file of the index; it is rebuilt from the manifests."""
        assert self._path is not None
        self.close()
        stem = f"{NAME}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        for suffix in ("", "-wal", "-shm", "-journal"):
            file = self._path.with_name(f"{NAME}{suffix}")
            if file.exists():
                os.replace(file, file.with_name(f"{stem}{suffix}"))
        log.warning("The index of jobs was damaged; it is kept as %s and built again from the jobs' folders.", stem)

    def is_replaced(self) -> bool:
        """Whether another process has put a new file in the place of the one that is open here."""
        if self._path is None:
            return False
        try:
            return self._path.stat().st_ino != self._inode
        except FileNotFoundError:
            return True

    def close(self) -> None:
        """Close all connections; the next use opens new ones."""
        self._reader.dispose()
        self._writer.dispose()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for single statements that only look."""
        try:
            with self._reader.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise _failure(error) from error

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that holds the write lock; what it raises undoes it."""
        try:
            with self._writing, self._writer.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise _failure(error) from error

    def _make_engines(self) -> tuple[Engine, Engine]:
        if self._path is None:
            if find_spec("psycopg") is None:
                raise RestoreError("Postgres needs one more package: pip install 'seedvr-studio[postgres]'.")
            return (
                create_engine(self._url, isolation_level="AUTOCOMMIT", pool_pre_ping=True),
                create_engine(self._url, pool_pre_ping=True),
            )
        return _sqlite_engine(self._url, immediate=False), _sqlite_engine(self._url, immediate=True)

    def _prepare(self) -> None:
        """Migrate where needed. Alembic is only imported then: a start with a current index is quick."""
        with self._writer.begin() as connection:
            current = _current_revision(connection)
            if current != HEAD:
                log.info("the index of jobs is brought from %s to %s", current or "nothing", HEAD)
                migrate(connection)
            connection.execute(select(STATE.c.revision)).scalar_one()
            for table in (JOBS, OWNERS):
                connection.execute(select(table).limit(1)).first()

    def _prepare_server(self) -> None:
        try:
            self._prepare()
        except (SQLAlchemyError, UnknownRevisionError) as error:
            raise RestoreError(
                f"The database {self._url.render_as_string()} does not answer, or is not ours to use; check "
                "SEEDVR_DATABASE_URL, or unset it to use a file in the data folder."
            ) from error


class UnknownRevisionError(Exception):
    """The tables are of a version that this program does not know."""


def migrate(connection: Connection, revision: str = HEAD) -> None:
    """Bring the tables to `revision` within the caller's transaction."""
    logging.getLogger("alembic").setLevel(logging.WARNING)  # our own line says it; it talks when it is imported

    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, revision)
    except CommandError as error:
        raise UnknownRevisionError(str(error)) from error


def _postgres_url(text: str) -> URL:
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise RestoreError("SEEDVR_DATABASE_URL is no address; write postgresql://user:password@host/name.") from error
    if url.drivername not in ("postgres", "postgresql", "postgresql+psycopg"):
        raise RestoreError(
            f"SEEDVR_DATABASE_URL names {url.drivername}, only postgresql:// works; unset it to use a file in the data "
            "folder."
        )
    return url.set(drivername="postgresql+psycopg")


def choose_journal(folder: Path) -> str:
    """SQLite's journal mode for a database in `folder`: "wal", or "delete" where WAL cannot be trusted.

    WAL needs memory that is shared by all who use the file, which no network file system gives to two machines, though
    each machine alone would see it work. Elsewhere a real write decides: asking for WAL may succeed and writing fail.
    """
    return "delete" if file_system(folder).startswith(_NETWORK) or not _can_wal(folder) else "wal"


def file_system(folder: Path) -> str:
    """The kind of file system that `folder` lies on, as the system names it; empty if it is not known."""
    path = folder.resolve()
    partitions = [part for part in psutil.disk_partitions(all=True) if path.is_relative_to(part.mountpoint)]
    return max(partitions, key=lambda part: len(part.mountpoint)).fstype.lower() if partitions else ""


def _can_wal(folder: Path) -> bool:
    probe = folder / f".journal-probe-{os.getpid()}-{threading.get_ident()}"
    try:
        first, second = sqlite3.connect(probe), sqlite3.connect(probe)
        try:
            (mode,) = first.execute("PRAGMA journal_mode=WAL").fetchone()
            first.execute("CREATE TABLE probe (value)")
            first.execute("INSERT INTO probe VALUES (1)")
            first.commit()
            return bool(mode == "wal" and second.execute("SELECT value FROM probe").fetchall() == [(1,)])
        finally:
            second.close()
            first.close()
    except sqlite3.Error as error:
        log.info("no write-ahead log in %s: %s", folder, error)
        return False
    finally:
        for suffix in ("", "-wal", "-shm", "-journal"):
            probe.with_name(f"{probe.name}{suffix}").unlink(missing_ok=True)


def _is_sound(path: Path) -> bool:
    try:
        connection = sqlite3.connect(path, timeout=_BUSY_LIMIT_S)
        try:
            return bool(connection.execute("PRAGMA quick_check(1)").fetchall() == [("ok",)])
        finally:
            connection.close()
    except sqlite3.Error as error:
        if _is_damage(error):
            return False
        log.info("the index could not be checked: %s", error)
        return True


def _is_damage(error: BaseException | None) -> bool:
    """Whether SQLite says that the file is no good, rather than busy, full or out of reach."""
    damage = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
    return getattr(error, "sqlite_errorcode", -1) & 0xFF in damage


def _set_journal(path: Path, mode: str) -> None:
    connection = sqlite3.connect(path, timeout=1.0)
    try:
        (before,) = connection.execute("PRAGMA journal_mode").fetchone()
        if before != mode:
            connection.execute(f"PRAGMA journal_mode={mode}")
    except sqlite3.OperationalError as error:  # another process has it open; its choice stands
        log.info("the journal of the index stays as it is: %s", error)
    finally:
        connection.close()


def _sqlite_engine(url: URL, *, immediate: bool) -> Engine:
    options: dict[str, Any] = {"connect_args": {"timeout": _BUSY_LIMIT_S, "check_same_thread": False}}
    engine = create_engine(url, **options) if immediate else create_engine(url, isolation_level="AUTOCOMMIT", **options)

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _: Any) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
        connection.execute(f"PRAGMA synchronous={'NORMAL' if mode == 'wal' else 'FULL'}")

    if immediate:

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _current_revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return revision


def _failure(error: SQLAlchemyError) -> DatabaseFailure:
    log.warning("the index failed: %s", error)
    return DatabaseFailure()

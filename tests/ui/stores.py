"""Stores and jobs for the tests of the queue, over every kind of database that this machine has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from seedvr_ui.jobs import Job
from seedvr_ui.storage import Storage, new_id
from seedvr_ui.store import Store
from tests.ui.postgres import find_programs, running_postgres

PROGRAMS = find_programs() if find_spec("psycopg") else None
DATABASES = ["sqlite", *(["postgres"] if PROGRAMS else [])]
MEDIA = {"width": 64, "height": 48, "is_image": False}


def make_job(storage: Storage, owner: str, place: float = 1.0, name: str = "a.mp4") -> Job:
    """A queued job with a source in its folder; it is not in a store yet."""
    job_id = new_id()
    folder = storage.job_folder(owner, job_id)
    (folder / "source").mkdir(parents=True)
    (folder / "source" / name).write_text("pixels")
    return Job(
        id=job_id, owner=owner, folder=folder, source=folder / "source" / name, target=folder / "result" / "b.mp4",
        settings={"restore": {"factor": 2.0}}, media=MEDIA, num_bytes=6,
    ).queue(place)  # fmt: skip


OpenStore = Callable[..., Store]


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a server; `{name}` stands for the database."""
    assert PROGRAMS is not None  # only asked for where there is one
    with running_postgres(PROGRAMS) as url:
        yield url


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """What SEEDVR_DATABASE_URL would say: empty for a file, or an empty database of a server."""
    if request.param == "sqlite":
        yield ""
        return
    import psycopg

    url, name = request.getfixturevalue("postgres"), f"t{new_id()}"
    with psycopg.connect(url.format(name="postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield url.format(name=name)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "data")


@pytest.fixture
def open_store(storage: Storage, database_url: str) -> Iterator[OpenStore]:
    """open_store(lease_s=...) is another process's view of the same data, as far as the store can tell."""
    stores: list[Store] = []

    def open_store(lease_s: float = 30.0) -> Store:
        store = Store(storage, database_url, lease_s)
        store.open()
        stores.append(store)
        return store

    yield open_store
    for store in stores:
        store.close()


@pytest.fixture
def store(open_store: OpenStore) -> Store:
    return open_store()

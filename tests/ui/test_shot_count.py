"""The shots of a source are counted beside the work on it, once, and never in its way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inference.errors import MediaError
from inference.progress import Cancellation, Progress, Stage
from seedvr_ui.jobs import Job, JobStatus
from seedvr_ui.sessions import Services, SessionManager
from seedvr_ui.storage import Storage
from tests.ui.conftest import FakeEngine

Submit = Callable[..., Job]
Wait = Callable[[Callable[[], bool]], None]


class Counter:
    """Counts as many shots as `number` says, or raises it, once it may."""

    def __init__(self) -> None:
        self.number: int | Exception = 4
        self.may = threading.Event()
        self.may.set()
        self.asked: list[str] = []
        self.stopped = 0

    def __call__(self, source: Path, cancellation: Cancellation) -> int:
        self.asked.append(source.name)
        while not self.may.is_set():
            if cancellation.wait(0.01):
                self.stopped += 1
                cancellation.check()
        if isinstance(self.number, Exception):
            raise self.number
        return self.number


@pytest.fixture
def count() -> Counter:
    return Counter()


@pytest.fixture
def manager(tmp_path: Path, engine: FakeEngine, count: Counter) -> Iterator[SessionManager]:
    """A queue that counts, and whose engine reports again and again while it is held."""

    def restore(*arguments: Any, work: Path) -> Any:
        source, _, _, report, _ = arguments
        while not engine.hold.wait(0.01) and engine.is_stubborn:
            report(Progress(Stage.RESTORE, 1, 8, shot=1, num_shots=2))
        report(Progress(Stage.RESTORE, 2, 8, shot=1, num_shots=2))
        return engine.restore(*arguments, work=work)

    services = Services(check=engine.check, restore=restore, make_preview=engine.make_preview, count_shots=count)
    manager = SessionManager(Storage(tmp_path / "data"), services)
    yield manager
    engine.hold.set()
    count.may.set()
    manager.close()


def _total(manager: SessionManager, session: str, job: Job) -> int | None:
    progress = manager.job(session, job.id).progress
    return None if progress is None else progress.shots_total


def test_the_number_comes_with_the_news_of_the_job(
    manager: SessionManager, engine: FakeEngine, submit: Submit, session: str, wait_until: Wait
) -> None:
    engine.hold.clear()
    engine.is_stubborn = True
    job = submit("a.mp4")
    manager.start()
    wait_until(lambda: _total(manager, session, job) == 4)
    engine.hold.set()
    wait_until(lambda: manager.job(session, job.id).status is JobStatus.SUCCEEDED)


def test_a_job_that_ends_first_ends_the_count(
    manager: SessionManager, count: Counter, submit: Submit, session: str, wait_until: Wait
) -> None:
    count.may.clear()
    job = submit("a.mp4")
    manager.start()
    wait_until(lambda: manager.job(session, job.id).status is JobStatus.SUCCEEDED)
    assert (count.asked, count.stopped) == (["a.mp4"], 1)


def test_a_count_that_fails_harms_nothing(
    manager: SessionManager, count: Counter, submit: Submit, session: str, wait_until: Wait
) -> None:
    count.number = MediaError("The shots of a.mp4 could not be counted.")
    job = submit("a.mp4")
    manager.start()
    wait_until(lambda: manager.job(session, job.id).status is JobStatus.SUCCEEDED)


def test_a_job_that_goes_on_is_not_counted_again(
    manager: SessionManager, engine: FakeEngine, count: Counter, submit: Submit, session: str, wait_until: Wait
) -> None:
    engine.hold.clear()
    engine.is_stubborn = True
    job = submit("a.mp4")
    manager.start()
    wait_until(lambda: _total(manager, session, job) == 4)
    manager.pause(session, job.id)
    engine.is_stubborn = False
    wait_until(lambda: manager.job(session, job.id).status is JobStatus.PAUSED)
    engine.hold.set()
    manager.resume(session, job.id)
    wait_until(lambda: manager.job(session, job.id).status is JobStatus.SUCCEEDED)
    assert count.asked == ["a.mp4"]


def test_nothing_is_counted_where_shots_are_not_looked_for(
    manager: SessionManager, count: Counter, session: str, wait_until: Wait
) -> None:
    upload = manager.uploads.begin(session, "a.mp4", 6, "")
    manager.uploads.append(session, upload.id, 0, b"pixels")
    job = manager.submit(session, [upload.id], {"restore": {"factor": 2.0, "detect_shots": False}})[0]
    manager.start()
    wait_until(lambda: manager.job(session, job.id).status is JobStatus.SUCCEEDED)
    assert count.asked == []

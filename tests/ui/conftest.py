"""A queue with a fake engine: tests of the front end need neither torch nor real media."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from inference.errors import MediaError
from inference.progress import Cancellation, Progress, Report, Stage
from seedvr_ui.jobs import Job
from seedvr_ui.sessions import Limits, Services, SessionManager
from seedvr_ui.storage import Storage, new_id
from tests.ui.nginx import PROGRAM as NGINX

WAIT_LIMIT_S = 20.0
MEDIA = {
    "width": 64, "height": 48, "is_image": False, "fps": 24.0, "num_frames": 8, "duration": 8 / 24, "has_audio": True,
}  # fmt: skip


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests with nginx out where it is not installed; `collect_ignore` does not hold for files named."""
    left_out = [] if NGINX else [item for item in items if item.path.name == "test_browser_nginx.py"]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@dataclass
class FakeEngine:
    """Copies files. `hold` makes jobs wait; a file whose text starts with `fail:` fails with the rest of its text.

    `errors` are raised one after another, by as many jobs. A `is_stubborn` engine does not hear that it shall stop.
    """

    hold: threading.Event = field(default_factory=threading.Event)
    restored: list[str] = field(default_factory=list)
    settings: list[Mapping[str, Any]] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    is_stubborn: bool = False

    def __post_init__(self) -> None:
        self.hold.set()

    def check(self, source: Path, thumbnail: Path) -> dict[str, Any]:
        if source.read_bytes().startswith(b"bad"):
            raise MediaError(f"'{source.name}' is not a video; choose another file.")
        thumbnail.write_bytes(b"picture")
        return dict(MEDIA)

    def restore(
        self, source: Path, target: Path, settings: Mapping[str, Any], report: Report, cancellation: Cancellation,
        *, work: Path,
    ) -> dict[str, Any]:  # fmt: skip
        self.restored.append(source.name)
        self.settings.append(settings)
        report(Progress(Stage.RESTORE, 3, 8, 1.5, 4.0))
        work.mkdir(exist_ok=True)
        (work / "unit").touch()
        if self.errors:
            raise self.errors.pop(0)
        deadline = time.monotonic() + WAIT_LIMIT_S
        while not self.hold.wait(0.01) and time.monotonic() < deadline:
            if not self.is_stubborn:
                cancellation.check()
        text = source.read_text()
        if text.startswith("fail:"):
            raise MediaError(text.removeprefix("fail:"))
        target.write_text(f"restored {text}")
        return {"frames": 8, "width": 128, "height": 96}

    def make_preview(self, source: Path, result: Path, folder: Path, cancellation: Cancellation) -> dict[str, Any]:
        (folder / "preview.mp4").write_bytes(bytes(range(200)))
        return {"kind": "video", "video": "preview.mp4", "width": 128, "height": 96, "after_top": 100, "fps": 24.0}


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


MakeManager = Callable[..., SessionManager]


@pytest.fixture
def make_manager(tmp_path: Path, engine: FakeEngine) -> Iterator[MakeManager]:
    """make_manager(limits) is another start of the server on the same data; it has not begun to run jobs."""
    managers: list[SessionManager] = []

    def make_manager(limits: Limits | None = None) -> SessionManager:
        services = Services(check=engine.check, restore=engine.restore, make_preview=engine.make_preview)
        limits = limits or Limits(max_upload_bytes=10**6, max_jobs=5)
        managers.append(SessionManager(Storage(tmp_path / "data"), services, limits))
        return managers[-1]

    yield make_manager
    engine.hold.set()
    for manager in managers:
        manager.close()


@pytest.fixture
def manager(make_manager: MakeManager) -> SessionManager:
    """A queue that has not been started."""
    return make_manager()


@pytest.fixture
def session() -> str:
    return new_id()


Submit = Callable[..., Job]


@pytest.fixture
def submit(manager: SessionManager, session: str) -> Submit:
    """submit(name, text, session=..., draft=...) uploads a file and queues it."""

    def submit(name: str, text: str = "pixels", session: str = session, draft: bool = False) -> Job:
        upload = manager.uploads.begin(session, name, len(text), "")
        manager.uploads.append(session, upload.id, 0, text.encode())
        return manager.submit(session, [upload.id], {"restore": {"factor": 2.0}}, draft=draft)[0]

    return submit


Wait = Callable[[Callable[[], bool]], None]


@pytest.fixture
def wait_until() -> Wait:
    """wait_until(condition) returns when it holds, and fails the test when that takes too long."""

    def wait_until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_LIMIT_S
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true"
            time.sleep(0.01)

    return wait_until

"""What the page asks for again and again, what its buttons do, and the files of parts. Real routes, no Gradio."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from inference.errors import MediaError
from inference.progress import Cancellation, Progress, Stage
from seedvr_ui.access import COOKIE, Access
from seedvr_ui.jobs import Job, JobStatus
from seedvr_ui.media_routes import add_media_routes
from seedvr_ui.page_routes import Action, add_page_routes
from seedvr_ui.parts import Parts
from seedvr_ui.player import Display
from seedvr_ui.routes import add_routes
from seedvr_ui.sessions import Limits, SessionManager
from seedvr_ui.snapshots import PARTS, Question, Snapshots
from seedvr_ui.storage import new_id
from tests.ui.conftest import FakeEngine, MakeManager, Submit, Wait


@dataclass
class FakeJoin:
    """Writes a part of two units, after `hold`."""

    hold: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None
    units: int = 2
    num_calls: int = 0

    def __call__(self, work: Path, source: Path, target: Path, cancellation: Cancellation) -> Mapping[str, Any]:
        self.num_calls += 1
        while not self.hold.wait(0.01):
            cancellation.check()
        if self.error is not None:
            raise self.error
        target.write_bytes(bytes(range(100)))
        return {"units": self.units}


@pytest.fixture
def join() -> FakeJoin:
    join = FakeJoin()
    join.hold.set()
    return join


@pytest.fixture
def parts(manager: SessionManager, join: FakeJoin) -> Iterator[Parts]:
    parts = Parts(manager.storage, join, manager.weigh)
    yield parts
    parts.close()


@pytest.fixture
def snapshots(manager: SessionManager) -> Snapshots:
    return Snapshots(manager, lambda: Display(keep_s=manager.limits.keep_s))


@pytest.fixture
def app(manager: SessionManager, parts: Parts, snapshots: Snapshots) -> FastAPI:
    app = FastAPI()
    add_routes(app, manager, Access())
    add_page_routes(app, manager, Access(), snapshots)
    add_media_routes(app, manager, Access(), parts)
    return app


@pytest.fixture
def client(app: FastAPI, session: str) -> Iterator[TestClient]:
    with TestClient(app, cookies={COOKIE: session}) as client:
        yield client


@pytest.fixture
def stranger(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, cookies={COOKIE: new_id()}) as client:
        yield client


def _ask(client: TestClient, tags: Mapping[str, str] | None = None, **query: Any) -> dict[str, Any] | None:
    told = ",".join((tags or {}).get(name, "") for name in PARTS)
    reply = client.get("/studio/snapshot", params={"tags": told, **query})
    assert reply.status_code in (200, 204)
    if reply.status_code == 204:
        assert reply.content == b""
        return None
    answer: dict[str, Any] = reply.json()
    return answer


def _see(client: TestClient) -> dict[str, Any]:
    answer = _ask(client)
    assert answer is not None
    return answer


def _kept(manager: SessionManager, session: str, job: Job, units: int = 2) -> Job:
    """The job as one that was cancelled with that many units finished."""

    def stop(job: Job) -> Job:
        return job.start().advance(Progress(Stage.RESTORE, 5, 8, units=units)).cancel(keep_part=True)

    stopped = manager.store.change(job.id, stop)
    stopped.work.mkdir()
    return manager.job(session, job.id)


def test_nothing_is_sent_when_nothing_has_changed(client: TestClient, submit: Submit) -> None:
    submit("a.mp4")
    tags = _see(client)["tags"]
    assert _ask(client, tags) is None
    assert _ask(client, tags) is None
    submit("b.mp4")
    changes = _ask(client, tags)
    assert changes is not None
    assert [job["name"] for job in changes["waiting"]] == ["a.mp4", "b.mp4"]
    assert set(changes) == {"waiting", "space", "tags"}


def test_what_others_do_is_no_change_unless_it_moves_a_place_in_the_line(
    client: TestClient, submit: Submit, manager: SessionManager
) -> None:
    mine = submit("mine.mp4")
    tags = _see(client)["tags"]
    other = submit("theirs.mp4", session=new_id())
    assert _ask(client, tags) is None, "it is behind"
    manager.set_priority(other.id, 5)
    changes = _ask(client, tags)
    assert changes is not None
    assert changes["waiting"][0]["text"] == "Waiting, 1 ahead"
    assert changes["waiting"][0]["id"] == mine.id


def test_progress_sends_the_running_job_and_nothing_else(
    client: TestClient, submit: Submit, manager: SessionManager, engine: FakeEngine, wait_until: Wait
) -> None:
    engine.hold.clear()
    submit("a.mp4")
    submit("b.mp4")
    manager.start()
    wait_until(lambda: bool(_see(client)["running"]) and _see(client)["running"][0]["percent"] == 37)
    answer = _see(client)
    stale = {**answer["tags"], "running": "other"}
    changes = _ask(client, stale)
    assert changes is not None
    assert set(changes) == {"running", "tags"}


def test_a_server_that_was_started_again_has_nothing_new_for_the_page(
    client: TestClient, submit: Submit, make_manager: MakeManager, session: str, manager: SessionManager
) -> None:
    submit("a.mp4")
    tags = _see(client)["tags"]
    again = make_manager()
    fresh = Snapshots(again, lambda: Display(keep_s=again.limits.keep_s))
    assert fresh.changes(Question(session), tags) is None


def test_finished_jobs_come_in_pages_and_are_found_by_name_state_and_setting(
    make_manager: MakeManager, session: str, wait_until: Wait
) -> None:
    manager = make_manager(Limits(max_jobs=500))
    for name, text, settings in (
        ("Holiday in Ödland.mp4", "pixels", {"restore": {"resolution": 1080}}),
        ("wedding.mp4", "pixels", {"restore": {"factor": 2.0, "seed": 7}}),
        ("broken 100%.mp4", "fail:It broke.", {"restore": {"factor": 2.0}}),
    ):
        upload = manager.uploads.begin(session, name, len(text), "")
        manager.uploads.append(session, upload.id, 0, text.encode())
        manager.submit(session, [upload.id], settings)
    manager.start()
    wait_until(lambda: manager.is_idle())
    snapshots = Snapshots(manager, Display)

    def found(search: str, limit: int = 50) -> tuple[list[str], int]:
        changes = snapshots.changes(Question(session, search, limit), {})
        assert changes is not None
        finished = changes["finished"]
        return [job["name"] for job in finished["jobs"]], finished["number"]

    assert found("") == (["broken 100%.mp4", "wedding.mp4", "Holiday in Ödland.mp4"], 3)
    assert found("", 2) == (["broken 100%.mp4", "wedding.mp4"], 3)
    assert found("ÖDLAND") == (["Holiday in Ödland.mp4"], 1)
    assert found("1080p")[0] == ["Holiday in Ödland.mp4"]
    assert found("seed 7")[0] == ["wedding.mp4"]
    assert found("failed")[0] == ["broken 100%.mp4"]
    assert found("100%")[0] == ["broken 100%.mp4"]
    assert found("done mp4")[1] == 2
    assert found("%") == (["broken 100%.mp4"], 1), "a sign of the database means itself"
    assert found("nowhere") == ([], 0)


def test_the_latest_endings_are_told_whatever_is_searched_for(
    client: TestClient, submit: Submit, manager: SessionManager, session: str, wait_until: Wait
) -> None:
    submit("a.mp4")
    manager.start()
    wait_until(manager.is_idle)
    answer = _ask(client, search="nowhere")
    assert answer is not None
    assert answer["finished"]["jobs"] == []
    assert [job["name"] for job in answer["ended"]] == ["a.mp4"]


def test_a_page_without_its_cookie_is_told_so(app: FastAPI) -> None:
    assert TestClient(app).get("/studio/snapshot").status_code == 401


def test_a_page_cannot_ask_for_everything_at_once(client: TestClient) -> None:
    assert client.get("/studio/snapshot", params={"limit": 10**6}).status_code == 422
    assert client.get("/studio/snapshot", params={"search": "x" * 10**4}).status_code == 422


def test_buttons_change_the_order_pause_resume_and_cancel(
    client: TestClient, submit: Submit, manager: SessionManager, session: str
) -> None:
    ids = [submit(name).id for name in ("a.mp4", "b.mp4", "c.mp4")]

    def do(action: str, job_id: str, **choice: Any) -> None:
        reply = client.post(f"/studio/jobs/{job_id}/do/{action}", json=choice)
        assert reply.status_code == 200, reply.text

    def order() -> list[str]:
        return [job.source.name[0] for job in manager.unfinished(session) if job.status is JobStatus.QUEUED]

    do("up", ids[2])
    assert order() == ["a", "c", "b"]
    do("down", ids[0])
    assert order() == ["c", "a", "b"]
    do("before", ids[1], before=ids[2])
    assert order() == ["b", "c", "a"]
    do("pause", ids[1])
    assert order() == ["c", "a"]
    do("resume", ids[1])
    assert order() == ["b", "c", "a"]
    do("duplicate", ids[1])
    assert order() == ["b", "c", "a", "b"]
    do("cancel", ids[0])
    do("remove", ids[0])
    assert order() == ["b", "c", "b"]


@pytest.mark.parametrize("action", list(Action))
def test_a_stranger_is_told_that_there_is_no_such_job(stranger: TestClient, submit: Submit, action: Action) -> None:
    job = submit("a.mp4")
    foreign = stranger.post(f"/studio/jobs/{job.id}/do/{action.value}", json={})
    unknown = stranger.post(f"/studio/jobs/{new_id()}/do/{action.value}", json={})
    assert (foreign.status_code, foreign.json()) == (unknown.status_code, unknown.json())
    assert foreign.status_code in (400, 404)


def test_what_is_not_possible_is_a_sentence(client: TestClient, submit: Submit) -> None:
    reply = client.post(f"/studio/jobs/{submit('a.mp4').id}/do/retry", json={})
    assert (reply.status_code, "look at the queue again" in reply.json()["error"]) == (400, True)
    assert client.post(f"/studio/jobs/{new_id()}/do/explode", json={}).status_code == 422


def test_a_kept_part_is_made_in_the_background_and_served_in_ranges(
    client: TestClient, submit: Submit, manager: SessionManager, session: str, join: FakeJoin, wait_until: Wait
) -> None:
    job = _kept(manager, session, submit("holiday.mp4"))
    join.hold.clear()
    address = f"/studio/jobs/{job.id}/part"
    assert client.post(address).json()["making"]
    assert client.get(address).json() == {"video": "", "download": "", "units": 0, "making": True, "message": ""}
    join.hold.set()
    wait_until(lambda: not client.get(address).json()["making"])
    part = client.get(address).json()
    assert part["video"] == f"{address[1:]}/000002.mp4"
    ranged = client.get(f"/{part['video']}", headers={"Range": "bytes=10-19"})
    assert (ranged.status_code, ranged.content) == (206, bytes(range(10, 20)))
    assert "holiday_part.mp4" in client.get(f"/{part['download']}").headers["content-disposition"]
    assert manager.job(session, job.id).num_bytes >= 100, "it counts as stored"


def test_an_equal_part_is_not_made_again_and_a_newer_one_is(
    client: TestClient, submit: Submit, manager: SessionManager, session: str, join: FakeJoin, parts: Parts,
    wait_until: Wait,
) -> None:  # fmt: skip
    job = _kept(manager, session, submit("a.mp4"))
    for units in (2, 2, 3, 4):
        join.units = units
        progress = Progress(Stage.RESTORE, 5, 8, units=units)
        now = replace(manager.job(session, job.id), progress=progress)
        parts.ask(now)
        wait_until(lambda now=now: not parts.look(now).is_making)  # type: ignore[misc]
    assert join.num_calls == 3
    assert sorted(path.name for path in job.part.iterdir()) == ["000003.mp4", "000004.mp4"]


def test_a_part_that_cannot_be_made_says_why_and_can_be_asked_for_again(
    client: TestClient, submit: Submit, manager: SessionManager, session: str, join: FakeJoin, wait_until: Wait
) -> None:
    job = _kept(manager, session, submit("a.mp4"))
    join.error = MediaError("Nothing is finished yet; let it run.")
    address = f"/studio/jobs/{job.id}/part"
    client.post(address)
    wait_until(lambda: not client.get(address).json()["making"])
    assert client.get(address).json()["message"] == "Nothing is finished yet; let it run."
    join.error = None
    client.post(address)
    wait_until(lambda: bool(client.get(address).json()["video"]))


def test_nothing_is_made_of_a_job_without_finished_units(client: TestClient, submit: Submit, join: FakeJoin) -> None:
    assert client.post(f"/studio/jobs/{submit('a.mp4').id}/part").json()["making"] is False
    assert join.num_calls == 0


def test_parts_are_for_their_owner_and_only_parts_are_served(
    client: TestClient, stranger: TestClient, submit: Submit, manager: SessionManager, session: str, wait_until: Wait
) -> None:
    job = _kept(manager, session, submit("a.mp4"))
    address = f"/studio/jobs/{job.id}/part"
    client.post(address)
    wait_until(lambda: bool(client.get(address).json()["video"]))
    for foreign in (address, f"{address}/000002.mp4"):
        assert stranger.get(foreign).status_code == 404
    assert stranger.post(address).status_code == 404
    shutil.copyfile(job.part / "000002.mp4", job.part / "other.mp4")
    for name in ("other.mp4", "next.mp4", "..%2Fmanifest.json", "000009.mp4", "000002.mp4.part"):
        assert client.get(f"{address}/{name}").status_code == 404, name


def test_a_discarded_part_is_removed_with_its_file(
    client: TestClient, submit: Submit, manager: SessionManager, session: str, wait_until: Wait
) -> None:
    job = _kept(manager, session, submit("a.mp4"))
    client.post(f"/studio/jobs/{job.id}/part")
    wait_until(lambda: bool(client.get(f"/studio/jobs/{job.id}/part").json()["video"]))
    client.post(f"/studio/jobs/{job.id}/do/retry", json={})
    client.post(f"/studio/jobs/{job.id}/do/cancel", json={"keep": False})
    assert not job.part.exists()
    assert not job.work.exists()


def test_a_browser_finds_an_icon(client: TestClient) -> None:
    assert client.get("/favicon.ico").headers["content-type"].startswith("image/svg")

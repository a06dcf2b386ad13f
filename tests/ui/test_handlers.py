"""What the events of the form do, without a browser."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from starlette.requests import Request

from inference.settings import load_settings, to_dict
from seedvr_ui.access import COOKIE, Access
from seedvr_ui.fields import OPTIONS
from seedvr_ui.handlers import FORM, Handlers
from seedvr_ui.jobs import Job
from seedvr_ui.sessions import SessionManager
from seedvr_ui.storage import new_id
from tests.ui.conftest import Submit

MODELS = ["auto", "nano"]
OPTION_VALUES = ["balanced", 16, 666, True, True]


@pytest.fixture
def handlers(manager: SessionManager) -> Handlers:
    return Handlers(manager, Access(), {})


def _request(session: str) -> Any:
    cookie = f"{COOKIE}={session}".encode()
    return SimpleNamespace(request=Request({"type": "http", "headers": [(b"cookie", cookie)]}))


def _upload(manager: SessionManager, session: str, name: str) -> str:
    upload = manager.uploads.begin(session, name, 6, "")
    manager.uploads.append(session, upload.id, 0, b"pixels")
    return upload.id


def _is_skip(value: Any) -> bool:
    return isinstance(value, dict) and value.get("__type__") == "update"


def test_start_queues_every_ready_file_with_the_settings_of_the_form(
    handlers: Handlers, manager: SessionManager, session: str
) -> None:
    ready = [_upload(manager, session, name) for name in ("a.mp4", "b.mp4")]
    answer = handlers.submit(_request(session), {"ready": ready}, "factor=4", "nano", *OPTION_VALUES)
    assert (answer["taken"], answer["message"]) == (ready, "")
    jobs = manager.unfinished(session)
    assert [job.source.name for job in jobs] == ["a.mp4", "b.mp4"]
    assert {(job.settings["engine"]["model"], job.settings["restore"]["factor"]) for job in jobs} == {("nano", 4.0)}


def test_start_without_a_file_says_what_to_do(handlers: Handlers, session: str) -> None:
    answer = handlers.submit(_request(session), None, "factor=2", "auto", *OPTION_VALUES)
    assert answer["message"] == "Add a video or an image first."


def test_a_browser_without_a_cookie_is_told_so(handlers: Handlers) -> None:
    with pytest.raises(gr.Error, match="cookies"):
        handlers.submit(_request("nobody"), None, "factor=2", "auto", *OPTION_VALUES)


def test_the_form_comes_back_as_it_was(handlers: Handlers) -> None:
    form = dict(zip(FORM, ["factor=4", "nano", "lab", 20, 7, False, True], strict=True))
    assert handlers.recall(MODELS)(form) == list(form.values())


@pytest.mark.parametrize("form", [None, "rubbish", [], {}, {"size": None}])
def test_a_browser_that_remembers_nothing_leaves_the_form_as_it_is(handlers: Handlers, form: Any) -> None:
    assert all(_is_skip(value) for value in handlers.recall(MODELS)(form))


def test_what_is_no_choice_any_more_is_forgotten(handlers: Handlers) -> None:
    form = {"size": "factor=99", "model": "gone", "restore.seed": "x", "restore.encode.quality": 30}
    values = dict(zip(FORM, handlers.recall(MODELS)(form), strict=True))
    assert values.pop("restore.encode.quality") == 30
    assert all(_is_skip(value) for value in values.values())


def _press(action: str, job: Job) -> Any:
    return SimpleNamespace(action=action, id=job.id)


def test_the_settings_of_a_job_fill_the_form(
    handlers: Handlers, manager: SessionManager, session: str, submit: Submit
) -> None:
    settings = to_dict(load_settings(["factor=4", "seed=7", "model=nano"]))
    job = manager.duplicate(session, submit("a.mp4").id, settings)
    values = handlers.use(MODELS)(_press("use", job), _request(session), "factor=2", "auto", *OPTION_VALUES)
    assert values[:2] == ["factor=4", "nano"]
    assert values[2 + OPTIONS.index("restore.seed")] == 7


def test_a_file_runs_again_with_what_the_form_says(
    handlers: Handlers, manager: SessionManager, session: str, submit: Submit
) -> None:
    job = submit("a.mp4")
    values = handlers.use(MODELS)(_press("again", job), _request(session), "resolution=720", "nano", *OPTION_VALUES)
    assert all(_is_skip(value) for value in values)
    again = manager.unfinished(session)[-1]
    assert (again.source.name, again.settings["restore"]["resolution"]) == ("a.mp4", 720)


@pytest.mark.parametrize("action", ["use", "again"])
def test_the_settings_of_somebody_elses_job_are_not_told(handlers: Handlers, submit: Submit, action: str) -> None:
    with pytest.raises(gr.Error, match="no longer exists"):
        handlers.use(MODELS)(
            _press(action, submit("a.mp4")), _request(new_id()), "factor=2", "auto", *OPTION_VALUES
        )  # fmt: skip

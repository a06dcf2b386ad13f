"""Downloads, imports and deletions as the page and programs ask for them, in real processes, from a hub on loopback."""

from __future__ import annotations

import hashlib
import io
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient
from safetensors.torch import load_file

from inference.catalogue import CATALOGUE, ModelEntry, Part, WeightFile
from inference.installed import Task
from inference.locate import own_folder
from seedvr_ui.access import COOKIE, Access
from seedvr_ui.accounts import Accounts, AccountsFile
from seedvr_ui.api_errors import add_error_handlers
from seedvr_ui.jobs import StateError
from seedvr_ui.login import Login
from seedvr_ui.model_routes import add_model_routes
from seedvr_ui.model_tasks import IMPORTED, ModelTasks, TaskStatus, UnknownModelError
from seedvr_ui.signed_out import SignedOut
from seedvr_ui.storage import new_id
from tests.inference.fake_hub import FakeHub, running_hub
from tests.ui.conftest import Wait

CONTENT = bytes(range(256)) * 256 * 16  # 1 MB
FILE = WeightFile(
    name="tiny.pth", repository="acme/tiny", revision="main", num_bytes=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)  # fmt: skip
TINY = ModelEntry(
    name="tiny", title="Tiny", num_parameters=1, files={Part.DIT: (FILE,)}, latent_scale=1.0, default_fidelity=0.0
)
WEIGHTS = io.BytesIO()
torch.save({"layer.weight": torch.linspace(-1, 1, 4096).reshape(64, 64)}, WEIGHTS)
FLOATS = tuple(
    WeightFile(
        name=name, repository="acme/floats", revision="main", num_bytes=len(WEIGHTS.getvalue()),
        sha256=hashlib.sha256(WEIGHTS.getvalue()).hexdigest(),
    )
    for name in ("floats_dit.pth", "floats_vae.pth")
)  # fmt: skip
FLOAT_MODEL = ModelEntry(
    name="floats", title="Floats", num_parameters=1, files={Part.DIT: FLOATS[:1], Part.VAE: FLOATS[1:]},
    latent_scale=1.0, default_fidelity=0.0,
)  # fmt: skip
_PROGRAM = """
import sys
from inference.catalogue import CATALOGUE
from inference.model_task import main
from tests.ui.test_model_tasks import FLOAT_MODEL, TINY
CATALOGUE |= {"tiny": TINY, "floats": FLOAT_MODEL}
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with running_hub() as hub:
        hub.files["acme/tiny/resolve/main/tiny.pth"] = CONTENT
        hub.files |= {f"acme/floats/resolve/main/{file.name}": WEIGHTS.getvalue() for file in FLOATS}
        monkeypatch.setitem(CATALOGUE, "tiny", TINY)
        monkeypatch.setitem(CATALOGUE, "floats", FLOAT_MODEL)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        yield hub


@pytest.fixture
def tasks(hub: FakeHub) -> Iterator[ModelTasks]:
    tasks = make_tasks()
    yield tasks
    tasks.close()


def make_tasks() -> ModelTasks:
    return ModelTasks(command=(sys.executable, "-c", _PROGRAM))


def status(tasks: ModelTasks, name: str = "tiny") -> TaskStatus:
    return tasks.states()[name].status


def partial_bytes(tasks: ModelTasks) -> int:
    return next(model for model in tasks.survey().models if model.name == "tiny").partial_bytes


def test_a_download_is_paused_and_goes_on_also_after_a_restart(
    hub: FakeHub, tasks: ModelTasks, wait_until: Wait
) -> None:
    hub.gate = threading.Event()
    tasks.start(Task.DOWNLOAD, "tiny")
    wait_until(lambda: partial_bytes(tasks) > 0 and tasks.states()["tiny"].num_bytes == len(CONTENT))
    with pytest.raises(StateError, match="going on already"):
        tasks.start(Task.VERIFY, "tiny")
    with pytest.raises(StateError, match="going on already"):
        tasks.delete("tiny")
    assert tasks.pause("tiny").status is TaskStatus.PAUSED
    hub.gate.set()
    wait_until(lambda: not tasks._processes)
    assert status(tasks) is TaskStatus.PAUSED

    later = make_tasks()  # another start of the server
    kept = partial_bytes(later)
    assert 0 < kept <= len(CONTENT) // 2
    later.start(Task.DOWNLOAD, "tiny")
    wait_until(lambda: status(later) is TaskStatus.SUCCEEDED)
    later.close()
    assert hub.starts == [0, kept]
    (file,) = next(model for model in later.survey().models if model.name == "tiny").files
    assert file.is_verified
    assert file.path.read_bytes() == CONTENT


def test_a_model_is_converted_and_the_room_that_its_originals_take_is_told(
    hub: FakeHub, tasks: ModelTasks, wait_until: Wait
) -> None:
    tasks.start(Task.DOWNLOAD, "floats")
    wait_until(lambda: status(tasks, "floats") is TaskStatus.SUCCEEDED)
    tasks.start(Task.CONVERT, "floats")
    wait_until(lambda: status(tasks, "floats") is not TaskStatus.RUNNING)
    assert tasks.states()["floats"].message.startswith("Converted to bf16. Delete the float32 originals to save ")
    for path in sorted(own_folder().glob("floats_*.safetensors")):
        assert load_file(path)["layer.weight"].dtype is torch.bfloat16
    assert len(list(own_folder().glob("floats_*.safetensors"))) == 2


def test_closing_ends_the_process_and_keeps_what_came(hub: FakeHub, tasks: ModelTasks, wait_until: Wait) -> None:
    hub.gate = threading.Event()
    tasks.start(Task.DOWNLOAD, "tiny")
    wait_until(lambda: tasks.states()["tiny"].done_bytes > 0)
    (process,) = tasks._processes.values()
    tasks.close()
    assert process.poll() is not None
    with pytest.raises(StateError, match="is stopping"):
        tasks.start(Task.DOWNLOAD, "tiny")


def test_what_goes_wrong_is_one_sentence(hub: FakeHub, tasks: ModelTasks, wait_until: Wait) -> None:
    hub.status, hub.error_code = 403, "Forbidden"
    tasks.start(Task.DOWNLOAD, "tiny")
    wait_until(lambda: status(tasks) is TaskStatus.FAILED)
    assert "answered 403 for tiny.pth; try again in a few minutes" in tasks.states()["tiny"].message
    for wrong in ("none", "../etc"):
        with pytest.raises(UnknownModelError, match="There is no model"):
            tasks.start(Task.DOWNLOAD, wrong)
    with pytest.raises(StateError, match="Nothing is going on"):
        tasks.pause("tiny")


def test_a_process_that_dies_is_a_failure(hub: FakeHub, wait_until: Wait) -> None:
    tasks = ModelTasks(command=(sys.executable, "-c", "raise SystemExit(3)"))
    tasks.start(Task.VERIFY, "tiny")
    wait_until(lambda: status(tasks) is TaskStatus.FAILED)
    assert "ended unexpectedly" in tasks.states()["tiny"].message
    tasks.close()


# --- by HTTP ---


@pytest.fixture
def client(tasks: ModelTasks, tmp_path: Path) -> Iterator[TestClient]:
    """`root` may change things, `ben` may not."""
    file = AccountsFile(tmp_path / "accounts.json")
    file.add("root", "correct horse", is_admin=True)
    file.add("ben", "correct horse")
    with TestClient(
        make_app(tasks, Access(Login(Accounts(file, {}), b"x" * 32, SignedOut(file.path.parent))))
    ) as client:
        yield client


def make_app(tasks: ModelTasks, access: Access) -> FastAPI:
    app, router = FastAPI(), APIRouter()
    add_error_handlers(app)
    add_model_routes(router, tasks, access)
    app.include_router(router)
    return app


def test_admins_change_models_and_others_see_them(
    hub: FakeHub, client: TestClient, tmp_path: Path, wait_until: Wait
) -> None:
    ben, root = ("ben", "correct horse"), ("root", "correct horse")
    folder = tmp_path / "bought"
    folder.mkdir()
    (folder / "tiny.pth").write_bytes(CONTENT)
    asked = [
        *(("POST", f"/models/tiny/{verb}", None) for verb in ("download", "verify", "convert", "pause")),
        ("POST", "/models/import", {"folder": str(folder)}),
        ("DELETE", "/models/tiny", None),
    ]
    for method, path, body in asked:
        answer = client.request(method, path, json=body, auth=ben)
        assert (answer.status_code, answer.json()["error"][:11]) == (403, "Only admins"), path
    assert client.get("/models").status_code == 401
    assert client.post("/models/import", json={"folder": str(folder)}, auth=root).status_code == 202
    wait_until(lambda: client.get("/models", auth=root).json()["import_task"]["status"] != "running")
    listed = client.get("/models", auth=root).json()
    assert listed["import_task"]["message"] == "Imported tiny.pth."
    mine, theirs = listed, client.get("/models", auth=ben).json()
    assert [model["files"][0]["path"] for model in mine["models"] if model["name"] == "tiny"] == [
        str(own_folder() / "tiny.pth")
    ]
    assert str(tmp_path) not in str(theirs)
    assert (mine["may_change"], theirs["may_change"]) == (True, False)
    assert client.delete("/models/tiny", auth=root).json() == {"num_bytes": len(CONTENT)}
    assert client.post("/models/none/download", auth=root).status_code == 404
    assert client.post("/models/tiny/pause", auth=root).status_code == 409


def test_where_nobody_signs_in_everybody_may(tasks: ModelTasks) -> None:
    client = TestClient(make_app(tasks, Access()), cookies={COOKIE: new_id()})
    assert client.get("/models").json()["may_change"]
    assert client.post("/models/import", json={"folder": "/none"}).status_code == 202
    assert IMPORTED in tasks.states()

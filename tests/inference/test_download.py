"""Downloads over real HTTP from a hub on this machine, with the hub's own library."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest

from inference import download as module
from inference.catalogue import NANO, ModelEntry, Part, WeightFile
from inference.download import download, model_files
from inference.errors import CancelledError, CheckpointError
from tests.inference.fake_hub import COMMIT, FakeHub, running_hub

CONTENT = bytes(range(256)) * 256 * 48  # 3 MB
REPOSITORY = "acme/tiny"
PATH = f"{REPOSITORY}/resolve/main/dit.pth"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with one file, and an empty cache."""
    with running_hub() as hub:
        hub.files[PATH] = CONTENT
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(module, "RETRY_WAITS_S", (0.0, 0.0))
        yield hub
        huggingface_hub.close_session()


def _file(content: bytes = CONTENT, name: str = "dit.pth") -> WeightFile:
    digest = hashlib.sha256(content).hexdigest()
    return WeightFile(name=name, repository=REPOSITORY, revision="main", num_bytes=len(content), sha256=digest)


def _entry(*files: WeightFile) -> ModelEntry:
    parts = {part: (file,) for part, file in zip(Part, files, strict=False)}
    return ModelEntry(name="tiny", title="", num_parameters=1, files=parts, latent_scale=1.0, default_fidelity=0.0)


def _fetch(report: Callable[[int, int], None] | None = None) -> Path:
    return download({Part.DIT: _file()}, report)[Part.DIT]


def _part_file(tmp_path: Path) -> Path:
    return tmp_path / f"hf/hub/models--acme--tiny/blobs/{_file().sha256}.part"


def test_a_download_has_the_bytes_of_the_hub(hub: FakeHub) -> None:
    assert _fetch().read_bytes() == CONTENT


def test_a_download_is_found_by_the_hubs_own_library(hub: FakeHub, tmp_path: Path) -> None:
    path = _fetch()
    cached = huggingface_hub.hf_hub_download(
        REPOSITORY, "dit.pth", cache_dir=tmp_path / "hf/hub", local_files_only=True
    )
    assert Path(cached) == path


def test_a_small_file_without_a_redirect_is_fetched_too(hub: FakeHub) -> None:
    hub.is_small = True
    assert _fetch().read_bytes() == CONTENT


def test_progress_rises_to_the_total_of_all_files(hub: FakeHub) -> None:
    hub.files[f"{REPOSITORY}/resolve/main/vae.pth"] = CONTENT[:1000]
    seen: list[tuple[int, int]] = []
    wanted = {Part.DIT: _file(), Part.VAE: _file(CONTENT[:1000], "vae.pth")}
    download(wanted, lambda done, total: seen.append((done, total)))
    assert {total for _, total in seen} == {len(CONTENT) + 1000}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == len(CONTENT) + 1000


def test_a_second_start_asks_the_hub_nothing(hub: FakeHub) -> None:
    entry = _entry(_file())
    first = model_files(entry)
    asked = hub.heads, len(hub.starts)
    assert model_files(entry) == first
    assert (hub.heads, len(hub.starts)) == asked


def test_a_finished_download_is_not_hashed_again_at_the_next_start(hub: FakeHub) -> None:
    entry = _entry(_file())
    model_files(entry)
    hashed: list[int] = []
    model_files(entry, report_bytes=lambda done, _total: hashed.append(done))
    assert hashed == []


def test_a_weights_folder_comes_before_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/dit.pth").write_bytes(CONTENT)
    assert model_files(_entry(_file()), tmp_path / "mine") == {Part.DIT: tmp_path / "mine/dit.pth"}
    assert hub.heads == 0


def test_only_what_the_weights_folder_lacks_is_fetched(hub: FakeHub, tmp_path: Path) -> None:
    hub.files[f"{REPOSITORY}/resolve/main/vae.pth"] = CONTENT[:1000]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/dit.pth").write_bytes(CONTENT)
    paths = model_files(_entry(_file(), _file(CONTENT[:1000], "vae.pth")), tmp_path / "mine")
    assert paths[Part.VAE].read_bytes() == CONTENT[:1000]
    assert len(hub.starts) == 1


def test_offline_mode_says_what_is_missing_and_asks_nobody(hub: FakeHub) -> None:
    with pytest.raises(CheckpointError, match=r"dit\.pth.*offline mode is on"):
        model_files(_entry(_file()), offline=True)
    assert hub.heads == 0


def test_the_hubs_offline_variable_counts(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="offline mode is on"):
        model_files(_entry(_file()))
    assert hub.heads == 0


def test_offline_mode_uses_what_was_fetched_before(hub: FakeHub) -> None:
    path = _fetch()
    assert model_files(_entry(_file()), offline=True) == {Part.DIT: path}


def test_a_disk_that_is_too_small_is_noticed_before_the_first_byte(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 0, 10**6))
    with pytest.raises(CheckpointError, match=r"needs 3\.1 MB but only 1\.0 MB is free"):
        _fetch()
    assert hub.starts == []


def test_a_disk_that_fills_up_meanwhile_gives_a_sentence(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Iterator[int]:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_receive", full)
    with pytest.raises(CheckpointError, match="No space left on device.*free some space"):
        _fetch()


def test_a_broken_connection_is_taken_up_where_it_ended(hub: FakeHub) -> None:
    hub.cuts = [2**21, 2**19]
    assert _fetch().read_bytes() == CONTENT
    assert hub.starts == [0, 2**21, 2**21 + 2**19]


def test_a_server_without_byte_ranges_sends_the_file_again(hub: FakeHub) -> None:
    hub.cuts = [2**21]
    hub.ranges_work = False
    assert _fetch().read_bytes() == CONTENT


def test_a_connection_that_brings_nothing_is_given_up(hub: FakeHub) -> None:
    hub.cuts = [0] * 10
    with pytest.raises(CheckpointError, match=r"dit\.pth cannot be fetched.*check the network"):
        _fetch()
    assert len(hub.starts) == 3


def test_wrong_bytes_are_refused_kept_aside_and_fetched_anew_next_time(hub: FakeHub, tmp_path: Path) -> None:
    hub.served[PATH] = CONTENT[::-1]
    with pytest.raises(CheckpointError, match=f"expected SHA-256 {_file().sha256}"):
        _fetch()
    assert _part_file(tmp_path).with_suffix(".rejected").read_bytes() == CONTENT[::-1]
    hub.served.clear()
    assert _fetch().read_bytes() == CONTENT


def test_a_replaced_upload_is_refused_before_the_first_byte(hub: FakeHub) -> None:
    hub.files[PATH] = CONTENT[::-1]
    with pytest.raises(CheckpointError, match=r"now has another dit\.pth"):
        _fetch()
    assert hub.starts == []


@pytest.mark.parametrize(
    ("status", "code", "sentence"),
    [
        (404, "RepoNotFound", "no public repository acme/tiny"),
        (401, "RepoNotFound", "no public repository acme/tiny"),
        (403, "GatedRepo", "asks for permission"),
        (404, "RevisionNotFound", "has no revision main"),
        (404, "EntryNotFound", r"has no file dit\.pth"),
        (403, "Forbidden", "answered 403"),
        (503, "Down", "answered 503"),
    ],
)
def test_what_the_hub_refuses_becomes_a_sentence(hub: FakeHub, status: int, code: str, sentence: str) -> None:
    hub.status, hub.error_code = status, code
    with pytest.raises(CheckpointError, match=f"{sentence}.*set engine.weights to its folder"):
        _fetch()


def test_a_network_that_is_not_there_becomes_a_sentence(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(CheckpointError, match=r"cannot be fetched from http://127\.0\.0\.1.*check the network"):
            _fetch()


def test_a_weights_folder_that_does_not_exist_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not exist; correct engine\.weights"):
        model_files(_entry(_file()), tmp_path / "nowhere")


def test_missing_embedded_weights_are_never_looked_for_on_the_network(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.locate.embedded_folder", lambda: tmp_path)
    with pytest.raises(CheckpointError, match="install this program again"):
        model_files(NANO)
    assert hub.heads == 0


def test_a_cancelled_download_stops_and_goes_on_later(hub: FakeHub, tmp_path: Path) -> None:
    def cancel(done: int, _total: int) -> None:
        raise CancelledError

    with pytest.raises(CancelledError):
        _fetch(cancel)
    kept = _part_file(tmp_path).stat().st_size
    assert 0 < kept < len(CONTENT)
    assert _fetch().read_bytes() == CONTENT
    assert hub.starts == [0, kept]


_PROGRAM = """
import sys
from inference.catalogue import Part, WeightFile
from inference.download import download
name, repository, size, digest = sys.argv[1:]
file = WeightFile(name=name, repository=repository, revision="main", num_bytes=int(size), sha256=digest)
print(download({Part.DIT: file})[Part.DIT])
"""


def _start_process() -> subprocess.Popen[str]:
    file = _file()
    arguments = [file.name, REPOSITORY, str(file.num_bytes), str(file.sha256)]
    root = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *arguments],
        env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def test_a_killed_download_goes_on_where_it_stopped(hub: FakeHub, tmp_path: Path) -> None:
    hub.gate = threading.Event()
    part = _part_file(tmp_path)
    with _start_process() as process:
        _wait_until(lambda: part.is_file() and part.stat().st_size >= 2**20)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
    kept = part.stat().st_size
    hub.gate.set()
    assert _fetch().read_bytes() == CONTENT
    assert hub.starts == [0, kept]
    assert not part.exists()


def test_two_processes_at_once_fetch_one_good_file_once(hub: FakeHub, tmp_path: Path) -> None:
    hub.gate = threading.Event()
    with _start_process() as first, _start_process() as second:
        _wait_until(lambda: hub.heads >= 2 and len(hub.starts) >= 1)
        hub.gate.set()
        outputs = [process.communicate(timeout=60) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    assert len(hub.starts) == 1
    link = tmp_path / f"hf/hub/models--acme--tiny/snapshots/{COMMIT}/dit.pth"
    assert {out.strip() for out, _ in outputs} == {str(link)}
    assert link.read_bytes() == CONTENT

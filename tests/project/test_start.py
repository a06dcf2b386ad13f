"""docker/start.sh, run with bash over a stand-in for the app (`stand_in_app.py`): steps, supervision, the end."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 30.0


@dataclass
class Pod:
    """A folder with the start script and the stand-in, and the processes that were started in it."""

    folder: Path
    environment: dict[str, str]
    port: int
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        with (self.folder / "output.txt").open("a") as output:
            process = subprocess.Popen(
                ["/bin/bash", str(self.folder / "image/docker/start.sh"), *arguments],
                env=self.environment | environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                text=True, start_new_session=True,
            )  # fmt: skip
        self.running.append(process)
        return process

    def run(self, *arguments: str, **environment: str) -> int:
        return self.start(*arguments, **environment).wait(WAIT_S)

    @property
    def output(self) -> str:
        return (self.folder / "output.txt").read_text()

    @property
    def record(self) -> list[str]:
        log = self.folder / "calls.txt"
        return log.read_text().splitlines() if log.exists() else []

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, self.output
            time.sleep(0.02)

    def wait_for(self, text: str, times: int = 1) -> None:
        self.wait(lambda: self.output.count(text) >= times)

    def get(self, path: str) -> None:
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5).close()


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    image = tmp_path / "image"
    (image / ".venv/bin").mkdir(parents=True)
    shutil.copytree(ROOT / "docker", image / "docker")
    shutil.copy(ROOT / "tests/project/stand_in_app.py", image / "app.py")
    for path, text in {
        image / ".venv/bin/python": f'exec "{sys.executable}" "$@"',
        image / "run.sh": f'exec "{sys.executable}" "{image}/app.py" "$@"',
    }.items():
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path / "home"),
        "SEEDVR_VOLUME": str(tmp_path / "workspace"),
        "SEEDVR_HOOKS": str(tmp_path),
        "SEEDVR_PORT": str(port),
        "SEEDVR_STOP_LIMIT_S": "1",
        "STAND_IN_LOG": str(tmp_path / "calls.txt"),
    }
    pod = Pod(tmp_path, environment, port)
    yield pod
    for process in pod.running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(WAIT_S)


def test_every_step_tells_its_time_and_result_and_the_link_is_shown(pod: Pod) -> None:
    pod.start("serve", "--price-per-hour", "0.79 USD", RUNPOD_POD_ID="abc123", RUNPOD_PUBLIC_IP="192.0.2.7",
              **{f"RUNPOD_TCP_PORT_{pod.port}": "40001"})  # fmt: skip
    pod.wait_for("post_start.sh")
    for name in (
        "volume",
        "alone",
        "environment",
        "card",
        "share helper",
        "sshd",
        "pre_start.sh",
        "app",
        "post_start.sh",
    ):
        assert len(re.findall(rf"^start: {name}: .+ \(\d+\.\d s\)$", pod.output, re.MULTILINE)) == 1, name
    assert f"start: open https://abc123-{pod.port}.proxy.runpod.net\n" in pod.output
    assert "http://192.0.2.7:40001" in pod.output
    assert pod.record == [f"start serve --port {pod.port} --price-per-hour 0.79 USD"]


def test_sigterm_reaches_the_app_and_ends_everything(pod: Pod) -> None:
    process = pod.start()
    pod.wait_for("open http")
    process.terminate()
    assert process.wait(WAIT_S) == 0
    assert pod.record[-1] == "end"
    assert pod.output.splitlines()[-1] == "start: stopped"


def test_an_app_that_does_not_stop_is_ended(pod: Pod) -> None:
    process = pod.start(STAND_IN="stubborn")
    pod.wait_for("open http")
    process.terminate()
    assert process.wait(WAIT_S) == 0
    assert "did not stop within 1 s" in pod.output


def test_a_crash_restarts_the_app_and_not_the_pod(pod: Pod) -> None:
    process = pod.start()
    pod.wait_for("open http")
    pod.get("/crash")
    pod.wait_for("serving on port", 2)
    assert process.poll() is None
    assert "exit code 137; it is started again\n" in pod.output
    assert pod.output.count("start: open ") == 1
    assert pod.output.count("post_start.sh") == 1


def test_repeated_crashes_wait_longer_each_time(pod: Pod) -> None:
    pod.start()
    for times in (1, 2, 3):
        pod.wait_for("serving on port", times)
        pod.get("/crash")
    pod.wait_for("started again in 3 s")
    assert "started again in 1 s" in pod.output


def test_a_mistake_in_the_settings_is_not_tried_again(pod: Pod) -> None:
    assert pod.run(STAND_IN="mistake") == 2
    assert len(pod.record) == 1
    assert "app: FAILED, it ended before it answered" in pod.output


def test_an_app_that_never_answers_is_ended_and_tried_again(pod: Pod) -> None:
    pod.start(STAND_IN="mute", SEEDVR_START_LIMIT_S="1")
    pod.wait(lambda: len(pod.record) >= 2)
    assert "no answer within 1 s" in pod.output


def test_a_volume_that_cannot_be_written_is_a_sentence(pod: Pod) -> None:
    (pod.folder / "file").write_text("no folder")
    assert pod.run(SEEDVR_VOLUME=str(pod.folder / "file")) == 1
    assert "cannot be written. Attach a volume" in pod.output
    assert pod.record == []


def test_hooks_run_and_a_failing_or_hanging_one_is_told_and_holds_nothing_up(pod: Pod) -> None:
    (pod.folder / "pre_start.sh").write_text("echo before; exit 3")
    (pod.folder / "post_start.sh").write_text("echo after; sleep 600")
    pod.start(SEEDVR_HOOK_LIMIT_S="1")
    pod.wait_for("post_start.sh: FAILED, stopped after 1 s")
    assert "pre_start.sh: FAILED, exit code 3; the start goes on" in pod.output
    assert pod.output.index("before") < pod.output.index("serving on port") < pod.output.index("\nafter\n")


def test_the_share_helper_is_put_where_gradio_looks_and_a_damaged_one_replaced(pod: Pod) -> None:
    baked = pod.folder / "image/share/gradio/frpc/frpc_linux_amd64_v0.3"
    baked.parent.mkdir(parents=True)
    baked.write_bytes(b"helper")
    target = pod.folder / "workspace/huggingface/gradio/frpc" / baked.name
    target.parent.mkdir(parents=True)
    target.write_bytes(b"half")
    assert pod.run(STAND_IN="mistake") == 2
    assert target.read_bytes() == b"helper"
    assert os.access(target, os.X_OK)
    assert pod.run(STAND_IN="mistake") == 2
    assert "share helper: frpc_linux_amd64_v0.3 is there" in pod.output


def test_a_second_start_over_the_same_data_says_so(pod: Pod) -> None:
    pod.start()
    pod.wait_for("open http")
    assert pod.run() == 1
    assert "another start.sh serves this data folder already" in pod.output


def test_it_can_be_killed_and_started_again(pod: Pod) -> None:
    process = pod.start()
    pod.wait_for("open http")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(WAIT_S)
    pod.start()
    pod.wait_for("open http", 2)


def test_other_commands_go_to_run_sh_with_the_folders_of_the_volume(pod: Pod) -> None:
    (pod.folder / "image/run.sh").write_text('#!/bin/bash\necho "$SEEDVR_DATA $HF_HOME: $*"\n')
    assert pod.run("accounts", "list") == 0
    volume = pod.folder / "workspace"
    assert f"{volume}/seedvr {volume}/huggingface: accounts list" in pod.output


def test_an_unknown_mode_is_a_sentence(pod: Pod) -> None:
    assert pod.run(MODE="batch") == 2
    assert "MODE is 'batch'; it has to be pod or serverless." in pod.output

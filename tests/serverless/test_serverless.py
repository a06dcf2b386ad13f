"""Serverless jobs: the handler against a real file server, and RunPod's own local test server where it is installed."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from inference.errors import MediaError
from inference.progress import Progress, Report, Stage
from seedvr_ui.network import LinkError, Network
from seedvr_ui.serverless import JobHandler

ROOT = Path(__file__).resolve().parents[2]
ANYWHERE = Network(allows=lambda address: True, allows_port=lambda scheme, port: True)
WAIT_S = 100.0


@dataclass
class Bucket:
    """A file server that takes PUT. `answers` are the next status codes of a PUT; `cut` breaks the next GET in half."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    answers: list[int] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    cut: bool = False


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    bucket = Bucket()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content, start = bucket.files[self.path], 0
            bucket.ranges.append(wanted := self.headers.get("range"))
            if wanted:
                start = int(wanted.removeprefix("bytes=").partition("-")[0])
            self.send_response(206 if wanted else 200)
            self.send_header("etag", '"one"')
            self.send_header("content-length", str(len(content) - start))
            if wanted:
                self.send_header("content-range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            end = len(content) // 2 if bucket.cut else len(content)
            bucket.cut = False
            self.wfile.write(content[start:end])

        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            code = bucket.answers.pop(0) if bucket.answers else 200
            if code == 200:
                bucket.files[self.path] = body
            self.send_response(code)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing is printed."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    bucket.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield bucket
    server.shutdown()
    server.server_close()
    thread.join()


def copy(source: Path, target: Path, settings: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """In place of restoring; what it was told is in the summary."""
    if source.read_bytes() == b"broken":
        raise MediaError("This is no video; choose another file.")
    for frames in range(5):
        report(Progress(Stage.RESTORE, frames, 5))
    target.write_bytes(b"restored " + source.read_bytes())
    return {"factor": settings["restore"]["factor"], "model": settings["engine"]["model"], "name": source.name}


def make_handler(**values: Any) -> JobHandler:
    return JobHandler(
        **{"restore": copy, "engine": {"model": "nano"}, "network": ANYWHERE, "retry_wait_s": 0.0} | values
    )


def wanted(bucket: Bucket, **more: Any) -> dict[str, Any]:
    bucket.files.setdefault("/clip.mov", b"pixels")
    return {"source": f"{bucket.url}/clip.mov", "target": f"{bucket.url}/out?signature=1", **more}


def test_a_file_comes_by_link_and_the_result_goes_by_link(bucket: Bucket) -> None:
    told: list[Mapping[str, Any]] = []
    output = make_handler().handle(wanted(bucket, settings={"restore.factor": 3}), told.append)
    assert bucket.files["/out?signature=1"] == b"restored pixels"
    assert output["sha256"] == hashlib.sha256(b"restored pixels").hexdigest()
    assert (output["name"], output["bytes"]) == ("clip_restored.mp4", 15)
    assert output["summary"] == {"factor": 3.0, "model": "nano", "name": "clip.mov"}
    assert [entry["stage"] for entry in told] == ["fetch", "restore", "send"]


def test_a_lost_connection_goes_on_where_it_broke_off(bucket: Bucket) -> None:
    bucket.cut = True
    assert "error" not in make_handler().handle(wanted(bucket), lambda _: None)
    assert bucket.ranges == [None, "bytes=3-"]


def test_a_busy_target_is_asked_again_and_a_refusing_one_is_not(bucket: Bucket) -> None:
    bucket.answers = [503, 200]
    assert "error" not in make_handler().handle(wanted(bucket), lambda _: None)
    bucket.answers = [403, 200]
    assert "answers 403" in make_handler().handle(wanted(bucket), lambda _: None)["error"]
    assert bucket.answers == [200]


@pytest.mark.parametrize("which", ["source", "target"])
@pytest.mark.parametrize(
    ("link", "sentence"),
    [
        ("http://10.0.0.1/a.mp4", "not on the public internet"),
        ("http://169.254.169.254/latest", "not on the public internet"),
        ("http://[fd00::1]/a", "not on the public internet"),
        ("file:///etc/passwd", "begin with http"),
        ("http://nowhere.invalid/a", "nowhere.invalid is not known; check the link."),
    ],
)
def test_private_addresses_are_refused_in_both_directions_before_any_work(
    bucket: Bucket, which: str, link: str, sentence: str
) -> None:
    public = Network(allows=lambda address: address.is_loopback, allows_port=lambda scheme, port: True)
    output = make_handler(network=public).handle(wanted(bucket) | {which: link}, lambda _: None)
    assert sentence in output["error"]
    assert bucket.ranges == []


def test_a_target_on_this_machine_is_refused_when_the_result_is_sent(bucket: Bucket, tmp_path: Path) -> None:
    result = tmp_path / "result.mp4"
    result.write_bytes(b"pixels")
    handler = make_handler(network=Network(allows_port=lambda scheme, port: True))
    with pytest.raises(LinkError, match="not on the public internet"):
        handler._send(result, f"{bucket.url}/out")
    assert "/out" not in bucket.files


def test_a_file_above_the_limit_is_refused(bucket: Bucket) -> None:
    output = make_handler(max_bytes=5).handle(wanted(bucket), lambda _: None)
    assert "source is larger than" in output["error"]
    output = make_handler(max_bytes=10).handle(wanted(bucket), lambda _: None)
    assert "result is larger than" in output["error"]


def test_what_cannot_be_restored_is_a_sentence(bucket: Bucket) -> None:
    bucket.files["/clip.mov"] = b"broken"
    assert make_handler().handle(wanted(bucket), lambda _: None) == {"error": "This is no video; choose another file."}


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"video": "base64"}, "nothing else"),
        ({"settings": {"engine.model": "seedvr2-7b"}}, "set by its owner"),
        ({"settings": {"restore.colour": 1}}, "colour"),
        ({"settings": [1]}, "settings a mapping"),
        ({"settings": {"restore.box": "x" * 70_000}}, "longer than"),
    ],
)
def test_an_input_that_cannot_work_is_a_sentence(bucket: Bucket, more: dict[str, Any], sentence: str) -> None:
    assert sentence in make_handler().handle(wanted(bucket, **more), lambda _: None)["error"]
    assert bucket.ranges == []


def test_without_runpods_package_the_mode_says_how_to_get_it(tmp_path: Path) -> None:
    program = "import sys, serverless_app; sys.modules['runpod'] = None; serverless_app.main()"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 2
    assert "./run.sh install serverless" in result.stderr


def test_runpods_local_server_restores_a_clip(bucket: Bucket, tmp_path: Path) -> None:
    packages = Path(os.environ.get("SEEDVR_SERVERLESS_PACKAGES", ROOT / ".serverless"))
    assert (packages / "runpod").is_dir(), "RunPod's package is not installed: ./run.sh install serverless"
    shutil.copy(ROOT / "samples/sintel_320x136.mp4", tmp_path / "clip.mp4")
    bucket.files["/clip.mov"] = (tmp_path / "clip.mp4").read_bytes()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    log = (tmp_path / "log.txt").open("w")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests/serverless/local_worker.py"), "--rp_serve_api", "--rp_api_port", str(port)],
        cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        env=os.environ | {"PYTHONPATH": f"{packages}:{ROOT}"},
    )  # fmt: skip
    try:
        document = {"input": wanted(bucket, settings={"restore.factor": 1.0})}
        output = _ask_when_ready(f"http://127.0.0.1:{port}/runsync", document, process)
        assert output["status"] == "COMPLETED", (output, (tmp_path / "log.txt").read_text()[-3000:])
        result = bucket.files["/out?signature=1"]
        assert output["output"]["sha256"] == hashlib.sha256(result).hexdigest()
        assert output["output"]["summary"]["frames"] == 96
    finally:
        log.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(WAIT_S)


def _ask_when_ready(url: str, document: object, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(document).encode(), {"Content-Type": "application/json"})
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError:
            raise
        except OSError:  # it is not listening yet
            assert process.poll() is None, "RunPod's server has ended"
            assert time.monotonic() < deadline
            time.sleep(0.1)

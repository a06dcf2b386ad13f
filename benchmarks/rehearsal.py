"""Fresh-machine rehearsal: the image's folder is built from the Dockerfile, its start command runs, a clip is restored.

    ./run.sh bench rehearsal
    ./run.sh bench rehearsal --image DIR     keep the built folder, or use it again

In a folder that holds only what the image would copy, the RUN lines of the Dockerfile are run, without those of apt-get
(torch is installed as on a machine without a card, since the base image is not here), then ENTRYPOINT and CMD. Timed:
until the page is served; the sample restored through the page in a browser; after SIGKILL of the app until the page is
back and the job goes on; SIGTERM. Ends with 1 when a limit is passed. The last line is one JSON object.
"""

import argparse
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.chaos import FPS, make_clip
from benchmarks.clips import write_h264
from benchmarks.dockerfile import ROOT, Stage, build, command_of, environment_of, parse
from benchmarks.report import add_save_option, publish, table

LIMITS: dict[str, float] = {"served_s": 15.0, "back_s": 5.0, "stopped_s": 10.0, "packages_mb": 1000.0}
"""The most that a figure may be. `packages_mb` is what the image adds to its base: all but torch and its parts."""

WAIT_LIMIT_S = 400.0
_BASE_PACKAGES = (
    "torch",
    "torchgen",
    "functorch",
    "triton",
    "nvidia",
    "sympy",
    "networkx",
    "mpmath",
    "pip",
    "setuptools",
)
_CHROMIUM = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
)


class Container:
    """The start command of the image, with its root folder at `image` and its volume at `volume`."""

    def __init__(self, image: Path, stage: Stage, volume: Path) -> None:
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = volume.parent / "container.log"
        self._volume = volume
        self._command = [
            str(image / word.lstrip("/")) if word.startswith("/opt/") else word for word in command_of(stage)
        ]
        if shutil.which(self._command[0]) is None:  # tini stands before the start script; this process is its parent
            self._command = self._command[self._command.index("--") + 1 :]
        self._environment = {
            **environment_of(stage),
            "PATH": os.environ["PATH"],
            "HOME": str(volume.parent / "home"),
            "SEEDVR_VOLUME": str(volume),
            "SEEDVR_HOOKS": str(volume.parent),
            "SEEDVR_PORT": str(self.port),
            "RUNPOD_POD_ID": "rehearsal",
            "HF_HUB_OFFLINE": "1",
        }
        self.process: psutil.Popen | None = None

    def start(self) -> float:
        """Start it; seconds until the page is served."""
        begin = time.perf_counter()
        with self.log.open("ab") as output:
            self.process = psutil.Popen(
                self._command, cwd=self._volume.parent, env=self._environment, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        self.wait_served()
        return time.perf_counter() - begin

    def wait_served(self) -> None:
        """Until the login page, which is the first page that anybody sees, comes with code 200."""
        _wait_until(lambda: _answers(f"{self.url}/login"), f"the page is not served, see {self.log}")

    def app(self) -> psutil.Process:
        """The process that serves the page."""
        assert self.process is not None
        children = self.process.children(recursive=True)
        return next(child for child in children if "inference.cli" in child.cmdline())

    def password(self) -> str:
        """The password that was made at the first start. Raises RuntimeError unless it was printed once."""
        found = re.findall(r"^ +password +(\S+)$", self.log.read_text(), re.MULTILINE)
        if len(found) != 1:
            raise RuntimeError(f"the password was printed {len(found)} times")
        return str(found[0])

    def stop(self) -> tuple[float, int]:
        """SIGTERM; seconds until it has ended, and its exit code."""
        assert self.process is not None
        begin = time.perf_counter()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(WAIT_LIMIT_S)
        return time.perf_counter() - begin, code

    def leftovers(self) -> int:
        """How many processes of it are still there."""
        assert self.process is not None
        return sum(_session_of(entry.pid) == self.process.pid for entry in psutil.process_iter())

    def kill(self) -> None:
        """End whatever is left of it."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)


def rehearse(image: Path, folder: Path, sample: Path) -> dict[str, Any]:
    """Everything after the build; see the top of this file. `folder` is new."""
    from playwright.sync_api import sync_playwright

    stage = parse((ROOT / "Dockerfile").read_text())[-1]
    container = Container(image, stage, folder / "workspace")
    figures: dict[str, Any] = {}
    try:
        figures["served_s"] = container.start()
        with sync_playwright() as driver:
            path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
            browser = driver.chromium.launch(executable_path=path, args=list(_CHROMIUM))
            page = browser.new_page()
            page.set_default_timeout(WAIT_LIMIT_S * 1000)
            page.goto(container.url)
            page.fill("input[name=name]", "admin")
            page.fill("input[name=password]", container.password())
            page.click("button[type=submit]")
            begin = time.perf_counter()
            _submit(page, sample, 1)
            figures["restored_s"] = time.perf_counter() - begin

            small = folder / "small.mp4"  # with a unit every second or so, to be killed between two of them
            write_h264(small, np.tile(make_clip(1), (20, 1, 1, 1)), FPS, 18)
            _submit(page, small, 0)
            data = folder / "workspace" / "seedvr"
            _wait_until(lambda: bool(_units(data)), "the second job finished no unit")
            container.app().kill()
            begin, before = time.perf_counter(), _units(data)
            container.wait_served()
            figures["back_s"] = time.perf_counter() - begin
            _wait_until(lambda: len(_units(data)) > len(before), "the job does not go on")
            figures["goes_on_s"] = time.perf_counter() - begin
            figures["units_before_kill"] = len(before)
            figures["units_kept"] = len(before.items() & _units(data).items())
            browser.close()
        # The second job is still at work, which is the harder moment to stop.
        figures["stopped_s"], figures["exit_code"] = container.stop()
        figures["leftovers"] = container.leftovers()
        figures["served_again_s"] = container.start()
        container.password()
        container.stop()
    finally:
        container.kill()
    return {name: round(value, 2) if isinstance(value, float) else value for name, value in figures.items()}


def _submit(page: Any, sample: Path, wait_for: int) -> None:
    """Put `sample` into the page and press Start; with `wait_for`, wait until that many jobs have succeeded."""
    page.set_input_files(".zone input", str(sample))
    page.locator(".files li.ready").first.wait_for()
    page.get_by_role("button", name="Start").click()
    if wait_for:
        page.locator(".jobs li.succeeded").nth(wait_for - 1).wait_for()


def _units(data: Path) -> dict[str, int]:
    """The finished units of all unfinished jobs, and when each was written."""
    found = {}
    for path in data.glob("sessions/*/jobs/*/work/*.nut"):
        with contextlib.suppress(FileNotFoundError):
            found[str(path)] = path.stat().st_mtime_ns
    return found


def _answers(url: str) -> bool:
    with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=5) as answer:
        return bool(answer.status == 200)
    return False


def _wait_until(condition: Callable[[], bool], trouble: str) -> None:
    deadline = time.monotonic() + WAIT_LIMIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {WAIT_LIMIT_S:.0f} s: {trouble}")
        time.sleep(0.02)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return -1


def _build(image: Path) -> dict[str, float]:
    """Build the image's folder, or keep the one that is there; seconds of each step and what it weighs."""
    stage = parse((ROOT / "Dockerfile").read_text())[0]
    figures: dict[str, float] = {}
    if not (image / "opt/seedvr/.serverless/.stamp").exists():
        begin = time.perf_counter()
        for step in build(stage, image, {"SEEDVR_KEEP_TORCH": "", "SHARE_HELPER": "0"}):
            words = step.text if len(step.text) < 90 else f"{step.text[:87]}..."
            print(f"RUN {words}: " + ("left out" if step.seconds is None else f"{step.seconds:.1f} s"), flush=True)
        figures["install_s"] = round(time.perf_counter() - begin, 1)
    figures["packages_mb"] = round(_added_bytes(image) / 1e6)
    return figures


def _added_bytes(image: Path) -> int:
    """What the image adds to its base. Files with several names count once."""
    sizes: dict[tuple[int, int], int] = {}
    for path in image.rglob("*"):
        parts = path.parts
        if "site-packages" in parts and ".venv" in parts:
            package = re.split(r"[-.]", parts[parts.index("site-packages") + 1])[0] if path.is_file() else ""
            if package in _BASE_PACKAGES:
                continue
        if path.is_file() and not path.is_symlink():
            status = path.stat()
            sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())


@contextlib.contextmanager
def _folder(chosen: Path | None) -> Iterator[Path]:
    if chosen is not None:
        yield chosen.absolute()
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def main(argv: Sequence[str]) -> int:
    """Run the rehearsal; 1 when a figure is above its limit."""
    parser = argparse.ArgumentParser(prog="seedvr bench rehearsal", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--image", type=Path, metavar="DIR", help="where to build; an image that is there is used again"
    )
    add_save_option(parser)
    arguments = parser.parse_args(list(argv))
    sample = ROOT / "samples" / "sintel_320x136.mp4"
    with (
        _folder(arguments.image) as image,
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(sys.stderr),
    ):
        figures: dict[str, Any] = {**_build(image), **rehearse(image, Path(folder), sample)}
    failed = [name for name, limit in LIMITS.items() if figures[name] > limit]
    failed += [name for name in ("exit_code", "leftovers") if figures[name] != 0]
    failed += ["units_kept"] if figures["units_kept"] != figures["units_before_kill"] else []
    limits = [f"{LIMITS[name]:g}" if name in LIMITS else "" for name in figures]
    rows = [[name, str(value), limit] for (name, value), limit in zip(figures.items(), limits, strict=True)]
    publish("rehearsal", "Fresh-machine rehearsal of the image", table(["figure", "measured", "limit"], rows),
            {**figures, "failed": failed}, arguments.results if arguments.save else None)  # fmt: skip
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

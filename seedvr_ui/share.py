"""A public link to this server by way of Gradio's share servers: `--share`. Only where people sign in.

Gradio's own helper (frpc) and its command line are used; three things of Gradio 6.31 are not, since they would hang or
break a server that runs for days: it waits without limit for a helper that says nothing and for one that has died, it
never reads what the helper says later, and it keeps and then runs a helper whose checksum was wrong.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import queue
import secrets
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import httpx2

from inference.errors import RestoreError

log = logging.getLogger(__name__)

EXPIRY = "Gradio keeps such a link for up to one week (best effort), and it ends when this server does."
HELPER = "SEEDVR_FRPC"
"""Names the helper program, where it does not lie where Gradio looks for it."""

RETRY_WAITS_S = (10.0, 60.0, 300.0)
_API_LIMIT_S = 15.0
_START_LIMIT_S = 30.0
_END_LIMIT_S = 5.0


class ShareError(RestoreError):
    """There is no public link; `str(error)` says why and what to do."""


@dataclass(frozen=True, slots=True)
class ShareState:
    """`link` is empty while there is none; `message` says why."""

    link: str = ""
    message: str = "The public link is being made."


class Share:
    """Keeps a public link to `host`:`port` up, in a thread; a lost one is made again under the same name.

    `folder` is for the certificate of the share server. `tell` gets what the terminal shall show.
    """

    def __init__(self, folder: Path, host: str, port: int, tell: Callable[[str], None], api: str = "") -> None:
        self._folder, self._host, self._port, self._tell, self._api = folder, host, port, tell, api
        self._token = secrets.token_urlsafe(32)
        self._state = ShareState()
        self._stop = threading.Event()
        self._helper: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._keep, name="share", daemon=True)

    @property
    def state(self) -> ShareState:
        """What there is now."""
        return self._state

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def close(self) -> None:
        """End the link and the helper."""
        self._stop.set()
        with self._lock:
            if self._helper is not None:
                self._helper.terminate()
        if self._thread.is_alive():
            self._thread.join(_END_LIMIT_S)

    def _keep(self) -> None:
        failures = 0
        while not self._stop.is_set():
            try:
                self._open()
                failures = 0
                message = "The public link was lost; it is being made again."
            except ShareError as error:
                message = str(error)
            except Exception:
                log.exception("the public link")
                message = "The public link could not be made; see the server's log."
            if self._stop.is_set():
                return
            if message != self._state.message:
                self._tell(message)
            self._state = ShareState("", message)
            self._stop.wait(RETRY_WAITS_S[min(failures, len(RETRY_WAITS_S) - 1)])
            failures += 1

    def _open(self) -> None:
        """Make the link and hold it until the helper ends."""
        helper = find_helper()
        host, port, certificate = self._server()
        with start_helper(helper, self._command(host, port, certificate)) as process:
            with self._lock:
                if self._stop.is_set():
                    return
                self._helper = process
            try:
                link = read_link(process)
                self._state = ShareState(link, "")
                log.info("the public link is up")
                self._tell(f"\nThis server has a public link:\n\n    {link}\n\n{EXPIRY}\n")
                process.wait()
            finally:
                with self._lock:
                    self._helper = None

    def _server(self) -> tuple[str, int, Path | None]:
        """(host, port, certificate) of a share server: GRADIO_SHARE_SERVER_ADDRESS, else what Gradio's API says."""
        from gradio import networking

        if address := os.environ.get("GRADIO_SHARE_SERVER_ADDRESS"):
            name, _, number = address.rpartition(":")
            return name, int(number), None
        api = self._api or networking.GRADIO_API_SERVER
        try:
            answer = httpx2.get(api, timeout=_API_LIMIT_S)
            answer.raise_for_status()
            found = answer.json()[0]
            host, port, authority = str(found["host"]), int(found["port"]), str(found["root_ca"])
        except (httpx2.HTTPError, ValueError, LookupError, TypeError) as error:
            raise ShareError(
                f"There is no public link: {urlsplit(api).hostname} cannot be reached or does not answer as it should"
                f" ({type(error).__name__}). Check the network of this machine; it is tried again by itself."
            ) from error
        certificate = self._folder / "share-certificate.pem"
        certificate.write_text(authority)
        return host, port, certificate

    def _command(self, host: str, port: int, certificate: Path | None) -> list[str]:
        """The arguments of the helper, as in Gradio's `Tunnel`."""
        tls = ["--tls_enable", "--tls_trusted_ca_file", str(certificate)] if certificate is not None else []
        return [
            *("http", "-n", self._token, "-l", str(self._port), "-i", self._host, "--uc", "--sd", "random", "--ue"),
            *("--server_addr", f"{host}:{port}", "--disable_log_color", *tls),
        ]


def find_helper() -> Path:
    """The helper program, downloaded if Gradio has none yet; its checksum is that of Gradio. Raises ShareError."""
    if named := os.environ.get(HELPER):
        if not os.access(named, os.X_OK):
            raise ShareError(f"{HELPER} names {named}, which is no program; correct it, or unset it.")
        return Path(named)
    from gradio import tunneling
    from gradio.exceptions import ChecksumMismatchError

    path, expected = Path(tunneling.BINARY_PATH), tunneling.CHECKSUMS.get(tunneling.BINARY_URL)
    try:
        if path.exists() and expected and hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            path.unlink()
        tunneling.Tunnel.download_binary()
    except ChecksumMismatchError as error:
        path.unlink(missing_ok=True)
        raise ShareError(
            "There is no public link: the helper program that was downloaded has a wrong checksum and was deleted;"
            " check the network's proxy."
        ) from error
    except Exception as error:  # of whichever HTTP client Gradio uses
        raise ShareError(
            f"There is no public link: Gradio's helper program cannot be downloaded ({type(error).__name__}). Check"
            f" the network of this machine, or name the program in {HELPER}; it is tried again by itself."
        ) from error
    return path


@contextlib.contextmanager
def start_helper(helper: Path, arguments: list[str]) -> Any:
    """The helper as a process, which always ends."""
    try:
        process = subprocess.Popen(
            [str(helper), *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except OSError as error:
        raise ShareError(f"{helper} cannot be run ({error.strerror}); delete it, and it is fetched again.") from error
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_END_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def read_link(process: subprocess.Popen[bytes], limit_s: float = _START_LIMIT_S) -> str:
    """The address that the helper says it has got. What it says later is read too, and dropped. Raises ShareError."""
    lines: queue.Queue[str | None] = queue.Queue()
    assert process.stdout is not None
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    deadline, said = time.monotonic() + limit_s, ""
    while True:
        try:
            line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise ShareError("There is no public link: the share server does not answer. It is tried again.") from None
        if line is None or "login to server failed" in line:
            raise ShareError(
                f"There is no public link: the helper has ended or was refused ({(line or said)[-160:].strip()})."
                " Check the network of this machine; it is tried again by itself."
            )
        said = line or said
        if "start proxy success" in line:
            return f"https://{urlsplit(line.partition('start proxy success: ')[2].strip()).netloc}/"


def _read(stream: IO[bytes], lines: queue.Queue[str | None]) -> None:
    with contextlib.closing(stream):
        found = False
        for line in stream:
            if not found:
                text = line.decode("utf-8", "replace").strip()
                lines.put(text)
                found = "start proxy success" in text
    lines.put(None)

"""A stand-in for the Hugging Face hub on 127.0.0.1: the endpoints that a download uses, with faults on request.

Large files answer as on the hub: a redirect to another host that carries size and SHA-256, and byte ranges there.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """What the hub serves, how it misbehaves, and what it was asked for.

    cuts: bytes after which the next transfers break off, one entry each. gate: if set, a transfer stops at half of the
    file until it is opened. served: content that is sent in place of what was announced.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    status: int = 200
    error_code: str = ""
    cuts: list[int] = field(default_factory=list)
    ranges_work: bool = True
    served: dict[str, bytes] = field(default_factory=dict)
    is_small: bool = False
    gate: threading.Event | None = None
    starts: list[int] = field(default_factory=list)
    heads: int = 0
    port: int = 0

    @property
    def endpoint(self) -> str:
        """What `HF_ENDPOINT` must be."""
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def running_hub() -> Iterator[FakeHub]:
    """A hub that serves until the block ends."""
    hub = FakeHub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        if hub.gate is not None:
            hub.gate.set()
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    timeout = 20

    def do_HEAD(self) -> None:
        self.hub.heads += 1
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def _answer(self, with_body: bool) -> None:
        key = self.path.removeprefix("/cdn").lstrip("/")
        content = self.hub.files.get(key)
        if self.hub.status != 200 or content is None:
            self.send_response(self.hub.status if self.hub.status != 200 else 404)
            self.send_header("X-Error-Code", self.hub.error_code or "EntryNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.hub.is_small or self.path.startswith("/cdn/"):
            self._send(key, content, with_body)
        else:
            self.send_response(302)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("X-Linked-Size", str(len(content)))
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Location", f"http://localhost:{self.hub.port}/cdn/{key}")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _send(self, key: str, announced: bytes, with_body: bool) -> None:
        content = self.hub.served.get(key, announced)
        requested = self.headers.get("Range")
        start = int(requested.removeprefix("bytes=").split("-")[0]) if requested and self.hub.ranges_work else 0
        self.send_response(206 if requested and self.hub.ranges_work else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(announced).hexdigest()}"')
        self.send_header("Content-Length", str(len(content) - start))
        if requested and self.hub.ranges_work:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if with_body:
            self.hub.starts.append(start)
            self._send_body(content, start)

    def _send_body(self, content: bytes, start: int) -> None:
        try:
            if self.hub.cuts:
                self.wfile.write(content[start : start + self.hub.cuts.pop(0)])
                self.close_connection = True
            elif self.hub.gate is not None and not self.hub.gate.is_set():
                half = max(start, len(content) // 2)
                self.wfile.write(content[start:half])
                self.wfile.flush()
                self.hub.gate.wait(timeout=60)
                self.wfile.write(content[half:])
            else:
                self.wfile.write(content[start:])
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

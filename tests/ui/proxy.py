"""A proxy that serves an app below a path and cuts every connection after a while, as those of cloud hosts do."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_HOP = {"connection", "keep-alive", "transfer-encoding", "host", "content-length"}
_PIECE = 65536


@contextlib.contextmanager
def cutting_proxy(target: str, prefix: str, limit_s: float) -> Iterator[tuple[str, list[str]]]:
    """(address of the app below `prefix`, paths of the requests that were cut); `target` is the app's own address."""
    origin = urlsplit(target)
    cut: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"  # one request a connection

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError, TimeoutError):
                super().handle()

        def pass_on(self) -> None:
            if not self.path.startswith(f"{prefix}/"):
                self.send_error(404)
                return
            deadline = time.monotonic() + limit_s
            upstream = http.client.HTTPConnection(origin.hostname or "", origin.port, timeout=limit_s)
            try:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
                headers |= {"Host": self.headers["host"], "Content-Length": str(len(body))}
                upstream.request(self.command, self.path.removeprefix(prefix), body, headers)
                reply = upstream.getresponse()
                self.send_response(reply.status)
                for name, value in reply.getheaders():
                    if name.lower() not in _HOP:
                        self.send_header(name, value)
                if reply.length is not None:
                    self.send_header("Content-Length", str(reply.length))
                self.end_headers()
                while piece := reply.read1(_PIECE):
                    self.wfile.write(piece)
                    if time.monotonic() > deadline:
                        raise TimeoutError
            except TimeoutError:
                cut.append(self.path.removeprefix(prefix))
            finally:
                upstream.close()
                self.close_connection = True

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = pass_on  # noqa: N815  the names of the base class

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing; the test sees what it needs."""

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.daemon_threads = True
    thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{proxy.server_address[1]}{prefix}/", cut
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()


@contextlib.contextmanager
def losing_proxy(target: str, prefix: str) -> Iterator[tuple[str, list[str]]]:
    """(address of the app below `prefix`, paths whose answer was lost): the answer to the second PATCH never comes."""
    origin = urlsplit(target)
    lost: list[str] = []
    patches: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"  # one request a connection

        def pass_on(self) -> None:
            upstream = http.client.HTTPConnection(origin.hostname or "", origin.port, timeout=30)
            try:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
                upstream.request(
                    self.command, self.path.removeprefix(prefix), body, headers | {"Content-Length": str(len(body))}
                )
                reply = upstream.getresponse()
                content = reply.read()
                if self.command == "PATCH":
                    patches.append(self.path)
                    if len(patches) == 2:
                        lost.append(self.path)
                        return
                self.send_response(reply.status)
                for name, value in reply.getheaders():
                    if name.lower() not in _HOP:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)
            finally:
                upstream.close()
                self.close_connection = True

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = pass_on  # noqa: N815  the names of the base class

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing; the test sees what it needs."""

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.daemon_threads = True
    thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{proxy.server_address[1]}{prefix}/", lost
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()

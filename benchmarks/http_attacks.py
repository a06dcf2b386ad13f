"""Requests that nobody sends by accident: paths that lead elsewhere, links to this machine, bodies without end.

Values only. `{data}` is the data folder of the server, `{victim}` the id of another owner, `{job}` of that owner's job,
`{port}` the server's own port and `{canary}` that of a listener beside it, which nobody may ever be led to.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

JSON = {"content-type": "application/json"}
TUS = {"tus-resumable": "1.0.0"}


@dataclass(frozen=True)
class Attack:
    """One request, and what it may be answered with. `body` is sent `repeat` times over, in chunks if `is_chunked`."""

    kind: str
    method: str
    path: str
    statuses: tuple[int, ...]
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    repeat: int = 1
    is_chunked: bool = False


_REFUSED = (400, 401, 403, 404, 405, 422)
_TARGETS = (
    "{data}/accounts.json",
    "{data}/secret.key",
    "etc/passwd",
    "{data}/sessions/{victim}/jobs/{job}/manifest.json",
)
_UPS = ("../", "%2e%2e/", "..%2f", "%2e%2e%2f", "%252e%252e%252f", "..%5c", "..;/", "....//", "%c0%ae%c0%ae/", "..%00/")
_BELOW = (
    "/studio/static/", "/static/", "/assets/", "/svelte/", "/studio/jobs/", "/studio/jobs/{job}/files/",
    "/api/v1/jobs/",
    "/gradio_api/file=", "/gradio_api/custom_component/",
)  # fmt: skip
_FOLDERS = (
    "/studio/static/", "/studio/static", "/static/", "/assets/", "/studio/", "/studio/jobs/", "/sessions/", "/data/",
    "/.git/config", "/.env", "/accounts.json", "/secret.key", "/studio/static/vendor/", "/api/v1", "/gradio_api/",
)  # fmt: skip
_GRADIO = (
    "/gradio_api/file={data}/secret.key", "/gradio_api/file=/etc/passwd", "/gradio_api/file/etc/passwd",
    "/gradio_api/file=http://127.0.0.1:{canary}/", "/gradio_api/proxy=http://127.0.0.1:{canary}/",
    "/gradio_api/proxy=https://x.hf.space@127.0.0.1:{canary}/", "/gradio_api/runs", "/gradio_api/run-history/records",
    "/gradio_api/upload_progress?upload_id=x", "/gradio_api/token", "/gradio_api/deep_link", "/gradio_api/dev/reload",
    "/gradio_api/vibe-code", "/gradio_api/profiling/traces", "/gradio_api/stream/a/b/c/playlist.m3u8", "/monitoring",
    "/monitoring/summary", "//gradio_api/file=/etc/passwd", "/./gradio_api/file=/etc/passwd",
    "/gradio_api/info/../file=/etc/passwd",
)  # fmt: skip
_HOSTS = (
    "127.0.0.1", "127.1", "127.0.0.1.", "0", "0.0.0.0", "2130706433", "0x7f000001", "0x7f.0.0.1", "017700000001",
    "0177.0.0.1", "127.000.000.001", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]",
    "[0:0:0:0:0:ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[fe80::1]", "[fe80::1%25lo]",
    "[fd00:ec2::254]",
    "[fc00::1]", "[ff02::1]", "localhost", "localhost.", "LOCALHOST", "ip6-localhost", "10.0.0.1", "172.16.0.1",
    "192.168.0.1", "100.64.0.1", "100.100.100.200", "169.254.169.254", "169.254.170.2", "2852039166", "0xA9FEA9FE",
    "0251.0376.0251.0376", "metadata.google.internal", "metadata", "168.63.129.16", "192.0.0.192", "198.18.0.1",
    "224.0.0.1", "255.255.255.255", "127.0.0.1%2f.example.com", "127.0.0.1#.example.com", "example.com@127.0.0.1",
    "127.0.0.1\\@example.com", "\u2460\u2461\u2466.0.0.1", "127\u30020\u30020\u30021", "\uff11\uff12\uff17.0.0.1",
)  # fmt: skip
_LINKS = (
    "file:///etc/passwd", "file://{data}/secret.key", "ftp://127.0.0.1/a.mp4", "gopher://127.0.0.1:{canary}/_x",
    "data:,x",
    "http://127.0.0.1:{canary}/a.mp4", "http://127.0.0.1:{port}/studio/me", "http://[::1]:{canary}/",
    "//127.0.0.1/a.mp4",
    "dict://127.0.0.1:{canary}/", "jar:http://127.0.0.1!/", "http:127.0.0.1:{canary}", "http:///127.0.0.1",
    "http://", "",
    "http://user:password@127.0.0.1/", "https://127.0.0.1/\r\nHost: x", "http://127.0.0.1:99999/",
    "http://127.0.0.1:-1/",
    "http://\u0000/", "http://" + "a" * 5000 + "/", "http://" + "a." * 200 + "com/", "\ud800",
)  # fmt: skip


def attacks() -> list[Attack]:
    """All of them."""
    return [*_traversals(), *_listings(), *_server_side_requests(), *_oversized()]


def _traversals() -> Iterator[Attack]:
    for below, up, target in itertools.product(_BELOW, _UPS, _TARGETS[:2]):
        yield Attack("traversal", "GET", f"{below}{up * 12}{target.removeprefix('/')}", _REFUSED)
    for below, target in itertools.product(_BELOW, _TARGETS):
        yield Attack("traversal", "GET", f"{below}{target}", _REFUSED)
        yield Attack("traversal", "GET", f"{below}%2f{target.lstrip('/')}", _REFUSED)
    for name in ("../../x.mp4", "/etc/cron.d/x", "..\\..\\x.mp4", "a\u0000b.mp4", "\u202ex.mp4", "." * 300, "a/" * 500):
        body = json.dumps({"file": name})
        yield Attack("traversal", "POST", "/studio/folder", (400, 422), JSON, body)


def _listings() -> Iterator[Attack]:
    """Folders, and routes of Gradio that read files or other servers."""
    for path in _FOLDERS:
        yield Attack("listing", "GET", path, (307, 400, 401, 403, 404, 405))
    for path in _GRADIO:
        yield Attack("gradio", "GET", path, _REFUSED)
    for path in ("/gradio_api/upload", "/gradio_api/component_server", "/gradio_api/stream/x", "/gradio_api/vibe-edit"):
        yield Attack("gradio", "POST", path, _REFUSED, JSON, "{}")


def _server_side_requests() -> Iterator[Attack]:
    """A link is refused at once, or taken and then found to lead to no public address; see `http_scan`."""
    taken = (200, 400, 422)
    links = [*(f"http://{host}/a.mp4" for host in _HOSTS), *(f"https://{host}:443/" for host in _HOSTS), *_LINKS]
    for link in links:
        yield Attack("SSRF", "POST", "/studio/links", taken, JSON, json.dumps({"link": link}))


def _oversized() -> Iterator[Attack]:
    too_large = (400, 411, 413, 422)
    for path in (
        "/api/v1/jobs",
        "/studio/links",
        "/studio/folder",
        "/studio/jobs/{job}/do/cancel",
        "/gradio_api/queue/join",
    ):
        yield Attack("oversize", "POST", path, too_large, JSON, " " * 2**20, 64)
        yield Attack("oversize", "POST", path, too_large, JSON, " " * 2**20, 64, is_chunked=True)
        yield Attack("oversize", "POST", path, (*too_large, 404), JSON, "[" * 100_000)
        yield Attack("oversize", "POST", path, (*too_large, 404), JSON, '{"a":' * 50_000 + "1" + "}" * 50_000)
    yield Attack("oversize", "POST", "/login", (*too_large, 401), {}, "name=" + "a" * 2**20, 8)
    yield Attack("oversize", "POST", "/studio/uploads", too_large, {**TUS, "upload-length": str(10**15)})
    yield Attack("oversize", "POST", "/studio/uploads", too_large, {**TUS, "upload-length": "9" * 400})
    yield Attack("oversize", "POST", "/studio/uploads", too_large, {**TUS, "upload-length": "-1"})
    yield Attack(
        "oversize", "POST", "/studio/uploads", too_large, {**TUS, "upload-length": "1", "upload-metadata": "x" * 60_000}
    )
    yield Attack("oversize", "POST", "/api/v1/uploads?name=a.mp4", too_large, {"content-length": str(10**15)})
    yield Attack("oversize", "POST", "/api/v1/uploads?name=a.mp4", too_large, {}, "x" * 2**16, 4, is_chunked=True)
    yield Attack("oversize", "POST", "/api/v1/imports", too_large, {"content-length": str(10**15)})
    yield Attack("oversize", "GET", "/studio/snapshot?search=" + "a" * 60_000, (400, 414, 422, 431))
    yield Attack("oversize", "GET", "/api/v1/jobs?" + "status=queued&" * 4_000, (200, 400, 414, 422, 431))
    yield Attack("oversize", "GET", "/studio/me", (200, 400, 431), {"x-long": "a" * 100_000})
    yield Attack("oversize", "GET", "/studio/jobs/" + "a/" * 20_000, (400, 404, 414, 431))

"""Links: a real server on this machine is asked for files; what is not public is not."""

from __future__ import annotations

import contextlib
import http.server
import ipaddress
import random
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trustme

from seedvr_ui import uploads as uploads_module
from seedvr_ui.fetch import ask
from seedvr_ui.network import IPAddress, LinkError, Network, is_public
from seedvr_ui.sessions import Limits, SessionManager
from seedvr_ui.storage import new_id
from seedvr_ui.transfers import Transfers
from seedvr_ui.uploads import Upload, Uploads
from tests.ui.conftest import FakeEngine, MakeManager, Wait

CONTENT = random.Random(1).randbytes(300_000)
HERE = ipaddress.ip_address("127.0.0.1")


@dataclass
class Site:
    """A web server whose paths behave in different ways; it notes the Range of each request."""

    port: int
    ranges: list[str | None] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)
    cut_at: list[int] = field(default_factory=list)
    etag: str = '"one"'
    gate: threading.Event = field(default_factory=threading.Event)

    def __call__(self, path: str, host: str = "videos.example") -> str:
        return f"http://{host}:{self.port}{path}"


class _Handler(http.server.BaseHTTPRequestHandler):
    site: Site
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.site.ranges.append(self.headers["Range"])
        self.site.hosts.append(self.headers["Host"])
        kind, _, rest = self.path.strip("/").partition("/")
        match kind:
            case "redirect":
                self._answer(302, {"Location": rest.replace("PORT", str(self.site.port))})
            case "loop":
                self._answer(302, {"Location": f"/loop/{len(self.site.ranges)}"})
            case "status":
                self._answer(int(rest), {})
            case "page":
                self._answer(200, {"Content-Type": "text/html; charset=utf-8"}, b"<html>")
            case "packed":
                self._answer(200, {"Content-Encoding": "gzip"}, b"xx")
            case "named":
                self._answer(200, {"Content-Disposition": f"attachment; {rest}".replace("%22", '"')}, b"pixels")
            case "typed":
                self._answer(200, {"Content-Type": "video/mp4"}, b"pixels")
            case "endless":
                self._endless(int(rest))
            case "bad":
                self._answer(200, {}, b"bad")
            case _:
                self._file()

    def _file(self) -> None:
        start = 0
        content = CONTENT if self.site.etag == '"one"' else CONTENT[::-1]
        wanted = self.headers["Range"]
        if wanted is not None and self.headers["If-Range"] == self.site.etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        self.site.starts.append(start)
        headers = {"ETag": self.site.etag, "Content-Length": str(len(content) - start)}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        end = self.site.cut_at.pop(0) if self.site.cut_at else len(content)
        self._answer(206 if start else 200, headers, content[start:end])
        if end < len(content):
            self.site.gate.wait(20)
            self.close_connection = True

    def _endless(self, num_bytes: int) -> None:
        self._answer(200, {"Transfer-Encoding": "chunked"})
        for _ in range(num_bytes // 10_000):
            self.wfile.write(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def _answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Transfer-Encoding" not in headers and "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def site() -> Iterator[Site]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = True
        site = Site(server.server_address[1])
        site.gate.set()
        server.RequestHandlerClass = type("Handler", (_Handler,), {"site": site})
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield site
        site.gate.set()
        server.shutdown()
        thread.join()


def _network(allows: Callable[[IPAddress], bool] = lambda address: True, **addresses: str) -> Network:
    """Names mean this machine, or what `addresses` says; any port will do."""

    def resolve(host: str, port: int) -> list[str]:
        if host.endswith("unknown"):
            raise OSError("no such name")
        with contextlib.suppress(ValueError):
            return [str(ipaddress.ip_address(host))]
        return addresses.get(host.replace(".", "_"), "127.0.0.1").split()

    return Network(allows=allows, allows_port=lambda scheme, port: True, resolve=resolve)


@dataclass
class Fetching:
    """Links that are fetched for one owner."""

    manager: SessionManager
    transfers: Transfers
    session: str
    wait_until: Wait

    def __call__(self, link: str) -> Upload:
        """The upload of `link` once nothing more happens to it."""
        upload = self.transfers.fetch(self.session, link)
        self.wait_until(lambda: self.manager.uploads.get(self.session, upload.id).is_settled)
        return self.manager.uploads.get(self.session, upload.id)

    def content(self, upload: Upload) -> bytes:
        return (self.manager.storage.upload_folder(self.session, upload.id) / upload.name).read_bytes()


@pytest.fixture
def fetching(make_manager: MakeManager, session: str, wait_until: Wait) -> Iterator[Fetching]:
    manager = make_manager(Limits(max_upload_bytes=2_000_000, max_uploading_bytes=3_000_000))
    transfers = Transfers(manager.uploads, network=_network(), retry_waits_s=(0.0,) * 6)
    yield Fetching(manager, transfers, session, wait_until)
    transfers.close()


def test_a_link_becomes_a_ready_upload(fetching: Fetching, site: Site) -> None:
    upload = fetching(site("/films/holiday%20%C3%BC.mp4?token=secret"))
    assert (upload.is_ready, upload.name, upload.size) == (True, "holiday ü.mp4", len(CONTENT))
    assert fetching.content(upload) == CONTENT
    assert site.hosts == [f"videos.example:{site.port}"]  # the name, though the connection goes to an address


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ('/named/filename="a.b.mp4"', "a.b.mp4"),
        ("/named/filename*=UTF-8''%C3%BCber%20uns.mp4", "über uns.mp4"),
        ("/named/filename*=UTF-8''..%2F..%2Fetc%2Fx.mp4", "x.mp4"),
        ('/named/filename="/etc/passwd.mp4"', "passwd.mp4"),
        ("/named/inline", "inline"),
        ("/typed/", "typed.mp4"),
        ("/typed/clip", "clip.mp4"),
        ("/typed/..%2F..%2Fclip", "clip.mp4"),
    ],
)
def test_the_file_has_a_safe_name(fetching: Fetching, site: Site, path: str, name: str) -> None:
    upload = fetching(site(path))
    assert (upload.is_ready, upload.name) == (True, name)


def test_a_lost_connection_costs_nothing_that_has_come(fetching: Fetching, site: Site) -> None:
    site.cut_at = [100_000, 200_000]
    upload = fetching(site("/a.mp4"))
    assert upload.is_ready
    assert fetching.content(upload) == CONTENT
    assert site.ranges[0] is None
    assert len(site.starts) == 3
    assert 0 == site.starts[0] < site.starts[1] < site.starts[2]


def test_a_file_that_changed_meanwhile_is_fetched_anew(fetching: Fetching, site: Site) -> None:
    site.cut_at = [100_000]
    site.gate.clear()
    upload = fetching.transfers.fetch(fetching.session, site("/a.mp4"))
    uploads = fetching.manager.uploads
    fetching.wait_until(lambda: uploads.get(fetching.session, upload.id).received > 0)
    site.etag = '"two"'
    site.gate.set()
    fetching.wait_until(lambda: uploads.get(fetching.session, upload.id).is_ready)
    assert fetching.content(uploads.get(fetching.session, upload.id)) == CONTENT[::-1]


def test_a_restart_goes_on_where_the_file_ends(
    fetching: Fetching, site: Site, engine: FakeEngine, wait_until: Wait
) -> None:
    site.cut_at = [150_000]
    site.gate.clear()
    session, storage = fetching.session, fetching.manager.storage
    upload = fetching.transfers.fetch(session, site("/a.mp4"))
    wait_until(lambda: fetching.manager.uploads.get(session, upload.id).received > 0)
    received = fetching.manager.uploads.get(session, upload.id).received
    fetching.transfers.close()  # the thread is still waiting for its server, as one that was killed would be
    again = Uploads(storage, engine.check, 10**6)
    transfers = Transfers(again, network=_network(), retry_waits_s=(0.0,) * 6)
    transfers.start()
    wait_until(lambda: again.get(session, upload.id).is_ready)
    transfers.close()
    assert fetching.content(again.get(session, upload.id)) == CONTENT
    assert int(str(site.ranges[1]).removeprefix("bytes=").removesuffix("-")) >= received


def test_a_file_of_unknown_length_is_taken(fetching: Fetching, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads_module, "_GROWTH_BYTES", 100_000)
    upload = fetching(site("/endless/1000000"))
    assert (upload.is_ready, upload.size, upload.is_size_known) == (True, 1_000_000, True)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/status/404", "has no such file; check the link"),
        ("/status/403", "does not give this file to everybody"),
        ("/status/418", "answered 418 instead of a file"),
        ("/status/503", "does not answer; check the link, or try again later"),
        ("/page/", "leads to a web page, not to a file"),
        ("/packed/", "sends the file packed (gzip)"),
        ("/bad/a.mp4", "is not a video; choose another file"),
        ("/loop/", "from one address to the next"),
        ("/endless/5000000", "the limit is"),
        ("/redirect/ftp://videos.example/a", "Only links that begin with http"),
        ("/redirect/http://user:word@videos.example/a", "user name or password"),
    ],
)
def test_what_cannot_be_fetched_has_one_sentence(fetching: Fetching, site: Site, path: str, words: str) -> None:
    upload = fetching(site(path))
    assert words in upload.error
    assert upload.error.endswith(".")
    assert upload.error.rstrip(".").count(". ") == 0
    folder = fetching.manager.storage.upload_folder(fetching.session, upload.id)
    fetching.wait_until(lambda: [path.name for path in folder.iterdir()] == ["upload.json"])


def test_a_name_that_nobody_knows_is_told(fetching: Fetching, site: Site) -> None:
    assert "does not answer; check the link" in fetching(site("/a.mp4", "host.unknown")).error


def test_a_file_over_the_limit_is_refused_before_its_first_byte(
    make_manager: MakeManager, session: str, site: Site, wait_until: Wait
) -> None:
    manager = make_manager(Limits(max_upload_bytes=299_999))
    transfers = Transfers(manager.uploads, network=_network())
    upload = transfers.fetch(session, site("/a.mp4"))
    wait_until(lambda: "the limit is" in manager.uploads.get(session, upload.id).error)
    transfers.close()


def test_a_removed_link_stops(fetching: Fetching, site: Site) -> None:
    site.cut_at = [100_000]
    site.gate.clear()
    upload = fetching.transfers.fetch(fetching.session, site("/a.mp4"))
    fetching.wait_until(lambda: fetching.manager.uploads.get(fetching.session, upload.id).received > 0)
    fetching.manager.uploads.discard(fetching.session, upload.id)
    site.gate.set()
    fetching.wait_until(lambda: not fetching.transfers._running)
    assert len(site.ranges) == 1
    assert fetching.manager.uploads.of_session(fetching.session) == []


def test_many_links_of_one_owner_do_not_keep_another_waiting(fetching: Fetching, site: Site) -> None:
    site.cut_at = [100_000] * 2
    site.gate.clear()
    for _ in range(9):
        fetching.transfers.fetch(fetching.session, site("/a.mp4"))
    fetching.wait_until(lambda: not site.cut_at)
    other = Fetching(fetching.manager, fetching.transfers, new_id(), fetching.wait_until)
    assert other(site("/b.mp4")).is_ready
    assert len(site.ranges) == 3


def test_redirects_are_followed_by_hand(fetching: Fetching, site: Site) -> None:
    upload = fetching(site("/redirect/http://other.example:PORT/films/b.mp4"))
    assert (upload.is_ready, upload.name) == (True, "b.mp4")
    assert site.hosts[1] == f"other.example:{site.port}"
    assert fetching(site("/redirect//films/c.mp4")).name == "c.mp4"


@pytest.mark.parametrize(
    "target",
    [
        "http://inside.example:PORT/a.mp4", "http://127.0.0.2:PORT/a.mp4", "http://[::1]:PORT/a.mp4", "http://2130706433/a",
        "//inside.example:PORT/a.mp4",
    ],
)  # fmt: skip
def test_a_redirect_to_a_private_address_is_not_followed(site: Site, target: str) -> None:
    network = _network(lambda address: address == HERE, inside_example="10.0.0.1")
    with pytest.raises(LinkError), ask(site(f"/redirect/{target}"), network):
        pytest.fail("it was followed")
    assert len(site.ranges) == 1


@pytest.mark.parametrize(
    "addresses", ["10.0.0.1", "127.0.0.1 10.0.0.1", "10.0.0.1 127.0.0.1", "::ffff:127.0.0.1", "fe80::1%eth0"]
)
def test_a_name_with_even_one_private_address_is_refused(site: Site, addresses: str) -> None:
    network = _network(lambda address: address == HERE, videos_example=addresses)
    with pytest.raises(LinkError, match="not on the public internet"), ask(site("/a.mp4"), network):
        pytest.fail("it was asked")
    assert site.ranges == []


def test_the_connection_goes_to_the_address_that_was_judged(site: Site) -> None:
    """A name that means something else a moment later (DNS rebinding) changes nothing: it is resolved once."""
    answers = [["127.0.0.1"], ["10.0.0.1"]]
    network = Network(
        allows=lambda address: address == HERE, allows_port=lambda *_: True, resolve=lambda *_: answers.pop(0)
    )
    with ask(site("/a.mp4", "rebind.example"), network) as answer:
        assert b"".join(answer.blocks) == CONTENT
    assert answers == [["10.0.0.1"]]


def test_a_proxy_of_the_environment_is_not_used(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://10.0.0.1:3128")
    with ask(site("/a.mp4"), _network()) as answer:
        assert b"".join(answer.blocks) == CONTENT


REFUSED_LINKS = [
    "http://127.0.0.1/", "http://127.8.9.1/", "http://localhost/", "http://0.0.0.0/", "http://[::]/", "http://[::1]/",
    "http://10.0.0.5/", "http://172.16.0.1/", "http://172.31.255.255/", "http://192.168.1.1/", "http://100.64.0.1/",
    "http://100.100.100.200/", "http://169.254.169.254/latest/meta-data/", "http://[fd00:ec2::254]/",
    "http://[fe80::1]/", "http://[fc00::1]/", "http://[fec0::1]/", "http://[ff02::1]/", "http://224.0.0.1/",
    "http://255.255.255.255/", "http://240.0.0.1/", "http://192.0.2.1/", "http://198.51.100.7/", "http://203.0.113.9/",
    "http://198.18.0.1/", "http://192.0.0.192/", "http://168.63.129.16/", "http://192.88.99.1/",
    "http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/", "http://[::ffff:8.8.8.8]/", "http://[::127.0.0.1]/",
    "http://[64:ff9b::7f00:1]/", "http://[64:ff9b::a9fe:a9fe]/", "http://[2002:7f00:1::]/", "http://[2001:db8::1]/",
    "http://[2001:0:1::1]/", "http://[64:ff9b:1::7f00:1]/",
    "http://2130706433/", "http://0x7f000001/", "http://017700000001/", "http://0177.0.0.1/", "http://127.1/",
    "http://0x7f.0.0.1/", "http://127.0.1/", "http://127.0.0.1./", "http://3232235777/",
    "http://１２７.0.0.1/", "http://①②⑦.⓪.⓪.①/", "http://127%2e0%2e0%2e1/", "http://[fe80::1%25eth0]/",
    "http://user@8.8.8.8/", "http://user:word@8.8.8.8/", "http://8.8.8.8@127.0.0.1/", "http://8.8.8.8\\@127.0.0.1/",
    "http://8.8.8.8:22/", "http://8.8.8.8:8080/", "https://8.8.8.8:80/", "http://8.8.8.8:443/", "http://8.8.8.8:0/",
    "ftp://8.8.8.8/a", "file:///etc/passwd", "gopher://8.8.8.8/", "data:text/plain,x", "javascript:alert(1)",
    "//8.8.8.8/a", "/etc/passwd", "http://", "http:///a", "", "a.mp4", "http://exa mple.com/", "http://a\nb.com/",
    "http://8.8.8.8/" + "a" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("link", REFUSED_LINKS)
def test_nothing_but_the_public_internet_is_asked(link: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object) -> None:
        pytest.fail("a connection was made")

    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(LinkError) as refused, ask(link, Network()):
        pytest.fail("it was asked")
    assert str(refused.value).endswith(".")


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2001:4860:4860::8888", "64:ff9b::808:808", "172.32.0.1"])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def test_a_certificate_is_asked_of_the_name_not_of_the_address(tls_site: tuple[int, Path]) -> None:
    port, certificate = tls_site
    context = ssl.create_default_context(cafile=str(certificate))
    network = Network(
        allows_port=lambda *_: True, allows=lambda _: True, resolve=lambda *_: ["127.0.0.1"], ssl_context=context
    )
    with ask(f"https://videos.example:{port}/a.mp4", network) as answer:
        assert b"".join(answer.blocks) == CONTENT


def test_a_server_that_cannot_prove_its_name_is_told_at_once(
    make_manager: MakeManager, session: str, tls_site: tuple[int, Path], wait_until: Wait
) -> None:
    manager = make_manager()
    context = ssl.create_default_context(cafile=str(tls_site[1]))
    network = Network(
        allows_port=lambda *_: True, allows=lambda _: True, resolve=lambda *_: ["127.0.0.1"], ssl_context=context
    )
    transfers = Transfers(manager.uploads, network=network, retry_waits_s=(3600.0,))
    upload = transfers.fetch(session, f"https://other.example:{tls_site[0]}/a.mp4")
    wait_until(lambda: "cannot prove" in manager.uploads.get(session, upload.id).error)
    transfers.close()


@pytest.fixture
def tls_site(tmp_path: Path, site: Site) -> Iterator[tuple[int, Path]]:
    """(port, certificate of its authority) of a server that proves to be videos.example."""
    authority, certificate = trustme.CA(), tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("videos.example").configure_cert(context)
    handler = type("Handler", (_Handler,), {"site": site})
    with _QuietServer(("127.0.0.1", 0), handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1], certificate
        server.shutdown()
        thread.join()


class _QuietServer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that does not trust us hangs up; that is what the test is about."""

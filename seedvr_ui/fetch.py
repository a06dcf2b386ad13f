"""Asks a link for its file: redirects followed by hand, each judged; resumed where it stopped. Without gradio.

One request a call. The caller writes the blocks, decides about limits, and calls again when a connection was lost.
"""

from __future__ import annotations

import contextlib
import mimetypes
import os
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from urllib.parse import unquote

import httpcore2
import httpx2

from seedvr_ui.network import LinkError, Network
from seedvr_ui.storage import safe_name

LOST = (httpcore2.NetworkError, httpcore2.TimeoutException, httpcore2.ProtocolError)
"""What the connection raises when trying once more may help."""

_MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_TIMEOUTS_S = {"connect": 10.0, "read": 30.0, "write": 30.0, "pool": 10.0}
_HEADERS = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "SeedVR-Studio"}
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d*/(\d+|\*)")


class BusyError(httpcore2.NetworkError):
    """The other server answers, but has no time just now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a link gives: `blocks` of the file from byte `start` on. `size` is that of the whole file, if it was told.

    `validator` (an ETag or a date) lets a later request ask for the rest of exactly this file; empty if there is none.
    """

    name: str
    size: int | None
    start: int
    validator: str
    blocks: Iterator[bytes]


@contextlib.contextmanager
def ask(link: str, network: Network, start: int = 0, validator: str = "") -> Iterator[Answer]:
    """The file behind `link`; from byte `start` on if the other server still has the file of that `validator`.

    `Answer.start` is where it really begins: 0 if the file has changed or cannot be had in parts. Raises LinkError with
    a sentence where trying again would not help, and one of LOST where it may.
    """
    headers = {**_HEADERS}
    if start and validator:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    url = network.check(link)
    with network.connections() as pool:
        for _ in range(_MAX_REDIRECTS + 1):
            with _request(pool, url, headers) as response:
                told = httpx2.Headers(response.headers)
                if response.status in _REDIRECTS and "location" in told:
                    try:
                        target = url.join(_decoded(told["location"]))
                    except httpx2.InvalidURL:
                        raise LinkError(f"{url.host} sends us to an address that is none; use another link.") from None
                    url = network.check(str(target))
                    continue
                yield _to_answer(response, told, url, start)
                return
    raise LinkError(f"{url.host} sends us from one address to the next; copy the address of the file itself.")


def is_untrusted(error: BaseException) -> bool:
    """Whether the connection failed because of the other server's certificate."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _request(
    pool: httpcore2.ConnectionPool, url: httpx2.URL, headers: dict[str, str]
) -> contextlib.AbstractContextManager[httpcore2.Response]:
    address = httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
    return pool.stream("GET", address, headers=list(headers.items()), extensions={"timeout": _TIMEOUTS_S})


def _to_answer(response: httpcore2.Response, told: httpx2.Headers, url: httpx2.URL, start: int) -> Answer:
    status = response.status
    if status in _BUSY:
        raise BusyError(f"{url.host} answered {status}")
    if status in (401, 403):
        raise LinkError(f"{url.host} does not give this file to everybody; download it and drop it here instead.")
    if status in (404, 410):
        raise LinkError(f"{url.host} has no such file; check the link.")
    if status == 416 and told.get("content-range", "") == f"bytes */{start}":  # there is no more than we have
        return Answer(
            name=_file_name("", url, ""), size=start, start=start, validator=_validator(told), blocks=iter(())
        )
    if status not in (200, 206):
        raise LinkError(f"{url.host} answered {status} instead of a file; check the link.")
    if told.get("content-encoding", "identity").lower() != "identity":
        raise LinkError(f"{url.host} sends the file packed ({told['content-encoding']}); download it instead.")
    kind = told.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("text/html", "application/xhtml+xml"):
        raise LinkError("This link leads to a web page, not to a file; copy the address of the video itself.")
    begin, size = 0, _to_size(told.get("content-length", ""))
    if status == 206:
        part = _CONTENT_RANGE.fullmatch(told.get("content-range", ""))
        if part is None or int(part[1]) != start:
            raise LinkError(f"{url.host} sent another part of the file than was asked for; download it instead.")
        begin, size = start, _to_size(part[2])
    return Answer(
        name=_file_name(told.get("content-disposition", ""), url, kind), size=size, start=begin,
        validator=_validator(told), blocks=iter(response.iter_stream()),
    )  # fmt: skip


def _to_size(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


def _validator(told: httpx2.Headers) -> str:
    """A strong ETag, else a date: what If-Range may name."""
    etag = told.get("etag", "")
    return etag if etag.startswith('"') else told.get("last-modified", "")


def _file_name(disposition: str, url: httpx2.URL, kind: str) -> str:
    """What the server calls the file, else the last part of the path; with the suffix of its type if it has none."""
    message = Message()
    message["content-disposition"] = _decoded(disposition) or "inline"
    name = safe_name(message.get_filename() or unquote(url.path.rstrip("/").rpartition("/")[2]) or url.host)
    if not os.path.splitext(name)[1]:
        name += mimetypes.guess_extension(kind) or ""
    return name


def _decoded(header: str) -> str:
    """A header with the UTF-8 that many servers put there; the standard way of reading it is Latin-1."""
    with contextlib.suppress(UnicodeError):
        return header.encode("latin-1").decode()
    return header

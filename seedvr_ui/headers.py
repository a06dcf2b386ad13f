"""What browsers are told with every answer: what a page of ours may load and run, and who may show it. Without gradio.

Gradio's page has inline scripts that differ with each answer (its configuration is one), so their hashes are worked out
from the page as it leaves. The rest is fixed:

- `'unsafe-eval'`: Gradio 6 makes functions of the scripts and templates that its components carry. A script that is put
  into the page is still not run: only what the server sent with the page is.
- `'unsafe-inline'` for styles: Gradio and Svelte write `style` elements and attributes.
- Nothing comes from, goes to, or is shown inside, another origin. What is no page may load nothing at all.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PAGE_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-eval'{hashes}; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; connect-src 'self'; "
    "manifest-src 'self'; form-action 'self'; base-uri 'self'; frame-ancestors 'self'"
)
"""Of an HTML answer that brings no policy of its own."""

FILE_POLICY = (
    "default-src 'none'; img-src 'self' data:; media-src 'self'; style-src 'unsafe-inline'; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'self'; sandbox"
)
"""Of everything else: a video or a picture that is opened by itself is shown, and nothing in it is run."""

_FIXED = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "same-origin",  # not `no-referrer`, which makes the origin of the sign-in form "null"
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), display-capture=(), payment=(), usb=(), "
    "serial=(), hid=(), midi=(), browsing-topics=()",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_ON_HTTPS = {  # browsers complain about them elsewhere
    "Strict-Transport-Security": "max-age=31536000",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_INLINE_SCRIPT = re.compile(rb"<script\b(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.DOTALL | re.IGNORECASE)
_MIN_GZIP_BYTES = 500


class SecurityHeaders:
    """ASGI middleware around everything else, so that refusals have the headers too."""

    def __init__(self, app: ASGIApp, path: str = "/") -> None:
        self._app = app
        self._page = path.rstrip("/")  # where a proxy shows the app; some leave it in the requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        accepts_gzip = False
        if scope["method"] == "GET" and scope["path"].removeprefix(self._page) in ("", "/"):
            # Gradio would compress its page, whose scripts are to be hashed; it is compressed again afterwards.
            accepts_gzip = "gzip" in Headers(scope=scope).get("accept-encoding", "")
            scope = {**scope, "headers": [pair for pair in scope["headers"] if pair[0] != b"accept-encoding"]}
        await self._app(scope, receive, _Answer(send, is_https(scope), accepts_gzip))


class _Answer:
    """Sends one answer on, with the headers. A page is held back until it is complete."""

    def __init__(self, send: Send, over_https: bool, accepts_gzip: bool) -> None:
        self._send, self._over_https, self._accepts_gzip = send, over_https, accepts_gzip
        self._start: Message | None = None
        self._body = bytearray()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if self._set_headers(MutableHeaders(scope=message)):
                self._start = message
            else:
                await self._send(message)
        elif self._start is not None and message["type"] == "http.response.body":
            self._body += message.get("body", b"")
            if not message.get("more_body"):
                await self._send_page(self._start)
        else:
            await self._send(message)

    def _set_headers(self, headers: MutableHeaders) -> bool:
        """Whether it is a page whose policy has to wait for its content."""
        for name, value in (_FIXED | (_ON_HTTPS if self._over_https else {})).items():
            headers.setdefault(name, value)
        is_page = headers.get("content-type", "").startswith("text/html")
        if "content-security-policy" in headers:
            return False
        if is_page and "content-encoding" not in headers:
            return True
        headers["Content-Security-Policy"] = PAGE_POLICY.format(hashes="") if is_page else FILE_POLICY
        return False

    async def _send_page(self, start: Message) -> None:
        body = bytes(self._body)
        headers = MutableHeaders(scope=start)
        headers["Content-Security-Policy"] = PAGE_POLICY.format(
            hashes="".join(f" {one}" for one in script_hashes(body))
        )
        if self._accepts_gzip and len(body) >= _MIN_GZIP_BYTES:
            body = gzip.compress(body, 5)
            headers["Content-Encoding"] = "gzip"
            headers.add_vary_header("Accept-Encoding")
        if body:  # an answer to HEAD has the length of what it does not send
            headers["Content-Length"] = str(len(body))
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body, "more_body": False})


def script_hashes(page: bytes) -> list[str]:
    """The inline scripts of an HTML page as sources of its policy, each once."""
    digests = [hashlib.sha256(found[1]).digest() for found in _INLINE_SCRIPT.finditer(page) if found[1].strip()]
    return list(dict.fromkeys(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests))


def is_https(scope: Scope) -> bool:
    """Whether the browser came over https, as far as the proxy in front says."""
    forwarded = Headers(scope=scope).get("x-forwarded-proto", "")
    return scope.get("scheme") == "https" or forwarded.startswith("https")

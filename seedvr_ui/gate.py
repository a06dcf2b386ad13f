"""The one gate in front of everything: page, Gradio's routes and ours. ASGI, without gradio.

1. Where nobody signs in and only this machine reaches the server, a request under a name that is not this machine's is
   refused: a page of the internet can give its own name our address.
2. A request that changes something and was sent by another site's page is refused: by `Sec-Fetch-Site`, which browsers
   set on https and localhost and no script can, else by `Origin`, which has to name the host that was asked. A request
   with neither comes from no browser. That holds for signing in too, and where nobody signs in.
3. Of Gradio's routes only those that the form needs are there, none that reads or writes a file: those are our own.
4. With accounts, everything but the login page, static files and the health check needs somebody who is signed in. A
   browser that opens a page is sent to the login page, everybody else gets 401 and a sentence.
5. Without accounts, a browser that opens the page becomes an owner of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from fastapi import HTTPException
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from seedvr_ui.access import Access

OPEN = ("/healthz", "/readyz", "/metrics", "/login", "/favicon.ico")
"""Paths that need nobody who is signed in. The metrics ask by themselves, since a token opens them too."""

OPEN_BELOW = "/studio/static/"
"""Nor does what lies below this one."""

GRADIO_API = frozenset({
    "info", "openapi.json", "app_id", "user", "login_check", "startup-events", "theme.css", "custom_component",
    "api", "run", "call", "queue", "cancel", "reset", "heartbeat",
})  # fmt: skip
"""What is there below /gradio_api/: what the form and Gradio's client need. Not among it: file=, upload, proxy=,
stream, component_server, runs, and whatever a later version adds."""

CLOSED = ("/monitoring", "/login/", "/logout/")
"""Beginnings of other paths of Gradio that are not there."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SAFE = ("GET", "HEAD", "OPTIONS")


class Gate:
    """ASGI middleware; see the module's docstring."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access
        self._prefix = access.path.rstrip("/")  # which Gradio ignores where a proxy has left it

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            refusal = await self._refusal(HTTPConnection(scope))
            if refusal is not None:
                await refusal(scope, receive, send)
            elif self._access.login is None:
                await self._app(scope, receive, self._with_cookie(scope, send))
            else:
                await self._app(scope, receive, send)
        elif scope["type"] == "websocket":  # nothing of ours, nor of Gradio's, is one
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._app(scope, receive, send)

    async def _refusal(self, connection: HTTPConnection) -> Response | None:
        method, path = connection.scope["method"], connection.scope["path"]
        hosts, host = self._access.hosts, connection.headers.get("host", "")
        if hosts is not None and not hosts.has(host):
            sentence = (
                "This app answers to localhost only; open it as that, or start it with --allow-host and this name."
            )
            return _refuse(403, sentence)
        if method not in _SAFE and is_foreign(connection.headers):
            return _refuse(403, "This request comes from another site; open the app's own page and try again there.")
        if _is_closed(path.removeprefix(self._prefix)):
            return _refuse(404, "There is no such address.")
        if self._access.login is None or path in OPEN or path.startswith(OPEN_BELOW):
            return None
        try:
            has_password = "authorization" in connection.headers  # whose check would hold all others up
            ask = self._access.visitor
            visitor = await run_in_threadpool(ask, connection) if has_password else ask(connection)
        except HTTPException as error:
            return _refuse(error.status_code, error.detail, error.headers)
        if visitor is not None:
            return None
        if method in ("GET", "HEAD") and _is_navigation(connection.headers):
            up = "../" * (path.count("/") - 1)
            return RedirectResponse(f"{up}login", 303, {"Cache-Control": "no-store"})
        is_browser = "sec-fetch-mode" in connection.headers  # which would ask with a window of its own
        challenge = {} if is_browser else {"WWW-Authenticate": 'Basic realm="SeedVR Studio", charset="UTF-8"'}
        return _refuse(401, self._access.why_not(connection), challenge)

    def _with_cookie(self, scope: Scope, send: Send) -> Send:
        connection = HTTPConnection(scope)
        if scope["method"] != "GET" or self._access.visitor(connection):
            return send

        async def send_with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("content-type", "").startswith("text/html"):
                    headers.append("set-cookie", self._access.anonymous_cookie(connection))
            await send(message)

        return send_with_cookie


def _is_closed(path: str) -> bool:
    if _CONTROL.search(path):  # no address of ours has one, and patterns of routes take a line break for an end
        return True
    _, is_api, rest = path.partition("/gradio_api/")
    return path.startswith(CLOSED) or (bool(is_api) and rest.partition("/")[0] not in GRADIO_API)


def is_foreign(headers: Mapping[str, str]) -> bool:
    """Whether a request was sent by a page of another site."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    if origin is None:
        return False
    hosts = (headers.get("host"), headers.get("x-forwarded-host"))  # a proxy may ask under a name of its own
    return urlsplit(origin).netloc not in [host for host in hosts if host]


def _is_navigation(headers: Mapping[str, str]) -> bool:
    """Whether a browser opens an address as a page."""
    wants_page = "text/html" in headers.get("accept", "")
    return wants_page and headers.get("sec-fetch-mode", "navigate") == "navigate"


def _refuse(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": sentence}, status, {"Cache-Control": "no-store", **(headers or {})})

"""Who asks: the visitor behind a request, and the owner that their jobs, uploads and files belong to. Without gradio.

Routes and handlers ask `Access` and nothing else, so every answer to "whose is this" is given here.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import HTTPException
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from seedvr_ui.storage import is_id, new_id

COOKIE = "seedvr_session"
_COOKIE_AGE_S = 365 * 86400


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody who may use the app: the owner of what they make (an id as `new_id` makes them), and their name."""

    owner: str
    name: str = ""
    is_admin: bool = False


class Access:
    """Every browser is an owner of its own, known by a random id in an HttpOnly cookie."""

    def visitor(self, connection: HTTPConnection) -> Visitor | None:
        """Who sent this request, or None if it does not say."""
        owner = connection.cookies.get(COOKIE, "")
        return Visitor(owner) if is_id(owner) else None

    def require(self, connection: HTTPConnection) -> Visitor:
        """Who sent this request. Raises HTTPException 401 with a sentence."""
        visitor = self.visitor(connection)
        if visitor is None:
            raise HTTPException(401, "Open the page first; it needs its cookie.")
        return visitor


class SessionCookie:
    """ASGI middleware that gives every visitor of the page an owner's id, as an HttpOnly cookie."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET" or self._access.visitor(HTTPConnection(scope)):
            await self._app(scope, receive, send)
            return

        async def send_with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("content-type", "").startswith("text/html"):
                    headers.append("set-cookie", _cookie(scope))
            await send(message)

        await self._app(scope, receive, send_with_cookie)


def _cookie(scope: Scope) -> str:
    headers = dict(scope["headers"])
    is_secure = scope["scheme"] == "https" or headers.get(b"x-forwarded-proto", b"").startswith(b"https")
    path = scope.get("root_path", "") or "/"
    secure = "; Secure" if is_secure else ""
    return f"{COOKIE}={new_id()}; Path={path}; Max-Age={_COOKIE_AGE_S}; HttpOnly; SameSite=Lax{secure}"

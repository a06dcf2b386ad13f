"""How long the body of a request may be. Without gradio.

Files come in at few addresses, which have limits of their own and write what arrives to the disk. Everything else is
read into memory before anybody looks at it, so it is cut off here.
"""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 2**20
FILES = ("/studio/uploads", "/api/v1/uploads", "/api/v1/imports")
"""Where files come in: these addresses and what is below them."""

_SENTENCE = "The request is too long; files are sent to studio/uploads or api/v1/uploads."


class BodyLimit:
    """ASGI middleware: 413 and a sentence for a longer body, whether or not the request says how long it is."""

    def __init__(self, app: ASGIApp, path: str = "/", max_bytes: int = MAX_BODY_BYTES) -> None:
        self._app, self._prefix, self._max_bytes = app, path.rstrip("/"), max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._takes_files(scope):
            await self._app(scope, receive, send)
            return
        announced = HTTPConnection(scope).headers.get("content-length", "0")
        if not announced.isascii() or not announced.isdigit() or int(announced) > self._max_bytes:
            await JSONResponse({"error": _SENTENCE}, 413, {"Connection": "close"})(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise HTTPException(413, _SENTENCE)
            return message

        await self._app(scope, counted, send)

    def _takes_files(self, scope: Scope) -> bool:
        """Below what it is mounted at, or below the prefix that a proxy leaves in the address."""
        path = scope["path"].removeprefix(scope.get("root_path", "")).removeprefix(self._prefix)
        return any(path == address or path.startswith(f"{address}/") for address in FILES)

"""Our own HTTP routes beside Gradio's: health, static files, uploads in pieces, previews and downloads.

Every route below `studio/` belongs to the session of the cookie; a foreign id is answered like an unknown one.
Gradio's own file routes are not used for media: they copy, may transcode, and echo request headers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field
from starlette.datastructures import MutableHeaders
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inference.errors import RestoreError
from seedvr_ui.player import preview_file, upload_view
from seedvr_ui.sessions import SessionManager, result_file
from seedvr_ui.storage import THUMBNAIL, is_id, new_id
from seedvr_ui.store import UnknownJobError
from seedvr_ui.uploads import PIECE_BYTES, OffsetError, UnknownUploadError

COOKIE = "seedvr_session"
_COOKIE_AGE_S = 365 * 86400
_STATIC = Path(__file__).with_name("static")
_PRIVATE = {"Cache-Control": "private, max-age=3600", "X-Content-Type-Options": "nosniff"}


class NewUpload(BaseModel):
    """What the page knows of a file before it sends it."""

    name: str = Field(min_length=1, max_length=1000)
    size: int = Field(ge=0)
    fingerprint: str = Field(default="", max_length=200)


class SessionCookie:
    """ASGI middleware that gives every visitor of the page a session, as an HttpOnly cookie."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET" or _session_of(scope):
            await self._app(scope, receive, send)
            return

        async def send_with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("content-type", "").startswith("text/html"):
                    headers.append("set-cookie", _cookie(scope))
            await send(message)

        await self._app(scope, receive, send_with_cookie)


def add_routes(app: FastAPI, manager: SessionManager) -> None:
    """Put all routes of this module on `app`; to be called before Gradio is mounted on the root."""
    app.add_middleware(SessionCookie)
    app.mount("/studio/static", StaticFiles(directory=_STATIC), name="studio-static")
    app.include_router(_uploads_router(manager))
    app.include_router(_jobs_router(manager))
    app.add_exception_handler(RestoreError, _to_response)

    @app.get("/healthz")
    def health() -> dict[str, Any]:
        return {"status": "ok", "jobs": manager.counts()}


def _uploads_router(manager: SessionManager) -> APIRouter:
    router = APIRouter(prefix="/studio/uploads")
    uploads = manager.uploads

    @router.get("")
    def list_uploads(request: Request) -> dict[str, Any]:
        return {"uploads": [upload_view(upload) for upload in uploads.of_session(_require_session(request))]}

    @router.post("")
    def begin_upload(request: Request, new: NewUpload) -> dict[str, Any]:
        upload = uploads.begin(_require_session(request), new.name, new.size, new.fingerprint)
        return {**upload_view(upload), "piece": PIECE_BYTES}

    @router.put("/{upload_id}")
    async def append_piece(request: Request, upload_id: str, offset: int) -> dict[str, Any]:
        session, piece = _require_session(request), await _read_piece(request)
        return upload_view(await run_in_threadpool(uploads.append, session, upload_id, offset, piece))

    @router.delete("/{upload_id}")
    def discard_upload(request: Request, upload_id: str) -> dict[str, Any]:
        uploads.discard(_require_session(request), upload_id)
        return {}

    return router


def _jobs_router(manager: SessionManager) -> APIRouter:
    router = APIRouter(prefix="/studio/jobs")

    @router.get("/{job_id}/download")
    def download(request: Request, job_id: str) -> FileResponse:
        session = _require_session(request)
        path = result_file(manager.job(session, job_id))
        manager.see(session, job_id)
        return FileResponse(path, filename=path.name, headers=_PRIVATE)

    @router.get("/{job_id}/files/{name}")
    def preview(request: Request, job_id: str, name: str) -> FileResponse:
        session = _require_session(request)
        path = preview_file(manager.job(session, job_id), name)
        if path is None:
            raise HTTPException(404, "There is no such file.")
        if name != THUMBNAIL:
            manager.see(session, job_id)
        return FileResponse(path, headers=_PRIVATE)

    return router


async def _read_piece(request: Request) -> bytes:
    piece = bytearray()
    async for data in request.stream():
        piece += data
        if len(piece) > PIECE_BYTES:
            raise HTTPException(413, f"A piece has at most {PIECE_BYTES} bytes.")
    return bytes(piece)


def _to_response(request: Request, error: Exception) -> JSONResponse:
    body: dict[str, Any] = {"error": str(error)}
    status = 400
    if isinstance(error, UnknownUploadError | UnknownJobError):
        status = 404
    elif isinstance(error, OffsetError):
        status, body["received"] = 409, error.received
    return JSONResponse(body, status)


def _require_session(request: Request) -> str:
    session = _session_of(request.scope)
    if not session:
        raise HTTPException(401, "Open the page first; it needs its cookie.")
    return session


def _session_of(scope: Scope) -> str:
    header = dict(scope["headers"]).get(b"cookie", b"").decode("latin-1")
    session = cookie_parser(header).get(COOKIE, "")
    return session if is_id(session) else ""


def _cookie(scope: Scope) -> str:
    headers = dict(scope["headers"])
    is_secure = scope["scheme"] == "https" or headers.get(b"x-forwarded-proto", b"").startswith(b"https")
    path = scope.get("root_path", "") or "/"
    secure = "; Secure" if is_secure else ""
    return f"{COOKIE}={new_id()}; Path={path}; Max-Age={_COOKIE_AGE_S}; HttpOnly; SameSite=Lax{secure}"

"""Our own HTTP routes beside Gradio's: health, static files, uploads in pieces, previews and downloads.

Every route below `studio/` belongs to the visitor's owner; a foreign id is answered like an unknown one.
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

from inference.errors import RestoreError
from seedvr_ui.access import Access, SessionCookie
from seedvr_ui.player import preview_file, upload_view
from seedvr_ui.sessions import SessionManager, result_file
from seedvr_ui.storage import THUMBNAIL
from seedvr_ui.store import UnknownJobError
from seedvr_ui.uploads import PIECE_BYTES, OffsetError, UnknownUploadError

_STATIC = Path(__file__).with_name("static")
_PRIVATE = {"Cache-Control": "private, max-age=3600", "X-Content-Type-Options": "nosniff"}


class NewUpload(BaseModel):
    """What the page knows of a file before it sends it."""

    name: str = Field(min_length=1, max_length=1000)
    size: int = Field(ge=0)
    fingerprint: str = Field(default="", max_length=200)


def add_routes(app: FastAPI, manager: SessionManager, access: Access) -> None:
    """Put all routes of this module on `app`; to be called before Gradio is mounted on the root."""
    app.add_middleware(SessionCookie, access=access)
    app.mount("/studio/static", StaticFiles(directory=_STATIC), name="studio-static")
    app.include_router(_uploads_router(manager, access))
    app.include_router(_jobs_router(manager, access))
    app.add_exception_handler(RestoreError, _to_response)

    @app.get("/healthz")
    def health() -> dict[str, Any]:
        return {"status": "ok", "jobs": manager.counts()}


def _uploads_router(manager: SessionManager, access: Access) -> APIRouter:
    router = APIRouter(prefix="/studio/uploads")
    uploads = manager.uploads

    @router.get("")
    def list_uploads(request: Request) -> dict[str, Any]:
        return {"uploads": [upload_view(upload) for upload in uploads.of_session(access.require(request).owner)]}

    @router.post("")
    def begin_upload(request: Request, new: NewUpload) -> dict[str, Any]:
        upload = uploads.begin(access.require(request).owner, new.name, new.size, new.fingerprint)
        return {**upload_view(upload), "piece": PIECE_BYTES}

    @router.put("/{upload_id}")
    async def append_piece(request: Request, upload_id: str, offset: int) -> dict[str, Any]:
        owner, piece = access.require(request).owner, await _read_piece(request)
        return upload_view(await run_in_threadpool(uploads.append, owner, upload_id, offset, piece))

    @router.delete("/{upload_id}")
    def discard_upload(request: Request, upload_id: str) -> dict[str, Any]:
        uploads.discard(access.require(request).owner, upload_id)
        return {}

    return router


def _jobs_router(manager: SessionManager, access: Access) -> APIRouter:
    router = APIRouter(prefix="/studio/jobs")

    @router.get("/{job_id}/download")
    def download(request: Request, job_id: str) -> FileResponse:
        owner = access.require(request).owner
        path = result_file(manager.job(owner, job_id))
        manager.see(owner, job_id)
        return FileResponse(path, filename=path.name, headers=_PRIVATE)

    @router.get("/{job_id}/files/{name}")
    def preview(request: Request, job_id: str, name: str) -> FileResponse:
        owner = access.require(request).owner
        path = preview_file(manager.job(owner, job_id), name)
        if path is None:
            raise HTTPException(404, "There is no such file.")
        if name != THUMBNAIL:
            manager.see(owner, job_id)
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

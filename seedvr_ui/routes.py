"""Our own HTTP routes beside Gradio's: health, static files, previews and downloads; and the uploads.

Every route below `studio/` asks who comes; a foreign id is answered like an unknown one, but to admins.
Gradio's own file routes are not used for media: they copy, may transcode, and echo request headers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles

from inference.errors import RestoreError
from seedvr_ui.access import Access
from seedvr_ui.api_errors import error_answer, validation_error
from seedvr_ui.body_limit import BodyLimit
from seedvr_ui.gate import Gate
from seedvr_ui.headers import SecurityHeaders
from seedvr_ui.login_routes import add_login_routes
from seedvr_ui.player import log_file, preview_file
from seedvr_ui.sessions import SessionManager, result_file
from seedvr_ui.storage import THUMBNAIL
from seedvr_ui.store import UnknownJobError
from seedvr_ui.transfers import Transfers
from seedvr_ui.upload_routes import uploads_router

_STATIC = Path(__file__).with_name("static")
_PRIVATE = {"Cache-Control": "private, max-age=3600", "X-Content-Type-Options": "nosniff"}

_LOG = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def add_routes(app: FastAPI, manager: SessionManager, access: Access, transfers: Transfers | None = None) -> None:
    """Put all of our routes on `app`; to be called before Gradio is mounted on the root."""
    app.add_middleware(BodyLimit, path=access.path)
    app.add_middleware(Gate, access=access)
    app.add_middleware(SecurityHeaders, path=access.path)  # added last, so it is around the gate
    app.mount("/studio/static", StaticFiles(directory=_STATIC), name="studio-static")
    add_login_routes(app, access)
    app.include_router(uploads_router(manager, access, transfers or Transfers(manager.uploads)))
    app.include_router(_jobs_router(manager, access))
    app.add_exception_handler(RestoreError, _to_response)
    app.add_exception_handler(RequestValidationError, validation_error)

    @app.get("/healthz")
    def health(request: Request) -> dict[str, Any]:
        is_known = access.login is None or access.visitor(request) is not None
        return {"status": "ok", **({"jobs": manager.counts()} if is_known else {})}


def _jobs_router(manager: SessionManager, access: Access) -> APIRouter:
    router = APIRouter(prefix="/studio/jobs")

    @router.api_route("/{job_id}/download", methods=["GET", "HEAD"])
    def download(request: Request, job_id: str) -> FileResponse:
        visitor = access.require(request)
        job = manager.job_for(visitor, job_id)
        path = result_file(job)
        if job.owner == visitor.owner:  # an admin's look is not the owner's
            manager.see(job.owner, job_id)
        return FileResponse(path, filename=path.name, headers=_PRIVATE)

    @router.get("/{job_id}/log")
    def log(request: Request, job_id: str) -> FileResponse:
        """What happened to the job, as JSON lines."""
        job = manager.job_for(access.require(request), job_id)
        path = log_file(job)
        if path is None:
            raise HTTPException(404, "This job has no log yet.")
        name = f"{job.source.stem}.log.jsonl"
        return FileResponse(path, filename=name, media_type="application/x-ndjson", headers=_LOG)

    @router.api_route("/{job_id}/files/{name}", methods=["GET", "HEAD"])
    def preview(request: Request, job_id: str, name: str) -> FileResponse:
        visitor = access.require(request)
        job = manager.job_for(visitor, job_id)
        path = preview_file(job, name)
        if path is None:
            raise HTTPException(404, "There is no such file.")
        if name != THUMBNAIL and job.owner == visitor.owner:
            manager.see(job.owner, job_id)
        return FileResponse(path, headers=_PRIVATE)

    return router


def _to_response(request: Request, error: Exception) -> JSONResponse:
    return error_answer(404 if isinstance(error, UnknownJobError) else 400, str(error))

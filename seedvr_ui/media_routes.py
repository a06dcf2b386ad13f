"""What can be watched before a job is done: the file of its finished part. Owners and admins only, with ranges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.responses import FileResponse

from seedvr_ui.access import Access
from seedvr_ui.jobs import Job
from seedvr_ui.parts import Part, Parts
from seedvr_ui.sessions import SessionManager

_ICON = Path(__file__).with_name("static") / "icon.svg"
_PRIVATE = {"Cache-Control": "private, max-age=3600", "X-Content-Type-Options": "nosniff"}


def add_media_routes(app: FastAPI, manager: SessionManager, access: Access, parts: Parts) -> None:
    """Put the routes on `app`; to be called before Gradio is mounted on the root."""
    router = APIRouter(prefix="/studio/jobs/{job_id}/part")

    def job_of(request: Request, job_id: str) -> Job:
        return manager.job_for(access.require(request), job_id)

    @router.post("")
    def make(request: Request, job_id: str) -> dict[str, Any]:
        job = job_of(request, job_id)
        return part_view(job, parts.ask(job))

    @router.get("")
    def look(request: Request, job_id: str) -> dict[str, Any]:
        job = job_of(request, job_id)
        return part_view(job, parts.look(job))

    @router.api_route("/{name}", methods=["GET", "HEAD"])
    def file(request: Request, job_id: str, name: str, download: bool = False) -> FileResponse:
        job = job_of(request, job_id)
        path = parts.file(job, name)
        if path is None:
            raise HTTPException(404, "There is no such file.")
        filename = f"{job.source.stem}_part.mp4" if download else None
        return FileResponse(path, filename=filename, media_type="video/mp4", headers=_PRIVATE)

    app.include_router(router)

    @app.get("/favicon.ico", include_in_schema=False)
    def favicon() -> FileResponse:
        return FileResponse(_ICON, media_type="image/svg+xml", headers={"Cache-Control": "max-age=86400"})


def part_view(job: Job, part: Part) -> dict[str, Any]:
    """`part` as JSON-able values for the page."""
    address = f"studio/jobs/{job.id}/part/{part.path.name}" if part.path else ""
    return {
        "video": address,
        "download": f"{address}?download=true" if address else "",
        "units": part.num_units,
        "making": part.is_making,
        "message": part.message,
    }

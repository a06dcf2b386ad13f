"""The HTTP API for programs: `api/v1`, described by `api/openapi.json` and, for people, by `api/docs`.

An application of its own below `api`, so that the document holds these routes only and every error has one form. The
routes translate; what may be done, and to whose jobs, is in `operations`. Nothing here takes longer than some seconds:
what might (checking a file, writing an archive) goes on in the background, and the answer says how to ask again.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.responses import HTMLResponse

from seedvr_ui.access import Access, Visitor
from seedvr_ui.api_docs import to_page
from seedvr_ui.api_errors import MEANINGS, add_error_handlers
from seedvr_ui.api_files import add_file_routes
from seedvr_ui.api_models import (
    Cancel,
    Changes,
    ErrorInfo,
    JobDetail,
    JobInfo,
    JobPage,
    Move,
    ServerStatus,
    SettingField,
    Submission,
)
from seedvr_ui.archives import Archives
from seedvr_ui.jobs import JobStatus
from seedvr_ui.model_routes import add_model_routes
from seedvr_ui.model_tasks import ModelTasks
from seedvr_ui.operations import MAX_PAGE, Operations, program_version
from seedvr_ui.snapshots import MAX_SEARCH
from seedvr_ui.transfers import Transfers

_SUMMARY = """Restore videos and images with jobs that go on whatever becomes of the connection.

Send a file to `v1/uploads`, submit its id to `v1/jobs`, ask for the job until it has ended, fetch its result. Requests
are signed in like the page: HTTP Basic with a user's name and password, or the page's cookie. Errors are
`{"error": "a sentence"}`."""


def add_api(
    app: FastAPI,
    operations: Operations,
    access: Access,
    transfers: Transfers,
    archives: Archives,
    models: ModelTasks | None = None,
) -> FastAPI:
    """Mount the API on `app`, before Gradio is mounted on the root; returns the application of the API."""
    api = FastAPI(
        title="SeedVR Studio",
        version=program_version(),
        description=_SUMMARY,
        docs_url=None,
        redoc_url=None,
        servers=[{"url": "."}],  # relative to the document, so it is right below any path of a proxy
        root_path_in_servers=False,
    )
    add_error_handlers(api)

    def require(request: Request) -> None:
        access.require(request)

    # Before anything of the request is judged, so that nobody learns more than that.
    router = APIRouter(
        prefix="/v1", dependencies=[Depends(require)], responses={code: _error(code) for code in (400, 401, 422)}
    )
    _add_job_routes(router, operations, access)
    add_file_routes(router, operations, access, transfers, archives)
    add_model_routes(router, models or ModelTasks(), access)
    api.include_router(router)

    @api.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(to_page(api.openapi()))

    app.mount("/api", api)
    return api


def _error(code: int) -> dict[str, Any]:
    return {"model": ErrorInfo, "description": MEANINGS[code]}


_NO_SUCH_JOB: dict[int | str, dict[str, Any]] = {404: _error(404)}
_NOT_NOW: dict[int | str, dict[str, Any]] = {404: _error(404), 409: _error(409)}


def _add_job_routes(router: APIRouter, operations: Operations, access: Access) -> None:
    def who(request: Request) -> Visitor:
        return access.require(request)

    @router.get("/status", tags=["server"], summary="Version, number of jobs, space")
    def status(request: Request) -> ServerStatus:
        return operations.status(who(request))

    @router.get("/settings", tags=["server"], summary="All settings that a job may have")
    def settings(request: Request) -> list[SettingField]:
        who(request)
        return list(operations.settings())

    @router.get(
        "/jobs", tags=["jobs"], response_model=JobPage, summary="List jobs",
        responses={304: {"description": "Nothing has changed since `since`."}},
    )  # fmt: skip
    def list_jobs(
        request: Request,
        status: Annotated[list[JobStatus] | None, Query(description="only these states; may be repeated")] = None,
        search: Annotated[
            str, Query(max_length=MAX_SEARCH, description="words of the name, the state or the settings")
        ] = "",
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="at most so many jobs")] = 50,
        offset: Annotated[int, Query(ge=0, le=10**9, description="leave out so many at the beginning")] = 0,
        since: Annotated[int | None, Query(description="the `revision` of an earlier answer to this question")] = None,
        owner: Annotated[
            str, Query(max_length=64, description="for admins: only the jobs of this account or owner")
        ] = "",
    ) -> JobPage | Response:
        visitor = who(request)
        if since is not None and since == operations.manager.revision:
            return Response(status_code=304)
        whose = access.owner_named(owner) if owner and visitor.is_admin else ""
        return operations.list(visitor, status or (), search, limit, offset, whose)

    @router.post(
        "/jobs", tags=["jobs"], status_code=201, summary="Submit uploads",
        responses={404: _error(404), 409: _error(409), 507: _error(507)},
    )  # fmt: skip
    def submit(request: Request, submission: Submission) -> list[JobInfo]:
        """One job per upload. All are queued, or none is. The uploads are used up."""
        visitor = who(request)
        jobs = operations.submit(visitor, submission.uploads, submission.settings, draft=submission.draft)
        return list(jobs)

    @router.get("/jobs/{job_id}", tags=["jobs"], responses=_NO_SUCH_JOB, summary="Show a job with its history")
    def show(request: Request, job_id: str) -> JobDetail:
        return operations.show(who(request), job_id)

    @router.delete(
        "/jobs/{job_id}", tags=["jobs"], status_code=204, responses=_NOT_NOW, summary="Delete a job and its files"
    )  # fmt: skip
    def delete(request: Request, job_id: str) -> None:
        """Only a job that rests can be deleted; cancel it before."""
        operations.delete(who(request), job_id)

    @router.post("/jobs/{job_id}/start", tags=["jobs"], responses=_NOT_NOW, summary="Queue a draft")
    def start(request: Request, job_id: str) -> JobInfo:
        return operations.start(who(request), job_id)

    @router.post("/jobs/{job_id}/pause", tags=["jobs"], responses=_NOT_NOW, summary="Pause a job")
    def pause(request: Request, job_id: str) -> JobInfo:
        """One that runs stops at its next step and keeps what is finished; until then `wish` says so."""
        return operations.pause(who(request), job_id)

    @router.post("/jobs/{job_id}/resume", tags=["jobs"], responses=_NOT_NOW, summary="Resume a paused job")
    def resume(request: Request, job_id: str) -> JobInfo:
        return operations.resume(who(request), job_id)

    @router.post("/jobs/{job_id}/cancel", tags=["jobs"], responses=_NOT_NOW, summary="Cancel a job")
    def cancel(request: Request, job_id: str, how: Cancel | None = None) -> JobInfo:
        """One that runs stops at its next step; until then `wish` says so."""
        return operations.cancel(who(request), job_id, keep_part=how is not None and how.keep_part)

    @router.post("/jobs/{job_id}/retry", tags=["jobs"], responses=_NOT_NOW, summary="Try a job again")
    def retry(request: Request, job_id: str) -> JobInfo:
        """A failed or cancelled job goes on from its finished part, a paused one is resumed."""
        return operations.retry(who(request), job_id)

    @router.post(
        "/jobs/{job_id}/duplicate", tags=["jobs"], status_code=201, responses=_NO_SUCH_JOB, summary="Duplicate a job"
    )  # fmt: skip
    def duplicate(request: Request, job_id: str, changes: Changes | None = None) -> JobInfo:
        """A new job for the same file."""
        changes = changes or Changes()
        return operations.duplicate(who(request), job_id, changes.settings, draft=changes.draft)

    @router.post("/jobs/{job_id}/move", tags=["jobs"], responses=_NOT_NOW, summary="Move a waiting job")
    def move(request: Request, job_id: str, move: Move) -> JobInfo:
        return operations.move(who(request), job_id, up=move.up, down=move.down, before=move.before)

"""The routes of the HTTP API that carry files: uploads in one request, results, archives of jobs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse

from inference.errors import MediaError, RestoreError
from seedvr_ui.access import Access
from seedvr_ui.api_errors import MEANINGS
from seedvr_ui.api_models import ErrorInfo, ImportInfo, UploadInfo, job_info
from seedvr_ui.archives import Archives
from seedvr_ui.operations import Operations
from seedvr_ui.sessions import result_file
from seedvr_ui.transfers import Transfers
from seedvr_ui.upload_routes import to_number, write_body
from seedvr_ui.uploads import GrowingFile

WAIT_S = 8.0
"""A request waits so long for what goes on in the background, so that small files need no second one."""

_LOOK_EVERY_S = 0.1
_RETRY_S = 2
_PRIVATE = {"Cache-Control": "private, no-cache", "X-Content-Type-Options": "nosniff"}
_BINARY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {"format": "binary"}}}}
}
_FILE: dict[str, Any] = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}


def add_file_routes(
    router: APIRouter, operations: Operations, access: Access, transfers: Transfers, archives: Archives
) -> None:
    """Put the routes on `router`."""
    manager = operations.manager
    uploads = manager.uploads

    # --- uploads ---

    @router.post(
        "/uploads", tags=["uploads"], status_code=201, openapi_extra=_BINARY, summary="Send a file",
        responses=_errors(411, 413, 507), response_model=UploadInfo,
    )  # fmt: skip
    async def send(
        request: Request, name: Annotated[str, Query(min_length=1, max_length=1000, description="the file's name")]
    ) -> UploadInfo:
        """The body is the file itself, with its Content-Length. The answer tells whether it `is_ready`.

        A large file may be checked for longer: ask for the upload until it is ready. For uploads that survive a lost
        connection, the page's own protocol is tus 1.0 at `studio/uploads`.
        """
        owner = access.require(request).owner
        size = _length_of(request)
        upload = await run_in_threadpool(uploads.begin, owner, name, size)
        try:
            with uploads.writing(owner, upload.id, 0) as part:
                await write_body(request, part, None)
            upload = await run_in_threadpool(uploads.get, owner, upload.id)
            if not upload.is_whole:
                raise HTTPException(400, f"Only {upload.received} of {size} bytes have come; send the file again.")
        except BaseException:
            await run_in_threadpool(uploads.discard, owner, upload.id)
            raise
        transfers.check(owner, upload.id)
        for _ in range(round(WAIT_S / _LOOK_EVERY_S)):
            await asyncio.sleep(_LOOK_EVERY_S)
            upload = await run_in_threadpool(uploads.get, owner, upload.id)
            if upload.is_settled:
                break
        if upload.error:
            await run_in_threadpool(uploads.discard, owner, upload.id)
            raise MediaError(upload.error)
        return operations.upload(access.require(request), upload.id)

    @router.get("/uploads", tags=["uploads"], summary="List files that were not submitted yet")
    def list_uploads(request: Request) -> list[UploadInfo]:
        return list(operations.uploads(access.require(request)))

    @router.get("/uploads/{upload_id}", tags=["uploads"], responses=_errors(404), summary="Show an upload")
    def show_upload(request: Request, upload_id: str) -> UploadInfo:
        return operations.upload(access.require(request), upload_id)

    @router.delete(
        "/uploads/{upload_id}", tags=["uploads"], status_code=204, responses=_errors(404), summary="Discard an upload"
    )  # fmt: skip
    def discard_upload(request: Request, upload_id: str) -> None:
        operations.discard(access.require(request), upload_id)

    # --- results and archives ---

    @router.get(
        "/jobs/{job_id}/download", tags=["files"], response_class=FileResponse, summary="Fetch the result",
        responses={200: _FILE, 206: {"description": "The asked part of the file."}, **_errors(404, 409)},
    )  # fmt: skip
    def download(request: Request, job_id: str) -> FileResponse:
        """A part of the file can be asked for with `Range`."""
        job = operations.job(access.require(request), job_id)
        path = result_file(job)
        manager.see(job.owner, job.id)
        return FileResponse(path, filename=path.name, headers=_PRIVATE)

    @router.get(
        "/jobs/{job_id}/export", tags=["files"], response_class=FileResponse, summary="Export a job as an archive",
        responses={200: _FILE, **_errors(404, 409, 503, 507)},
    )  # fmt: skip
    def export(request: Request, job_id: str) -> Response:
        """The archive holds all that another machine needs to go on: `v1/imports` there takes it.

        While it is being made the answer is 503 with `Retry-After`; `curl --fail --retry 1000` waits for it.
        """
        job = operations.job(access.require(request), job_id)
        path = archives.export(job, WAIT_S)
        if path is None:
            sentence = f"The archive is being made; ask again in {_RETRY_S} s."
            raise HTTPException(503, sentence, {"Retry-After": str(_RETRY_S)})
        return FileResponse(path, filename=path.name, media_type="application/octet-stream", headers=_PRIVATE)

    @router.post(
        "/imports", tags=["files"], status_code=202, openapi_extra=_BINARY, summary="Import an archive as a new job",
        responses=_errors(411, 413, 507), response_model=ImportInfo,
    )  # fmt: skip
    async def import_job(
        request: Request, start: Annotated[bool, Query(description="let it go on at once")] = False
    ) -> ImportInfo:
        """The body is the archive, with its Content-Length. If the answer is not `is_done`, ask for the import."""
        visitor = access.require(request)
        size = _length_of(request)
        await run_in_threadpool(manager.admit_archive, visitor.owner, size)
        archive = await run_in_threadpool(archives.incoming, visitor.owner)
        try:
            await _write_file(request, archive, size)
            import_id = archives.begin_import(visitor.owner, archive, start=start)
        except BaseException:
            await run_in_threadpool(archives.discard, archive)
            raise
        return await run_in_threadpool(import_info, request, import_id, WAIT_S)

    @router.get("/imports/{import_id}", tags=["files"], responses=_errors(404), summary="What became of an import")
    def show_import(request: Request, import_id: str) -> ImportInfo:
        return import_info(request, import_id, 0.0)

    def import_info(request: Request, import_id: str, wait_s: float) -> ImportInfo:
        visitor = access.require(request)
        found = archives.look(visitor.owner, import_id, wait_s)
        if wait_s and found.error is not None:
            raise found.error
        info = ImportInfo(id=found.id, is_done=found.is_done, error=str(found.error or ""))
        if found.job_id:
            info.job = job_info(manager.job(visitor.owner, found.job_id), with_owner=visitor.is_admin)
        return info


def _errors(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: {"model": ErrorInfo, "description": MEANINGS[code]} for code in codes}


def _length_of(request: Request) -> int:
    if "content-length" not in request.headers:
        raise HTTPException(411, "Say how long the file is: a Content-Length is needed (curl: a file, not a pipe).")
    return to_number(request, "content-length")


async def _write_file(request: Request, path: Path, size: int) -> None:
    """Write the body of `request` to `path`."""
    path.touch()
    part = GrowingFile(path, 0, size)
    try:
        await write_body(request, part, None)
    finally:
        part.close()
    if part.received != size:
        raise RestoreError(f"Only {part.received} of {size} bytes have come; send the archive again.")

"""The routes of uploads: the tus 1.0 protocol (https://tus.io/protocols/resumable-upload), links, the server folder.

Core, creation, creation-with-upload, termination, checksum and expiration. Every route belongs to the visitor's owner;
a foreign upload is answered like an unknown one. No answer waits for the check of a whole file: the list tells its
verdict. `Location` is relative, so it is right below any path of a proxy.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Callable, Coroutine, Mapping
from email.utils import formatdate
from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect

from inference.errors import DiskFullError, RestoreError
from seedvr_ui.access import Access
from seedvr_ui.sessions import SessionManager
from seedvr_ui.transfers import Transfers
from seedvr_ui.uploads import GrowingFile, OffsetError, TooLargeError, UnknownUploadError, Upload, UploadLockedError
from seedvr_ui.wording import media_facts

VERSION = "1.0.0"
EXTENSIONS = "creation,creation-with-upload,termination,checksum,expiration"

_CHECKSUMS = ("sha1", "sha256")
_PIECE_TYPE = "application/offset+octet-stream"
_MAX_CHECKED_BYTES = 16 * 2**20
_MAX_METADATA = 8000
_BLOCK_BYTES = 2**20
_SILENCE_LIMIT_S = 30.0
_NUMBER = re.compile(r"[0-9]{1,18}")
_STATUS = {
    UnknownUploadError: 404,
    OffsetError: 409,
    TooLargeError: 413,
    UploadLockedError: 423,
    DiskFullError: 507,
}


class NewLink(BaseModel):
    """A link to fetch."""

    link: str = Field(min_length=1, max_length=4000)


class ChosenFile(BaseModel):
    """A file of the server folder, by the id that its list gave."""

    file: str = Field(min_length=1, max_length=100)


class TusError(RestoreError):
    """A request that does not follow the protocol."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class TusRoute(APIRoute):
    """Speaks one version of the protocol, and says so in every answer, also in one that refuses."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route with the protocol's version, method override and errors around it."""
        handle = super().get_route_handler()

        async def handle_tus(request: Request) -> Response:
            try:
                is_tus = request.method in ("HEAD", "PATCH", "DELETE") or "upload-length" in request.headers
                if request.headers.get("tus-resumable", "" if is_tus else VERSION) != VERSION:
                    raise TusError(412, f"This server speaks version {VERSION} of the tus protocol.")
                response = await handle(request)
            except RestoreError as error:
                status = error.status if isinstance(error, TusError) else _STATUS.get(type(error), 400)
                response = JSONResponse({"error": str(error)}, status)
                if status == 412:
                    response.headers["Tus-Version"] = VERSION
            except HTTPException as error:
                error.headers = {**(error.headers or {}), "Tus-Resumable": VERSION}
                raise
            response.headers["Tus-Resumable"] = VERSION
            response.headers["Cache-Control"] = "no-store"
            response.headers["X-Content-Type-Options"] = "nosniff"
            return response

        return handle_tus


def uploads_router(manager: SessionManager, access: Access, transfers: Transfers) -> APIRouter:
    """All routes below `studio/uploads`, and `studio/links` and `studio/folder`."""
    router = APIRouter(prefix="/studio", route_class=TusRoute)
    uploads = manager.uploads

    def own(request: Request, upload_id: str) -> tuple[str, Upload]:
        """The visitor's owner, and an upload that the visitor's browser sends itself."""
        owner = access.require(request).owner
        upload = uploads.get(owner, upload_id)
        if upload.origin:
            raise UnknownUploadError()
        return owner, upload

    def expiry(owner: str, upload_id: str) -> str:
        return formatdate(uploads.last_change(owner, upload_id) + manager.limits.keep_s, usegmt=True)

    async def receive(request: Request, owner: str, upload_id: str, offset: int) -> dict[str, str]:
        """Write the body of `request`; the headers of the answer."""
        checksum = _to_checksum(request.headers.get("upload-checksum"))
        with uploads.writing(owner, upload_id, offset) as part:
            await write_body(request, part, checksum)
        upload = await run_in_threadpool(uploads.get, owner, upload_id)
        if upload.is_whole:
            transfers.check(owner, upload_id)
            return {"Upload-Offset": str(upload.received)}
        return {"Upload-Offset": str(upload.received), "Upload-Expires": expiry(owner, upload_id)}

    # --- the protocol ---

    @router.options("/uploads")
    @router.options("/uploads/{upload_id}")
    def discover(request: Request, upload_id: str = "") -> Response:
        access.require(request)
        told = {
            "Tus-Version": VERSION,
            "Tus-Extension": EXTENSIONS,
            "Tus-Max-Size": str(uploads.max_bytes),
            "Tus-Checksum-Algorithm": ",".join(_CHECKSUMS),
        }
        return Response(status_code=204, headers=told)

    @router.post("/uploads")
    async def create(request: Request) -> Response:
        owner = access.require(request).owner
        if "upload-defer-length" in request.headers:
            raise TusError(400, "The length of a file has to be told before it is sent.")
        size = to_number(request, "upload-length")
        metadata = _to_metadata(request.headers.get("upload-metadata", ""))
        name, fingerprint = metadata.get("filename") or "upload", metadata.get("fingerprint", "")[:300]
        upload = await run_in_threadpool(uploads.begin, owner, name, size, fingerprint)
        told = {"Location": f"uploads/{upload.id}", "Upload-Expires": expiry(owner, upload.id)}
        if _is_piece(request):
            told |= await receive(request, owner, upload.id, 0)
        elif size == 0:
            transfers.check(owner, upload.id)
        return Response(status_code=201, headers=told)

    @router.head("/uploads/{upload_id}")
    def look(request: Request, upload_id: str) -> Response:
        owner, upload = own(request, upload_id)
        told = {
            "Upload-Offset": str(upload.received),
            "Upload-Length": str(upload.size),
            "Upload-Metadata": f"filename {base64.b64encode(upload.name.encode()).decode()}",
        }
        if not upload.is_whole:
            told["Upload-Expires"] = expiry(owner, upload_id)
        return Response(status_code=200, headers=told)

    @router.patch("/uploads/{upload_id}")
    async def append(request: Request, upload_id: str) -> Response:
        owner, upload = await run_in_threadpool(own, request, upload_id)
        if not _is_piece(request):
            raise TusError(415, f"A piece of a file has the type {_PIECE_TYPE}.")
        offset = to_number(request, "upload-offset")
        length = request.headers.get("content-length", "0")
        if offset == upload.received and offset + int(length if _NUMBER.fullmatch(length) else 0) > upload.size:
            raise TooLargeError(f"The file has more bytes than its announced {upload.size}; choose it again.")
        return Response(status_code=204, headers=await receive(request, owner, upload_id, offset))

    @router.delete("/uploads/{upload_id}")
    def terminate(request: Request, upload_id: str) -> Response:
        uploads.discard(access.require(request).owner, upload_id)
        return Response(status_code=204)

    @router.post("/uploads/{upload_id}")
    async def override(request: Request, upload_id: str) -> Response:
        """For clients behind a firewall that lets neither PATCH nor DELETE through."""
        access.require(request)
        match request.headers.get("x-http-method-override", "").upper():
            case "PATCH":
                return await append(request, upload_id)
            case "DELETE":
                return await run_in_threadpool(terminate, request, upload_id)
        raise TusError(405, "Send a piece with PATCH.")

    # --- what the page asks beside it ---

    @router.get("/uploads")
    def list_uploads(request: Request) -> dict[str, Any]:
        owner = access.require(request).owner
        return {
            "uploads": [upload_view(upload) for upload in uploads.of_session(owner)],
            "hasFolder": transfers.folder is not None,
        }

    @router.post("/links")
    def fetch_link(request: Request, new: NewLink) -> dict[str, Any]:
        return upload_view(transfers.fetch(access.require(request).owner, new.link))

    @router.get("/folder")
    def list_folder(request: Request) -> dict[str, Any]:
        access.require(request)
        files = transfers.folder.files() if transfers.folder is not None else []
        return {"files": [{"id": file.id, "path": file.path, "size": file.size} for file in files]}

    @router.post("/folder")
    def take_file(request: Request, chosen: ChosenFile) -> dict[str, Any]:
        return upload_view(transfers.take(access.require(request).owner, chosen.file))

    return router


def upload_view(upload: Upload) -> dict[str, Any]:
    """`upload` as JSON-able values for the drop zone. `working` means that the server goes on with it by itself."""
    return {
        "id": upload.id,
        "name": upload.name,
        "size": upload.size if upload.is_size_known else None,
        "received": upload.received,
        "fingerprint": upload.fingerprint,
        "origin": upload.origin,
        "working": not upload.is_settled and (bool(upload.origin) or upload.is_whole),
        "ready": upload.is_ready,
        "error": upload.error,
        "facts": media_facts(upload.media or {}),
    }


async def write_body(request: Request, part: GrowingFile, checksum: tuple[str, bytes] | None) -> None:
    """Write the body as it comes; what came of a broken connection stays. With a checksum all is written, or nothing.

    A body that is longer than the rest of the file leaves the file as it was.
    """
    begin = part.received
    block = bytearray()
    stream = request.stream()
    is_cut = False
    try:
        while True:
            try:
                data = await asyncio.wait_for(anext(stream), _SILENCE_LIMIT_S)
            except StopAsyncIteration:
                break
            except (ClientDisconnect, TimeoutError):
                is_cut = True
                break
            block += data
            if checksum is None and len(block) >= _BLOCK_BYTES:
                await run_in_threadpool(part.write, bytes(block))
                block.clear()
            elif len(block) > _MAX_CHECKED_BYTES:
                raise TooLargeError(f"A piece with a checksum has at most {_MAX_CHECKED_BYTES} bytes.")
        if checksum is not None and (is_cut or not _is_right(block, checksum)):
            raise TusError(460, "The piece was damaged on its way; send it again.")
        await run_in_threadpool(part.write, bytes(block))
    except TooLargeError:
        part.truncate(begin)
        raise
    finally:
        await run_in_threadpool(part.sync)
    if is_cut:
        raise TusError(408, "The connection was lost; go on from where the file ends.")


def _is_right(piece: bytearray, checksum: tuple[str, bytes]) -> bool:
    algorithm, digest = checksum
    return hmac.compare_digest(hashlib.new(algorithm, piece, usedforsecurity=False).digest(), digest)


def _to_checksum(header: str | None) -> tuple[str, bytes] | None:
    """(algorithm, digest) of an Upload-Checksum header."""
    if header is None:
        return None
    algorithm, _, digest = header.partition(" ")
    if algorithm not in _CHECKSUMS:
        raise TusError(400, f"Checksums may be {' or '.join(_CHECKSUMS)}.")
    try:
        return algorithm, base64.b64decode(digest, validate=True)
    except binascii.Error:
        raise TusError(400, "The checksum is not in Base64.") from None


def _to_metadata(header: str) -> Mapping[str, str]:
    """The pairs of an Upload-Metadata header: `key base64,key base64,key`."""
    if len(header) > _MAX_METADATA:
        raise TusError(400, "The description of the file is too long.")
    pairs = (pair.strip().partition(" ") for pair in header.split(",") if pair.strip())
    try:
        return {key: base64.b64decode(value, validate=True).decode() for key, _, value in pairs}
    except (binascii.Error, UnicodeDecodeError):
        raise TusError(400, "The description of the file is not in Base64.") from None


def to_number(request: Request, header: str) -> int:
    """The number of bytes in a header. Raises TusError."""
    text = request.headers.get(header, "")
    if _NUMBER.fullmatch(text) is None:
        raise TusError(400, f"{header.title()} has to be a number of bytes.")
    return int(text)


def _is_piece(request: Request) -> bool:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == _PIECE_TYPE

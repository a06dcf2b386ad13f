"""Errors of the HTTP API: always {"error": one sentence}, with the code that fits. And which error has which code."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from inference.errors import DiskFullError, MediaError, RestoreError, SettingsError
from seedvr_ui.archives import UnknownImportError
from seedvr_ui.jobs import StateError
from seedvr_ui.model_tasks import UnknownModelError
from seedvr_ui.store import UnknownJobError
from seedvr_ui.upload_routes import TusError
from seedvr_ui.uploads import OffsetError, TooLargeError, UnknownUploadError, UploadLockedError

log = logging.getLogger(__name__)

_CODES: Mapping[type[RestoreError], int] = {
    UnknownJobError: 404,
    UnknownUploadError: 404,
    UnknownImportError: 404,
    UnknownModelError: 404,
    StateError: 409,
    OffsetError: 409,
    UploadLockedError: 409,
    TooLargeError: 413,
    SettingsError: 422,
    MediaError: 422,
    DiskFullError: 507,
}

MEANINGS: Mapping[int, str] = {
    400: "It is not possible, for example because a limit is reached.",
    401: "The request does not say who sends it.",
    403: "Only admins may do this.",
    404: "There is no such thing, or it is somebody else's.",
    409: "The state does not allow it.",
    411: "The request does not say how long its body is.",
    413: "The file, or the request, is too large.",
    422: "The request, a setting or the file cannot work.",
    503: "It is still being made; ask again after `Retry-After` seconds.",
    507: "The disk is full.",
}


def code_of(error: RestoreError) -> int:
    """The HTTP status of `error`."""
    if isinstance(error, TusError):
        return error.status
    return next((code for kind, code in _CODES.items() if isinstance(error, kind)), 400)


def add_error_handlers(app: FastAPI) -> None:
    """Let every error of `app` be answered in the one form."""
    app.add_exception_handler(RestoreError, _restore_error)
    app.add_exception_handler(StarletteHTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, validation_error)
    app.add_exception_handler(Exception, _unexpected)


def error_answer(code: int, sentence: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The one form of an error."""
    clean = sentence.encode("utf-8", "replace").decode()  # a lone surrogate of the request would end the answer
    return JSONResponse({"error": clean}, code, {"Cache-Control": "no-store", **(headers or {})})


def _restore_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RestoreError)
    return error_answer(code_of(error), str(error))


def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StarletteHTTPException)
    sentence = error.detail
    if not isinstance(error, HTTPException) and error.status_code == 404:
        sentence = "There is nothing at this address; see docs."
    return error_answer(error.status_code, str(sentence), error.headers)


def validation_error(request: Request, error: Exception) -> JSONResponse:
    """What is wrong with a request, without what it said: that may not even be text."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path")) or "The request"
    return error_answer(422, f"{place}: {first['msg'][:1].lower()}{first['msg'][1:]}; see docs for what is possible.")


def _unexpected(request: Request, error: Exception) -> JSONResponse:
    log.error("%s %s", request.method, request.url.path, exc_info=error)
    return error_answer(500, "Something unexpected went wrong; see the server's log.")

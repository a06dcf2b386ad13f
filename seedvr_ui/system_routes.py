"""Routes of health: is the process alive, is it ready, what does it measure, what did the doctor find."""

from __future__ import annotations

import ipaddress
import secrets
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.requests import HTTPConnection

from seedvr_ui.access import Access, address_of
from seedvr_ui.metrics import CONTENT_TYPE, Metrics, RequestCounter
from seedvr_ui.system import System

_NOT_KEPT = {"Cache-Control": "no-store"}
_PAGE = Path(__file__).with_name("templates") / "system.html"
_PAGE_HEADERS = {
    **_NOT_KEPT,
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; frame-ancestors 'self'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
}
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip", "via")


def add_system_routes(app: FastAPI, access: Access, system: System, metrics: Metrics, token: str = "") -> None:
    """Put the routes on `app`; to be called before Gradio is mounted on the root.

    Metrics are for admins and for programs with `token` (a bearer token); where nobody signs in, for this machine.
    """
    app.add_middleware(RequestCounter, metrics=metrics)
    router = APIRouter()

    @router.get("/readyz")
    def ready() -> JSONResponse:
        """200 if the server can work on jobs, else 503 with reasons; without names or paths, since it is open."""
        reasons = system.reasons()
        content = {"status": "not ready", "reasons": reasons} if reasons else {"status": "ready"}
        return JSONResponse(content, 503 if reasons else 200, _NOT_KEPT)

    @router.get("/metrics")
    def measure(request: Request) -> Response:
        if not _has_token(request, token):
            _require_admin(request, access)
        return Response(metrics.text(), headers=_NOT_KEPT, media_type=CONTENT_TYPE)

    @router.get("/studio/system", response_model=None)
    def page(request: Request) -> HTMLResponse | RedirectResponse:
        if access.login is None and access.visitor(request) is None:
            return RedirectResponse("../", 303)  # the studio's page gives the cookie
        _require_reader(request, access)
        return HTMLResponse(_PAGE.read_text(), headers=_PAGE_HEADERS)

    @router.get("/studio/system/report")
    def report(request: Request) -> JSONResponse:
        """The last report, and what an examination that goes on has found so far."""
        _require_reader(request, access)
        last, coming = system.report(), system.coming()
        content: dict[str, Any] = {
            "report": None if last is None else last.to_dict(),
            "coming": None if coming is None else [finding.to_dict() for finding in coming],
        }
        return JSONResponse(content, headers=_NOT_KEPT)

    @router.post("/studio/system/examine", status_code=202)
    def examine(request: Request) -> dict[str, bool]:
        """Examine the machine now."""
        _require_reader(request, access)
        return {"started": system.start_examination()}

    app.include_router(router)


def _require_reader(request: Request, access: Access) -> None:
    """Admins only where people sign in; else everybody who has the page."""
    visitor = access.require(request)
    if access.login is not None and not visitor.is_admin:
        raise HTTPException(403, "Only admins see the state of the machine.")


def _require_admin(request: Request, access: Access) -> None:
    if access.login is None:
        if not is_local(request):
            raise HTTPException(403, "Metrics are for this machine, or for a token: set SEEDVR_METRICS_TOKEN.")
        return
    visitor = access.visitor(request)
    if visitor is None:
        challenge = {"WWW-Authenticate": 'Basic realm="SeedVR Studio", charset="UTF-8"'}
        raise HTTPException(401, "Metrics need an admin's name and password, or the token.", challenge)
    if not visitor.is_admin:
        raise HTTPException(403, "Only admins see the metrics.")


def is_local(connection: HTTPConnection) -> bool:
    """Whether a request was made on this machine, and not handed on by a proxy on it."""
    try:
        is_loopback = ipaddress.ip_address(address_of(connection)).is_loopback
    except ValueError:
        is_loopback = False
    return is_loopback and not any(name in connection.headers for name in _FORWARDED)


def _has_token(request: Request, token: str) -> bool:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    return bool(token) and scheme.lower() == "bearer" and secrets.compare_digest(given.strip().encode(), token.encode())

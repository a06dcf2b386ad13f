"""The routes of signing in and out, and who it is that is signed in. The page is plain HTML and needs no script."""

from __future__ import annotations

import html
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import parse_qs

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, RedirectResponse

from seedvr_ui.access import Access, address_of
from seedvr_ui.login import TooManyAttemptsError, WrongPasswordError
from seedvr_ui.signed_out import SignOutError

_PAGE = Template(Path(__file__).with_name("login.html").read_text())
_MAX_FORM_BYTES = 8000
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
    "frame-ancestors 'self'; base-uri 'none'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


def add_login_routes(app: FastAPI, access: Access) -> None:
    """Put the routes on `app`; to be called before Gradio is mounted on the root."""
    router = APIRouter()
    login = access.login

    @router.get("/login")
    def show(request: Request) -> Response:
        if login is None or access.visitor(request) is not None:
            return _go("./")
        return _page()

    @router.post("/login")
    async def sign_in(request: Request) -> Response:
        if login is None:
            return _go("./")
        name, password = await _read_form(request)
        try:
            account = await run_in_threadpool(login.sign_in, name, password, address_of(request))
        except WrongPasswordError as error:
            return _page(str(error), name, 401)
        except TooManyAttemptsError as error:
            return _page(str(error), name, 429, {"Retry-After": str(error.wait_s)})
        return _go("./", access.session_cookie(request, login.session(account)))

    @router.post("/logout")
    def sign_out(request: Request) -> Response:
        try:
            access.sign_out(request)
        except SignOutError as error:
            return _page(str(error), status=507)
        return _go("login", access.session_cookie(request, ""))

    @router.get("/studio/me")
    def me(request: Request, response: Response) -> dict[str, Any]:
        """Who is signed in; the name is empty where nobody has to."""
        visitor = access.require(request)
        response.headers["Cache-Control"] = "no-store"
        return {"name": visitor.name, "isAdmin": visitor.is_admin}

    app.include_router(router)


async def _read_form(request: Request) -> tuple[str, str]:
    """Name and password of the form; empty for what is no such form."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > _MAX_FORM_BYTES:
            return "", ""
    try:
        fields = parse_qs(body.decode(), max_num_fields=10)
    except ValueError:  # no UTF-8, or too many fields
        return "", ""
    return fields.get("name", [""])[0], fields.get("password", [""])[0]


def _page(alert: str = "", name: str = "", status: int = 200, headers: dict[str, str] | None = None) -> Response:
    values = {
        "alert": f'<p class="alert" role="alert">{html.escape(alert)}</p>' if alert else "",
        "name": html.escape(name),
        "focus_name": "" if name else " autofocus",
        "focus_password": " autofocus" if name else "",
    }
    return HTMLResponse(_PAGE.substitute(values), status, {**_HEADERS, **(headers or {})})


def _go(address: str, cookie: str = "") -> Response:
    headers = {"Cache-Control": "no-store", **({"Set-Cookie": cookie} if cookie else {})}
    return RedirectResponse(address, 303, headers)

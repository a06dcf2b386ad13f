"""Who asks: the visitor behind a request, and the owner that their jobs, uploads and files belong to. Without gradio.

Routes and handlers ask `Access` and nothing else, so every answer to "whose is this" is given here. The gate
(`gate.py`) asks it before any of them.
"""

from __future__ import annotations

import base64
import binascii

from fastapi import HTTPException
from starlette.requests import HTTPConnection

from seedvr_ui.allowed_hosts import AllowedHosts
from seedvr_ui.login import SESSION_AGE_S, Login, TooManyAttemptsError, WrongPasswordError
from seedvr_ui.storage import is_id, new_id
from seedvr_ui.visitor import Visitor

__all__ = ["ANONYMOUS_COOKIE", "COOKIE", "LOGIN_COOKIE", "Access", "Visitor"]

COOKIE = ANONYMOUS_COOKIE = "seedvr_session"
"""Has the owner's id of a browser, where nobody signs in."""

LOGIN_COOKIE = "seedvr_login"
"""Has the session of somebody who has signed in."""

_ANONYMOUS_AGE_S = 365 * 86400
_FOUND = "seedvr.visitor"


class Access:
    """With a `login`, visitors are people with accounts, signed in by cookie or HTTP Basic. Without, every browser is
    an owner of its own, known by a random id in an HttpOnly cookie. `path` is where a proxy shows the app. `hosts`,
    if given, are the only names under which it may be asked.
    """

    def __init__(self, login: Login | None = None, path: str = "", hosts: AllowedHosts | None = None) -> None:
        self.login = login
        self.hosts = hosts
        self.path = f"/{path.strip('/')}"

    def visitor(self, connection: HTTPConnection) -> Visitor | None:
        """Who sent this request, or None if it does not say. Checks a password, which takes a moment.

        Raises HTTPException 429 with a sentence after too many wrong ones.
        """
        if _FOUND not in connection.scope:
            connection.scope[_FOUND] = self._find(connection)
        found: Visitor | None = connection.scope[_FOUND]
        return found

    def require(self, connection: HTTPConnection) -> Visitor:
        """Who sent this request. Raises HTTPException 401 with a sentence."""
        visitor = self.visitor(connection)
        if visitor is None:
            raise HTTPException(401, self.why_not(connection))
        return visitor

    def why_not(self, connection: HTTPConnection) -> str:
        """The sentence for somebody who is no visitor."""
        if self.login is None:
            return "Open the page first; it needs its cookie."
        if "authorization" in connection.headers:
            return str(WrongPasswordError())
        return "Sign in first: on the page, or with name and password by HTTP Basic."

    def name_of(self, owner: str) -> str:
        """The name to show admins for the owner of a job."""
        account = self.login.accounts.of(owner) if self.login is not None else None
        return account.name if account is not None else "somebody without an account"

    def owner_named(self, text: str) -> str:
        """The owner that an admin means: an owner's id, or the name of an account. Raises AccountError."""
        return text if self.login is None else self.login.accounts.owner_named(text)

    def anonymous_cookie(self, connection: HTTPConnection) -> str:
        """The header that makes a browser an owner of its own."""
        return self._cookie(connection, ANONYMOUS_COOKIE, new_id(), _ANONYMOUS_AGE_S)

    def session_cookie(self, connection: HTTPConnection, session: str) -> str:
        """The header that keeps somebody signed in; an empty `session` signs them out."""
        return self._cookie(connection, LOGIN_COOKIE, session, SESSION_AGE_S if session else 0)

    def sign_out(self, connection: HTTPConnection) -> None:
        """End the session of this request, also for whoever has a copy of it. Raises SignOutError."""
        if self.login is not None:
            self.login.sign_out(connection.cookies.get(LOGIN_COOKIE, ""))

    def _find(self, connection: HTTPConnection) -> Visitor | None:
        if self.login is None:
            owner = connection.cookies.get(ANONYMOUS_COOKIE, "")
            return Visitor(owner) if is_id(owner) else None
        account = self.login.account_of(connection.cookies.get(LOGIN_COOKIE, ""))
        credentials = _basic(connection.headers.get("authorization", ""))
        if account is None and credentials is not None:
            try:
                account = self.login.sign_in_again(*credentials, address_of(connection))
            except WrongPasswordError:
                return None
            except TooManyAttemptsError as error:
                raise HTTPException(429, str(error), {"Retry-After": str(error.wait_s)}) from error
        return None if account is None else Visitor(account.id, account.name, account.is_admin)

    def _cookie(self, connection: HTTPConnection, name: str, value: str, age_s: int) -> str:
        forwarded = connection.headers.get("x-forwarded-proto", "")
        is_secure = connection.scope.get("scheme") == "https" or forwarded.startswith("https")
        secure = "; Secure" if is_secure else ""
        return f"{name}={value}; Path={self.path}; Max-Age={age_s}; HttpOnly; SameSite=Lax{secure}"


def address_of(connection: HTTPConnection) -> str:
    """Where a request comes from. Headers of proxies are the server's business, which believes only those it trusts."""
    return connection.client.host if connection.client is not None else "unknown"


def _basic(header: str) -> tuple[str, str] | None:
    """(name, password) of HTTP Basic."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic" or len(encoded) > 2000:
        return None
    try:
        name, colon, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return (name, password) if colon else None

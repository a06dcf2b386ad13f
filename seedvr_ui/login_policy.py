"""Who has to sign in where: the one place that decides, by where the server listens. Without gradio and HTTP."""

from __future__ import annotations

import ipaddress
import socket
from enum import StrEnum

from inference.errors import RestoreError


class LoginPolicy(StrEnum):
    """Whether a server asks for a name and a password."""

    ANONYMOUS = "anonymous"
    """Nobody signs in; each browser is an owner of its own."""

    ACCOUNTS = "accounts"
    """Everybody signs in."""

    GENERATE = "generate"
    """Everybody signs in, and since there is no account yet, one is made and its password is told once."""


class OpenServerError(RestoreError):
    """The app would be open to everybody, and nobody has said that it shall be."""


def decide_login(
    host: str, *, has_accounts: bool, is_login_off: bool = False, is_shared: bool = False
) -> LoginPolicy:  # fmt: skip
    """How a server on `host` treats its visitors.

    Only `is_login_off`, which somebody has to ask for, opens an address that others can reach. `is_shared` means a
    public link to the server, wherever it listens: that needs accounts that somebody has made, so that no link is out
    before there is a password, and nothing switches that off. Raises OpenServerError if there are none.
    """
    if is_shared and is_login_off:
        raise OpenServerError("A shared link is open to everybody, so people have to sign in; leave out --no-login.")
    if is_login_off:
        return LoginPolicy.ANONYMOUS
    if has_accounts:
        return LoginPolicy.ACCOUNTS
    if is_shared:
        raise OpenServerError(
            "A shared link is open to everybody; add an account first with `seedvr accounts add NAME --admin`."
        )
    return LoginPolicy.ANONYMOUS if is_loopback(host) else LoginPolicy.GENERATE


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach a server on `host`. A name counts by all of its addresses."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM) if host else []
    except OSError:
        return False
    return bool(found) and all(ipaddress.ip_address(entry[4][0]).is_loopback for entry in found)

"""Puts accounts, secret and policy together when the server starts: the `Access` of an address."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from seedvr_ui.access import Access
from seedvr_ui.accounts import FILE_NAME, AccountError, Accounts, load_accounts, load_secret
from seedvr_ui.allowed_hosts import AllowedHosts
from seedvr_ui.login import Login
from seedvr_ui.login_policy import LoginPolicy, decide_login, is_loopback
from seedvr_ui.serve_options import ServeOptions
from seedvr_ui.signed_out import SignedOut

FIRST_ADMIN = "admin"


def accounts_path(data: Path, named: Path | None = None) -> Path:
    """The file of accounts: `named`, else SEEDVR_ACCOUNTS, else in the data folder."""
    given = named or (Path(os.environ["SEEDVR_ACCOUNTS"]) if os.environ.get("SEEDVR_ACCOUNTS") else None)
    return (given or data / FILE_NAME).expanduser()


def make_access(options: ServeOptions, tell: Callable[[str], None]) -> Access:
    """Who may come in to a server with these options; see `decide_login`.

    Where nobody signs in and only this machine reaches the server, it answers under the names of loopback only, under
    `host`, and under those of `allowed_hosts`. A password that has to be made is given to `tell`, once; only its hash
    is kept. Raises AccountError, OpenServerError.
    """
    host, data = options.host, options.data
    path = accounts_path(data, options.accounts)
    if path != accounts_path(data) or os.environ.get("SEEDVR_ACCOUNTS"):
        _require_file(path)
    accounts = load_accounts(path, data)
    policy = decide_login(
        host, has_accounts=bool(accounts), is_login_off=options.is_login_off, is_shared=options.is_shared
    )
    if policy is LoginPolicy.ANONYMOUS:
        hosts = AllowedHosts([host, *options.allowed_hosts]) if is_loopback(host) else None
        return Access(path=options.root_path, hosts=hosts)
    if policy is LoginPolicy.GENERATE:
        tell(_make_admin(accounts))
    return Access(Login(accounts, load_secret(data), SignedOut(data)), options.root_path)


def _make_admin(accounts: Accounts) -> str:
    password = secrets.token_urlsafe(12)
    accounts.file.add(FIRST_ADMIN, password, is_admin=True)
    return (
        "\nThis server can be reached by others, so people have to sign in. The first account:\n\n"
        f"    name      {FIRST_ADMIN}\n    password  {password}\n\n"
        "The password is shown this once. Another one: seedvr accounts password admin. More people: "
        "seedvr accounts add NAME\n"
    )


def _require_file(path: Path) -> None:
    if not path.exists():
        raise AccountError(
            f"There is no file of accounts {path}; make it with `seedvr accounts add NAME --admin --accounts {path}`."
        )

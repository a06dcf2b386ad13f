"""The commands `seedvr accounts add | password | list | remove`, which change the file of accounts.

A running server takes changes over by itself.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from seedvr_ui.accounts import AccountsFile
from seedvr_ui.admission import accounts_path
from seedvr_ui.storage import default_data

app = typer.Typer(
    help="The people who may sign in to the browser app. A running app takes changes over by itself.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_Name = Annotated[str, typer.Argument(help="Name to sign in with.")]
_File = Annotated[Path | None, typer.Option("--accounts", help="File of accounts (default: SEEDVR_ACCOUNTS).")]
_Data = Annotated[Path | None, typer.Option(help="Data folder that has the file (default: SEEDVR_DATA).")]


@app.command()
def add(
    name: _Name,
    admin: Annotated[bool, typer.Option("--admin", help="Sees and may change everybody's jobs.")] = False,
    accounts: _File = None,
    data: _Data = None,
) -> None:
    """Add somebody; the password is asked for, or read from standard input."""
    file = _file(accounts, data)
    account = file.add(name, _read_password(), admin)
    _say(f"{account.name} may sign in now{' and is an admin' if admin else ''}.")


@app.command()
def password(name: _Name, accounts: _File = None, data: _Data = None) -> None:
    """Set another password, which signs NAME out everywhere."""
    _file(accounts, data).set_password(name, _read_password())
    _say(f"{name} has another password and has to sign in again.")


@app.command("list")
def show(accounts: _File = None, data: _Data = None) -> None:
    """List who may sign in."""
    table = Table("name", "admin", box=None)
    for account in _file(accounts, data).accounts():
        table.add_row(account.name, "yes" if account.is_admin else "")
    Console(soft_wrap=True).print(table, markup=False)


@app.command()
def remove(name: _Name, accounts: _File = None, data: _Data = None) -> None:
    """Take an account away; jobs and files of NAME stay until they are too old."""
    _file(accounts, data).remove(name)
    _say(f"{name} may no longer sign in.")


def _file(accounts: Path | None, data: Path | None) -> AccountsFile:
    return AccountsFile(accounts_path(data or default_data(), accounts))


def _read_password() -> str:
    if sys.stdin.isatty():
        answer: str = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
        return answer
    return sys.stdin.readline().rstrip("\r\n")


def _say(text: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(text, markup=False)

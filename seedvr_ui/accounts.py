"""The people who may sign in: names, password hashes, and which of them are admins. Without gradio and HTTP.

Accounts come from a file (`seedvr accounts` writes it) and from the environment. The file is read again when it has
changed, so an account that is added, removed or given another password counts from the next request on.

    SEEDVR_USERS="anna:her-password ben:his-password"     separated by white space
    SEEDVR_ADMINS="anna"                                  without it, the first of them is an admin
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import threading
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from filelock import FileLock

from inference.durable import part_path, publish
from inference.errors import RestoreError
from seedvr_ui.storage import is_id, new_id

FILE_NAME = "accounts.json"
MIN_PASSWORD = 8
MAX_PASSWORD = 256
MAX_NAME = 64

_SECRET_NAME = "secret.key"
_SECRET_BYTES = 32
_VERSION = 1
_MAX_AT_ONCE = 2  # an Argon2 hash takes 64 MiB and a core
_LOCK_LIMIT_S = 10.0


class AccountError(RestoreError):
    """An account cannot be made, changed or read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Somebody who may sign in. `id` owns what they make; `stamp` is another one after a change of the password."""

    name: str
    id: str
    password_hash: str
    is_admin: bool = False
    stamp: str = ""


class Passwords:
    """Argon2id, a few at a time, so that many attempts at once take neither all memory nor all cores."""

    def __init__(self) -> None:
        self._hasher = PasswordHasher()
        self._turns = threading.BoundedSemaphore(_MAX_AT_ONCE)
        self._nobody = ""

    def hash(self, password: str) -> str:
        """The hash to be stored. Raises AccountError for a password that is too short or too long."""
        if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
            raise AccountError(f"A password has {MIN_PASSWORD} to {MAX_PASSWORD} characters; choose another one.")
        return self._hasher.hash(_normal(password))

    def verify(self, password_hash: str | None, password: str) -> bool:
        """Whether `password` is the one that was hashed. None stands for nobody, and takes as long as somebody."""
        if len(password) > MAX_PASSWORD:
            return False
        with self._turns:
            if not self._nobody:
                self._nobody = self._hasher.hash(secrets.token_urlsafe())
            try:
                return self._hasher.verify(password_hash or self._nobody, _normal(password)) and bool(password_hash)
            except (VerificationError, InvalidHashError):
                return False


class AccountsFile:
    """A file of accounts, complete or not there at all, that only its owner may read. It need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser()
        self._passwords = Passwords()
        self._lock = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._accounts: tuple[Account, ...] = ()

    def accounts(self) -> tuple[Account, ...]:
        """All accounts, as the file says now. Raises AccountError if it cannot be read."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return ()
        stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        with self._lock:
            if stamp != self._stamp:
                self._accounts, self._stamp = self._read(), stamp
            return self._accounts

    def add(self, name: str, password: str, is_admin: bool = False) -> Account:
        """A new account. Raises AccountError if the name is taken, or name or password cannot be used."""
        name, password_hash = checked_name(name), self._passwords.hash(password)
        with self._changing() as accounts:
            if _find(accounts, name) is not None:
                raise AccountError(f"There is an account {name} already; choose another name.")
            account = Account(name=name, id=new_id(), password_hash=password_hash, is_admin=is_admin)
            self._write([*accounts, account])
        return account

    def set_password(self, name: str, password: str) -> None:
        """Another password for an account, which ends all its sessions. Raises AccountError if there is none."""
        password_hash = self._passwords.hash(password)
        with self._changing() as accounts:
            account = self._require(accounts, name)
            changed = replace(account, password_hash=password_hash)
            self._write([changed if other == account else other for other in accounts])

    def remove(self, name: str) -> None:
        """Take an account away, which ends all its sessions; its jobs stay. Raises AccountError if there is none."""
        with self._changing() as accounts:
            account = self._require(accounts, name)
            self._write([other for other in accounts if other != account])

    def _require(self, accounts: Iterable[Account], name: str) -> Account:
        account = _find(accounts, name)
        if account is None:
            raise AccountError(f"There is no account {name} in {self.path}; `seedvr accounts list` shows them.")
        return account

    def _changing(self) -> _Change:
        return _Change(self)

    def _read(self) -> tuple[Account, ...]:
        try:
            document = json.loads(self.path.read_bytes())
            if document["version"] != _VERSION:
                raise AccountError(f"{self.path} was written by a newer version; use that one, or make the file anew.")
            accounts = tuple(_from_document(entry) for entry in document["accounts"])
        except OSError as error:
            raise AccountError(f"{self.path} cannot be read ({error.strerror}); check its permissions.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise AccountError(
                f"{self.path} is damaged; remove it and add the accounts again with `seedvr accounts add`."
            ) from error
        return accounts

    def _write(self, accounts: Iterable[Account]) -> None:
        entries = [
            {key: value for key, value in asdict(account).items() if key != "stamp"} for account in accounts
        ]  # fmt: skip
        write_private(self.path, json.dumps({"version": _VERSION, "accounts": entries}, indent=2).encode())


class _Change:
    """One writer at a time, also across processes, who reads the file as it is then."""

    def __init__(self, file: AccountsFile) -> None:
        self._file = file
        file.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(f"{file.path}.lock", timeout=_LOCK_LIMIT_S, mode=0o600)

    def __enter__(self) -> tuple[Account, ...]:
        self._lock.acquire()
        try:
            return self._file.accounts()
        except BaseException:
            self._lock.release()
            raise

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class Accounts:
    """All accounts of one server: those of the environment, then those of the file."""

    def __init__(self, file: AccountsFile, secret: bytes, environment: Mapping[str, str] | None = None) -> None:
        self.file = file
        self.passwords = Passwords()
        self._given = _from_environment(environment or {}, self.passwords, secret)

    def __bool__(self) -> bool:
        return bool(self._given) or bool(self.file.accounts())

    def all(self) -> tuple[Account, ...]:
        """All accounts. A name of the environment hides the same name in the file."""
        known = {_key(account.name) for account in self._given}
        return (*self._given, *(account for account in self.file.accounts() if _key(account.name) not in known))

    def named(self, name: str) -> Account | None:
        """The account with this name, in upper or lower case."""
        return _find(self.all(), name)

    def owner_named(self, text: str) -> str:
        """The owner that somebody means: an owner's id, or the name of an account. Raises AccountError."""
        account = None if is_id(text) else self.named(text)
        if account is None and not is_id(text):
            raise AccountError(
                f"{text!r} is neither an account nor an owner; `seedvr accounts list` and `seedvr jobs list` show them."
            )
        return text if account is None else account.id

    def of(self, owner: str) -> Account | None:
        """The account that owns what has this owner."""
        return next((account for account in self.all() if account.id == owner), None)


def load_accounts(path: Path, data: Path, environment: Mapping[str, str] | None = None) -> Accounts:
    """The accounts of the server over the folder `data`. Raises AccountError if they cannot be read."""
    accounts = Accounts(AccountsFile(path), load_secret(data), os.environ if environment is None else environment)
    accounts.all()
    return accounts


def load_secret(data: Path) -> bytes:
    """32 random bytes that belong to the data folder; made on first use, by one process only. Raises AccountError."""
    path = data.expanduser() / _SECRET_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock", timeout=_LOCK_LIMIT_S, mode=0o600):
        if not path.exists():
            write_private(path, secrets.token_bytes(_SECRET_BYTES))
        secret = path.read_bytes()
    if len(secret) != _SECRET_BYTES:
        raise AccountError(f"{path} is damaged; remove it, and everybody has to sign in again.")
    return secret


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read, complete or not at all. Raises OSError."""
    part = part_path(path)
    part.unlink(missing_ok=True)
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    publish(part, path)


def checked_name(name: str) -> str:
    """`name` as it is stored. Raises AccountError for one that cannot be used."""
    name = unicodedata.normalize("NFC", name.strip())
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable() or any(char.isspace() or char == ":" for char in name):
        raise AccountError(f"A name has up to {MAX_NAME} characters, no spaces and no colon; choose another one.")
    return name


def _from_environment(environment: Mapping[str, str], passwords: Passwords, secret: bytes) -> tuple[Account, ...]:
    """The stamps depend on the password and not on its hash, so that a restart ends no session."""
    entries = [entry.partition(":") for entry in environment.get("SEEDVR_USERS", "").split()]
    admins = {_key(name) for name in environment.get("SEEDVR_ADMINS", "").split()}
    admins = admins or {_key(name) for name, _, _ in entries[:1]}
    accounts: list[Account] = []
    for name, _, password in entries:
        name = checked_name(name)
        if not password:
            raise AccountError(f"SEEDVR_USERS has no password for {name}; write it as name:password.")
        if _find(accounts, name) is not None:
            raise AccountError(f"SEEDVR_USERS names {name} twice; remove one.")
        try:
            password_hash = passwords.hash(password)
        except AccountError as error:
            raise AccountError(f"SEEDVR_USERS, {name}: {error}") from error
        accounts.append(
            Account(
                name=name,
                id=_mark(secret, f"owner:{_key(name)}")[:32],
                password_hash=password_hash,
                is_admin=_key(name) in admins,
                stamp=_mark(secret, f"password:{password}")[:32],
            )
        )
    unknown = admins - {_key(account.name) for account in accounts}
    if unknown:
        raise AccountError(f"SEEDVR_ADMINS names {', '.join(sorted(unknown))}, whom SEEDVR_USERS does not have.")
    return tuple(accounts)


def _from_document(entry: Mapping[str, Any]) -> Account:
    account = Account(
        name=checked_name(entry["name"]), id=entry["id"], password_hash=entry["password_hash"],
        is_admin=entry["is_admin"] is True, stamp=hashlib.sha256(entry["password_hash"].encode()).hexdigest()[:32],
    )  # fmt: skip
    if not is_id(account.id):
        raise ValueError(f"not an id: {account.id!r}")
    return account


def _find(accounts: Iterable[Account], name: str) -> Account | None:
    return next((account for account in accounts if _key(account.name) == _key(name)), None)


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name.strip()).casefold()


def _normal(password: str) -> str:
    """Keyboards differ in how they compose accents."""
    return unicodedata.normalize("NFC", password)


def _mark(secret: bytes, text: str) -> str:
    return hmac.new(secret, text.encode(), "sha256").hexdigest()

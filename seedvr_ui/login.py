"""Signing in: attempts within limits, and the session that a browser keeps afterwards. Without gradio and HTTP.

A session is a signed note of account and password, so a restart ends none, and another password ends all. Signing out
ends one, wherever copies of it are.
"""

from __future__ import annotations

import hmac
import ipaddress
import math
import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

from itsdangerous import BadSignature, URLSafeTimedSerializer
from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from inference.errors import RestoreError
from seedvr_ui.accounts import Account, Accounts
from seedvr_ui.signed_out import SignedOut
from seedvr_ui.storage import is_id, new_id

SESSION_AGE_S = 30 * 86400
"""How long a browser stays signed in."""

_SALT = "seedvr session"
_MAX_REMEMBERED = 100
_OF_ADDRESS = RateLimitItemPerMinute(20, 5)
_OF_NAME = RateLimitItemPerMinute(30, 15)


class WrongPasswordError(RestoreError):
    """Name and password do not belong together; it is not told which one is wrong."""

    def __init__(self) -> None:
        super().__init__("The name or the password is wrong; check both and try again.")


class TooManyAttemptsError(RestoreError):
    """Too many attempts; `wait_s` is how long to wait."""

    def __init__(self, wait_s: int) -> None:
        wait = f"{wait_s} seconds" if wait_s < 90 else f"{math.ceil(wait_s / 60)} minutes"
        super().__init__(f"Too many attempts to sign in; try again in {wait}.")
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True)
class _Note:
    """What a session says: its own id, whose it is, with which password, and when it ends by itself."""

    id: str
    owner: str
    stamp: str
    expires_at: int


class Login:
    """Signing in with `accounts`. Attempts are counted per address, and per name over all addresses."""

    def __init__(
        self,
        accounts: Accounts,
        secret: bytes,
        signed_out: SignedOut,
        of_address: RateLimitItem = _OF_ADDRESS,
        of_name: RateLimitItem = _OF_NAME,
    ) -> None:
        self.accounts = accounts
        self._signed_out = signed_out
        self._serializer = URLSafeTimedSerializer(secret, salt=_SALT)
        self._limits = {"address": of_address, "name": of_name}
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._key = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._remembered: OrderedDict[tuple[str, str], bytes] = OrderedDict()

    def sign_in(self, name: str, password: str, address: str) -> Account:
        """The account of that name, if this is its password.

        An attempt is counted before it is looked at, so that many at once are no way around the limit. Raises
        WrongPasswordError, after the same work whether or not the name exists, and TooManyAttemptsError.
        """
        keys = {"address": _network_of(address), "name": name.strip().casefold()[:100]}
        for kind, key in keys.items():
            if not self._limiter.hit(self._limits[kind], kind, key):
                raise TooManyAttemptsError(self._wait_s(kind, key))
        account = self.accounts.named(name)
        password_hash = None if account is None else account.password_hash
        if not self.accounts.passwords.verify(password_hash, password) or account is None:
            raise WrongPasswordError()
        self._limiter.clear(self._limits["name"], "name", keys["name"])
        return account

    def sign_in_again(self, name: str, password: str, address: str) -> Account:
        """As `sign_in`, for programs that send both with each request: what was right before is not work again."""
        digest = hmac.digest(self._key, password.encode(), "sha256")
        account = self.accounts.named(name)
        if account is not None:
            with self._lock:
                known = self._remembered.get((account.id, account.stamp))
            if known is not None and hmac.compare_digest(known, digest):
                return account
        account = self.sign_in(name, password, address)
        with self._lock:
            self._remembered[account.id, account.stamp] = digest
            while len(self._remembered) > _MAX_REMEMBERED:
                self._remembered.popitem(last=False)
        return account

    def session(self, account: Account) -> str:
        """The note that a browser keeps."""
        return self._serializer.dumps([account.id, account.stamp, new_id()])

    def account_of(self, session: str) -> Account | None:
        """Whose session this is, unless it is forged, too old, ended, or of a password or account that is no more."""
        note = self._read(session)
        account = self.accounts.of(note.owner) if note is not None else None
        if note is None or account is None or account.stamp != note.stamp:
            return None
        return None if self._signed_out.has(note.id, note.expires_at) else account

    def sign_out(self, session: str) -> None:
        """End a session for good; nothing happens with one that is none. Raises SignOutError."""
        note = self._read(session)
        if note is not None:
            self._signed_out.add(note.id, note.expires_at)

    def _read(self, session: str) -> _Note | None:
        try:
            content, since = self._serializer.loads(session, max_age=SESSION_AGE_S, return_timestamp=True)
            owner, stamp, session_id = map(str, content)
        except (BadSignature, ValueError, TypeError):
            return None
        if not is_id(session_id):
            return None
        return _Note(session_id, owner, stamp, int(since.timestamp()) + SESSION_AGE_S)

    def _wait_s(self, kind: str, key: str) -> int:
        reset, _ = self._limiter.get_window_stats(self._limits[kind], kind, key)
        return max(1, math.ceil(reset - time.time()))


def _network_of(address: str) -> str:
    """What one machine can have many addresses of counts as one."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)

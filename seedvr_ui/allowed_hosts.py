"""The names under which a server may be asked that trusts whoever reaches it, since only this machine can.

A page of the internet can give its own name the address of this machine (DNS rebinding). The browser then takes our
answers for that page's own; but it tells us the name. Starlette's TrustedHostMiddleware knows neither ranges of
addresses nor IPv6.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit


class AllowedHosts:
    """This machine's loopback addresses and `localhost`, on any port, so through a tunnel too; and `names`."""

    def __init__(self, names: Collection[str] = ()) -> None:
        self._names = {"localhost", *(name.lower().strip("[]").rstrip(".") for name in names if name)}

    def has(self, host: str) -> bool:
        """Whether `host`, as a request's header says it, is one of them."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
            return name in self._names or ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False

"""Connections that a stranger may ask this server to make: to public addresses only. Without gradio.

Whoever gives us a link decides where we connect, so a name is resolved here, once; every address that it has is judged;
and the connection goes to one of the addresses that were judged, not to whatever the name means a moment later. The
name itself stays in the Host header and in the certificate's check. Proxies of the environment are not used: one would
connect for us, past this judgement.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import httpcore2
import httpx2

from inference.errors import RestoreError

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_MAX_LINK = 4000
_PORTS = {"http": 80, "https": 443}
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_REFUSED = [
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15", "240.0.0.0/4",
        "168.63.129.16/32",  # a public address, where Azure's machines find their own metadata
        "::/96", "64:ff9b:1::/48", "2001::/23", "2002::/16", "fec0::/10",  # these hold an IPv4 address, or are local
    )
]  # fmt: skip


class LinkError(RestoreError):
    """A link that cannot be fetched; `str(error)` says what to do instead."""


def is_public(address: IPAddress) -> bool:
    """Whether `address` belongs to the public internet: not to this machine, its networks, or its cloud's metadata."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return False
        if address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    is_special = address.is_multicast or address.is_reserved or address.is_unspecified
    return address.is_global and not is_special and not any(address in network for network in _REFUSED)


def resolve(host: str, port: int) -> list[str]:
    """All addresses of `host`, in the system's order of preference. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Where a link may lead. The fields are there for tests, which have no public server to talk to."""

    allows: Callable[[IPAddress], bool] = is_public
    allows_port: Callable[[str, int], bool] = field(default=lambda scheme, port: port == _PORTS[scheme])
    resolve: Callable[[str, int], list[str]] = resolve
    ssl_context: ssl.SSLContext | None = None

    def connections(self) -> httpcore2.ConnectionPool:
        """A pool whose connections all lead to allowed addresses; raises LinkError where one would not."""
        return httpcore2.ConnectionPool(ssl_context=self.ssl_context, network_backend=_JudgedBackend(self))

    def check(self, link: str) -> httpx2.URL:
        """`link` as an address that may be asked for, before any name is resolved. Raises LinkError."""
        try:
            url = httpx2.URL(link.strip())
        except (httpx2.InvalidURL, ValueError):
            raise LinkError("This is not a web address; copy the link of the video once more.") from None
        if len(link) > _MAX_LINK:
            raise LinkError("This link is too long; download the file and drop it here instead.")
        if url.scheme not in _PORTS or not url.host:
            raise LinkError("Only links that begin with http:// or https:// can be fetched; download the file instead.")
        if url.userinfo:
            raise LinkError("A link with a user name or password in it is not fetched; download the file instead.")
        if not self.allows_port(url.scheme, _PORTS[url.scheme] if url.port is None else url.port):
            raise LinkError("Only the usual ports 80 and 443 are asked for files; download the file instead.")
        _check_host(url.raw_host.decode("ascii"))
        return url

    def addresses(self, host: str, port: int) -> list[str]:
        """The addresses of `host`, all of them allowed. Raises LinkError if even one is not."""
        try:
            found = self.resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise httpcore2.ConnectError(f"{host} is not known") from error
        if not found:
            raise httpcore2.ConnectError(f"{host} is not known")
        for text in found:
            if not self.allows(ipaddress.ip_address(text.partition("%")[0])):
                raise LinkError(f"{host} is not on the public internet, so nothing is fetched from it.")
        return found


def _check_host(host: str) -> None:
    """Refuse what is not a name, and an address in any but its usual form: other forms hide what it is."""
    is_number = _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2].lower()) is not None
    with contextlib.suppress(ValueError):
        if (is_number or ":" in host) and "%" not in host:
            ipaddress.ip_address(host)
            return
    if is_number or _NAME.fullmatch(host) is None:
        raise LinkError(f"{host} is not the usual form of an address; use the name of the site.")


class _JudgedBackend(httpcore2.NetworkBackend):
    """Connects to addresses that the network allows, and to nothing else."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._backend = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        failure: Exception | None = None
        for address in self._network.addresses(host.strip("[]"), port):
            try:
                return self._backend.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        assert failure is not None  # there was at least one address
        raise failure

    def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        raise LinkError("A link never leads to a socket of this machine.")

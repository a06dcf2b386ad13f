"""How the server runs: what `seedvr serve` was told, and the environment where it was told nothing. Without gradio."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from inference.errors import SettingsError
from seedvr_ui.price import Price, parse_price
from seedvr_ui.sessions import Limits
from seedvr_ui.storage import default_data

_EVERYWHERE = ("", "0.0.0.0", "::")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """One field for each option. What an empty one means is said by the properties.

    host, port: where it listens. root_path: below which a proxy shows it. data: uploads and results. folder: of this
    machine, to choose sources from. accounts: file of accounts. is_login_off: everybody may come in. allowed_hosts:
    further names that it answers to where nobody signs in on loopback. is_shared: makes a public link. webhook: told
    when a job ends. stop_idle_minutes: the pod is stopped after that long without work. keep_days, keep_gb: retention.
    """

    host: str = "0.0.0.0"
    port: int = 7860
    root_path: str = ""
    data: Path = field(default_factory=default_data)
    folder: Path | None = None
    accounts: Path | None = None
    is_login_off: bool = False
    allowed_hosts: tuple[str, ...] = ()
    is_shared: bool = False
    webhook: str = ""
    stop_idle_minutes: float = 0
    price_per_hour: str = ""
    keep_days: float = 7
    keep_gb: float = 0

    @property
    def local_host(self) -> str:
        """The address under which a process of this machine reaches the server."""
        return "127.0.0.1" if self.host in _EVERYWHERE else self.host

    @property
    def source_folder(self) -> Path | None:
        """`folder`, else SEEDVR_FOLDER."""
        return self.folder or (Path(os.environ["SEEDVR_FOLDER"]) if os.environ.get("SEEDVR_FOLDER") else None)

    @property
    def webhook_address(self) -> str:
        """`webhook`, else SEEDVR_WEBHOOK."""
        return self.webhook or os.environ.get("SEEDVR_WEBHOOK", "")

    @property
    def price(self) -> Price | None:
        """Of an hour of this machine: `price_per_hour`, else SEEDVR_PRICE_PER_HOUR. Raises SettingsError."""
        return parse_price(self.price_per_hour or os.environ.get("SEEDVR_PRICE_PER_HOUR", ""))

    @property
    def idle_minutes(self) -> float:
        """`stop_idle_minutes`, else SEEDVR_STOP_IDLE_MINUTES; 0 is never. Raises SettingsError."""
        text = os.environ.get("SEEDVR_STOP_IDLE_MINUTES", "").strip() or "0"
        try:
            return self.stop_idle_minutes or float(text)
        except ValueError:
            raise SettingsError(
                f"SEEDVR_STOP_IDLE_MINUTES is {text!r}; write a number of minutes, such as 30."
            ) from None

    @property
    def limits(self) -> Limits:
        """For the queue."""
        return Limits(keep_s=self.keep_days * 86400, keep_bytes=int(self.keep_gb * 1e9) or None)

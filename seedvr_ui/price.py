"""What an hour of this machine costs, as its owner wrote it. Pure."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from inference.errors import SettingsError

_FORM = re.compile(r"(\d+(?:\.\d+)?)(?:\s+(\S{1,12}))?|(\D{1,3}?)\s*(\d+(?:\.\d+)?)")


@dataclass(frozen=True, slots=True)
class Price:
    """An amount per hour; `before` and `after` are the currency as it is written around an amount."""

    per_hour: float
    before: str = ""
    after: str = ""

    def of(self, seconds: float) -> str:
        """The cost of that much work, in words."""
        return f"{self.before}{self._amount(seconds)}{self.after}"

    def of_range(self, low_s: float, high_s: float) -> str:
        """The cost of at least `low_s` and at most `high_s` seconds of work, in words."""
        low, high = self._amount(low_s), self._amount(high_s)
        return f"{self.before}{low if low == high else f'{low}–{high}'}{self.after}"

    def _amount(self, seconds: float) -> str:
        return f"{self.per_hour * seconds / 3600:.2f}"


def parse_price(text: str) -> Price | None:
    """`0.79 USD`, `0.79` or `$0.79` as a price per hour; None for an empty text. Raises SettingsError."""
    text = text.strip()
    if not text:
        return None
    found = _FORM.fullmatch(text)
    amount = float(found[1] or found[4]) if found else math.nan
    if not found or not math.isfinite(amount):
        raise SettingsError(f"The price per hour {text!r} cannot be read; write it as an amount, such as '0.79 USD'.")
    return Price(amount, before=found[3] or "", after=f" {found[2]}" if found[2] else "")

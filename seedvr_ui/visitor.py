"""Who asks, as a value. Without gradio and HTTP."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody who may use the app: the owner of what they make (an id as `new_id` makes them), and their name."""

    owner: str
    name: str = ""
    is_admin: bool = False

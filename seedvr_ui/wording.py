"""Facts in a person's words: sizes, spans of time, ranges, what a file is, which settings a job has. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from inference.catalogue import AUTO_MODEL, CATALOGUE
from inference.settings import SettingInfo, describe

_OF_THE_SERVER = {"engine.weights", "engine.threads", "engine.offline"}
_SIZES = ("restore.factor", "restore.resolution", "restore.box")


def media_facts(media: Mapping[str, Any]) -> str:
    """One short line about a file: size, rate, length, sound."""
    if not media:
        return ""
    facts = [f"{media['width']}×{media['height']}"]
    if not media.get("is_image"):
        if media.get("fps"):
            facts.append(f"{media['fps']:.5g} fps")
        if media.get("num_frames") and media.get("duration", 0) < 1:
            facts.append("1 frame" if media["num_frames"] == 1 else f"{media['num_frames']} frames")
        elif media.get("duration"):
            facts.append(to_words(media["duration"]))
        facts.append("with sound" if media.get("has_audio") else "no sound")
    return " · ".join(facts)


def to_words(seconds: float) -> str:
    """A span of time as a person says it: `0.5 s`, `42 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s".replace(".0 s", " s")
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def to_range(low: float, high: float) -> str:
    """A span of time between `low` and `high` seconds, no finer than is honest: `10–15 s`, `3–5 min`, `1.5–2 h`."""
    unit, seconds, step = next(
        (unit for unit in (("s", 1.0, 5.0), ("min", 60.0, 1.0)) if high < 100 * unit[1]), ("h", 3600.0, 0.5)
    )
    first = math.floor(low / seconds / step) * step
    last = max(step, math.ceil(high / seconds / step) * step)
    if first <= 0:
        return f"less than {last:g} {unit}"
    return f"{last:g} {unit}" if first == last else f"{first:g}–{last:g} {unit}"


def about_range(low: float, high: float) -> str:
    """`about 3–5 min`, or `less than 5 s`, which needs no "about"."""
    words = to_range(low, high)
    return words if words.startswith("less") else f"about {words}"


def to_size(num_bytes: float) -> str:
    """A file size as a person says it."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{max(1, round(num_bytes / 1e3))} kB"


def to_size_range(low: float, high: float) -> str:
    """Two sizes in the unit of the larger one: `40–90 MB`."""
    units = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
    unit, factor = next((unit for unit in units if high >= unit[1]), units[-1])
    first, last = (
        f"{value / factor:.0f}" if value >= 10 * factor else f"{value / factor:.1f}" for value in (low, high)
    )
    return f"{last} {unit}" if first == last else f"{first}–{last} {unit}"


def size_words(restore: Mapping[str, Any]) -> str:
    """The size that a job was asked for: `2×`, `1080p`, `fits 1920x1080`."""
    if restore.get("resolution"):
        return f"{restore['resolution']}p"
    if restore.get("box"):
        return f"fits {restore['box']}"
    return f"{restore.get('factor') or 2:g}×"


def settings_words(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(label, value) of the size, and of every setting that differs from its default; paths of the server left out."""
    known = _infos()
    words = [("Size", size_words(settings.get("restore", {})))]
    for key, value in _leaves(settings):
        info = known.get(key)
        if info is None or key in _SIZES or key in _OF_THE_SERVER or value == info.default:
            continue
        words.append((info.label, _value_words(key, value)))
    return words


def _value_words(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key == "engine.model" and value != AUTO_MODEL and value in CATALOGUE:
        return CATALOGUE[value].title
    return f"{value:g}" if isinstance(value, float) else str(value)


@lru_cache(maxsize=1)
def _infos() -> Mapping[str, SettingInfo]:
    return {info.key: info for info in describe()}


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value

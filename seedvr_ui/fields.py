"""Settings as form fields and back: which settings the page offers, in which words, and what a choice means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr
from gradio.components import Component

from inference.settings import SettingInfo, describe

SIZES: tuple[tuple[str, str], ...] = (
    ("2×", "factor=2"),
    ("4×", "factor=4"),
    ("720p", "resolution=720"),
    ("1080p", "resolution=1080"),
    ("1440p", "resolution=1440"),
    ("4K", "resolution=2160"),
    ("Same size", "factor=1"),
)
DEFAULT_SIZE = SIZES[0][1]

OPTIONS: tuple[str, ...] = (
    "restore.color_fix",
    "restore.encode.quality",
    "restore.seed",
    "restore.detect_shots",
    "restore.keep_audio",
)
"""The settings below "More options", in order; all others keep their defaults."""


def option_infos() -> list[SettingInfo]:
    """The descriptions of `OPTIONS`, in that order."""
    known = {info.key: info for info in describe()}
    return [known[key] for key in OPTIONS]


def make_input(info: SettingInfo) -> Component:
    """The form field of one setting, with its label, help, limits and default."""
    identity: dict[str, Any] = {"elem_id": info.key.replace(".", "-"), "label": info.label, "info": info.help}
    if info.choices:
        choices = [(choice.capitalize(), choice) for choice in info.choices]
        return gr.Dropdown(choices, value=info.default.value, filterable=False, **identity)
    if info.kind is bool:
        return gr.Checkbox(value=info.default, **identity)
    if info.minimum is not None and info.maximum is not None and info.maximum - info.minimum <= 100:
        step = 1 if info.kind is int else 0.05
        return gr.Slider(info.minimum, info.maximum, value=info.default, step=step, **identity)
    return gr.Number(value=info.default, precision=0 if info.kind is int else None, **identity)


def size_layers() -> list[tuple[str, dict[str, Any]]]:
    """(label, restore settings) of every size of the form."""
    return [(label, _size_layer(value)) for label, value in SIZES]


def from_settings(settings: Mapping[str, Any], models: Sequence[str]) -> tuple[list[Any], list[str]]:
    """The form's values for a whole settings tree, and the labels of what the form cannot say.

    The values are those of size, model and `OPTIONS`, in that order; None for one that has to stay as it is.
    """
    known = {info.key: info for info in describe()}
    restore = settings.get("restore", {})
    chosen = {key: restore[key] for key in ("factor", "resolution", "box") if restore.get(key)} or {"factor": 2.0}
    size = next((value for _, value in SIZES if _size_layer(value) == chosen), None)
    model = settings.get("engine", {}).get("model", models[0])
    values: list[Any] = [size, model if model in models else None]
    values += [_leaf(settings, key, known[key].default) for key in OPTIONS]
    missing = [label for label, value in zip(("Size", "Model"), values, strict=False) if value is None]
    said = {*OPTIONS, "restore.factor", "restore.resolution", "restore.box"}
    missing += [
        info.label
        for key, info in known.items()
        if key.startswith("restore.") and key not in said and _leaf(settings, key, info.default) != info.default
    ]
    return values, missing


def _size_layer(value: str) -> dict[str, Any]:
    name, _, number = value.partition("=")
    return {name: float(number) if name == "factor" else int(number)}


def _leaf(settings: Mapping[str, Any], key: str, default: Any) -> Any:
    value: Any = settings
    for name in key.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return default
        value = value[name]
    return value


def to_layer(size: str, model: str, options: Sequence[Any]) -> Mapping[str, Any]:
    """One settings layer from the form: a value of `SIZES`, a model's name, the values of `OPTIONS` in order."""
    chosen = dict(zip(OPTIONS, options, strict=True))
    return {"engine.model": model, **{f"restore.{name}": value for name, value in _size_layer(size).items()}, **chosen}

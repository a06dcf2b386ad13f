"""The settings tree: what a process fixes (`engine`) and what a job chooses (`restore`). Without torch.

Each default, label, help text and limit is written once, in the fields below; the browser form, `--help` and the
README are made from them. OmegaConf stays inside `load_settings`: what comes out are plain frozen dataclasses.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, get_type_hints

from inference.errors import SettingsError

Layer = Mapping[str, Any] | Sequence[str] | Path


class Precision(StrEnum):
    """The floating-point type in which the networks compute."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FP8 = "fp8"


class ColorFix(StrEnum):
    """How the colours of the restored picture are tied to those of the source."""

    BALANCED = "balanced"
    WAVELET = "wavelet"
    ADAIN = "adain"
    LAB = "lab"
    NONE = "none"


class EncodePreset(StrEnum):
    """The encoder's effort: slower presets make smaller files of the same quality."""

    ULTRAFAST = "ultrafast"
    SUPERFAST = "superfast"
    VERYFAST = "veryfast"
    FASTER = "faster"
    FAST = "fast"
    MEDIUM = "medium"
    SLOW = "slow"
    SLOWER = "slower"
    VERYSLOW = "veryslow"


def _setting(default: Any, label: str, help: str, minimum: float | None = None, maximum: float | None = None) -> Any:
    return field(default=default, metadata={"label": label, "help": help, "minimum": minimum, "maximum": maximum})


def _group(kind: type, label: str) -> Any:
    return field(default_factory=kind, metadata={"label": label, "help": "", "minimum": None, "maximum": None})


def _check_limits(settings: Any) -> None:
    for entry in fields(settings):
        value, low, high = getattr(settings, entry.name), entry.metadata["minimum"], entry.metadata["maximum"]
        if isinstance(value, float) and not math.isfinite(value):
            raise SettingsError(f"{entry.name}={value} is not a number; leave it out to use {entry.default}.")
        if low is not None and value < low:
            raise SettingsError(f"{entry.name}={value} is too small; the smallest value is {low:g}.")
        if high is not None and value > high:
            raise SettingsError(f"{entry.name}={value} is too large; the largest value is {high:g}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What is decided when a process starts: a change loads the model anew."""

    model: str = _setting("auto", "Model", "auto, nano, seedvr2-3b, seedvr2-7b or seedvr2-7b-sharp")
    device: str = _setting("auto", "Device", "auto, cpu, cuda or cuda:N")
    precision: Precision = _setting(
        Precision.AUTO,
        "Precision",
        "Number format of the networks; auto suits the device, fp8 is bfloat16 with the transformer's large products in"
        " 8 bits",
    )
    threads: int = _setting(0, "Threads", "CPU threads; 0 uses all cores", 0, 1024)
    weights: str = _setting("", "Weights folder", "Folder with model files; empty uses the download cache")
    offline: bool = _setting(False, "Offline", "Never download; use only model files that are already there")

    def __post_init__(self) -> None:
        _check_limits(self)
        kind, _, index = self.device.partition(":")
        if kind not in ("auto", "cpu", "cuda") or (":" in self.device and (kind != "cuda" or not index.isdecimal())):
            raise SettingsError(f"Device {self.device!r} is unknown; use auto, cpu, cuda or cuda:N.")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeSettings:
    """How the result is written."""

    quality: int = _setting(16, "Video quality", "H.264 CRF, 1 to 51: lower is better and makes a larger file", 1, 51)
    preset: EncodePreset = _setting(EncodePreset.MEDIUM, "Encoder effort", "Slower presets make smaller files")
    image_quality: int = _setting(95, "Image quality", "JPEG and WebP quality; PNG is lossless", 1, 100)

    def __post_init__(self) -> None:
        _check_limits(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreSettings:
    """What one job chooses. At most one of `resolution`, `factor` and `box`; with none of them the size is doubled."""

    resolution: int = _setting(0, "Short side", "Pixels of the shorter side of the result; 0 leaves it open", 0, 16384)
    factor: float = _setting(0.0, "Factor", "Enlargement of both sides; 0 leaves it open", 0, 16)
    box: str = _setting("", "Box", "Largest size that fits, such as 1920x1080; the aspect ratio is kept")
    seed: int = _setting(666, "Seed", "Start of the random numbers: the same seed gives the same result", 0, 2**63 - 1)
    color_fix: ColorFix = _setting(ColorFix.BALANCED, "Colour fix", "How colours are tied to those of the source")
    fidelity: float = _setting(
        -1.0, "Fidelity", "0 trusts the model, 1 stays closest to the source; -1 is the model's default", -1, 1
    )
    window: int = _setting(0, "Window", "Frames restored together, 1, 5, 9, ...; 0 chooses by memory", 0, 4097)
    overlap: int = _setting(
        2, "Overlap", "Latents (4 frames each) that neighbouring windows share, at most half a window", 0, 64
    )
    detect_shots: bool = _setting(True, "Detect cuts", "Restore each shot by itself")
    keep_audio: bool = _setting(True, "Keep sound", "Copy sound and subtitles of the source unchanged")
    encode: EncodeSettings = _group(EncodeSettings, "Output")

    def __post_init__(self) -> None:
        _check_limits(self)
        chosen = [name for name in ("resolution", "factor", "box") if getattr(self, name)]
        if len(chosen) > 1:
            raise SettingsError(f"Only one of {' and '.join(chosen)} can set the size; leave the other out.")
        if self.box:
            self.box_size()
        if -1 < self.fidelity < 0:
            raise SettingsError(
                f"fidelity={self.fidelity:g} is not possible; use 0 to 1, or -1 for the model's default."
            )
        if self.window and self.window % 4 != 1:
            near = max(1, self.window - (self.window - 1) % 4)
            raise SettingsError(f"window={self.window} is not possible; use 1, 5, 9, ..., for example {near}.")

    def box_size(self) -> tuple[int, int] | None:
        """(width, height) of `box` in pixels, or None if no box is set."""
        if not self.box:
            return None
        width, cross, height = self.box.lower().replace("×", "x").replace(" ", "").partition("x")
        if not cross or not width.isdecimal() or not height.isdecimal() or 0 in (int(width), int(height)):
            raise SettingsError(f"box={self.box!r} is not a size; write it as width x height, such as 1920x1080.")
        if max(int(width), int(height)) > 16384:
            raise SettingsError(f"box={self.box!r} is too large; the longest side is 16384.")
        return int(width), int(height)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The whole tree."""

    engine: EngineSettings = _group(EngineSettings, "Engine")
    restore: RestoreSettings = _group(RestoreSettings, "Restore")


@dataclass(frozen=True, slots=True)
class SettingInfo:
    """One leaf of the tree, for forms, help texts and documentation."""

    key: str
    kind: type
    default: Any
    label: str
    help: str
    minimum: float | None
    maximum: float | None

    @property
    def choices(self) -> tuple[str, ...]:
        """The allowed values if the setting is a choice, else nothing."""
        return tuple(member.value for member in self.kind) if issubclass(self.kind, StrEnum) else ()


def describe(root: Any = Settings, prefix: str = "") -> Iterator[SettingInfo]:
    """Every setting below `root`, in order, with its dotted key (`restore.encode.quality`)."""
    hints = get_type_hints(root)
    for entry in fields(root):
        kind, key = hints[entry.name], f"{prefix}{entry.name}"
        if is_dataclass(kind):
            yield from describe(kind, f"{key}.")
        else:
            limits = entry.metadata["minimum"], entry.metadata["maximum"]
            yield SettingInfo(key, kind, _default(entry), entry.metadata["label"], entry.metadata["help"], *limits)


def load_settings(*layers: Layer) -> Settings:
    """One settings tree from `layers`, where a later layer wins: mappings, lists of `key=value`, YAML files.

    Keys are dotted (`restore.seed=1`); a leaf's bare name (`seed=1`) does too. Raises SettingsError for an unknown key
    (with the nearest known one), a value of the wrong type or out of range, or an unreadable file.
    """
    values: dict[str, Any] = {}
    for layer in layers:
        values |= _flatten(_read_layer(layer))
    return _build(values)


def to_dict(settings: Settings | EngineSettings | RestoreSettings) -> dict[str, Any]:
    """`settings` as JSON-able values; `load_settings(to_dict(settings)) == settings` for a whole tree."""
    return {key: _plain(value) for key, value in asdict(settings).items()}


def to_text(value: Any) -> str:
    """A setting's value as people write it: `true`, `balanced`, `16`."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return value.value if isinstance(value, StrEnum) else value


def _default(entry: Field[Any]) -> Any:
    return entry.default if entry.default is not MISSING else None


def _read_layer(layer: Layer) -> Mapping[str, Any]:
    if isinstance(layer, Mapping):
        return layer
    if isinstance(layer, Path):
        return _read_yaml(layer)
    nested: dict[str, Any] = {}
    for text in layer:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise SettingsError(
                f"Setting {text!r} has no value; write it as key=value, such as restore.resolution=720."
            )
        nested[key.strip()] = value.strip()
    return nested


def _read_yaml(path: Path) -> Mapping[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError  # type: ignore[import-untyped]

    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise SettingsError(
            f"The settings file {path} cannot be read ({reason}); check the path and its YAML."
        ) from error
    if not isinstance(content, dict):
        raise SettingsError(f"The settings file {path} is a list; write it as `restore:` with one setting a line.")
    return {str(key): value for key, value in content.items()}


def _flatten(layer: Mapping[str, Any]) -> dict[str, Any]:
    """{dotted full key: value}, every key known."""
    known = [info.key for info in describe()]
    groups = {key.rpartition(".")[0] for key in known} | {"engine", "restore"}
    flat: dict[str, Any] = {}

    def add(prefix: str, entries: Mapping[str, Any]) -> None:
        for name, value in entries.items():
            key = f"{prefix}{name}"
            if key not in groups:
                flat[_full_key(key, known)] = value
            elif isinstance(value, Mapping):
                add(f"{key}.", value)
            else:
                raise SettingsError(
                    f"{key} is a group of settings; set one of them, such as {key}.{_first(key, known)}."
                )

    add("", layer)
    return flat


def _first(group: str, known: Sequence[str]) -> str:
    return next(key for key in known if key.startswith(f"{group}.")).removeprefix(f"{group}.")


def _full_key(key: str, known: Sequence[str]) -> str:
    matches = [name for name in known if name == key or name.endswith(f".{key}")]
    if len(matches) == 1:
        return matches[0]
    words = {name: name for name in known} | {name.rpartition(".")[2]: name for name in known}
    near = difflib.get_close_matches(key, words, n=1) or difflib.get_close_matches(key.rpartition(".")[2], words, n=1)
    hint = f"did you mean {words[near[0]]}?" if near else "`seedvr restore --help` lists them all."
    raise SettingsError(f"There is no setting {key!r}; {hint}")


def _build(values: Mapping[str, Any]) -> Settings:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    tree = OmegaConf.structured(Settings)
    OmegaConf.set_readonly(tree, False)
    for group in ("engine", "restore", "restore.encode"):
        OmegaConf.set_readonly(OmegaConf.select(tree, group), False)
    for info in describe():
        if info.key not in values:
            continue
        value = _to_choice(info, values[info.key])
        try:
            OmegaConf.update(tree, info.key, value)
        except OmegaConfBaseException as error:
            raise _not_of_its_kind(info, values[info.key]) from error
    settings = OmegaConf.to_object(tree)
    assert isinstance(settings, Settings)
    return settings


def _not_of_its_kind(info: SettingInfo, value: Any) -> SettingsError:
    return SettingsError(
        f"{info.key}={value!s} is not {_KINDS[info.kind]}; leave it out to use {to_text(info.default)}."
    )


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def _to_choice(info: SettingInfo, value: Any) -> Any:
    if not issubclass(info.kind, StrEnum):
        if "${" in str(value):  # OmegaConf would look it up, also in the environment, for whoever sent the value
            raise SettingsError(f"{info.key} may not contain '${{'; write the value itself.")
        if value is None or (isinstance(value, bool) and info.kind is not bool) or isinstance(value, Mapping | list):
            raise _not_of_its_kind(info, value)
        return value
    text = str(value.value if isinstance(value, StrEnum) else value).strip().lower()
    if text in info.choices:
        return info.kind(text)
    near = difflib.get_close_matches(text, info.choices, n=1)
    hint = f"did you mean {near[0]}?" if near else f"use {', '.join(info.choices[:-1])} or {info.choices[-1]}."
    raise SettingsError(f"{info.key}={value!s} is not possible; {hint}")

"""Owns the state of a shot between two slices: the value itself, and its file.

With this value, the source frames that are still held, and the frames that follow, the rest of a shot comes out bit for
bit as if nothing had been interrupted. So tensors go through the file with their memory layout, which decides the order
in which a convolution adds. Latents are `(1, C, t, h, w)`.

The histories of the VAE are most of a state: gigabytes for the released models. Since the VAE's past is finite, large
ones are not written. Who goes on makes them again from frames and latents before (`inference.warm_up`).
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inference.back_projection import SourceTrust
from models.video_vae import VAEState

_FORMAT = 2
LARGE_HISTORIES_BYTES = 2**31
"""Histories of the VAE up to this size are written after every unit, larger ones never."""

_NUMBERS = ("taken", "given", "has_ended", "first_latent", "planned")


class StateFileError(Exception):
    """A file does not hold a state that can be gone on from. Not for people: the caller goes on from an earlier one."""


@dataclass(slots=True)
class ShotState:
    """Where the one pass over a shot stands.

    taken, given: frames read and frames restored so far; the ones between are the sources that are still held.
    has_ended: no frame follows. trust: decides the strength of the back-projection of each frame.
    encoder, decoder: the two streams of the VAE, None at their start; without histories when a file left them out.
    latents: encoded, one by one, that a window may still ask for; `first_latent` is the number of the first one.
    planned: latents that the windows so far cover. held: restored ones that the next window is mixed with.
    settled: restored ones that wait to be decoded, in slices.
    recent: slices that were decoded, the latest ones, from which large histories of the decoder can be made again.

    Every tensor owns its memory.
    """

    taken: int = 0
    given: int = 0
    has_ended: bool = False
    trust: SourceTrust = field(default_factory=SourceTrust)
    encoder: VAEState | None = None
    decoder: VAEState | None = None
    latents: list[Tensor] = field(default_factory=list)
    first_latent: int = 0
    planned: int = 0
    held: Tensor | None = None
    settled: list[Tensor] = field(default_factory=list)
    recent: list[Tensor] = field(default_factory=list)

    @property
    def num_latents(self) -> int:
        """Latents that were encoded so far."""
        return self.first_latent + len(self.latents)

    @property
    def is_over(self) -> bool:
        """Whether every frame of the shot was given out; False also while it is not known if more follow."""
        waits = bool(self.settled) or self.held is not None or self.planned < self.num_latents
        return self.has_ended and not waits

    @property
    def has_large_histories(self) -> bool:
        """Whether those of the VAE are too large to be written after every unit."""
        return sum(stream.num_bytes for stream in self._streams()) > LARGE_HISTORIES_BYTES

    @property
    def is_cold(self) -> bool:
        """Whether histories of the VAE are missing that the rest of the shot needs."""
        return any(not stream.histories for stream in self._streams())

    @property
    def num_bytes(self) -> int:
        """What a file of this state takes, but for some small things."""
        histories = 0 if self.has_large_histories else sum(stream.num_bytes for stream in self._streams())
        return histories + sum(tensor.nbytes for tensor in self._latents())

    def _streams(self) -> Iterator[VAEState]:
        yield from (stream for stream in (self.encoder, self.decoder) if stream is not None)

    def _latents(self) -> Iterator[Tensor]:
        yield from (*self.latents, *self.settled, *self.recent)
        if self.held is not None:
            yield self.held


def save_state(state: ShotState, path: Path) -> None:
    """Write `state` to `path`; large histories are left out. The caller makes the file durable. Raises OSError."""
    keeps_histories = not state.has_large_histories
    values: dict[str, Any] = {name: getattr(state, name) for name in _NUMBERS}
    values |= {
        "format": _FORMAT,
        "trust": astuple(state.trust),
        "encoder": _pack(state.encoder, keeps_histories),
        "decoder": _pack(state.decoder, keeps_histories),
        "latents": [tensor.cpu() for tensor in state.latents],
        "settled": [tensor.cpu() for tensor in state.settled],
        "recent": [tensor.cpu() for tensor in state.recent],
        "held": None if state.held is None else state.held.cpu(),
    }
    with path.open("wb") as file:
        torch.save(values, file)


def load_state(path: Path, device: torch.device) -> ShotState:
    """The state in `path`, its tensors on `device`. Code in the file never runs. Raises StateFileError."""
    try:
        values = torch.load(path, map_location=device, weights_only=True)
        if values["format"] != _FORMAT:
            raise StateFileError(f"{path} has another format")
        return ShotState(
            trust=SourceTrust(*values["trust"]),
            encoder=_unpack(values["encoder"]),
            decoder=_unpack(values["decoder"]),
            latents=list(values["latents"]),
            settled=list(values["settled"]),
            recent=list(values["recent"]),
            held=values["held"],
            **{name: values[name] for name in _NUMBERS},
        )
    except (OSError, pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError, TypeError) as error:
        # What torch raises on a damaged archive depends on the byte that is wrong.
        raise StateFileError(f"{path} cannot be read: {error}") from error


def _pack(stream: VAEState | None, keeps_histories: bool) -> dict[str, Any] | None:
    if stream is None:
        return None
    histories = list(stream.to("cpu").histories) if keeps_histories else []
    return {"histories": histories, "num_frames": stream.num_frames}


def _unpack(values: dict[str, Any] | None) -> VAEState | None:
    return None if values is None else VAEState(list(values["histories"]), int(values["num_frames"]))

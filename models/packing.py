"""Videos of different sizes and their texts as one token list: patches, windows and rotary tables.

`PackedLayout` is everything about a forward pass that depends on shapes alone. It is built once before the block
loop and shared by all blocks. Rows: the patch tokens of all videos, then the tokens of all texts. L packed tokens,
K windows, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from einops import rearrange
from torch import Tensor

from models.attention import SequenceLengths
from models.rope import RopeSpec, text_rotation, video_rotation
from models.windows import Size3, partition_grid, plan_windows

PATCH = 2
"""Latents per patch along h and w; along t a patch is one latent frame."""


@dataclass(frozen=True, slots=True, eq=False)
class WindowLayout:
    """Windows of one kind over all videos, ordered so that equal lengths are neighbours.

    `rows` are the layout rows of each window's video tokens followed by its text; `restore` is the place of every
    video token in that order.
    """

    rows: Tensor
    restore: Tensor
    lengths: SequenceLengths
    text_places: tuple[Tensor, ...]
    """Per video `(K, text length)`: the places of its text in each of its windows."""

    rotation: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class PackedLayout:
    """Shapes of one packed call and all that follows from them."""

    sizes: tuple[Size3, ...]
    num_video: int
    num_text: int
    owners: Tensor | None
    """Video of each row `(num_video + num_text,)`; None for a single video, where broadcasting does."""

    regular: WindowLayout
    shifted: WindowLayout

    def owners_of(self, parts: Sequence[Tensor]) -> list[Tensor | None]:
        """`owners` cut like `parts`: consecutive pieces of the rows, starting with the first."""
        if self.owners is None:
            return [None] * len(parts)
        used = sum(len(part) for part in parts)
        return list(self.owners[:used].split([len(part) for part in parts]))


def build_layout(
    sizes: Sequence[Size3], text_lengths: Sequence[int], counts: Size3, rope: RopeSpec, device: torch.device
) -> PackedLayout:
    """Layout of videos with latent `sizes` (t, h, w) and texts of `text_lengths` tokens.

    Raises ValueError for a size that patches cannot tile or a text count that differs from the video count.
    """
    for size in sizes:
        if size[1] % PATCH or size[2] % PATCH or min(size) < 1:
            raise ValueError(f"A latent of size {size} cannot be cut into {PATCH}x{PATCH} patches.")
    if len(sizes) != len(text_lengths):
        raise ValueError(f"{len(sizes)} videos came with {len(text_lengths)} texts.")
    grids = [(t, h // PATCH, w // PATCH) for t, h, w in sizes]
    tokens = [prod(grid) for grid in grids]
    owners = None
    if len(sizes) > 1:
        videos = torch.arange(len(sizes))
        owners = torch.cat(
            [videos.repeat_interleave(torch.tensor(tokens)), videos.repeat_interleave(torch.tensor(text_lengths))]
        ).to(device)
    # Tables made in inference mode could not serve a later call that needs gradients.
    with torch.inference_mode(False):
        return PackedLayout(
            sizes=tuple(sizes),
            num_video=sum(tokens),
            num_text=sum(text_lengths),
            owners=owners,
            regular=_window_layout(grids, text_lengths, counts, rope, device, shifted=False),
            shifted=_window_layout(grids, text_lengths, counts, rope, device, shifted=True),
        )


def _window_layout(
    grids: Sequence[Size3],
    text_lengths: Sequence[int],
    counts: Size3,
    rope: RopeSpec,
    device: torch.device,
    *,
    shifted: bool,
) -> WindowLayout:
    num_video = sum(prod(grid) for grid in grids)
    windows: list[tuple[int, Tensor]] = []
    texts: list[Tensor] = []
    turns: list[Tensor] = []
    first_video, first_text = 0, num_video
    for video, (grid, text_length) in enumerate(zip(grids, text_lengths, strict=True)):
        rows = torch.arange(first_video, first_video + prod(grid)).view(grid)
        for (t0, t1), (h0, h1), (w0, w1) in plan_windows(grid, counts, shifted=shifted):
            windows.append((video, rows[t0:t1, h0:h1, w0:w1].flatten()))
        texts.append(torch.arange(first_text, first_text + text_length))
        turns.append(video_rotation(rope, partition_grid(grid, counts, shifted=shifted), text_length, device))
        first_video, first_text = first_video + prod(grid), first_text + text_length
    windows.sort(key=lambda entry: (len(entry[1]), text_lengths[entry[0]]))

    lengths = [len(rows) + text_lengths[video] for video, rows in windows]
    rows = torch.cat([part for video, rows in windows for part in (rows, texts[video])])
    places = torch.arange(len(rows))
    is_video = rows < num_video
    text_places: list[list[Tensor]] = [[] for _ in grids]
    for (video, _), piece in zip(windows, places.split(lengths), strict=True):
        text_places[video].append(piece[len(piece) - text_lengths[video] :])
    return WindowLayout(
        rows=rows.to(device),
        restore=_inverse(rows[is_video], places[is_video]).to(device),
        lengths=SequenceLengths.of(lengths, lengths, device),
        text_places=tuple(torch.stack(pieces).to(device) for pieces in text_places),
        rotation=torch.cat([*turns, *(text_rotation(rope, length, device) for length in text_lengths)]),
    )


def _inverse(rows: Tensor, places: Tensor) -> Tensor:
    inverse = torch.empty_like(rows)
    inverse[rows] = places
    return inverse


def patchify(video: Tensor, sizes: Sequence[Size3]) -> Tensor:
    """Latents `(sum t*h*w, C)` to patch tokens `(sum t*h*w/4, 4C)`; the channels of a patch are (dh, dw, c)."""
    pieces = [
        rearrange(piece, "(t h p w q) c -> (t h w) (p q c)", t=t, h=h // PATCH, w=w // PATCH, p=PATCH, q=PATCH)
        for piece, (t, h, w) in zip(video.split([prod(size) for size in sizes]), sizes, strict=True)
    ]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def unpatchify(tokens: Tensor, sizes: Sequence[Size3]) -> Tensor:
    """Patch tokens `(sum t*h*w/4, 4C)` back to latents `(sum t*h*w, C)`."""
    pieces = [
        rearrange(piece, "(t h w) (p q c) -> (t h p w q) c", t=t, h=h // PATCH, w=w // PATCH, p=PATCH, q=PATCH)
        for piece, (t, h, w) in zip(tokens.split([prod(size) // PATCH**2 for size in sizes]), sizes, strict=True)
    ]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

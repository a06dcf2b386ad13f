"""Windows over latents: each latent once, shared latents mixed, any length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.chunking import (
    Window,
    WindowPlanner,
    blend,
    blend_weights,
    frames_to_latents,
    join_window,
    latents_to_frames,
)


def plan(total: int, size: int, overlap: int) -> list[Window]:
    planner, windows = WindowPlanner(size, overlap), []
    for available in range(1, total + 1):
        while (window := planner.next_full(available)) is not None:
            windows.append(window)
    if (window := planner.last(total)) is not None:
        windows.append(window)
    return windows


def join(windows: Iterable[tuple[Window, torch.Tensor]], overlap: int) -> Iterator[torch.Tensor]:
    held = None
    for window, latent in windows:
        settled, held = join_window(held, window, latent, overlap)
        if settled is not None:
            yield settled
    if held is not None:
        yield held


sizes = {"total": st.integers(0, 40), "size": st.integers(1, 12), "overlap": st.integers(0, 8)}


@settings(deadline=None, max_examples=60, database=None)
@given(**sizes)
def test_each_latent_counts_in_one_window_or_is_shared_by_two(total: int, size: int, overlap: int) -> None:
    counts = [0] * total
    for window in plan(total, size, overlap):
        for index in range(window.join, window.stop):
            counts[index] += 1

    assert set(counts) <= {1, 2}


@settings(deadline=None, max_examples=60, database=None)
@given(**sizes)
def test_neighbours_share_the_overlap_and_windows_are_never_too_long(total: int, size: int, overlap: int) -> None:
    windows = plan(total, size, overlap)

    for before, window in zip(windows, windows[1:], strict=False):
        assert window.join == before.stop - window.shared
        assert window.shared == min(overlap, size // 2)
    assert all(0 <= window.start <= window.join < window.stop <= window.start + size for window in windows)


@settings(deadline=None, max_examples=60, database=None)
@given(**sizes)
def test_a_window_asks_only_for_latents_that_are_still_needed(total: int, size: int, overlap: int) -> None:
    planner, needed = WindowPlanner(size, overlap), 0
    for available in range(1, total + 1):
        while (window := planner.next_full(available)) is not None:
            assert window.start >= needed
            needed = planner.first_needed
    last = planner.last(total)
    assert last is None or last.start >= needed


def test_a_short_rest_gets_context_from_the_window_before() -> None:
    *_, before, last = plan(total=10, size=9, overlap=1)

    assert (before.start, before.stop) == (0, 9)
    assert (last.start, last.join, last.stop, last.shared) == (5, 8, 10, 1)


def test_a_shot_that_fits_is_one_window() -> None:
    assert plan(total=9, size=9, overlap=2) == [Window(0, 0, 9, 0)]


@settings(deadline=None, max_examples=60, database=None)
@given(**sizes)
def test_joined_windows_of_one_latent_stream_are_that_stream(total: int, size: int, overlap: int) -> None:
    stream = torch.arange(total, dtype=torch.float64).view(1, 1, -1, 1, 1).expand(1, 2, -1, 1, 1)

    def windows() -> Iterator[tuple[Window, torch.Tensor]]:
        for window in plan(total, size, overlap):
            yield window, stream[:, :, window.start : window.stop]

    pieces = list(join(windows(), min(overlap, size // 2)))

    assert all(piece.shape[2] for piece in pieces)
    joined = torch.cat(pieces, 2) if pieces else stream
    torch.testing.assert_close(joined, stream)


def test_a_planner_that_is_made_anew_goes_on_where_the_one_before_stopped() -> None:
    planner = WindowPlanner(9, 2)
    planner.next_full(9)

    again = WindowPlanner(9, 2, done=9)

    assert again.first_needed == planner.first_needed
    assert again.next_full(16) == planner.next_full(16)


def test_pieces_come_as_early_as_they_are_settled() -> None:
    taken = 0

    def windows() -> Iterator[tuple[Window, torch.Tensor]]:
        nonlocal taken
        for window in plan(20, 8, 2):
            taken += 1
            yield window, torch.zeros(1, 1, window.stop - window.start, 1, 1)

    first = next(join(windows(), 2))

    assert (taken, first.shape[2]) == (1, 6)


def test_shared_latents_fade_evenly_from_one_window_to_the_next() -> None:
    mixed = blend(torch.zeros(1, 1, 3, 1, 1), torch.ones(1, 1, 3, 1, 1)).flatten().tolist()

    assert mixed == pytest.approx([0.25, 0.5, 0.75])
    assert blend_weights(0) == ()


@pytest.mark.parametrize(("frames", "latents"), [(0, 0), (1, 1), (2, 2), (5, 2), (6, 3), (9, 3)])
def test_latents_for_frames_are_rounded_up(frames: int, latents: int) -> None:
    assert frames_to_latents(frames) == latents
    assert latents_to_frames(latents) >= frames

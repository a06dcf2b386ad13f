"""Windows of the transformer: coverage, sizes, borders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models.windows import partition_axis, plan_windows, window_size

COUNTS = (4, 3, 3)
GRIDS = [(1, 1, 1), (3, 20, 22), (5, 13, 19), (1, 9, 47), (30, 7, 11), (2, 31, 17)]


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
def test_windows_hold_every_token_once(grid: tuple[int, int, int], shifted: bool) -> None:
    tokens = [
        (t, h, w)
        for (t0, t1), (h0, h1), (w0, w1) in plan_windows(grid, COUNTS, shifted=shifted)
        for t in range(t0, t1)
        for h in range(h0, h1)
        for w in range(w0, w1)
    ]
    assert len(tokens) == len(set(tokens)) == grid[0] * grid[1] * grid[2]


def test_windows_equal_the_stored_lists_in_their_order(shared: Path) -> None:
    stored = json.loads((shared / "goldens/dit/p_windows.json").read_text())
    for kind in ("regular", "shifted"):
        for grid, rows in stored[kind].items():
            t, h, w = map(int, grid.split(","))
            windows = plan_windows((t, h, w), COUNTS, shifted=kind == "shifted")
            assert [[bound for interval in window for bound in interval] for window in windows] == rows


@pytest.mark.parametrize(
    ("grid", "regular", "shifted"),
    [((6, 45, 80), 27, 64), ((26, 45, 80), 36, 80), ((6, 67, 120), 75, 100), ((2, 135, 240), 162, 200)],
)
def test_the_window_counts_of_common_sizes_are_those_of_the_specification(
    grid: tuple[int, int, int], regular: int, shifted: int
) -> None:
    assert len(plan_windows(grid, COUNTS, shifted=False)) == regular
    assert len(plan_windows(grid, COUNTS, shifted=True)) == shifted


def test_a_window_never_spans_more_than_a_quarter_of_thirty_frames() -> None:
    assert window_size((200, 45, 80), COUNTS) == (8, 15, 27)


def test_a_shifted_axis_starts_with_half_a_window() -> None:
    assert partition_axis(10, 4, shifted=True) == ((0, 2), (2, 6), (6, 10))


def test_a_shifted_axis_of_windows_of_one_equals_the_regular_one() -> None:
    assert partition_axis(5, 1, shifted=True) == partition_axis(5, 1, shifted=False)


@pytest.mark.parametrize("shifted", [False, True])
def test_a_window_as_long_as_the_axis_is_the_only_one(shifted: bool) -> None:
    assert partition_axis(4, 4, shifted=shifted) == ((0, 4),)


def test_a_grid_of_extreme_aspect_still_gets_windows() -> None:
    assert window_size((1, 1, 100_000), COUNTS)[1] == 1

"""Packed layouts: patches, windows of several videos, places of texts."""

from __future__ import annotations

import pytest
import torch

from models.packing import PackedLayout, WindowLayout, build_layout, patchify, unpatchify
from models.rope import Rope, RopeSpec

CPU = torch.device("cpu")
SIZES = [(3, 40, 44), (1, 22, 70)]
TEXTS = [7, 12]


@pytest.fixture(scope="module")
def layout() -> PackedLayout:
    return build_layout(SIZES, TEXTS, (4, 3, 3), RopeSpec(Rope.PIXEL, 32, 0), CPU)


@pytest.fixture(params=["regular", "shifted"])
def windows(layout: PackedLayout, request: pytest.FixtureRequest) -> WindowLayout:
    found: WindowLayout = getattr(layout, request.param)
    return found


def test_patches_follow_the_grid_and_their_channels_dh_dw_c() -> None:
    video = torch.arange(2 * 4 * 6 * 3).view(2, 4, 6, 3)
    patches = patchify(video.flatten(0, 2), [(2, 4, 6)]).view(2, 2, 3, 2, 2, 3)
    for dh in range(2):
        for dw in range(2):
            assert torch.equal(patches[:, :, :, dh, dw], video[:, dh::2, dw::2])


def test_unpatchify_undoes_patchify_for_videos_of_different_sizes() -> None:
    video = torch.randn(sum(t * h * w for t, h, w in SIZES), 5)
    assert torch.equal(unpatchify(patchify(video, SIZES), SIZES), video)


def test_restore_undoes_the_window_order(layout: PackedLayout, windows: WindowLayout) -> None:
    rows = torch.arange(layout.num_video + layout.num_text)
    assert torch.equal(rows[windows.rows][windows.restore], rows[: layout.num_video])


def test_every_window_holds_one_videos_tokens_and_then_its_whole_text(
    layout: PackedLayout, windows: WindowLayout
) -> None:
    assert layout.owners is not None
    for rows in windows.rows.split(windows.lengths.keys):
        num_video = int((rows < layout.num_video).sum())
        owner = layout.owners[rows].unique().item()
        first = layout.num_video + sum(TEXTS[: int(owner)])
        assert rows[num_video:].tolist() == list(range(first, first + TEXTS[int(owner)]))
        assert (rows[:num_video] < layout.num_video).all()


def test_the_places_of_a_text_point_at_its_tokens(layout: PackedLayout, windows: WindowLayout) -> None:
    first = layout.num_video
    for places, length in zip(windows.text_places, TEXTS, strict=True):
        assert (windows.rows[places] == torch.arange(first, first + length)).all()
        first += length


def test_windows_of_equal_length_are_neighbours(windows: WindowLayout) -> None:
    pairs = [(queries, keys) for _, queries, keys in windows.lengths.runs]
    assert len(pairs) == len(set(pairs))


def test_a_single_video_needs_no_owners() -> None:
    single = build_layout(SIZES[:1], TEXTS[:1], (4, 3, 3), RopeSpec(Rope.PIXEL, 32, 0), CPU)
    assert single.owners_of((torch.zeros(3), torch.zeros(2))) == [None, None]


def test_owners_are_cut_like_the_parts(layout: PackedLayout) -> None:
    video, text = torch.zeros(layout.num_video), torch.zeros(layout.num_text)
    of_video, of_text = layout.owners_of((video, text))
    assert of_text is not None
    assert of_text.tolist() == [0] * 7 + [1] * 12
    assert of_video is not None
    assert of_video.bincount().tolist() == [3 * 20 * 22, 11 * 35]


@pytest.mark.parametrize("size", [(1, 3, 4), (1, 4, 5), (0, 4, 4)])
def test_a_size_that_patches_cannot_tile_is_refused(size: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="cannot be cut"):
        build_layout([size], [1], (4, 3, 3), RopeSpec(Rope.PIXEL, 32, 0), CPU)


def test_every_video_needs_a_text() -> None:
    with pytest.raises(ValueError, match="2 videos came with 1 texts"):
        build_layout(SIZES, [1], (4, 3, 3), RopeSpec(Rope.PIXEL, 32, 0), CPU)

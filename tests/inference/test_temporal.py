"""Frame index lists."""

from __future__ import annotations

import pytest

from inference.temporal import batch_spans, mirror_after, mirror_before, mirror_to_4n1, repeat_last


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (1, [0]),
        (2, [0, 1, 1, 1, 1]),
        (5, [0, 1, 2, 3, 4]),
        (6, [0, 1, 2, 3, 4, 5, 5, 5, 5]),
        (8, [0, 1, 2, 3, 4, 5, 6, 7, 7]),
    ],
)
def test_a_clip_grows_to_4n_plus_1_by_its_last_frame(frames: int, expected: list[int]) -> None:
    assert repeat_last(frames) == expected


@pytest.mark.parametrize("frames", range(1, 40))
def test_padding_adds_at_most_three_frames_from_five_on(frames: int) -> None:
    padded = repeat_last(frames)
    assert padded[:frames] == list(range(frames))
    assert len(padded) % 4 == 1
    assert len(padded) - frames <= 3


def test_sequence_parallel_pads_to_its_own_multiple() -> None:
    assert len(repeat_last(6, sequence_parallel=2)) == 9


def test_the_mirror_does_not_repeat_the_last_frame() -> None:
    assert mirror_after(5, 2) == [0, 1, 2, 3, 4, 3, 2]


def test_a_mirror_longer_than_the_clip_stays_at_its_last_frame() -> None:
    assert mirror_after(3, 4) == [0, 1, 2, 2, 1, 2, 2]


def test_frames_in_front_are_mirrored_around_frame_zero() -> None:
    assert mirror_before(4, 2) == [2, 1, 0, 1, 2, 3]


def test_more_frames_in_front_than_there_are_stay_at_the_last() -> None:
    assert mirror_before(3, 4) == [2, 2, 2, 1, 0, 1, 2]


def test_a_single_frame_batch_stays_single() -> None:
    assert mirror_to_4n1(1) == [0]


def test_batches_share_their_overlap_and_stop_when_only_it_is_left() -> None:
    assert batch_spans(11, 5, 2) == [(0, 5), (3, 8), (6, 11)]


def test_an_overlap_of_a_whole_batch_counts_as_none() -> None:
    assert batch_spans(8, 4, 4) == [(0, 4), (4, 8)]


def test_an_empty_clip_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        repeat_last(0)

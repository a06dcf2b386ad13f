"""Rotary positions: tables, the rotation, and frequencies that no file can spoil."""

from __future__ import annotations

import math

import pytest
import torch

from models.rope import Rope, RopeBuffer, RopeSpec, axis_positions, rotate, text_rotation, video_rotation

CPU = torch.device("cpu")
INTEGER = RopeSpec(Rope.INTEGER, head_dim=128, rope_dim=128)
PIXEL = RopeSpec(Rope.PIXEL, head_dim=128, rope_dim=0)
SPECS = [INTEGER, PIXEL]


def test_the_frequencies_of_3b_fall_from_one_by_powers_of_ten_thousand() -> None:
    frequencies = INTEGER.frequencies()
    assert frequencies.dtype is torch.float32
    assert frequencies.tolist() == pytest.approx([10000 ** (-2 * j / 42) for j in range(21)], rel=1e-6)


def test_the_frequencies_of_7b_rise_from_pi_to_128_pi() -> None:
    assert PIXEL.frequencies().tolist() == pytest.approx([math.pi * (1 + 127 * j / 9) for j in range(10)], rel=1e-6)


def test_whole_positions_restart_in_every_window_after_the_offset() -> None:
    assert axis_positions(Rope.INTEGER, ((0, 2), (2, 5)), offset=7).tolist() == [7, 8, 7, 8, 9]


def test_pixel_positions_span_every_window_whatever_its_size() -> None:
    assert axis_positions(Rope.PIXEL, ((0, 3), (3, 5), (5, 6)), offset=7).tolist() == [-1, 0, 1, -1, 1, -1]


@pytest.mark.parametrize("spec", SPECS)
def test_a_rotation_keeps_the_length_of_every_pair(spec: RopeSpec) -> None:
    x = torch.randn(6, 2, 128)
    rotated = rotate(x, video_rotation(spec, [((0, 1),), ((0, 2),), ((0, 3),)], 5, CPU))
    torch.testing.assert_close(rotated.unflatten(-1, (-1, 2)).norm(dim=-1), x.unflatten(-1, (-1, 2)).norm(dim=-1))


@pytest.mark.parametrize(("spec", "rotating"), [(INTEGER, 126), (PIXEL, 60)])
def test_the_channels_behind_the_rotating_ones_pass_unchanged(spec: RopeSpec, rotating: int) -> None:
    x = torch.randn(8, 2, 128)
    rotated = rotate(x, video_rotation(spec, [((0, 2),), ((0, 2),), ((0, 2),)], 5, CPU))
    assert torch.equal(rotated[..., rotating:], x[..., rotating:])
    assert (rotated[-1, :, :rotating] != x[-1, :, :rotating]).any(-1).all()


def test_the_axes_own_consecutive_thirds_in_the_order_t_h_w() -> None:
    table = video_rotation(INTEGER, [((0, 2),), ((0, 2),), ((0, 2),)], 0, CPU).view(2, 2, 2, 64)
    moved = [(table[index] != table[0, 0, 0]).nonzero().flatten() for index in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert [(axis.min().item(), axis.max().item()) for axis in moved] == [(0, 20), (21, 41), (42, 62)]


def test_whole_video_positions_follow_the_text_in_time() -> None:
    video = video_rotation(INTEGER, [((0, 1),), ((0, 1),), ((0, 1),)], 4, CPU)
    torch.testing.assert_close(video[0, :21], text_rotation(INTEGER, 5, CPU)[4, :21])


def test_text_does_not_rotate_with_pixel_positions() -> None:
    assert torch.equal(text_rotation(PIXEL, 3, CPU), torch.ones(3, 64, dtype=torch.complex64))


def test_a_rotation_keeps_half_precision_as_the_dtype_but_works_in_float32() -> None:
    x = torch.randn(8, 2, 128).bfloat16()
    table = video_rotation(PIXEL, [((0, 2),), ((0, 2),), ((0, 2),)], 5, CPU)
    assert torch.equal(rotate(x, table), rotate(x.float(), table).bfloat16())


@pytest.mark.parametrize("assign", [False, True])
def test_frequencies_from_a_half_precision_file_are_replaced_by_exact_ones(assign: bool) -> None:
    buffer = RopeBuffer(PIXEL)
    buffer.load_state_dict({"rope.freqs": PIXEL.frequencies().half() + 1}, assign=assign)
    assert buffer.rope.freqs.dtype is torch.float32
    assert torch.equal(buffer.rope.freqs, PIXEL.frequencies())

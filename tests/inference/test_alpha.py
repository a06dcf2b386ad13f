"""Transparency enlarged with the restored picture as its guide."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from inference.alpha import guided_filter, is_binary, picture_edges, refine_alpha


def _edge_picture(frames: int, height: int, width: int, column: int) -> Tensor:
    picture = torch.full((frames, 3, height, width), -0.6)
    picture[..., column:] = 0.6
    return picture


def test_a_gradient_stays_a_gradient() -> None:
    alpha = torch.linspace(0, 1, 24).view(1, 1, 1, 24).expand(1, 1, 16, 24)
    refined = refine_alpha(alpha, torch.zeros(1, 3, 32, 48))
    assert refined.shape == (1, 1, 32, 48)
    middle = refined[0, 0, 16, 8:40]
    assert (middle.diff() > 0).all()


def test_a_mask_becomes_hard_away_from_edges() -> None:
    alpha = torch.zeros(1, 1, 16, 24)
    alpha[..., 12:] = 1
    refined = refine_alpha(alpha, _edge_picture(1, 32, 48, 24))
    assert refined[..., :20].max() == 0
    assert refined[..., 28:].min() == 1


def test_a_mask_follows_the_edge_of_the_restored_picture() -> None:
    alpha = torch.zeros(1, 1, 16, 24)
    alpha[..., 12:] = 1
    refined = refine_alpha(alpha, _edge_picture(1, 32, 48, 24))
    assert ((refined > 0.5) == (torch.arange(48) >= 24)).all()


def test_padded_frames_are_dropped() -> None:
    alpha = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    pictures = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    refined = refine_alpha(alpha, pictures)
    assert torch.equal(refined, refine_alpha(alpha, pictures[:3]))
    assert refined.shape == (3, 1, 16, 16)


def test_missing_pictures_are_an_error() -> None:
    with pytest.raises(ValueError, match="3 frames of alpha"):
        refine_alpha(torch.zeros(3, 1, 8, 8), torch.zeros(2, 3, 16, 16))


def test_a_bright_picture_is_mapped_like_any_other() -> None:
    alpha = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    bright = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    dark_corner = bright.clone()
    dark_corner[..., -1, -1] = -1.0
    far = (..., slice(0, 6), slice(0, 6))
    assert torch.equal(refine_alpha(alpha, bright)[far], refine_alpha(alpha, dark_corner)[far])


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_a_constant_mask_stays_constant_on_a_flat_picture(level: float) -> None:
    refined = refine_alpha(torch.full((1, 1, 8, 8), level), torch.zeros(1, 3, 16, 16))
    assert refined.unique().tolist() == [level]


def test_an_opaque_gradient_stays_opaque_up_to_the_border() -> None:
    alpha = torch.full((1, 1, 8, 8), 0.8)
    pictures = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    torch.testing.assert_close(refine_alpha(alpha, pictures), torch.full((1, 1, 16, 16), 0.8))


def test_the_border_rule_of_the_port_can_be_chosen() -> None:
    alpha = torch.full((1, 1, 8, 8), 0.8)
    assert refine_alpha(alpha, torch.zeros(1, 3, 16, 16), zero_border=True)[0, 0, 0, 0] < 0.7


def test_a_flat_picture_has_no_edges() -> None:
    assert picture_edges(torch.full((1, 3, 8, 8), 0.5)).abs().max() == 0


def test_the_strongest_edge_of_each_frame_is_one() -> None:
    picture = (_edge_picture(2, 8, 16, 8) + 1) / 2
    picture[1] = 0.4 + picture[1] / 10
    assert picture_edges(picture).amax((1, 2, 3)).tolist() == [1.0, 1.0]


def test_values_of_one_in_ten_between_make_a_gradient() -> None:
    alpha = torch.zeros(1, 1, 10, 10)
    assert is_binary(alpha)
    alpha[..., 0, :] = 0.5
    assert not is_binary(alpha)


def test_the_guided_filter_keeps_an_edge_that_the_guide_has() -> None:
    step = torch.where(torch.arange(32) < 16, 0.0, 1.0).view(1, 1, 1, 32).expand(1, 1, 32, 32)
    flat = torch.full_like(step, 0.5)
    inner = (..., slice(8, 24), slice(8, 24))
    with_edge = (guided_filter(step, step, 2) - step)[inner].abs().max()
    without = (guided_filter(step, flat, 2) - step)[inner].abs().max()
    assert with_edge < 0.05 < without

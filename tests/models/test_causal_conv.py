"""The causal convolution: never sees later frames, carries its past over, keeps no memory but its own."""

from __future__ import annotations

import pytest
import torch

from models.causal_conv import CausalConv3d, ConvStream, VAEState


def make_conv(stride: int = 1) -> CausalConv3d:
    torch.manual_seed(0)
    return CausalConv3d(2, 3, (3, 3), (stride, 1), padding=1).double().requires_grad_(False)


def make_input(num_frames: int) -> torch.Tensor:
    return torch.randn(1, 2, num_frames, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def run(conv: CausalConv3d, x: torch.Tensor, state: VAEState | None = None) -> tuple[torch.Tensor, VAEState]:
    stream = ConvStream(state)
    return conv(x, stream), stream.finish(x.shape[2])


def test_a_change_of_a_frame_changes_no_earlier_output() -> None:
    conv, x = make_conv(), make_input(5)
    changed = x.clone()
    changed[:, :, 3] += 1
    before, after = run(conv, x)[0], run(conv, changed)[0]
    assert torch.equal(before[:, :, :3], after[:, :, :3])
    assert not torch.equal(before[:, :, 3], after[:, :, 3])


def test_the_clip_start_repeats_the_first_frame() -> None:
    conv, x = make_conv(), make_input(1)
    expected = torch.nn.functional.conv3d(x.repeat(1, 1, 3, 1, 1), conv.weight, conv.bias, padding=(0, 1, 1))
    torch.testing.assert_close(run(conv, x)[0], expected)


@pytest.mark.parametrize(("stride", "lengths"), [(1, [1, 1, 4, 1]), (1, [3, 4]), (2, [1, 2, 4]), (2, [3, 2, 2])])
def test_slices_give_the_whole_result(stride: int, lengths: list[int]) -> None:
    conv, x = make_conv(stride), make_input(7)
    state, parts = None, []
    for part in x.split(lengths, dim=2):
        out, state = run(conv, part, state)
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, dim=2), run(conv, x)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("stride", "kept"), [(1, 2), (2, 1)])
def test_the_history_owns_exactly_its_frames(stride: int, kept: int) -> None:
    _, state = run(make_conv(stride), make_input(7))
    (history,) = state.histories
    assert history.shape[2] == kept
    assert history.untyped_storage().nbytes() == history.numel() * history.element_size()


def test_a_history_of_another_frame_size_is_refused() -> None:
    conv = make_conv()
    _, state = run(conv, make_input(3))
    with pytest.raises(ValueError, match="streaming state"):
        run(conv, make_input(3)[..., :4], state)


def test_a_state_with_too_many_histories_is_refused() -> None:
    conv, x = make_conv(), make_input(3)
    _, state = run(conv, x)
    with pytest.raises(ValueError, match="streaming state"):
        run(conv, x, VAEState(state.histories * 2, state.num_frames))

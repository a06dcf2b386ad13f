"""Condition, noise, schedule and sampler."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from inference.diffusion import (
    denoise,
    euler_sample,
    interpolate,
    make_condition,
    shift_time,
    shift_timestep,
    timesteps,
    unit_noise,
)
from models.dit import DiT, DiTConfig, Mlp, Rope

CONFIG = DiTConfig(
    width=16,
    text_width=6,
    num_layers=2,
    num_heads=2,
    head_dim=16,
    latent_channels=4,
    mlp=Mlp.GELU,
    rope=Rope.PIXEL,
    num_separate_layers=0,
    last_layer_video_only=False,
    output_modulation=False,
)
STORED = [0.0043688, -1.9731877, -0.3517619]


def test_the_condition_is_the_latent_and_a_mask_of_ones() -> None:
    latent = torch.randn(2, 4, 6, 4)
    condition = make_condition(latent)
    assert torch.equal(condition[..., :4], latent)
    assert torch.equal(condition[..., 4], torch.ones(2, 4, 6))


def test_noise_of_a_frame_does_not_depend_on_the_window() -> None:
    whole = unit_noise(666, 0, (6, 4, 6, 3))
    assert torch.equal(unit_noise(666, 2, (3, 4, 6, 3)), whole[2:5])


def test_noise_differs_between_frames_and_seeds() -> None:
    first, second = unit_noise(1, 0, (2, 4, 6, 3))
    assert not torch.equal(first, second)
    assert not torch.equal(unit_noise(2, 0, (1, 4, 6, 3))[0], first)
    assert not torch.equal(unit_noise(11, 0, (1, 4, 6, 3)), unit_noise(1, 10, (1, 4, 6, 3)))


def test_noise_is_standard_normal_and_the_same_on_every_machine() -> None:
    noise = unit_noise(666, 3, (2, 40, 40, 16))
    assert noise.mean().abs() < 0.02
    assert (noise.std() - 1).abs() < 0.02
    assert noise[0, 0, 0, :3].tolist() == pytest.approx(STORED, abs=1e-6)


def test_drawing_noise_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    unit_noise(1, 0, (1, 2, 2, 2))
    assert torch.equal(torch.rand(1), expected)


@torch.no_grad()
def test_one_step_subtracts_the_velocity_at_the_last_timestep() -> None:
    torch.manual_seed(0)
    dit = DiT(CONFIG)
    noise, latent, text = torch.randn(2, 4, 6, 4), torch.randn(2, 4, 6, 4), torch.randn(3, 6)
    video = torch.cat([noise, latent, torch.ones(2, 4, 6, 1)], -1).flatten(0, 2)
    velocity = dit(video, text, torch.tensor([1000.0]), torch.tensor([[2, 4, 6]]), torch.tensor([3]))
    torch.testing.assert_close(denoise(dit, noise, latent, text), noise - velocity.view(2, 4, 6, 4))


@torch.no_grad()
def test_the_result_is_float32_whatever_the_dtype_of_the_network() -> None:
    dit = DiT(CONFIG).bfloat16()
    latent = torch.randn(1, 4, 4, 4).bfloat16()
    assert denoise(dit, torch.randn(1, 4, 4, 4), latent, torch.randn(3, 6)).dtype is torch.float32


@torch.no_grad()
def test_what_is_raised_between_blocks_ends_the_call() -> None:
    calls: list[int] = []

    def stop() -> None:
        calls.append(1)
        raise KeyboardInterrupt

    zeros = torch.zeros(1, 4, 4, 4)
    with pytest.raises(KeyboardInterrupt):
        denoise(DiT(CONFIG), zeros, zeros, torch.zeros(3, 6), on_block=stop)
    assert calls == [1]


@pytest.mark.parametrize("num_steps", [1, 3, 10])
def test_a_true_velocity_leads_to_the_clean_sample_in_any_number_of_steps(num_steps: int) -> None:
    clean, noise = torch.randn(5), torch.randn(5)
    seen: list[Tensor] = []

    def velocity(sample: Tensor, timestep: float) -> Tensor:
        seen.append(sample - interpolate(clean, noise, timestep))
        return noise - clean

    result = euler_sample(velocity, noise, timesteps(num_steps))
    torch.testing.assert_close(result, clean, atol=1e-5, rtol=0)
    assert len(seen) == num_steps
    assert torch.stack(seen).abs().max() < 1e-5


def test_steps_are_equal_and_end_before_zero() -> None:
    assert timesteps(4) == [1000.0, 750.0, 500.0, 250.0]
    assert timesteps(1, shift=3.0) == [1000.0]


def test_a_shift_above_one_moves_times_up_and_keeps_the_ends() -> None:
    assert (shift_time(0.0, 3.0), shift_time(1000.0, 3.0)) == (0.0, 1000.0)
    assert shift_time(500.0, 3.0) == pytest.approx(750.0)


@pytest.mark.parametrize(("size", "expected"), [((1, 90, 160), 244.702423), ((6, 90, 160), 144.168838)])
def test_images_and_videos_are_shifted_along_their_own_lines(size: tuple[int, int, int], expected: float) -> None:
    assert shift_timestep(100.0, size) == pytest.approx(expected, abs=1e-4)

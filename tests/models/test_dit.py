"""The transformer: parameter names, independence of packed videos, dtypes, kept work, cancellation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.dit import DiT, DiTConfig, Mlp, Rope
from models.presets import NANO_DIT, SEEDVR2_3B, SEEDVR2_7B

TINY_3B = DiTConfig(
    width=24,
    text_width=10,
    num_layers=4,
    num_heads=2,
    head_dim=32,
    mlp=Mlp.SWIGLU,
    mlp_ratio=2,
    rope=Rope.INTEGER,
    rope_dim=32,
    num_separate_layers=2,
    last_layer_video_only=True,
    output_modulation=True,
)
TINY_7B = replace(
    TINY_3B,
    mlp=Mlp.GELU,
    rope=Rope.PIXEL,
    num_separate_layers=4,
    last_layer_video_only=False,
    output_modulation=False,
)
TINY_NANO = replace(TINY_7B, num_layers=3, num_separate_layers=0, latent_channels=5, mlp_ratio=1)
CONFIGS = [TINY_3B, TINY_7B, TINY_NANO, replace(TINY_3B, num_separate_layers=4)]
IDS = ["3b", "7b", "nano", "3b-all-separate"]
SIZES = [(2, 36, 40), (1, 20, 70)]


def _random(config: DiTConfig) -> DiT:
    torch.manual_seed(0)
    dit = DiT(config)
    with torch.no_grad():
        for parameter in dit.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return dit


def _inputs(config: DiTConfig, sizes: list[tuple[int, int, int]]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    lengths = list(range(3, 3 + len(sizes)))
    return (
        torch.randn(sum(t * h * w for t, h, w in sizes), config.in_channels),
        torch.randn(sum(lengths), config.text_width),
        torch.linspace(1000.0, 300.0, len(sizes)),
        torch.tensor(sizes),
        torch.tensor(lengths),
    )


@pytest.mark.parametrize(("config", "name"), [(SEEDVR2_3B, "3b"), (SEEDVR2_7B, "7b")])
def test_names_shapes_and_order_of_parameters_equal_the_released_checkpoint(
    config: DiTConfig, name: str, shared: Path
) -> None:
    with torch.device("meta"):
        dit = DiT(config)
    manifest = json.loads((shared / f"spec/dit_{name}_state.json").read_text())
    assert [(key, list(value.shape)) for key, value in dit.state_dict().items()] == list(manifest.items())


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_a_half_precision_state_loads_strictly_into_a_meta_model(config: DiTConfig) -> None:
    state = {key: value.half() for key, value in _random(config).state_dict().items()}
    with torch.device("meta"):
        dit = DiT(config)
    dit.load_state_dict(state, strict=True, assign=True)
    inputs = _inputs(config, SIZES[:1])
    reference = DiT(config)
    reference.load_state_dict({key: value.float() for key, value in state.items()})
    with torch.no_grad():
        torch.testing.assert_close(dit.float()(*inputs), reference(*inputs), rtol=0, atol=0)


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
@torch.no_grad()
def test_a_packed_call_equals_single_calls(config: DiTConfig) -> None:
    dit = _random(config)
    video, text, timestep, shapes, lengths = _inputs(config, SIZES)
    packed = dit(video, text, timestep, shapes, lengths)
    parts = zip(video.split(shapes.prod(-1).tolist()), text.split(lengths.tolist()), strict=True)
    single = [dit(v, t, timestep[i : i + 1], shapes[i : i + 1], lengths[i : i + 1]) for i, (v, t) in enumerate(parts)]
    torch.testing.assert_close(packed, torch.cat(single), rtol=0, atol=2e-5 * packed.abs().max().item())


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
@torch.no_grad()
def test_the_velocity_depends_on_text_timestep_and_every_latent(config: DiTConfig) -> None:
    dit = _random(config)
    video, text, timestep, shapes, lengths = _inputs(config, SIZES[:1])
    velocity = dit(video, text, timestep, shapes, lengths)
    assert velocity.shape == (len(video), config.latent_channels)
    assert not torch.allclose(dit(video, text + 1, timestep, shapes, lengths), velocity, atol=1e-3)
    assert not torch.allclose(dit(video, text, timestep - 500, shapes, lengths), velocity, atol=1e-3)
    moved = (dit(video + 1, text, timestep, shapes, lengths) - velocity).abs().amax(-1)
    assert moved.min() > 0


@pytest.mark.parametrize("config", CONFIGS[:3], ids=IDS[:3])
@torch.no_grad()
def test_bfloat16_stays_near_float32(config: DiTConfig) -> None:
    dit = _random(config)
    inputs = _inputs(config, SIZES[:1])
    exact = dit(*inputs)
    rounded = dit.bfloat16()(*inputs)
    assert rounded.dtype is torch.bfloat16
    assert (rounded - exact).norm() / exact.norm() < 0.03


@torch.no_grad()
def test_casting_a_model_to_half_precision_does_not_move_its_positions() -> None:
    dit = _random(TINY_7B)
    inputs = _inputs(TINY_7B, SIZES[:1])
    before = dit(*inputs)
    for block in dit.blocks:
        block.attn.rope.rope.freqs.fill_(0)
    dit._layouts.clear()
    assert torch.equal(dit(*inputs), before)


@torch.no_grad()
def test_changed_time_weights_are_noticed() -> None:
    dit = _random(TINY_NANO)
    inputs = _inputs(TINY_NANO, SIZES[:1])
    before = dit(*inputs)
    dit.emb_in.proj_out.bias.add_(1)
    assert not torch.allclose(dit(*inputs), before, atol=1e-3)


@torch.no_grad()
def test_the_time_embedding_of_a_timestep_is_computed_once() -> None:
    dit = _random(TINY_NANO)
    calls: list[object] = []
    dit.emb_in.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        dit(*_inputs(TINY_NANO, SIZES[:1]))
    assert len(calls) == 1


def test_shapes_seen_before_reuse_their_layout_and_old_ones_go() -> None:
    dit = DiT(TINY_NANO)
    text, device = torch.tensor([3]), torch.device("cpu")
    first = dit.layout(torch.tensor([[1, 4, 4]]), text, device)
    assert dit.layout(torch.tensor([[1, 4, 4]]), text, device) is first
    for width in range(6, 20, 2):
        dit.layout(torch.tensor([[1, 4, width]]), text, device)
    assert dit.layout(torch.tensor([[1, 4, 4]]), text, device) is not first


def test_a_layout_made_in_inference_mode_serves_training() -> None:
    dit = _random(TINY_NANO)
    inputs = _inputs(TINY_NANO, SIZES[:1])
    with torch.inference_mode():
        dit(*inputs)
    dit(*inputs).square().mean().backward()
    missing = [name for name, parameter in dit.named_parameters() if parameter.grad is None]
    assert missing == []


@torch.no_grad()
def test_on_block_runs_before_each_block_and_can_stop_the_call() -> None:
    dit = _random(TINY_NANO)
    calls: list[int] = []

    def stop_at_third() -> None:
        calls.append(len(calls))
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dit(*_inputs(TINY_NANO, SIZES[:1]), stop_at_third)
    assert calls == [0, 1, 2]


@torch.no_grad()
def test_text_that_cannot_matter_is_not_computed_in_the_last_layer() -> None:
    dit = _random(TINY_7B)
    calls: list[object] = []
    last = dit.blocks[-1]
    for module in (last.mlp["txt"], last.attn.proj_out["txt"]):
        module.register_forward_hook(lambda *_: calls.append(1))
    dit(*_inputs(TINY_7B, SIZES[:1]))
    assert calls == []


def test_counts_that_disagree_with_the_shapes_are_refused() -> None:
    dit = DiT(TINY_NANO)
    video, text, timestep, shapes, lengths = _inputs(TINY_NANO, SIZES[:1])
    with pytest.raises(ValueError, match="latents and"):
        dit(video[:-1], text, timestep, shapes, lengths)


def test_the_nano_preset_builds_with_every_layer_shared() -> None:
    with torch.device("meta"):
        keys = DiT(NANO_DIT).state_dict().keys()
    assert "blocks.0.attn.proj_qkv.all.weight" in keys
    assert not any(".txt." in key or ".vid." in key for key in keys)

"""Plans of memory: what fits on which card, in which order things are given up, and what is predicted."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from torch import nn

from inference import catalogue, footprint
from inference.budget import ROOM, Budget, Need, candidates, free_host_memory, plan_budget, predict
from inference.checkpoint import CONFIGS
from inference.errors import DeviceMemoryError
from inference.footprint import LiveBytes, dit_footprint, dit_weights, vae_footprint, vae_weights
from inference.sizes import Size
from models.dit import DiTConfig
from models.gpu import FastVAE
from models.presets import NANO_DIT, NANO_VAE, SEEDVR2_3B, SEEDVR2_7B, VIDEO_VAE
from models.vae_memory import VAEMemory
from models.video_vae import VideoVAE

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
GIB = 2**30
CUDA_CONTEXT = 6e8
HD, FULL_HD, UHD = Size(1280, 720), Size(1920, 1088), Size(3840, 2160)
MODELS = {"3b": SEEDVR2_3B, "7b": SEEDVR2_7B}
PARKED = {"parks_states": True, "turn_latents": 96}
OFFLOADED = {**PARKED, "offloads_dit": True}
ON_HOST = {"parks_states": True, "offloads_dit": True, "states_on_host": True}


@pytest.fixture(autouse=True)
def host_gib(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the free main memory of the machine that is planned for."""

    def set_to(gib: float) -> None:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=int(gib * GIB)))
        monkeypatch.setattr(free_host_memory, "__defaults__", (Path("no container"),))

    set_to(128)
    return set_to


def need_of(size: Size, model: DiTConfig = SEEDVR2_3B, *, fp8: bool = False, is_image: bool = False) -> Need:
    return Need(dit=model, vae=VIDEO_VAE, dtype=torch.bfloat16, fp8=fp8, size=size, num_frames=1 if is_image else None)


def plan_on_card(gib: float, size: Size, model: DiTConfig = SEEDVR2_3B, **more: Any) -> Budget:
    return plan_budget(CUDA, need_of(size, model), memory=int(gib * GIB), **more)


def test_pieces_on_the_cpu_do_not_depend_on_the_picture_or_the_machine() -> None:
    small, large = (
        plan_budget(CPU, Need(dit=NANO_DIT, vae=NANO_VAE, dtype=torch.float32, size=size))
        for size in (Size(16, 16), Size(2000, 2000))
    )

    assert small == large == Budget(encode_frames=8, decode_latents=2, window_latents=9)


@pytest.mark.parametrize(
    ("model", "size", "gib", "expected"),
    [
        ("3b", HD, 11.1, Budget(4, 1, 13, 1, **OFFLOADED)),
        ("3b", HD, 22, Budget(8, 2, 25, 4, **PARKED)),
        ("3b", HD, 32, Budget(8, 2, 25, 8)),
        ("3b", HD, 41, Budget(16, 4, 25, 8)),
        ("3b", HD, 80, Budget(16, 4, 25, 16)),
        ("3b", FULL_HD, 32, Budget(4, 1, 25, 2, **PARKED)),
        ("3b", FULL_HD, 74, Budget(16, 4, 25, 8)),
        ("7b", FULL_HD, 40.9, Budget(4, 1, 25, 2, **PARKED)),
        ("3b", UHD, 41, Budget(4, 1, 17, 2, **ON_HOST)),
        ("7b", UHD, 41, Budget(4, 1, 9, 2, **ON_HOST)),
    ],
)
def test_a_card_gets_the_plan_that_costs_least(model: str, size: Size, gib: float, expected: Budget) -> None:
    plan = plan_on_card(gib, size, MODELS[model])

    assert plan == expected
    assert predict(plan, need_of(size, MODELS[model])).device <= gib * GIB * ROOM


def test_each_thing_that_is_given_up_makes_the_need_smaller() -> None:
    need, plans = need_of(HD), [Budget(8, 2, 25, 8)]
    steps: list[dict[str, Any]] = [
        {"max_frames": 4},
        {"encode_frames": 4, "decode_latents": 1},
        {"max_frames": 2},
        {"max_frames": 1},
        {"parks_states": True},
        {"offloads_dit": True},
        {"states_on_host": True},
    ]
    for step in steps:
        plans.append(replace(plans[-1], **step))
    decodes = [predict(plan, need).decode for plan in plans]
    shorter, longer = (predict(replace(plans[0], window_latents=count), need).denoise for count in (5, 25))

    assert decodes == sorted(set(decodes), reverse=True)
    assert shorter < longer
    hosts = [predict(plan, need).host for plan in plans]
    assert hosts[-1] >= hosts[-2] > hosts[-3] > hosts[-4] == pytest.approx(4 * 27 * 1280 * 720 * 3, rel=0.05)


def test_a_clip_that_is_known_to_be_short_needs_less() -> None:
    plan = Budget(16, 4, 25, 16)
    needs = [predict(plan, replace(need_of(HD), num_frames=frames)) for frames in (5, 21, 33, None)]
    encodes, decodes = ([need.encode for need in needs], [need.decode for need in needs])

    assert encodes[0] < encodes[1] < encodes[2] == pytest.approx(encodes[3], rel=1e-3)
    assert decodes[0] < decodes[1] < decodes[2] <= decodes[3]  # 33 frames are 9 latents, with a single one left over


@pytest.mark.parametrize("gib", [40.9, 44])
def test_at_full_hd_the_large_model_moves_nothing_on_an_l40(gib: float) -> None:
    plan = plan_on_card(gib, FULL_HD, SEEDVR2_7B)

    assert plan.moved(380) == ()
    assert plan.moved(381) == plan.moved() == ("the VAE's states between turns of 381 frames",)


def test_what_waits_for_its_turn_is_counted() -> None:
    need, short, long = need_of(HD), Budget(4, 1, 25, 2, **PARKED), Budget(4, 1, 25, 2, parks_states=True)
    latent = 16 * (1280 // 8) * (720 // 8)
    first, second = predict(short, need), predict(long, need)

    assert first.encode - second.encode == 95 * latent * 2
    assert first.denoise - second.denoise == 95 * latent * 6
    assert first.decode - second.decode == 95 * latent * 4
    assert first.host - second.host == 380 * 1280 * 720 * 3


def test_histories_need_main_memory_only_where_they_are_moved() -> None:
    plan, need = Budget(4, 1, 25, 2, **PARKED), need_of(FULL_HD)
    short, long = (predict(plan, replace(need, clip_frames=frames)).host for frames in (380, 381))
    small, large = (predict(plan, replace(need, source=size)).host for size in (HD, UHD))

    assert short == 381 * 3 * 1920 * 1088
    assert long > short + 20 * GIB
    assert large - small == 485 * 3 * (3840 * 2160 - 1280 * 720)  # of a turn, a window and a slice


def test_with_little_main_memory_turns_are_short_and_windows_as_long(host_gib: Any) -> None:
    plans = []
    for gib in (24.3, 25, 26, 27, 28):
        host_gib(gib)
        plans.append(plan_on_card(32, FULL_HD))

    assert plans == [Budget(4, 1, 25, 2, parks_states=True)] * 3 + [Budget(4, 1, 25, 2, **PARKED)] * 2
    host_gib(25)
    need = replace(need_of(FULL_HD), source=Size(960, 540))
    assert plan_budget(CUDA, need, memory=32 * GIB) == Budget(4, 1, 25, 2, **PARKED)


def test_a_plan_that_moves_nothing_is_not_refused_for_main_memory(host_gib: Any) -> None:
    host_gib(0.1)

    assert plan_on_card(80, HD) == Budget(16, 4, 25, 16)
    with pytest.raises(DeviceMemoryError, match=r"only with 24 GiB of main memory .* 0 GiB are free"):
        plan_on_card(32, FULL_HD)


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
def test_weights_take_little_more_main_memory_than_they_are(fp8: bool) -> None:
    weights = dit_weights(SEEDVR2_7B, torch.bfloat16, fp8)

    assert weights.device < weights.host < weights.device + 1.5 * GIB


def test_a_larger_card_never_gets_a_shorter_window_with_states_on_the_device() -> None:
    plans = [plan_on_card(gib, HD) for gib in (11, 12, 16, 20, 24, 32, 48, 80)]
    windows = [plan.window_latents for plan in plans if not plan.states_on_host]

    assert windows == sorted(windows)
    assert len(set(windows)) > 1


def test_a_footprint_grows_with_the_picture() -> None:
    small, large = (
        vae_footprint(VIDEO_VAE, size.width, size.height, torch.bfloat16, 4, 1, VAEMemory(1))
        for size in (Size(640, 368), Size(1280, 736))
    )

    assert large.decode_state == pytest.approx(4 * small.decode_state, rel=0.02)
    assert large.encode_peak == pytest.approx(4 * small.encode_peak, rel=0.02)


def test_states_on_the_host_take_no_device_memory_between_slices() -> None:
    there, away = (
        vae_footprint(VIDEO_VAE, 640, 368, torch.bfloat16, 4, 1, VAEMemory(2, states_on_host=on_host))
        for on_host in (False, True)
    )

    assert away.decode_state < 0.01 * there.decode_state
    assert away.decode_histories == there.decode_histories == pytest.approx(1.12 * there.decode_state, rel=0.02)


def test_a_history_that_is_brought_back_takes_device_memory() -> None:
    there, away = (
        vae_footprint(VIDEO_VAE, 640, 368, torch.bfloat16, 4, 1, VAEMemory(2, states_on_host=on_host))
        for on_host in (False, True)
    )
    largest = 2 * 640 * 368 * 256 * torch.bfloat16.itemsize

    assert away.decode_peak == pytest.approx(there.decode_peak - there.decode_state + largest, rel=0.1)


def test_weights_include_what_the_fast_form_keeps() -> None:
    vae = VideoVAE(NANO_VAE)
    with LiveBytes() as live:
        fast = FastVAE(vae.encoder, vae.decoder)
    plain = sum(weight.nbytes for weight in vae.parameters())

    assert fast is not None
    assert plain < vae_weights(NANO_VAE, torch.float32) <= plain + live.now


@pytest.mark.parametrize("model", [SEEDVR2_3B, SEEDVR2_7B], ids=["3b", "7b"])
def test_in_fp8_weights_take_half_and_a_window_takes_less(model: DiTConfig) -> None:
    half, eighth = (dit_weights(model, torch.bfloat16, fp8) for fp8 in (False, True))
    wide, narrow = (dit_footprint(model, 6, 1280, 720, torch.bfloat16, fp8) for fp8 in (False, True))

    assert 0.5 < eighth.device / half.device < 0.52  # and a scale for each channel; embeddings and modulation stay
    assert 0.75 < narrow / wide < 0.95
    plan = Budget(4, 1, 25, 1, **PARKED)
    ways = [predict(plan, need_of(HD, model, fp8=fp8)).decode for fp8 in (False, True)]
    assert ways[0] - ways[1] == half.device - eighth.device


def test_the_transformers_footprint_is_that_of_its_widest_moment() -> None:
    tokens, width, hidden = 6 * 45 * 80, SEEDVR2_3B.width, SEEDVR2_3B.mlp_width
    residual_and_normed, in_work = 3 * tokens * width * 2, 3 * tokens * hidden * 2

    assert dit_footprint(SEEDVR2_3B, 6, 1280, 720, torch.bfloat16) == pytest.approx(
        residual_and_normed + in_work, rel=0.1
    )


def test_few_blocks_take_the_memory_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    model = replace(SEEDVR2_3B, num_layers=12, num_separate_layers=5)
    few = dit_footprint(model, 3, 320, 176, torch.bfloat16)
    monkeypatch.setattr(footprint, "_BLOCKS_OF_A_KIND", 99)
    footprint._meta_dit.cache_clear()
    dit_footprint.cache_clear()

    assert footprint._meta_dit(model, torch.bfloat16, fp8=False).config.num_layers > 12
    assert dit_footprint(model, 3, 320, 176, torch.bfloat16) == few


def test_views_of_what_was_there_before_are_not_counted() -> None:
    layer, x = nn.Linear(300, 200, device="meta"), torch.empty(5, 300, device="meta")
    with LiveBytes() as live, torch.no_grad():
        y = layer(x)

    assert live.now == y.nbytes


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
@pytest.mark.parametrize("entry", [catalogue.SEEDVR2_3B, catalogue.SEEDVR2_7B], ids=lambda entry: entry.name)
def test_auto_takes_a_model_from_the_memory_on_that_its_plan_needs(entry: catalogue.ModelEntry, fp8: bool) -> None:
    need = need_of(HD, CONFIGS[entry.name][0], fp8=fp8)
    may_move_weights = entry is catalogue.SEEDVR2_3B
    plans = [plan for plan in candidates() if may_move_weights or not plan.offloads_dit]
    least = min(predict(plan, need).device for plan in plans) / ROOM + CUDA_CONTEXT
    limit = entry.min_cuda_bytes_fp8 if fp8 else entry.min_cuda_bytes

    assert limit is not None
    assert 0.8 * limit < least <= limit


def test_a_size_that_no_plan_makes_fit_is_refused_with_what_to_change() -> None:
    with pytest.raises(DeviceMemoryError, match=r"3840x2160 need 2\d\.\d GiB .* 12\.0 GiB .*restore\.resolution"):
        plan_on_card(12, UHD)
    with pytest.raises(DeviceMemoryError, match=r"restore\.window"):
        plan_on_card(30, UHD, window_latents=101)


def test_what_is_moved_needs_main_memory(host_gib: Any) -> None:
    host_gib(32)

    with pytest.raises(DeviceMemoryError, match="101 GiB of main memory"):
        plan_on_card(41, UHD)


def test_the_limit_of_a_container_counts(tmp_path: Path, host_gib: Any) -> None:
    host_gib(64)
    assert free_host_memory(tmp_path) == 64 * GIB
    (tmp_path / "memory.current").write_text(f"{10 * GIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon {6 * GIB}\ninactive_file {4 * GIB}\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert free_host_memory(tmp_path) == 64 * GIB
    (tmp_path / "memory.max").write_text(f"{16 * GIB}\n")

    assert free_host_memory(tmp_path) == 10 * GIB


def test_a_window_that_the_user_chose_is_used() -> None:
    nano = Need(dit=NANO_DIT, vae=NANO_VAE, dtype=torch.float32, size=Size(640, 368))

    assert [plan_budget(device, nano, 3, memory=8 * GIB).window_latents for device in (CPU, CUDA)] == [3, 3]


@pytest.mark.parametrize(("gib", "model"), [(22.5, SEEDVR2_3B), (22.5, SEEDVR2_7B), (44, SEEDVR2_7B)])
def test_a_still_image_needs_no_state_and_little_main_memory(gib: float, model: DiTConfig, host_gib: Any) -> None:
    still, video = need_of(UHD, model, is_image=True), need_of(UHD, model)
    host_gib(20)
    plan = plan_budget(CUDA, still, memory=int(gib * GIB))

    assert (plan.window_latents, plan.is_image, plan.states_on_host) == (1, True, False)
    assert predict(plan, still).device <= gib * GIB * ROOM
    with pytest.raises(DeviceMemoryError, match="main memory|device memory"):
        plan_budget(CUDA, video, memory=int(gib * GIB))


@pytest.mark.parametrize(("gib", "size"), [(22, HD), (41, UHD)])
def test_the_next_plan_needs_less_than_the_one_that_failed(gib: float, size: Size) -> None:
    need, plan = need_of(size), plan_on_card(gib, size)
    stored = replace(plan, window_latents=plan.window_latents + 1)  # of a work folder; not one of today's plans

    for failed in (plan, stored):
        smaller = plan_on_card(gib, size, after=failed)
        assert predict(smaller, need).device <= 0.9 * predict(failed, need).device


def test_there_is_no_plan_after_the_last_one() -> None:
    with pytest.raises(DeviceMemoryError, match=r"no plan for 1280x720 needs less.*restore\.resolution"):
        plan_on_card(80, HD, after=list(candidates())[-1])


def test_a_budget_of_an_older_version_is_read() -> None:
    stored = {"encode_frames": 4, "decode_latents": 1, "window_latents": 9, "max_frames": 2}

    assert Budget(**stored) == Budget(4, 1, 9, 2)
    assert Budget(**json.loads(json.dumps(asdict(Budget(4, 1, 9, 2, **ON_HOST))))) == Budget(4, 1, 9, 2, **ON_HOST)

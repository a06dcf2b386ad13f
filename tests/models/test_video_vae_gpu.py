"""The fast form for GPUs, run on the CPU in float64 with its plain steps: equal to the plain form, in slices too."""

from __future__ import annotations

import pytest
import torch

from models import gpu, gpu_conv
from models.gpu import FastVAE
from models.vae_memory import VAEMemory, move_to_host, to_host
from models.video_vae import VAEConfig, VAEState, VideoVAE
from tests.models.vae_models import GROUPED, ONE_GROUP, make_vae, random_tensor


def make_fast(vae: VideoVAE) -> FastVAE:
    return FastVAE(vae.encoder, vae.decoder)


@pytest.mark.parametrize("config", [GROUPED, ONE_GROUP])
@pytest.mark.parametrize("max_frames", [None, 1, 2, 3])
@pytest.mark.parametrize("states_on_host", [False, True])
@pytest.mark.parametrize("lengths", [[1], [5], [13], [5, 4, 4], [1, 4, 8], [9, 4]])
def test_encode_equals_the_plain_form_in_every_slice(
    config: VAEConfig, lengths: list[int], max_frames: int | None, states_on_host: bool
) -> None:
    vae = make_vae(config)
    fast, state, parts = make_fast(vae), None, []
    video = random_tensor(1, 3, sum(lengths), 32, 48)
    for part in video.split(lengths, dim=2):
        moments, state = fast.encode(part, state, None, VAEMemory(max_frames, states_on_host))
        parts.append(moments)
    plain, _ = vae.encode(video)

    mean = torch.cat(parts, dim=2).chunk(2, dim=1)[0]
    torch.testing.assert_close(mean, plain.mean, rtol=0, atol=1e-12)


@pytest.mark.parametrize("config", [GROUPED, ONE_GROUP])
@pytest.mark.parametrize("max_frames", [None, 1, 2, 3])
@pytest.mark.parametrize("states_on_host", [False, True])
@pytest.mark.parametrize("lengths", [[1], [2], [4], [1, 1, 1, 1], [2, 1, 1], [1, 3], [1, 2, 2]])
def test_decode_equals_the_plain_form_in_every_slice(
    config: VAEConfig, lengths: list[int], max_frames: int | None, states_on_host: bool
) -> None:
    vae = make_vae(config)
    fast, state, parts = make_fast(vae), None, []
    latent = random_tensor(1, config.latent_channels, sum(lengths), 4, 6)
    for part in latent.split(lengths, dim=2):
        video, state = fast.decode(part, state, None, VAEMemory(max_frames, states_on_host))
        parts.append(video)
    plain, _ = vae.decode(latent)

    torch.testing.assert_close(torch.cat(parts, dim=2), plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("config", [GROUPED, ONE_GROUP])
@pytest.mark.parametrize("states_on_host", [False, True])
@pytest.mark.parametrize("max_frames", [None, 2, 3])
@pytest.mark.parametrize("lengths", [[1, 1], [4], [2, 1, 1], [1, 3], [3, 2]])
def test_pairs_of_frames_by_minimal_filtering_equal_the_plain_form(
    monkeypatch: pytest.MonkeyPatch,
    lengths: list[int],
    max_frames: int | None,
    states_on_host: bool,
    config: VAEConfig,
) -> None:
    monkeypatch.setattr(gpu_conv, "PAIRED_CHANNELS", 1)
    vae, way = make_vae(config), VAEMemory(max_frames, states_on_host)
    fast, encoding, decoding, made = make_fast(vae), None, None, ([], [])  # type: ignore[var-annotated]
    video, latent = (
        random_tensor(1, 3, 4 * sum(lengths) - 3, 32, 48),
        random_tensor(1, config.latent_channels, sum(lengths), 4, 6),
    )
    frames = [4 * lengths[0] - 3, *(4 * length for length in lengths[1:])]
    for part, piece in zip(video.split(frames, dim=2), latent.split(lengths, dim=2), strict=True):
        moments, encoding = fast.encode(part, encoding, None, way)
        pictures, decoding = fast.decode(piece, decoding, None, way)
        made[0].append(moments)
        made[1].append(pictures)

    mean = torch.cat(made[0], dim=2).chunk(2, dim=1)[0]
    torch.testing.assert_close(mean, vae.encode(video)[0].mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.cat(made[1], dim=2), vae.decode(latent)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("max_frames", [None, 1])
def test_a_clip_of_one_slice_needs_no_state(max_frames: int | None) -> None:
    vae, way = make_vae(), VAEMemory(max_frames, keeps_states=False)
    fast, video, latent = make_fast(vae), random_tensor(1, 3, 1, 32, 48), random_tensor(1, 4, 1, 4, 6)

    moments, encoding = fast.encode(video, None, None, way)
    pictures, decoding = fast.decode(latent, None, None, way)

    assert (encoding.histories, decoding.histories) == ([], [])
    torch.testing.assert_close(moments.chunk(2, dim=1)[0], vae.encode(video)[0].mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(pictures, vae.decode(latent)[0], rtol=0, atol=1e-12)


def test_long_slices_and_many_scores_are_computed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = make_vae()
    video = random_tensor(1, 3, 9, 128, 112)
    whole, _ = make_fast(vae).encode(video, None, None)
    monkeypatch.setattr(gpu_conv, "MAX_ELEMENTS", 4 * 128 * 112 * 8)
    monkeypatch.setattr(gpu, "SCORE_BYTES", 4 * 14 * 16 * 128)
    pieces, _ = make_fast(vae).encode(video, None, None)

    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("strip_elements", [1, 2**13, 2**15])
def test_frames_too_large_for_a_convolution_are_computed_in_strips_of_rows(
    monkeypatch: pytest.MonkeyPatch, strip_elements: int
) -> None:
    vae = make_vae()
    video, latent = random_tensor(1, 3, 5, 64, 48), random_tensor(1, 4, 2, 8, 6)
    whole = make_fast(vae).encode(video, None, None)[0], make_fast(vae).decode(latent, None, None)[0]
    monkeypatch.setattr(gpu_conv, "MAX_ELEMENTS", 2 * 32 * 24 * 8)  # two frames of the second stage
    monkeypatch.setattr(gpu_conv, "STRIP_ELEMENTS", strip_elements)
    strips = make_fast(vae).encode(video, None, None)[0], make_fast(vae).decode(latent, None, None)[0]

    torch.testing.assert_close(strips, whole, rtol=0, atol=1e-12)


def test_ways_to_save_memory_may_change_from_slice_to_slice() -> None:
    vae = make_vae()
    fast, state, parts = make_fast(vae), None, []
    latent = random_tensor(1, 4, 6, 4, 6)
    ways = [VAEMemory(), VAEMemory(1), VAEMemory(None, states_on_host=True), VAEMemory(2, states_on_host=True)] * 2
    for part, way in zip(latent.split(1, dim=2), ways, strict=False):
        video, state = fast.decode(part, state, None, way)
        move_to_host(state.histories)
        parts.append(video)

    torch.testing.assert_close(torch.cat(parts, dim=2), vae.decode(latent)[0], rtol=0, atol=1e-12)


def test_a_history_on_the_host_goes_back_into_the_memory_it_came_from() -> None:
    fast, way = make_fast(make_vae()), VAEMemory(1, states_on_host=True)
    _, state = fast.encode(random_tensor(1, 3, 5, 32, 32), None, None, way)
    before = [history.data_ptr() for history in state.histories]
    _, state = fast.encode(random_tensor(1, 3, 4, 32, 32), state, None, way)

    assert [history.data_ptr() for history in state.histories] == before
    assert to_host(torch.ones(2), torch.empty(3)).tolist() == [1, 1]  # of another shape: a new one


def test_a_state_is_used_up_and_a_foreign_one_is_refused() -> None:
    fast = make_fast(make_vae())
    _, state = fast.encode(random_tensor(1, 3, 5, 32, 32), None, None)
    other = VAEState(list(state.histories), state.num_frames)
    fast.encode(random_tensor(1, 3, 4, 32, 32), state, None)

    assert state.histories == []
    with pytest.raises(ValueError, match="another model"):
        fast.encode(random_tensor(1, 3, 4, 32, 32), state, None)
    with pytest.raises(ValueError, match="another model"):
        fast.encode(random_tensor(1, 3, 4, 32, 48), other, None)


def test_one_clip_at_a_time() -> None:
    fast = make_fast(make_vae())
    with pytest.raises(ValueError, match="one clip at a time, not 2"):
        fast.decode(random_tensor(2, 4, 1, 4, 4), None, None)


def test_a_step_may_give_the_pass_up() -> None:
    class StopError(Exception):
        pass

    def stop() -> None:
        raise StopError

    with pytest.raises(StopError):
        make_fast(make_vae()).encode(random_tensor(1, 3, 1, 32, 32), None, stop)

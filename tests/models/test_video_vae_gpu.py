"""The fast form for GPUs, run on the CPU in float64 with its plain steps: equal to the plain form, in slices too."""

from __future__ import annotations

import pytest
import torch

from models import gpu
from models.gpu import FastVAE
from models.video_vae import VAEConfig, VAEState, VideoVAE
from tests.models.vae_models import GROUPED, ONE_GROUP, make_vae, random_tensor


def make_fast(vae: VideoVAE) -> FastVAE:
    return FastVAE(vae.encoder, vae.decoder)


@pytest.mark.parametrize("config", [GROUPED, ONE_GROUP])
@pytest.mark.parametrize("lengths", [[1], [5], [13], [5, 4, 4], [1, 4, 8], [9, 4]])
def test_encode_equals_the_plain_form_in_every_slice(config: VAEConfig, lengths: list[int]) -> None:
    vae = make_vae(config)
    fast, state, parts = make_fast(vae), None, []
    video = random_tensor(1, 3, sum(lengths), 32, 48)
    for part in video.split(lengths, dim=2):
        moments, state = fast.encode(part, state, None)
        parts.append(moments)
    plain, _ = vae.encode(video)

    mean = torch.cat(parts, dim=2).chunk(2, dim=1)[0]
    torch.testing.assert_close(mean, plain.mean, rtol=0, atol=1e-12)


@pytest.mark.parametrize("config", [GROUPED, ONE_GROUP])
@pytest.mark.parametrize("max_frames", [None, 1, 3])
@pytest.mark.parametrize("lengths", [[1], [2], [4], [1, 1, 1, 1], [2, 1, 1], [1, 3], [1, 2, 2]])
def test_decode_equals_the_plain_form_in_every_slice(
    config: VAEConfig, lengths: list[int], max_frames: int | None
) -> None:
    vae = make_vae(config)
    fast, state, parts = make_fast(vae), None, []
    latent = random_tensor(1, config.latent_channels, sum(lengths), 4, 6)
    for part in latent.split(lengths, dim=2):
        video, state = fast.decode(part, state, None, max_frames)
        parts.append(video)
    plain, _ = vae.decode(latent)

    torch.testing.assert_close(torch.cat(parts, dim=2), plain, rtol=0, atol=1e-12)


def test_long_slices_and_many_scores_are_computed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = make_vae()
    video = random_tensor(1, 3, 9, 128, 112)
    whole, _ = make_fast(vae).encode(video, None, None)
    monkeypatch.setattr(gpu, "MAX_ELEMENTS", 4 * 128 * 112 * 8)
    monkeypatch.setattr(gpu, "SCORE_BYTES", 4 * 14 * 16 * 128)
    pieces, _ = make_fast(vae).encode(video, None, None)

    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-12)


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

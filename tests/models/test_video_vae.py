"""The plain video VAE: keys of the checkpoint, causality, slices, state, errors, gradients."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from models.video_vae import Posterior, VAEConfig, VideoVAE, attend, rename_legacy_keys
from tests.models.vae_models import decode_slices, encode_slices, make_vae, random_tensor


def test_keys_and_shapes_equal_the_released_checkpoint(shared: Path) -> None:
    manifest = json.loads((shared / "spec" / "vae_state.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        vae = VideoVAE(VAEConfig())
    assert {key: list(tensor.shape) for key, tensor in vae.state_dict().items()} == manifest


def test_a_meta_model_takes_a_state_dict_strictly_by_assignment() -> None:
    source = make_vae()
    with torch.device("meta"):
        vae = VideoVAE(source.config)
    vae.load_state_dict(source.state_dict(), strict=True, assign=True)
    latent = random_tensor(1, 4, 1, 2, 2)
    assert torch.equal(vae.decode(latent)[0], source.decode(latent)[0])


def test_fast_forms_add_nothing_to_the_state_dict() -> None:
    assert make_vae(fast=True).state_dict().keys() == make_vae().state_dict().keys()


def test_older_attention_names_are_renamed_to_the_present_ones() -> None:
    state = make_vae().state_dict()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    legacy = {}
    for key, tensor in state.items():
        for new, name in old.items():
            key = key.replace(f".{new}.", f".{name}.")
        legacy[key] = tensor
    assert sum(key not in state for key in legacy) == 16
    assert rename_legacy_keys(legacy).keys() == state.keys()


def test_a_prefix_of_a_clip_encodes_to_the_prefix_of_its_latent() -> None:
    vae, video = make_vae(), random_tensor(1, 3, 9, 16, 16)
    whole = vae.encode(video)[0].mean
    torch.testing.assert_close(vae.encode(video[:, :, :5])[0].mean, whole[:, :, :2], rtol=0, atol=1e-12)


def test_a_prefix_of_a_latent_decodes_to_the_prefix_of_its_video() -> None:
    vae, latent = make_vae(), random_tensor(1, 4, 3, 2, 2)
    whole = vae.decode(latent)[0]
    assert whole.shape == (1, 3, 9, 16, 16)
    torch.testing.assert_close(vae.decode(latent[:, :, :2])[0], whole[:, :, :5], rtol=0, atol=1e-12)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("lengths", [[1, 4, 8, 4], [5, 12], [9, 8]])
def test_encoding_in_slices_equals_the_whole(fast: bool, lengths: list[int]) -> None:
    vae, video = make_vae(fast=fast), random_tensor(2, 3, 17, 16, 24)
    whole = make_vae().encode(video)[0].mean
    torch.testing.assert_close(encode_slices(vae, video, lengths)[0], whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("lengths", [[1, 1, 1, 2], [2, 3], [1, 4], [3, 2]])
def test_decoding_in_slices_equals_the_whole(fast: bool, lengths: list[int]) -> None:
    vae, latent = make_vae(fast=fast), random_tensor(2, 4, 5, 2, 3)
    whole = make_vae().decode(latent)[0]
    torch.testing.assert_close(decode_slices(vae, latent, lengths)[0], whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("fast", [False, True])
def test_the_state_owns_its_memory_and_does_not_grow(fast: bool) -> None:
    vae, video = make_vae(fast=fast), random_tensor(1, 3, 13, 16, 16)
    sizes = []
    for lengths in ([5], [5, 8]):
        _, state = encode_slices(vae, video[:, :, : sum(lengths)], lengths)
        assert state is not None
        for history in state.histories:
            assert history.untyped_storage().nbytes() == history.numel() * history.element_size()
        sizes.append(sum(history.numel() for history in state.histories))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("fast", [False, True])
def test_running_on_leaves_an_earlier_state_usable(fast: bool) -> None:
    vae, latent = make_vae(fast=fast), random_tensor(1, 4, 4, 2, 2)
    _, state = vae.decode(latent[:, :, :2])
    first, _ = vae.decode(latent[:, :, 2:], state)
    again, _ = vae.decode(latent[:, :, 2:], state)
    assert torch.equal(first, again)


@pytest.mark.parametrize("fast", [False, True])
def test_the_input_may_be_overwritten_between_slices(fast: bool) -> None:
    vae, video = make_vae(fast=fast), random_tensor(1, 3, 9, 16, 16)
    whole = vae.encode(video)[0].mean
    buffer = video[:, :, :5].clone()
    _, state = vae.encode(buffer)
    buffer.zero_()
    torch.testing.assert_close(vae.encode(video[:, :, 5:], state)[0].mean, whole[:, :, 2:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_frames", [2, 3, 4, 8])
def test_a_first_slice_of_another_length_than_4k_plus_1_is_refused(num_frames: int) -> None:
    with pytest.raises(ValueError, match="first slice"):
        make_vae().encode(random_tensor(1, 3, num_frames, 16, 16))


@pytest.mark.parametrize("num_frames", [0, 1, 5, 6])
def test_a_later_slice_of_no_multiple_of_4_is_refused(num_frames: int) -> None:
    vae = make_vae()
    _, state = vae.encode(random_tensor(1, 3, 1, 16, 16))
    with pytest.raises(ValueError, match="later slice"):
        vae.encode(random_tensor(1, 3, num_frames, 16, 16), state)


@pytest.mark.parametrize("fast", [False, True])
def test_a_state_of_the_other_direction_is_refused(fast: bool) -> None:
    vae = make_vae(fast=fast)
    _, state = vae.encode(random_tensor(1, 3, 1, 16, 16))
    with pytest.raises(ValueError, match="streaming state"):
        vae.decode(random_tensor(1, 4, 1, 2, 2), state)


def test_the_log_variance_is_clamped_and_the_sample_follows_it() -> None:
    moments = torch.tensor([1.0, 2.0, -99.0, 99.0]).view(1, 4, 1, 1, 1)
    posterior = Posterior.from_moments(moments)
    assert posterior.logvar.flatten().tolist() == [-30.0, 20.0]
    sample = posterior.sample(torch.full((1, 2, 1, 1, 1), 2.0))
    torch.testing.assert_close(sample[0, 1, 0, 0, 0], 2 + 2 * torch.tensor(10.0).exp())


def test_attention_in_query_chunks_equals_attention_at_once() -> None:
    q, k, v = (random_tensor(2, 1, 30, 8, seed=seed) for seed in (1, 2, 3))
    torch.testing.assert_close(attend(q, k, v, max_scores=2 * 30 * 7), attend(q, k, v), rtol=0, atol=1e-12)


def test_gradients_of_a_batch_flow_through_encode_and_decode() -> None:
    vae = make_vae().requires_grad_(True)
    posterior, _ = vae.encode(random_tensor(2, 3, 5, 16, 16))
    video, _ = vae.decode(posterior.sample(random_tensor(*posterior.mean.shape)))
    video.square().mean().backward()
    assert [name for name, parameter in vae.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("fast", [False, True])
def test_histories_depend_on_no_frame_before_the_past_that_is_stated(fast: bool) -> None:
    vae = make_vae(fast=fast)
    past, slices = vae.encoder_past, [5, *[8] * 28]
    video = random_tensor(1, 3, sum(slices), 8, 8)
    _, before = encode_slices(vae, video, slices)

    def is_the_same_without(frame: int) -> bool:
        changed = video.clone()
        changed[:, :, frame] += 1
        _, after = encode_slices(vae, changed, slices)
        assert before is not None
        assert after is not None
        return all(map(torch.equal, before.histories, after.histories))

    assert is_the_same_without(sum(slices) - 1 - past - 1)
    assert not is_the_same_without(sum(slices) - 1 - make_vae().encoder_past + 8)


@pytest.mark.parametrize("fast", [False, True])
def test_histories_depend_on_no_latent_before_the_past_that_is_stated(fast: bool) -> None:
    vae = make_vae(fast=fast)
    past, slices = vae.decoder_past, [3, *[2] * 38]
    latent = random_tensor(1, 4, sum(slices), 1, 1)
    _, before = decode_slices(vae, latent, slices)

    def is_the_same_without(frame: int) -> bool:
        changed = latent.clone()
        changed[:, :, frame] += 1
        _, after = decode_slices(vae, changed, slices)
        assert before is not None
        assert after is not None
        return all(map(torch.equal, before.histories, after.histories))

    assert is_the_same_without(sum(slices) - 1 - past - 1)
    assert not is_the_same_without(sum(slices) - 1 - make_vae().decoder_past + 2)

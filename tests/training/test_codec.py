"""The closed-form start: what is written into the networks computes what was fitted."""

import pytest
import torch

from models.dit import DiT, DiTConfig, Mlp, Rope
from models.presets import NANO_VAE
from models.video_vae import VAEConfig, VideoVAE
from training.codec import Codec, CodecDecoder, fit_codec, read_codec, write_codec
from training.nano import LatentRestorer, start_as_identity

CONFIG = VAEConfig(widths=(16, 20, 24, 32), num_blocks=1, num_groups=1, latent_channels=24)


def _video(seed: int) -> torch.Tensor:
    small = torch.randn(1, 3, 3, 3, 4, generator=torch.Generator().manual_seed(seed)) * 0.4
    return torch.nn.functional.interpolate(small, size=(9, 48, 64), mode="trilinear")


@pytest.fixture(scope="module")
def codec() -> Codec:
    return fit_codec([_video(1), _video(2)], CONFIG)


@pytest.fixture
def decoder(codec: Codec) -> CodecDecoder:
    """A decoder all of whose parts do something."""
    torch.manual_seed(0)
    decoder = CodecDecoder(codec, CONFIG)
    torch.nn.init.normal_(decoder.conv_in.bias, std=0.1)
    for refine in (*decoder.refine_latents, *decoder.refine_parts, *decoder.refine_groups):
        torch.nn.init.normal_(refine.conv2.weight, std=0.1)
        for shift in refine.shifts:
            torch.nn.init.normal_(shift, std=0.2)
    torch.nn.init.normal_(decoder.bias, std=0.1)
    return decoder


@torch.no_grad()
def test_the_codec_gives_back_the_smooth_video_that_it_was_fitted_to(codec: Codec) -> None:
    video = _video(1)
    error = CodecDecoder(codec, CONFIG)(codec(video)) - video
    assert error.square().mean() < 0.01 * video.square().mean()


@torch.no_grad()
def test_latents_have_unit_variance(codec: Codec) -> None:
    latents = torch.cat([codec(_video(seed)).flatten(2) for seed in (1, 2)], dim=2)
    assert torch.allclose(latents.square().mean((0, 2)), torch.ones(24), rtol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_autoencoder_computes_what_codec_and_decoder_compute(
    codec: Codec, decoder: CodecDecoder, dtype: torch.dtype
) -> None:
    vae = VideoVAE(CONFIG)
    write_codec(vae, codec, decoder)
    vae.to(dtype).float()  # as the weights are stored
    video = _video(3)
    posterior, _ = vae.encode(video)
    latent = codec(video)
    decoded, _ = vae.decode(latent)
    assert (posterior.mean - latent).square().mean().sqrt() < 1e-2
    assert posterior.std.max() < 1e-6
    assert (decoded - decoder(latent)).square().mean().sqrt() < 5e-3


@torch.no_grad()
def test_what_was_written_into_an_autoencoder_is_read_back(codec: Codec, decoder: CodecDecoder) -> None:
    vae = VideoVAE(CONFIG)
    write_codec(vae, codec, decoder)
    other = fit_codec([_video(4), _video(5)], CONFIG)
    fresh = CodecDecoder(other, CONFIG)
    read_codec(vae, other, fresh)
    video = _video(3)
    latent = codec(video)
    assert (other(video) - latent).abs().max() < 1e-4
    assert (fresh(latent) - decoder(latent)).abs().max() < 1e-3


@torch.no_grad()
def test_every_direction_of_the_decoder_can_learn() -> None:
    config = VAEConfig(widths=(16, 24, 96, 104), num_blocks=1, num_groups=1, latent_channels=96)
    big = fit_codec([torch.randn(1, 3, 9, 48, 64, generator=torch.Generator().manual_seed(1))], config)
    assert CodecDecoder(big, config).groups.abs().sum(0).min() > 0


def test_the_fast_form_leaves_idle_weights_out_and_computes_the_same(codec: Codec, decoder: CodecDecoder) -> None:
    plain, fast = VideoVAE(CONFIG), VideoVAE(CONFIG)
    write_codec(plain, codec, decoder)
    fast.load_state_dict(plain.state_dict())
    fast.prepare_for_inference()
    video = _video(3)
    with torch.inference_mode():
        expected = plain.encode(video)[0].mean
        first, state = fast.encode(video[:, :, :5])
        second, _ = fast.encode(video[:, :, 5:], state)
        assert (torch.cat([first.mean, second.mean], dim=2) - expected).abs().max() < 5e-3
        wanted = plain.decode(expected)[0]
        start, state = fast.decode(expected[:, :, :1])
        rest, _ = fast.decode(expected[:, :, 1:], state)
        assert (torch.cat([start, rest], dim=2) - wanted).abs().max() < 2e-3


def test_widths_that_cannot_hold_the_codec_are_refused() -> None:
    with pytest.raises(ValueError, match="latent_channels"):
        fit_codec([_video(1)], VAEConfig(widths=(16, 20, 24, 32), latent_channels=16))


def test_the_embedded_size_can_hold_the_codec() -> None:
    assert NANO_VAE.latent_channels == NANO_VAE.widths[2] < NANO_VAE.widths[3]


def test_the_transformer_starts_as_the_identity() -> None:
    config = DiTConfig(
        width=48, text_width=8, num_layers=2, num_heads=2, head_dim=16, latent_channels=8, mlp=Mlp.GELU, mlp_ratio=1,
        rope=Rope.PIXEL, num_separate_layers=0, last_layer_video_only=False, output_modulation=False,
    )  # fmt: skip
    restorer = LatentRestorer(config)
    start_as_identity(restorer.dit, torch.ones(8))
    latent = torch.randn(2, 8, 2, 4, 6)
    with torch.no_grad():
        assert (restorer(latent) - latent).abs().max() < 1e-5


def test_a_width_that_cannot_carry_a_patch_is_refused() -> None:
    config = DiTConfig(
        width=24, text_width=8, num_layers=1, num_heads=1, head_dim=16, latent_channels=8, mlp=Mlp.GELU, mlp_ratio=1,
        rope=Rope.PIXEL, num_separate_layers=0, last_layer_video_only=False, output_modulation=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match="does not hold"):
        start_as_identity(DiT(config), torch.ones(8))

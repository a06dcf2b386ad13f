"""Networks from files: strict, complete, cast once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from inference import checkpoint
from inference.catalogue import NANO, SEEDVR2_3B, SEEDVR2_7B, Part, WeightFile
from inference.checkpoint import TEXT_KEY, load_dit, load_models, load_text, load_vae
from inference.errors import CheckpointError, SettingsError
from models.dit import DiT, DiTConfig
from models.video_vae import VideoVAE
from tests.inference.checkpoints import TINY_3B, TINY_7B, TINY_NANO, TINY_VAE, dit_state, save, vae_state


@pytest.mark.parametrize(("config", "manifest"), [(TINY_3B, "dit_3b"), (TINY_7B, "dit_7b")])
def test_synthetic_transformers_have_every_released_key(config: DiTConfig, manifest: str, shared: Path) -> None:
    released = json.loads((shared / f"spec/{manifest}_state.json").read_text())
    assert set(dit_state(config)) == set(released)


def test_the_synthetic_vae_has_every_released_key(shared: Path) -> None:
    assert set(vae_state()) == set(json.loads((shared / "spec/vae_state.json").read_text()))


@pytest.mark.parametrize("config", [TINY_3B, TINY_7B], ids=["3b", "7b"])
@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_a_transformer_gets_the_values_of_its_file(config: DiTConfig, name: str, tmp_path: Path) -> None:
    state = dit_state(config)
    loaded = load_dit(save(state, tmp_path / name), config).state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state if not key.endswith("rope.freqs"))


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_a_vae_gets_the_values_of_its_file(name: str, tmp_path: Path) -> None:
    state = vae_state()
    loaded = load_vae(save(state, tmp_path / name), TINY_VAE).state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_a_float16_file_loads_as_the_float32_file_it_was_made_from(tmp_path: Path) -> None:
    path = save(dit_state(TINY_3B, torch.float16), tmp_path / "x.safetensors")
    loaded, state = load_dit(path, TINY_3B).state_dict(), dit_state(TINY_3B)
    assert all(torch.equal(loaded[key], state[key]) for key in state if not key.endswith("rope.freqs"))


def test_every_weight_is_cast_to_the_precision_asked_for(tmp_path: Path) -> None:
    dit = load_dit(save(dit_state(TINY_NANO), tmp_path / "x.pth"), TINY_NANO, "cpu", torch.bfloat16)
    assert {parameter.dtype for parameter in dit.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotary_frequencies_are_computed_in_float32_whatever_the_file_says(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {key: value.half() for key, value in dit_state(TINY_NANO).items()}
    dit = load_dit(save(state, tmp_path / "x.safetensors"), TINY_NANO, "cpu", dtype)
    freqs = dit.state_dict()["blocks.1.attn.rope.rope.freqs"]
    assert freqs.dtype == torch.float32
    assert torch.equal(freqs, TINY_NANO.rope_spec.frequencies())


def test_a_loaded_network_is_whole_and_for_inference_only(tmp_path: Path) -> None:
    dit = load_dit(save(dit_state(TINY_NANO), tmp_path / "x.pth"), TINY_NANO)
    assert not any(tensor.is_meta for tensor in (*dit.parameters(), *dit.buffers()))
    assert not any(parameter.requires_grad for parameter in dit.parameters())
    assert not dit.training


def test_a_loaded_transformer_runs_as_one_that_was_filled_by_hand(tmp_path: Path) -> None:
    state = dit_state(TINY_3B)
    by_hand = DiT(TINY_3B)
    by_hand.load_state_dict(state)
    loaded = load_dit(save(state, tmp_path / "x.pth"), TINY_3B)
    assert torch.equal(_run(loaded), _run(by_hand))


@pytest.mark.parametrize("config", [TINY_3B, TINY_7B], ids=["3b", "7b"])
def test_a_transformer_loaded_in_fp8_is_that_of_the_cast_weights(config: DiTConfig, tmp_path: Path) -> None:
    path = save(dit_state(config), tmp_path / "x.pth")
    later = load_dit(path, config, "cpu", torch.bfloat16)
    later.use_fp8()
    loaded = load_dit(path, config, "cpu", torch.bfloat16, fp8=True)

    assert loaded.is_fp8
    assert loaded.state_dict().keys() == later.state_dict().keys()
    for key, tensor in later.state_dict().items():
        assert torch.equal(loaded.state_dict()[key].view(torch.uint8), tensor.view(torch.uint8)), key
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in loaded.parameters())
    assert torch.equal(_run(loaded), _run(later))


def test_a_loaded_vae_runs_as_one_that_was_filled_by_hand(tmp_path: Path) -> None:
    state = vae_state()
    by_hand = VideoVAE(TINY_VAE)
    by_hand.load_state_dict(state)
    loaded = load_vae(save(state, tmp_path / "x.pth"), TINY_VAE)
    video = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded.encode(video)[0].mean, by_hand.encode(video)[0].mean)


def test_older_names_of_the_vae_attention_are_understood(tmp_path: Path) -> None:
    state = vae_state()
    older = {
        key.replace(".to_q.", ".query.")
        .replace(".to_k.", ".key.")
        .replace(".to_v.", ".value.")
        .replace(".to_out.0.", ".proj_attn."): value
        for key, value in state.items()
    }
    assert older.keys() != state.keys()
    loaded = load_vae(save(older, tmp_path / "x.pth"), TINY_VAE).state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    state = dit_state(TINY_3B)
    del state["blocks.31.ada.all.mlp_gate"]
    with pytest.raises(CheckpointError, match=r"1 missing \(blocks\.31\.ada\.all\.mlp_gate\)"):
        load_dit(save(state, tmp_path / "x.pth"), TINY_3B)


def test_an_unexpected_key_is_named(tmp_path: Path) -> None:
    state = {**vae_state(), "encoder.extra": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"1 unexpected \(encoder\.extra\)"):
        load_vae(save(state, tmp_path / "x.safetensors"), TINY_VAE)


def test_a_wrong_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    state = {**vae_state(), "decoder.conv_out.bias": torch.ones(7)}
    with pytest.raises(CheckpointError, match=r"decoder\.conv_out\.bias is \[7\] instead of \[3\]"):
        load_vae(save(state, tmp_path / "x.pth"), TINY_VAE)


def test_a_file_of_another_model_is_refused_with_few_of_its_many_keys(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not fit this model") as caught:
        load_dit(save(dit_state(TINY_7B), tmp_path / "x.pth"), TINY_3B)
    assert len(str(caught.value)) < 900


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_weights_of_too_little_precision_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    state = vae_state()
    state["decoder.conv_in.weight"] = state["decoder.conv_in.weight"].to(dtype)
    with pytest.raises(CheckpointError, match="lose too much precision"):
        load_vae(save(state, tmp_path / "x.safetensors"), TINY_VAE)


def test_a_text_embedding_is_one_tensor_file(tmp_path: Path) -> None:
    text = torch.arange(58 * 24).view(58, 24).bfloat16()
    torch.save(text, tmp_path / "pos_emb.pt")
    assert torch.equal(load_text(tmp_path / "pos_emb.pt", 24), text.float())


def test_a_text_embedding_of_another_width_is_refused(tmp_path: Path) -> None:
    torch.save(torch.ones(58, 25), tmp_path / "pos_emb.pt")
    with pytest.raises(CheckpointError, match=r"\[58, 25\], expected \[tokens, 24\]"):
        load_text(tmp_path / "pos_emb.pt", 24)


def test_a_transformer_file_without_its_text_embedding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="carries no text embedding"):
        load_text(save({"a": torch.ones(2)}, tmp_path / "x.safetensors"), 24)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A weights folder, and tiny networks in place of the catalogue's; nothing else is on this machine."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    configs = {"nano": (TINY_NANO, TINY_VAE), "seedvr2-3b": (TINY_3B, TINY_VAE), "seedvr2-7b": (TINY_7B, TINY_VAE)}
    monkeypatch.setattr(checkpoint, "CONFIGS", configs)
    weights = tmp_path / "weights"
    weights.mkdir()
    return weights


def _write_nano(folder: Path) -> dict[str, Tensor]:
    state = {**dit_state(TINY_NANO, torch.float16), TEXT_KEY: torch.ones(5, 24, dtype=torch.float16)}
    save(state, folder / "nano_dit.safetensors")
    save(vae_state(torch.float16), folder / "nano_vae.safetensors")
    return state


def test_nano_is_loaded_with_the_text_embedding_inside_its_transformer_file(folder: Path) -> None:
    state = _write_nano(folder)
    models = load_models("nano", folder)
    assert models.entry is NANO
    assert models.latent_scale == NANO.latent_scale
    assert models.text.dtype == torch.float32
    assert torch.equal(models.text, state[TEXT_KEY].float())


def test_a_loaded_model_restores_a_latent(folder: Path) -> None:
    _write_nano(folder)
    models = load_models("nano", folder)
    assert _run(models.dit, models.text).isfinite().all()


def test_a_released_model_is_loaded_from_converted_files_and_a_text_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(dit_state(TINY_3B, torch.bfloat16), folder / "seedvr2_ema_3b.bf16.safetensors")
    save(vae_state(torch.bfloat16), folder / "ema_vae.bf16.safetensors")
    torch.save(torch.ones(58, 24).bfloat16(), folder / "pos_emb.pt")
    entry = replace(SEEDVR2_3B, files={**SEEDVR2_3B.files, Part.TEXT: (WeightFile(name="pos_emb.pt"),)})
    monkeypatch.setattr(checkpoint, "find_model", lambda name: {entry.name: entry}[name])
    models = load_models("seedvr2-3b", folder, "cpu", torch.bfloat16, offline=True)
    assert models.text.shape == (58, 24)
    assert models.latent_scale == pytest.approx(0.9152)


def test_a_local_file_with_the_released_name_but_other_bytes_is_refused_and_kept(folder: Path) -> None:
    path = save(dit_state(TINY_NANO), folder / "seedvr2_ema_7b.pth")
    before = path.read_bytes()
    save(vae_state(torch.bfloat16), folder / "ema_vae.bf16.safetensors")
    torch.save(torch.ones(58, 24).bfloat16(), folder / "pos_emb.pt")
    size = next(file.num_bytes for file in SEEDVR2_7B.files[Part.DIT] if file.name == path.name)
    with pytest.raises(CheckpointError, match=f"must have {size:,}"):
        load_models("seedvr2-7b", folder, offline=True)
    assert path.read_bytes() == before


def test_an_unknown_model_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(SettingsError, match="nano, seedvr2-3b"):
        load_models("seedvr3")


def _run(dit: DiT, text: Tensor | None = None) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    config = dit.config
    text = torch.randn(5, config.text_width, generator=rng) if text is None else text
    video = torch.randn(2 * 4 * 4, config.in_channels, generator=rng)
    with torch.no_grad():
        return dit(video, text, torch.tensor([1000.0]), torch.tensor([[2, 4, 4]]), torch.tensor([text.shape[0]]))

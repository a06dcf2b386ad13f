"""What the program knows about its models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from inference.catalogue import CATALOGUE, NANO, ModelEntry, Part, default_model, find_model
from inference.checkpoint import CONFIGS
from inference.errors import SettingsError
from models.dit import DiT

GB = 10**9


def test_the_catalogue_is_read_without_torch() -> None:
    code = "import sys, inference.catalogue, inference.locate, inference.download; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("entry", CATALOGUE.values(), ids=lambda entry: entry.name)
def test_the_stated_number_of_parameters_is_that_of_the_network(entry: ModelEntry) -> None:
    with torch.device("meta"):
        state = DiT(CONFIGS[entry.name][0]).state_dict()
    assert sum(value.numel() for value in state.values()) == entry.num_parameters


@pytest.mark.parametrize("entry", CATALOGUE.values(), ids=lambda entry: entry.name)
def test_every_file_from_the_network_has_a_pinned_hash(entry: ModelEntry) -> None:
    remote = [file for files in entry.files.values() for file in files if file.repository is not None]
    assert all(file.sha256 is not None and len(file.sha256) == 64 and file.revision for file in remote)


@pytest.mark.parametrize("part", [Part.VAE, Part.TEXT])
def test_released_models_share_one_vae_and_one_text_embedding(part: Part) -> None:
    assert len({entry.files[part] for entry in CATALOGUE.values() if not entry.is_embedded}) == 1


def test_a_released_transformer_has_four_bytes_a_parameter_and_a_little_more() -> None:
    files = [file for entry in CATALOGUE.values() for file in entry.files[Part.DIT] if file.name.endswith(".pth")]
    parameters = {"seedvr2_ema_3b.pth": 3_391_476_448}
    for file in files:
        expected = 4 * parameters.get(file.name, 8_239_608_232)
        assert file.num_bytes is not None
        assert 0 < file.num_bytes - expected < 10**6


def test_only_nano_is_embedded() -> None:
    assert [entry for entry in CATALOGUE.values() if entry.is_embedded] == [NANO]


@pytest.mark.parametrize(
    ("memory", "name", "in_fp8"),
    [
        (None, "nano", "nano"),
        (6 * GB, "nano", "nano"),
        (8 * GB, "nano", "seedvr2-3b"),
        (int(11.7 * GB), "seedvr2-3b", "seedvr2-3b"),
        (int(25.2 * GB), "seedvr2-3b", "seedvr2-7b"),
        (int(33.7 * GB), "seedvr2-7b", "seedvr2-7b"),
        (int(85 * GB), "seedvr2-7b", "seedvr2-7b"),
    ],
)
def test_auto_is_the_largest_model_that_fits(memory: int | None, name: str, in_fp8: str) -> None:
    assert (default_model(memory), default_model(memory, fp8=True)) == (name, in_fp8)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(SettingsError, match="nano, seedvr2-3b, seedvr2-7b, seedvr2-7b-sharp"):
        find_model("seedvr2-5b")

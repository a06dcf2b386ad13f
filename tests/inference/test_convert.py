"""Half-precision copies of float32 weights."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from inference.catalogue import SEEDVR2_3B, Part, WeightFile, converted_name
from inference.checkpoint import load_dit
from inference.convert import Half, convert, convert_model
from inference.errors import CancelledError, CheckpointError
from inference.locate import locate
from tests.inference.checkpoints import TINY_NANO, dit_state, save, vae_state


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty `HF_HOME`."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A float32 pickle."""
    return save(dit_state(TINY_NANO), tmp_path / "x.pth")


@pytest.mark.parametrize("precision", Half)
def test_a_converted_file_has_the_same_keys_and_rounded_values(precision: Half, source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "y.safetensors", precision)
    converted, state = load_file(tmp_path / "y.safetensors"), dit_state(TINY_NANO)
    assert set(converted) == set(state)
    assert all(torch.equal(converted[key], state[key].to(precision.dtype)) for key in state)


def test_a_converted_checkpoint_loads_as_the_original(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "y.safetensors")
    original = load_dit(source, TINY_NANO, "cpu", torch.bfloat16).state_dict()
    converted = load_dit(tmp_path / "y.safetensors", TINY_NANO, "cpu", torch.bfloat16).state_dict()
    assert all(torch.equal(converted[key], original[key]) for key in original)


def test_a_conversion_keeps_the_original_and_tells_what_it_saves(source: Path, tmp_path: Path) -> None:
    before = source.read_bytes()
    conversion = convert(source, tmp_path / "y.safetensors")
    assert source.read_bytes() == before
    assert conversion.target_bytes == (tmp_path / "y.safetensors").stat().st_size
    assert conversion.saved_bytes == len(before) - conversion.target_bytes > 0
    assert f"save {conversion.saved_bytes / 1e6:.1f} MB" in str(conversion)


def test_progress_ends_at_the_size_of_the_file(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    conversion = convert(source, tmp_path / "y.safetensors", report_bytes=lambda *step: seen.append(step))
    assert seen[-1] == (conversion.target_bytes, conversion.target_bytes)


def test_a_value_that_float16_cannot_hold_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    source = save({"a": torch.ones(2), "b": torch.tensor([1e6])}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="^b of .* has values that fp16 cannot hold; convert to bf16"):
        convert(source, tmp_path / "y.safetensors", Half.FLOAT16)
    assert list(tmp_path.glob("y.safetensors*")) in ([], [tmp_path / "y.safetensors.part.lock"])


def test_a_cancelled_conversion_leaves_the_earlier_result(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "y.safetensors"
    target.write_bytes(b"earlier")

    def cancel(_done: int, _total: int) -> None:
        raise CancelledError

    with pytest.raises(CancelledError):
        convert(source, target, report_bytes=cancel)
    assert target.read_bytes() == b"earlier"
    assert not target.with_name("y.safetensors.part").exists()


def test_a_disk_that_is_too_small_is_noticed_first(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 0, 10**5))
    with pytest.raises(CheckpointError, match=r"only 0\.1 MB is free"):
        convert(source, tmp_path / "y.safetensors")
    assert not (tmp_path / "y.safetensors.part").exists()


def test_a_file_is_not_converted_onto_itself(source: Path) -> None:
    with pytest.raises(CheckpointError, match="onto itself"):
        convert(source, source)


_KILLED = """
import os, signal, sys
from pathlib import Path
from inference.convert import convert
convert(Path(sys.argv[1]), Path(sys.argv[2]), report_bytes=lambda *_: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_a_killed_conversion_leaves_no_file_under_the_final_name_and_can_be_repeated(
    source: Path, tmp_path: Path
) -> None:
    target = tmp_path / "y.safetensors"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, str(source), str(target)], env=environment, timeout=90, check=False
    )
    assert killed.returncode == -9
    assert not target.exists()
    convert(source, target)
    assert set(load_file(target)) == set(dit_state(TINY_NANO))


def _anonymous_bytes() -> int:
    """Memory of this process that is not a mapped file."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


def test_memory_is_that_of_few_tensors_not_of_the_file(tmp_path: Path) -> None:
    tensor_bytes, count = 4 * 2**20, 16
    source = save({f"t{i}": torch.full((tensor_bytes // 4,), float(i)) for i in range(count)}, tmp_path / "x.pth")
    before = _anonymous_bytes()
    seen: list[int] = []
    convert(source, tmp_path / "y.safetensors", report_bytes=lambda *_: seen.append(_anonymous_bytes()))
    assert len(seen) == count
    assert max(seen) - before < 4 * tensor_bytes


def test_a_model_is_converted_into_its_folder_and_found_there_afterwards(tmp_path: Path) -> None:
    entry = replace(SEEDVR2_3B, files={Part.DIT: _files("dit.pth"), Part.VAE: _files("vae.pth")})
    folder = tmp_path / "weights"
    folder.mkdir()
    save(dit_state(TINY_NANO), folder / "dit.pth")
    save(vae_state(), folder / "vae.pth")
    assert [result.target.name for result in convert_model(entry, folder)] == [
        "dit.bf16.safetensors",
        "vae.bf16.safetensors",
    ]
    found = locate(entry.files[Part.DIT], folder)
    assert found is not None
    assert found.path == folder / "dit.bf16.safetensors"
    assert convert_model(entry, folder) == []


def test_a_damaged_original_is_not_converted(tmp_path: Path) -> None:
    wrong = (WeightFile(name="dit.pth", sha256="0" * 64),)
    entry = replace(SEEDVR2_3B, files={Part.DIT: wrong, Part.VAE: _files("vae.pth")})
    save(dit_state(TINY_NANO), tmp_path / "dit.pth")
    with pytest.raises(CheckpointError, match="damaged or another file"):
        convert_model(entry, tmp_path)


def test_a_model_that_is_not_here_cannot_be_converted(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is nothing to convert"):
        convert_model(SEEDVR2_3B, tmp_path)


def _files(name: str) -> tuple[WeightFile, ...]:
    return (WeightFile(name=converted_name(name, "bf16")), WeightFile(name=name))

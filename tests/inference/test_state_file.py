"""Opening files of weights, good and bad."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from inference.errors import CheckpointError
from inference.state_file import open_state, open_tensor

STATE = {"a.weight": torch.arange(12.0).view(3, 4), "a.bias": torch.ones(3, dtype=torch.float16)}


class _Code:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.proof),)


@pytest.fixture(params=["x.pth", "x.safetensors"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A good file of each kind."""
    path: Path = tmp_path / request.param
    if path.suffix == ".pth":
        torch.save(STATE, path)
    else:
        save_file(STATE, path)
    return path


def test_both_kinds_give_the_same_tensors(path: Path) -> None:
    state = open_state(path)
    assert set(state) == set(STATE)
    assert all(torch.equal(state[key], STATE[key]) and state[key].dtype == STATE[key].dtype for key in STATE)


def test_shapes_are_known_without_the_tensors(path: Path) -> None:
    assert open_state(path).shapes == {"a.weight": (3, 4), "a.bias": (3,)}


def test_an_unknown_key_is_a_key_error(path: Path) -> None:
    with pytest.raises(KeyError):
        open_state(path)["b"]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused_and_kept(path: Path, share: float) -> None:
    content = path.read_bytes()
    kept = content[: int(len(content) * share)]
    path.write_bytes(kept)
    with pytest.raises(CheckpointError, match="truncated or not a file of weights.*download or copy it again"):
        open_state(path)
    assert path.read_bytes() == kept


@pytest.mark.parametrize(
    "content", [b"<html>Not found</html>", b"\xff" * 5000, b"\0" * 5000, b"version https://git-lfs.github.com/spec/v1"]
)
def test_something_else_under_the_name_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="truncated or not a file of weights"):
        open_state(path)


def test_a_file_with_bytes_after_its_end_is_refused(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "x.safetensors")
    with (tmp_path / "x.safetensors").open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(CheckpointError, match="bytes where its header says"):
        open_state(tmp_path / "x.safetensors")


@pytest.mark.parametrize("header", [[], {"a": 1}, {"a": {"dtype": "F32", "shape": 3, "data_offsets": [0, 4]}}, {}])
def test_a_header_of_another_form_is_refused(header: object, tmp_path: Path) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(CheckpointError, match="truncated or not a file of weights"):
        open_state(tmp_path / "x.safetensors")


def test_a_header_with_impossible_tensors_is_refused_when_one_is_read(tmp_path: Path) -> None:
    text = json.dumps({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"1234")
    with pytest.raises(CheckpointError, match="truncated or not a file of weights"):
        open_state(tmp_path / "x.safetensors")["a"]


def test_a_pickle_with_code_is_refused_and_the_code_does_not_run(tmp_path: Path) -> None:
    torch.save({"a": _Code(tmp_path / "proof")}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="could run code, so it was not opened"):
        open_state(tmp_path / "x.pth")
    assert not (tmp_path / "proof").exists()


def test_a_plain_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(pickle.dumps({"a": _Code(tmp_path / "proof")}))
    with pytest.raises(CheckpointError, match="not a complete PyTorch archive"):
        open_state(tmp_path / "x.pth")
    assert not (tmp_path / "proof").exists()


def test_a_wrapped_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="not a flat state dict: its entry 'state_dict' is a dict"):
        open_state(tmp_path / "x.pth")


@pytest.mark.parametrize("content", [torch.ones(3), [torch.ones(3)], {}])
def test_something_that_is_no_state_dict_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="does not hold a state dict"):
        open_state(tmp_path / "x.pth")


def test_a_missing_file_is_a_sentence(path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be read \(No such file or directory\)"):
        open_state(path.with_stem("none"))


def test_an_unknown_kind_of_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"use \.safetensors or \.pth"):
        open_state(tmp_path / "x.gguf")


def test_a_file_of_one_tensor_is_opened(tmp_path: Path) -> None:
    torch.save(STATE["a.weight"], tmp_path / "x.pt")
    assert torch.equal(open_tensor(tmp_path / "x.pt"), STATE["a.weight"])


def test_a_state_dict_is_not_one_tensor(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="should hold one tensor, but holds a dict"):
        open_tensor(tmp_path / "x.pt")

"""Opens a file of weights, `.pth` or `.safetensors`, as one mapping of tensors, without reading them all.

Pickles are opened with `weights_only=True` and memory-mapped: code in them never runs, and a tensor's bytes are read
when it is used. Whatever is wrong with a file becomes one CheckpointError sentence. torch is imported on first use.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.errors import CheckpointError

if TYPE_CHECKING:
    import torch

PICKLE_SUFFIXES = (".pth", ".pt", ".ckpt")
_MAX_HEADER = 100 * 2**20  # the format's own limit


class StateFile(Mapping[str, "torch.Tensor"]):
    """Tensors by key. Values lie on the CPU in the file's own dtype; iteration order is the file's."""

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]], read: Mapping[str, Any] | None) -> None:
        self.path = path
        self.shapes = shapes
        self._pickled = read
        self._handle: Any = None

    def __getitem__(self, key: str) -> torch.Tensor:
        if key not in self.shapes:
            raise KeyError(key)
        if self._pickled is not None:
            return self._pickled[key]
        from safetensors import SafetensorError, safe_open

        try:
            if self._handle is None:
                self._handle = safe_open(self.path, framework="pt", device="cpu")
            return self._handle.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise _broken(self.path, str(error)) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def open_state(path: Path) -> StateFile:
    """The tensors of a checkpoint. Raises CheckpointError if it is no flat, complete, code-free file of tensors."""
    if path.suffix == ".safetensors":
        return StateFile(path, read_shapes(path), None)
    if path.suffix not in PICKLE_SUFFIXES:
        raise CheckpointError(
            f"{path} is not a known kind of weights; use .safetensors or .pth files (.gguf files cannot be read)."
        )
    loaded = _load_pickle(path)
    if not isinstance(loaded, dict) or not loaded:
        raise CheckpointError(f"{path} does not hold a state dict, but {_describe(loaded)}; download it again.")
    _check_flat(path, loaded)
    return StateFile(path, {key: tuple(value.shape) for key, value in loaded.items()}, loaded)


def open_tensor(path: Path) -> torch.Tensor:
    """The one tensor of a `.pt` file, such as the text embedding."""
    import torch

    loaded = _load_pickle(path)
    if not isinstance(loaded, torch.Tensor):
        raise CheckpointError(f"{path} should hold one tensor, but holds {_describe(loaded)}; download it again.")
    return loaded


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by key from the header of a safetensors file, which is held against the length of the file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            header_length = int.from_bytes(stream.read(8), "little")
            if size < 8 or not 2 <= header_length <= min(size - 8, _MAX_HEADER):
                raise _broken(path, "it has no safetensors header")
            header = json.loads(stream.read(header_length))
    except ValueError as error:  # neither UTF-8 nor JSON
        raise _broken(path, "its safetensors header cannot be parsed") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        tensors = {key: value for key, value in header.items() if key != "__metadata__"}
        end = 8 + header_length + max((int(value["data_offsets"][1]) for value in tensors.values()), default=0)
        shapes = {key: tuple(int(length) for length in value["shape"]) for key, value in tensors.items()}
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise _broken(path, "its safetensors header is not valid") from error
    if end != size:
        raise _broken(path, f"it has {size:,} bytes where its header says {end:,}")
    if not shapes:
        raise _broken(path, "it holds no tensors")
    return shapes


def _load_pickle(path: Path) -> Any:
    import torch

    try:
        with path.open("rb") as stream:
            # False for a truncated file too: the directory of a zip archive is its end.
            is_archive = zipfile.is_zipfile(stream)
        if not is_archive:
            raise _broken(path, "it is not a complete PyTorch archive")
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except OSError as error:
        raise _unreadable(path, error) from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds Python objects instead of plain tensors, which could run code, so it was not opened;"
            " use the released file or a .safetensors file."
        ) from error
    except (RuntimeError, ValueError, EOFError, KeyError, IndexError, TypeError, AttributeError) as error:
        # What torch raises on a damaged archive depends on the byte that is wrong.
        raise _broken(path, _first_line(error)) from error


def _check_flat(path: Path, loaded: Mapping[Any, Any]) -> None:
    import torch

    wrong = next((key for key, value in loaded.items() if not isinstance(value, torch.Tensor)), None)
    if wrong is not None:
        raise CheckpointError(
            f"{path} is not a flat state dict: its entry {wrong!r} is {_describe(loaded[wrong])}, not a tensor; use the"
            " released file, or save the inner dict alone."
        )
    if not all(isinstance(key, str) for key in loaded):
        raise CheckpointError(f"{path} is not a state dict: its keys are not names; use the released file.")


def _describe(value: object) -> str:
    return f"a {type(value).__name__}" + (" of length 0" if isinstance(value, dict) and not value else "")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__


def _broken(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is truncated or not a file of weights ({why}); download or copy it again.")


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{path} cannot be read ({error.strerror or error}); check that it exists and its permissions."
    )

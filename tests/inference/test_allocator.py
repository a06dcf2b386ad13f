"""What PyTorch is told about a card's memory, which it reads when the first tensor is put there."""

from __future__ import annotations

import os

import pytest
import torch

from inference.allocator import grow_segments, hand_back_page_locked


@pytest.mark.parametrize("given", [{}, {"PYTORCH_CUDA_ALLOC_CONF": "a:1"}, {"PYTORCH_ALLOC_CONF": "b:2"}])
def test_segments_grow_unless_the_user_said_something(given: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
    for name in names:
        monkeypatch.setenv(name, "so that it is put back")
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    grow_segments()

    found = {name: os.environ[name] for name in names if name in os.environ}
    assert found == (given or {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"})


def test_handing_back_page_locked_memory_is_no_error_without_a_card() -> None:
    hand_back_page_locked()


def test_page_locked_memory_is_handed_back_by_every_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "empty_host_cache", lambda: called.append("new"), raising=False)
    monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: called.append("old"), raising=False)

    hand_back_page_locked()
    monkeypatch.delattr(torch.accelerator, "empty_host_cache")
    hand_back_page_locked()

    assert called == ["new", "old"]

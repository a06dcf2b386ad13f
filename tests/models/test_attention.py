"""Packed attention: backends agree with the formula and with one another, and the choice is explained."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from models import attention as module
from models.attention import Backend, SequenceLengths, attention, available_backends, choose_backend, probe

CPU = torch.device("cpu")


@pytest.fixture
def _fresh_choice() -> Iterator[None]:
    yield
    # What was found with a broken backend must not outlive the test.
    probe.cache_clear()
    choose_backend.cache_clear()


def _packed(queries: tuple[int, ...], keys: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, SequenceLengths]:
    torch.manual_seed(0)
    q, k, v = (torch.randn(sum(n), 2, 16) for n in (queries, keys, keys))
    return q, k, v, SequenceLengths.of(queries, keys, CPU)


def _by_formula(q: Tensor, k: Tensor, v: Tensor, lengths: SequenceLengths) -> Tensor:
    results = []
    for q_LND, k_LND, v_LND in zip(q.split(lengths.queries), k.split(lengths.keys), v.split(lengths.keys), strict=True):
        weights = (torch.einsum("qnd,knd->nqk", q_LND, k_LND) / 4).softmax(-1)
        results.append(torch.einsum("nqk,knd->qnd", weights, v_LND))
    return torch.cat(results)


@pytest.mark.parametrize("backend", [Backend.GROUPED, Backend.LOOP])
@pytest.mark.parametrize(
    ("queries", "keys"), [((5, 5, 9), (5, 5, 9)), ((3, 3, 3), (7, 7, 7)), ((2, 6, 2), (5, 9, 5)), ((1,), (1,))]
)
def test_every_cpu_backend_equals_the_formula(
    backend: Backend, queries: tuple[int, ...], keys: tuple[int, ...]
) -> None:
    packed = _packed(queries, keys)
    torch.testing.assert_close(module._BACKENDS[backend](*packed), _by_formula(*packed), atol=2e-6, rtol=0)


def test_sequences_do_not_see_one_another() -> None:
    q, k, v, lengths = _packed((4, 6), (4, 6))
    before = attention(q, k, v, lengths)
    v[4:] += 1
    after = attention(q, k, v, lengths)
    assert torch.equal(before[:4], after[:4])
    assert not torch.equal(before[4:], after[4:])


def test_consecutive_equal_lengths_form_one_run() -> None:
    assert SequenceLengths.of((3, 3, 4, 3), (5, 5, 6, 5), CPU).runs == ((2, 3, 5), (1, 4, 6), (1, 3, 5))


def test_cumulative_lengths_start_at_zero_in_int32() -> None:
    lengths = SequenceLengths.of((3, 4), (5, 6), CPU)
    assert (lengths.cu_queries.tolist(), lengths.cu_keys.tolist()) == ([0, 3, 7], [0, 5, 11])
    assert lengths.cu_keys.dtype is torch.int32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cpu_uses_grouped_calls_and_says_why_not_the_kernel(dtype: torch.dtype) -> None:
    assert choose_backend(CPU, dtype, 64) is Backend.GROUPED
    reasons = {found.backend: found for found in available_backends(CPU, dtype, 64)}
    assert not reasons[Backend.VARLEN].works
    assert "CUDA" in reasons[Backend.VARLEN].reason


@pytest.mark.usefixtures("_fresh_choice")
def test_a_backend_that_raises_is_passed_over_with_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Tensor:
        raise RuntimeError("no kernel image is available\nmore")

    monkeypatch.setitem(module._BACKENDS, Backend.GROUPED, broken)
    assert choose_backend(CPU, torch.float32, 40) is Backend.LOOP
    assert probe(Backend.GROUPED, CPU, torch.float32, 40).reason == "RuntimeError: no kernel image is available"


@pytest.mark.usefixtures("_fresh_choice")
@pytest.mark.parametrize("wrong", [0.0, float("nan")])
def test_a_backend_with_wrong_results_is_passed_over(monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    monkeypatch.setitem(module._BACKENDS, Backend.GROUPED, lambda q, k, v, lengths: torch.full_like(q, wrong))
    assert choose_backend(CPU, torch.float32, 48) is Backend.LOOP


@pytest.mark.usefixtures("_fresh_choice")
def test_a_backend_is_probed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    grouped = module._BACKENDS[Backend.GROUPED]
    monkeypatch.setitem(module._BACKENDS, Backend.GROUPED, lambda *args: calls.append(1) or grouped(*args))
    for _ in range(3):
        choose_backend(CPU, torch.float32, 56)
        available_backends(CPU, torch.float32, 56)
    assert len(calls) == 1

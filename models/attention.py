"""Attention over many short sequences packed into one token list, and the choice of the code that computes it.

Four backends compute the same thing: `sdpa_loop` (one call per sequence, the reference), `sdpa_grouped` (one call
per run of equal lengths), `torch_varlen` (one flash kernel, CUDA, half precision) and `flash_attn` (the same kernel, of
the package of that name). A backend is used only if a real call on this device agreed with the reference; the answer is
remembered with its reason. `flash_attn` is foreign code that may crash or hang: it is not even imported before somebody
has admitted it, after a trial in another process. Suffixes: L packed tokens, K sequences, N heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from itertools import accumulate, groupby, pairwise
from typing import TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class SequenceLengths:
    """Lengths of the packed sequences in every form that a backend wants. Build with `of`."""

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    cu_queries: Tensor
    cu_keys: Tensor
    runs: tuple[tuple[int, int, int], ...]
    """(sequences, queries each, keys each) for consecutive sequences of equal lengths."""

    @classmethod
    def of(cls, queries: Sequence[int], keys: Sequence[int], device: torch.device) -> SequenceLengths:
        """Sequence i has `queries[i]` query tokens and `keys[i]` key tokens."""
        pairs = list(zip(queries, keys, strict=True))
        return cls(
            queries=tuple(queries),
            keys=tuple(keys),
            cu_queries=torch.tensor([0, *accumulate(queries)], dtype=torch.int32, device=device),
            cu_keys=torch.tensor([0, *accumulate(keys)], dtype=torch.int32, device=device),
            runs=tuple((len(list(run)), *pair) for pair, run in groupby(pairs)),
        )


class Backend(StrEnum):
    """Ways to compute packed attention, best first."""

    VARLEN = "torch_varlen"
    FLASH_ATTN = "flash_attn"
    GROUPED = "sdpa_grouped"
    LOOP = "sdpa_loop"


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether a backend works on one device, dtype and head dim, and why it does or does not."""

    backend: Backend
    works: bool
    reason: str


OPTIONAL = frozenset({Backend.FLASH_ATTN})
"""Backends of packages that need not be there, and are used only after `admit`."""

_admitted: set[Backend] = set()

Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor, SequenceLengths], Tensor]


def attention(q_LND: Tensor, k_LND: Tensor, v_LND: Tensor, lengths: SequenceLengths) -> Tensor:
    """Softmax attention inside each packed sequence, scale `1 / sqrt(D)`, no mask.

    `q_LND` has `sum(lengths.queries)` tokens, `k_LND` and `v_LND` have `sum(lengths.keys)`; the result is like `q_LND`.
    """
    backend = choose_backend(q_LND.device, q_LND.dtype, q_LND.shape[-1])
    return _BACKENDS[backend](q_LND, k_LND, v_LND, lengths)


@lru_cache(maxsize=64)
def choose_backend(device: torch.device, dtype: torch.dtype, head_dim: int) -> Backend:
    """The first backend that works here; decided once per process, so a job never changes it half way."""
    return next((p.backend for p in available_backends(device, dtype, head_dim) if p.works), Backend.LOOP)


def admit(backend: Backend, *, is_admitted: bool = True) -> None:
    """Let an optional backend take part in the choice from now on, or not any more."""
    (_admitted.add if is_admitted else _admitted.discard)(backend)
    probe.cache_clear()
    choose_backend.cache_clear()


def is_admitted(backend: Backend) -> bool:
    """Whether a backend takes part in the choice."""
    return backend not in OPTIONAL - _admitted


def available_backends(device: torch.device, dtype: torch.dtype, head_dim: int) -> tuple[Probe, ...]:
    """The probe of every backend, best first, for a system page or a report."""
    return tuple(probe(backend, device, dtype, head_dim) for backend in Backend)


@lru_cache(maxsize=64)
def probe(backend: Backend, device: torch.device, dtype: torch.dtype, head_dim: int) -> Probe:
    """Run `backend` on three unequal sequences and compare with the float32 reference on the CPU."""
    if backend is Backend.VARLEN and (device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16)):
        return Probe(backend, works=False, reason=f"needs CUDA in bfloat16 or float16, not {device.type} in {dtype}")
    if not is_admitted(backend):
        return Probe(backend, works=False, reason="is optional, and was not admitted")
    queries, keys = (17, 64, 5), (21, 64, 9)
    generator = torch.Generator("cpu").manual_seed(0)
    with torch.no_grad():
        q, k, v = (
            torch.randn(sum(n), 2, head_dim, generator=generator, device="cpu").to(dtype) for n in (queries, keys, keys)
        )
        expected = _sdpa_loop(q.float(), k.float(), v.float(), SequenceLengths.of(queries, keys, q.device))
        lengths = SequenceLengths.of(queries, keys, device)
        try:
            result = _BACKENDS[backend](q.to(device), k.to(device), v.to(device), lengths).cpu().float()
        except torch.OutOfMemoryError:
            raise
        except (ImportError, AttributeError, RuntimeError, TypeError, ValueError, AssertionError) as error:
            return Probe(backend, works=False, reason=f"{type(error).__name__}: {str(error).splitlines()[0]}")
    if result.shape != expected.shape:
        return Probe(backend, works=False, reason=f"gives a result of shape {tuple(result.shape)}")
    difference = (result - expected).abs().max().item()
    tolerance = _TOLERANCE.get(dtype, 1e-4)
    return Probe(backend, works=difference <= tolerance, reason=f"differs from the reference by {difference:.1e}")


_TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 5e-3}


def _sdpa_loop(q: Tensor, k: Tensor, v: Tensor, lengths: SequenceLengths) -> Tensor:
    results = []
    spans_q, spans_k = (pairwise(accumulate(n, initial=0)) for n in (lengths.queries, lengths.keys))
    for (q0, q1), (k0, k1) in zip(spans_q, spans_k, strict=True):
        q_NLD, k_NLD, v_NLD = (x.transpose(0, 1) for x in (q[q0:q1], k[k0:k1], v[k0:k1]))
        results.append(F.scaled_dot_product_attention(q_NLD[None], k_NLD[None], v_NLD[None])[0].transpose(0, 1))
    return torch.cat(results)


def _sdpa_grouped(q: Tensor, k: Tensor, v: Tensor, lengths: SequenceLengths) -> Tensor:
    results = []
    start_q = start_k = 0
    for count, num_queries, num_keys in lengths.runs:
        stop_q, stop_k = start_q + count * num_queries, start_k + count * num_keys
        q_KNLD = q[start_q:stop_q].unflatten(0, (count, num_queries)).transpose(1, 2)
        k_KNLD = k[start_k:stop_k].unflatten(0, (count, num_keys)).transpose(1, 2)
        v_KNLD = v[start_k:stop_k].unflatten(0, (count, num_keys)).transpose(1, 2)
        out_KNLD = F.scaled_dot_product_attention(q_KNLD, k_KNLD, v_KNLD)
        results.append(out_KNLD.transpose(1, 2).flatten(0, 1))
        start_q, start_k = stop_q, stop_k
    return results[0] if len(results) == 1 else torch.cat(results)


def _torch_varlen(q: Tensor, k: Tensor, v: Tensor, lengths: SequenceLengths) -> Tensor:
    # Imported here because the module needs a torch that has it; the probe turns its absence into a reason.
    from torch.nn.attention.varlen import varlen_attn

    # Positional only: the keyword arguments after these seven changed between torch 2.10 and 2.15.
    out = varlen_attn(q, k, v, lengths.cu_queries, lengths.cu_keys, max(lengths.queries), max(lengths.keys))
    return cast(Tensor, out)


def _flash_attn(q: Tensor, k: Tensor, v: Tensor, lengths: SequenceLengths) -> Tensor:
    # Optional: imported only once it is admitted. flash-attn-4 has a namespace of this name without the function.
    from flash_attn import flash_attn_varlen_func

    out = flash_attn_varlen_func(q, k, v, lengths.cu_queries, lengths.cu_keys, max(lengths.queries), max(lengths.keys))
    return cast(Tensor, out)


_BACKENDS: dict[Backend, Attend] = {
    Backend.VARLEN: _torch_varlen,
    Backend.FLASH_ATTN: _flash_attn,
    Backend.GROUPED: _sdpa_grouped,
    Backend.LOOP: _sdpa_loop,
}

"""One result of a parity run, the two ways to make it, and the table and JSON line that show all of them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One comparison with a stored result. `passed` is None where it does not apply; then `reason` says why."""

    name: str
    max_abs_err: float | None = None
    rms: float | None = None
    limit: str = ""
    passed: bool | None
    reason: str = ""


def compare(name: str, actual: Tensor, expected: Tensor, *, max_abs: float, rms: float | None = None) -> Case:
    """Compare two tensors in float64; fails on another shape, on values that are not finite, or beyond a limit."""
    limit = f"max {max_abs:g}" if rms is None else f"max {max_abs:g}, rms {rms:g}"
    if actual.shape != expected.shape:
        reason = f"shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
        return Case(name=name, max_abs_err=math.inf, rms=math.inf, limit=limit, passed=False, reason=reason)
    error = actual.detach().cpu().double() - expected.cpu().double()
    largest = error.abs().max().item() if error.numel() else 0.0
    mean = error.square().mean().sqrt().item() if error.numel() else 0.0
    # Written so that NaN fails.
    passed = largest <= max_abs and (rms is None or mean <= rms)
    return Case(name=name, max_abs_err=largest, rms=mean, limit=limit, passed=passed)


def check(name: str, passed: bool, limit: str, reason: str = "", max_abs_err: float = 0.0) -> Case:
    """An exact or structural comparison; `reason` is shown when it fails."""
    return Case(name=name, max_abs_err=max_abs_err, limit=limit, passed=passed, reason="" if passed else reason)


def not_applicable(name: str, reason: str) -> Case:
    """A stored result that this project does not reproduce on purpose; counts as neither pass nor fail."""
    return Case(name=name, passed=None, reason=reason)


def summary(cases: Sequence[Case]) -> dict[str, object]:
    """`cases` judged, names of the `failed`, and the largest `max_abs_err` of all judged (null if not finite)."""
    judged = [case for case in cases if case.passed is not None]
    largest = max((case.max_abs_err for case in judged if case.max_abs_err is not None), default=0.0)
    broken = any(case.max_abs_err is not None and not math.isfinite(case.max_abs_err) for case in judged)
    return {
        "cases": len(judged),
        "failed": [case.name for case in judged if not case.passed],
        "max_abs_err": None if broken else largest,
    }


def show(cases: Sequence[Case], console: Console) -> None:
    """Print the table, then the summary as the last line."""
    table = Table(box=None, pad_edge=False)
    table.add_column("case", no_wrap=True)
    table.add_column("max abs error", justify="right", no_wrap=True)
    table.add_column("rms", justify="right", no_wrap=True)
    table.add_column("limit", no_wrap=True)
    table.add_column("pass", no_wrap=True)
    table.add_column("note", overflow="fold")
    for case in cases:
        table.add_row(case.name, _number(case.max_abs_err), _number(case.rms), case.limit, _verdict(case), case.reason)
    console.print(table, markup=False, highlight=False)
    console.file.write(json.dumps(summary(cases)) + "\n")
    console.file.flush()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2e}"


def _verdict(case: Case) -> str:
    if case.passed is None:
        return "n/a"
    return "yes" if case.passed else "NO"

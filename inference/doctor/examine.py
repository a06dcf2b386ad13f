"""Runs the checks in processes of their own, so that whatever crashes or hangs is a finding. Without torch here."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from inference.doctor.faults import found
from inference.doctor.findings import Finding, Report
from inference.doctor.trial import CHECKS
from inference.progress import Cancellation

LIMIT_S = 60.0
"""Longest time of one check."""

LOAD_LIMIT_S = 60.0
"""Longest time of the import of torch, which reads gigabytes on a new machine."""

_POLL_S = 0.2
_OPTIONAL = ("flash-attn", "apex", "kernels")
_ROOT = Path(__file__).resolve().parents[2]


def examine(
    data: Path,
    weights: str = "",
    *,
    checks: Sequence[str] = CHECKS,
    limit_s: float = LIMIT_S,
    load_limit_s: float = LOAD_LIMIT_S,
    tell: Callable[[Finding], None] | None = None,
    cancellation: Cancellation | None = None,
) -> Report:
    """All findings about this machine, the data folder and `engine.weights`. Raises CancelledError.

    `tell` is called with each finding as it comes. A check that crashes or takes longer than `limit_s` seconds is one
    finding; those after it are run in another process. Importing torch may take `load_limit_s`.
    """
    findings = []
    for finding in _run(data, weights, list(checks), (limit_s, load_limit_s), cancellation or Cancellation()):
        findings.append(finding)
        if tell is not None:
            tell(finding)
    return Report(findings)


def _run(
    data: Path, weights: str, checks: list[str], limits: tuple[float, float], cancellation: Cancellation
) -> Iterator[Finding]:
    limit_s = limits[1]

    def limit() -> float:
        return limit_s

    while checks:
        current, limit_s = checks[0], limits[1]
        is_torch_missing = False
        process = _start(data, weights, checks)
        try:
            for message in _listen(process, limit, cancellation):
                if "finding" in message:
                    finding = Finding.from_dict(message["finding"])
                    is_torch_missing = finding.key == "torch.missing"
                    yield finding
                elif "end" in message:
                    checks.remove(message["end"])
                else:
                    current, limit_s = (message["begin"], limits[0]) if "begin" in message else ("torch", limits[1])
            if is_torch_missing:  # nothing after it can be said
                return
            reason = _ending(process) if checks else ""
        except TimeoutError:
            reason = f"it did not answer within {limit_s:.0f} s"
        finally:
            _kill(process)
        if checks:
            yield _ended(current, reason)
            if current == "torch":
                return
            checks.remove(current)


def _ended(check: str, reason: str) -> Finding:
    """The finding on a check that has crashed or hangs; an optional part of that kind is just not used."""
    if check in _OPTIONAL:
        return found(f"{check}.broken", reason=reason)
    if check == "torch":
        return found("torch.missing", reason=reason)
    return found("doctor.ended", check=check, reason=reason)


def _start(data: Path, weights: str, checks: Sequence[str]) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    options = json.dumps({"data": str(data), "weights": weights})
    return subprocess.Popen(
        [sys.executable, "-m", "inference.doctor.trial", options, *checks],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": path},
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )


def _listen(
    process: subprocess.Popen[str], limit_s: Callable[[], float], cancellation: Cancellation
) -> Iterator[Mapping[str, Any]]:
    """What the process says until it ends. Raises TimeoutError if it says nothing for `limit_s()` seconds."""
    assert process.stdout is not None
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    waited = 0.0
    while True:
        cancellation.check()
        try:
            line = lines.get(timeout=_POLL_S)
        except queue.Empty:
            waited += _POLL_S
            if waited >= limit_s():
                raise TimeoutError from None
            continue
        if line is None:
            return
        waited = 0.0
        yield json.loads(line)


def _read(lines: IO[str], into: queue.Queue[str | None]) -> None:
    with lines:
        for line in lines:
            into.put(line)
    into.put(None)


def _ending(process: subprocess.Popen[str]) -> str:
    code = process.wait(10)
    return f"its process ended with exit code {code}" if code >= 0 else f"it crashed ({signal.Signals(-code).name})"


def _kill(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)

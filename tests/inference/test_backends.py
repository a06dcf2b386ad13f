"""Optional packages that are planted on the path: the broken ones are left out with a sentence, and jobs succeed."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from inference import backends
from inference.backends import departures, settle_backends
from inference.doctor.backends import check_apex, check_flash_attn
from inference.doctor.examine import examine
from inference.doctor.findings import Severity
from models import fused_ops
from models.attention import Backend, admit, choose_backend
from tests.models.test_attention import _by_formula, _packed

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")

RIGHT = """
import torch
def flash_attn_varlen_func(q, k, v, cu_q, cu_k, max_q, max_k):
    parts = []
    for i in range(len(cu_q) - 1):
        a, b, c, d = cu_q[i], cu_q[i + 1], cu_k[i], cu_k[i + 1]
        scores = torch.einsum("qnd,knd->nqk", q[a:b], k[c:d]) / q.shape[-1] ** 0.5
        parts.append(torch.einsum("nqk,knd->qnd", scores.softmax(-1), v[c:d]))
    return torch.cat(parts)
"""
CALL = "def flash_attn_varlen_func(q, k, v, *rest):\n    "
BROKEN = {
    "raises at import": (
        "raise ImportError('undefined symbol: _ZN3c105ErrorC2E')",
        "it fails: ImportError: undefined symbol: _ZN3c105ErrorC2E",
    ),
    "raises at its call": (
        f"{CALL}raise RuntimeError('no kernel image is available for execution on the device')",
        "it fails: RuntimeError: no kernel image is available for execution on the device",
    ),
    "gives wrong numbers": (f"{CALL}return q * 0 + 1", "it fails: differs from the reference by"),
    "gives nothing of a tensor": (f"{CALL}return None", "it fails: AttributeError: 'NoneType'"),
    "gives another shape": (f"{CALL}return q[:1]", "it fails: gives a result of shape (1, 2, 128)"),
    "leaves": ("raise SystemExit(0)", "it fails: SystemExit: 0"),
    "is another one": ("", "it fails: ImportError: cannot import name 'flash_attn_varlen_func'"),
}


@pytest.fixture(autouse=True)
def _fresh_choice() -> Iterator[None]:
    yield
    admit(Backend.FLASH_ATTN, is_admitted=False)
    fused_ops.use_kernels(True)
    for name in [name for name in sys.modules if name.split(".")[0] in ("flash_attn", "apex")]:
        del sys.modules[name]


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of packages that this process and its children find first."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


def plant(folder: Path, name: str, code: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(code)


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_flash_attn_has_a_reason(fault: str, planted: Path) -> None:
    code, reason = BROKEN[fault]
    plant(planted, "flash_attn/__init__.py", code)
    (finding,) = check_flash_attn()
    assert finding.severity is Severity.NOTE
    assert finding.sentence.startswith(f"flash-attn is installed but not used, since {reason}")
    assert choose_backend(CPU, torch.float32, 64) is Backend.GROUPED


def test_a_flash_attn_that_crashes_takes_nothing_with_it(planted: Path, caplog: pytest.LogCaptureFixture) -> None:
    plant(planted, "flash_attn/__init__.py", f"import os, signal\n{CALL}os.kill(os.getpid(), signal.SIGSEGV)")
    with caplog.at_level(logging.INFO):
        settle_backends(CPU, torch.float32, 64)
    assert caplog.messages == ["flash-attn is installed but not used, since it crashed (SIGSEGV)."]
    assert choose_backend(CPU, torch.float32, 64) is Backend.GROUPED


def test_a_flash_attn_that_hangs_is_left_out_when_its_time_is_over(
    planted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plant(planted, "flash_attn/__init__.py", f"import time\n{CALL}time.sleep(1000)")
    with caplog.at_level(logging.INFO):
        settle_backends(CPU, torch.float32, 64, limit_s=5)
    assert caplog.messages == ["flash-attn is installed but not used, since it did not answer within 5 s."]
    assert choose_backend(CPU, torch.float32, 64) is Backend.GROUPED


def test_a_flash_attn_that_is_right_is_used_and_units_say_so(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(planted, "flash_attn/__init__.py", RIGHT)
    settle_backends(CPU, torch.float32, 16)
    assert choose_backend(CPU, torch.float32, 16) is Backend.FLASH_ATTN
    assert departures() == {"attention": "flash_attn"}
    from models.attention import attention

    packed = _packed((5, 5, 9), (5, 7, 9))
    torch.testing.assert_close(attention(*packed), _by_formula(*packed), atol=2e-6, rtol=0)
    monkeypatch.setenv("SEEDVR_WITHOUT", "flash-attn")
    settle_backends(CPU, torch.float32, 16)
    assert choose_backend(CPU, torch.float32, 16) is Backend.GROUPED
    assert departures() == {}


def test_what_is_switched_off_is_not_even_imported(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = planted / "imported"
    for name in ("flash_attn", "apex"):
        plant(planted, f"{name}/__init__.py", f"open({str(trace)!r}, 'w').close()")
    monkeypatch.setenv("SEEDVR_WITHOUT", "flash-attn apex")
    settle_backends(CPU, torch.float32, 64)
    report = examine(planted, checks=("flash-attn", "apex"))
    assert [finding.key for finding in report.findings] == ["flash-attn.off", "apex.off"]
    assert not trace.exists()


@pytest.mark.parametrize(
    ("files", "key", "reason"),
    [
        ({"apex/__init__.py": ""}, "apex.broken", "it is not NVIDIA's apex but another package of that name"),
        (
            {"apex/__init__.py": "raise ImportError('fused_layer_norm_cuda')"},
            "apex.broken",
            "it fails: ImportError: fused_layer_norm_cuda",
        ),
        (
            {"apex/__init__.py": "", "apex/normalization.py": "import torch\nFusedRMSNorm = torch.nn.Identity"},
            "apex.broken",
            "it fails: differs from the plain result by",
        ),
        (
            {"apex/__init__.py": "", "apex/normalization.py": "import torch\nFusedRMSNorm = torch.nn.RMSNorm"},
            "apex.ok",
            "apex works, but is not needed",
        ),
    ],
)  # fmt: skip
def test_apex_is_tried_by_the_doctor_and_never_used(
    files: dict[str, str], key: str, reason: str, planted: Path
) -> None:
    for name, code in files.items():
        plant(planted, name, code)
    (finding,) = check_apex()
    assert finding.key == key
    assert reason in finding.sentence
    assert finding.severity.value in ("ok", "note")


def test_an_apex_that_hangs_is_one_line(planted: Path) -> None:
    plant(planted, "apex/__init__.py", "import time\ntime.sleep(1000)")
    (finding,) = examine(planted, checks=("apex",), limit_s=5).findings
    assert finding.sentence == "apex is installed but not used, since it did not answer within 5 s."


def test_a_job_succeeds_with_a_broken_flash_attn_and_a_stub_apex_on_the_path(planted: Path, tmp_path: Path) -> None:
    plant(planted, "flash_attn/__init__.py", BROKEN["gives wrong numbers"][0])
    plant(planted, "apex/__init__.py", "raise RuntimeError('never imported by a job')")
    Image.fromarray(np.full((48, 64, 3), 128, np.uint8)).save(tmp_path / "in.png")
    command = [sys.executable, "-m", "inference.cli", "restore", str(tmp_path / "in.png"), str(tmp_path / "out.png")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(planted), str(ROOT)])}
    result = subprocess.run(
        [*command, "--json"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110, check=False
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["width"] == 128
    assert np.abs(np.asarray(Image.open(tmp_path / "out.png"), np.int16) - 128).max() < 12


def test_kernels_that_fail_give_way_to_plain_pytorch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No card is needed: the first call of a kernel is what fails."""

    def refuse(*_: object) -> torch.Tensor:
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nmore")

    monkeypatch.setattr(backends.token_ops, "silu_mul", refuse)
    monkeypatch.setattr(backends.torch, "linspace", lambda *args, device: torch.zeros(64))
    settle_backends(torch.device("cuda"), torch.float32, 64)
    assert not fused_ops.may_use_kernels()
    assert departures() == {"kernels": "off"}
    (line,) = caplog.messages
    assert line == (
        "the Triton kernels do not work here (RuntimeError: Failed to find C compiler. Please specify via CC "
        "environment variable.), so plain PyTorch does their work"
    )

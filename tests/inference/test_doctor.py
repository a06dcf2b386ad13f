"""The doctor's checks with the faults that they are for, simulated where this machine does not have them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest

from inference.catalogue import CATALOGUE, Part
from inference.doctor import card, files, machine
from inference.doctor.examine import examine
from inference.doctor.findings import Finding, Report, Severity, last_report, save_report
from inference.verify import remember_sha256
from tests.inference.fake_hub import running_hub

ROOT = Path(__file__).resolve().parents[2]
AMPERE = ("sm_75", "sm_80", "sm_86", "sm_90", "compute_90")


def one(findings: Iterable[Finding]) -> Finding:
    (finding,) = findings
    return finding


def a_program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def no_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("NVIDIA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(machine, "_CARD_SIGNS", (tmp_path / "nvidia0",))


# --- driver, card and torch ---


@pytest.mark.usefixtures("no_card")
def test_a_machine_without_a_card_is_told_what_it_can_do() -> None:
    finding = one(machine.check_driver())
    assert finding.severity is Severity.NOTE
    assert finding.sentence == "There is no NVIDIA card here, so the embedded model runs on the CPU."


@pytest.mark.usefixtures("no_card")
def test_a_card_whose_driver_is_missing(tmp_path: Path) -> None:
    (tmp_path / "nvidia0").touch()
    finding = one(machine.check_driver())
    assert finding.severity is Severity.ERROR
    assert finding.sentence == (
        "This machine should have an NVIDIA card, but its driver does not answer (there is no nvidia-smi)."
    )
    assert "--gpus all" in finding.action


@pytest.mark.usefixtures("no_card")
def test_a_driver_that_fails_says_why_and_one_that_works_says_what_it_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", "all")
    a_program(
        tmp_path / "bin", "nvidia-smi", "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18"
    )
    assert "(Failed to initialize NVML: Driver/library version mismatch)" in one(machine.check_driver()).sentence
    a_program(tmp_path / "bin", "nvidia-smi", "echo '570.10, NVIDIA L40, 46068 MiB'")
    assert one(machine.check_driver()).sentence == "The NVIDIA driver 570.10 answers: NVIDIA L40, 46068 MiB."


@pytest.mark.parametrize(
    ("capability", "archs", "entry"),
    [
        ((8, 9), AMPERE, "sm_86"),  # an L40 runs what was compiled for sm_86
        ((9, 0), AMPERE, "sm_90"),
        ((12, 0), AMPERE, "compute_90"),  # compiled by the driver
        ((7, 0), AMPERE, None),
        ((10, 0), ("sm_90a", "sm_80"), None),
        ((9, 0), ("sm_90a",), "sm_90a"),
        ((8, 9), ("sm_90", "sm_100"), None),
    ],
)
def test_which_kernels_run_on_which_card(capability: tuple[int, int], archs: list[str], entry: str | None) -> None:
    assert card.kernels_for(capability, archs) == entry


def test_a_torch_without_kernels_for_the_card() -> None:
    finding = card.judge_architecture("NVIDIA L40", (8, 9), ["sm_90", "sm_100"])
    assert finding.severity is Severity.ERROR
    assert finding.sentence == (
        "NVIDIA L40 has compute capability 8.9, but the installed torch has kernels for sm_90, sm_100 only."
    )
    assert "SEEDVR_TORCH" in finding.action


def test_a_driver_that_is_too_old_for_the_cuda_of_torch() -> None:
    finding = card.judge_driver("570.86.10", "2.13.0", "13.0")
    assert finding is not None
    assert finding.sentence == (
        "The driver 570.86.10 is too old for the CUDA 13.0 that torch 2.13.0 brings; it needs 580 or newer."
    )
    assert card.judge_driver("570.86.10", "2.11.0", "12.8") is None


def test_a_card_that_somebody_else_uses() -> None:
    assert card.judge_vram(10 * 2**30, 45 * 2**30).severity is Severity.WARNING
    assert card.judge_vram(44 * 2**30, 45 * 2**30).severity is Severity.OK


def test_a_cpu_build_of_torch_beside_a_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from inference.doctor import backends

    monkeypatch.setattr(backends.torch.version, "cuda", None)
    monkeypatch.setattr(backends, "ask_driver", lambda: ("580.1", ["NVIDIA L40"]))
    finding = one(backends.check_torch())
    assert (finding.key, finding.severity) == ("torch.cpu-build", Severity.ERROR)


def test_a_broken_torch_wheel_ends_the_examination_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('libcudart.so.12: cannot open shared object')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    # The planted package has to come before the project's own path, which is first in the child.
    monkeypatch.setattr("inference.doctor.examine._ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    report = examine(tmp_path, checks=("memory", "torch", "attention", "norms"))
    assert [finding.key for finding in report.findings][-1] == "torch.missing"
    assert len(report.findings) == 2
    assert report.findings[-1].sentence == (
        "torch cannot be used (ImportError: libcudart.so.12: cannot open shared object)."
    )


# --- memory and disk ---


def test_a_container_has_the_memory_of_its_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("1073741824\n")
    (tmp_path / "memory.current").write_text("805306368\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 268435456\n")
    finding = one(machine.check_memory())
    assert finding.sentence.startswith("Only 0.5 GiB of 1.0 GiB memory is free")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.memory()[1] > 2**30


def test_too_little_shared_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: SimpleNamespace(free=64 * 2**20))
    finding = one(machine.check_shm())
    assert finding.sentence.startswith("/dev/shm has only 64 MiB free")
    assert "--shm-size" in finding.action
    monkeypatch.setattr(machine, "_SHM", tmp_path / "none")
    monkeypatch.undo()


def test_a_disk_that_works_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    finding = next(machine.check_disk(tmp_path / "new" / "data"))
    assert finding.key in ("disk.ok", "disk.low", "disk.slow")
    assert list((tmp_path / "new" / "data").iterdir()) == []


def test_a_read_only_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    refusal = OSError(errno.EROFS, os.strerror(errno.EROFS))
    monkeypatch.setattr(machine.Path, "open", raiser(refusal))
    finding = one(machine.check_disk(tmp_path))
    assert finding.severity is Severity.ERROR
    assert finding.sentence == f"The data folder {tmp_path} cannot be written (Read-only file system)."


def test_a_disk_that_is_full_while_it_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine.Path, "open", raiser(OSError(errno.ENOSPC, "No space left on device")))
    finding = one(machine.check_disk(tmp_path))
    assert finding.sentence == "The disk of the data folder is full (0 MiB free), so no job starts."


def test_a_disk_with_little_room_and_a_slow_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    monkeypatch.setattr(machine, "_write", lambda folder, blocks: (3.0, 200.0))
    assert [finding.key for finding in machine.check_disk(tmp_path)] == ["disk.low", "disk.slow"]
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    assert [finding.key for finding in machine.check_disk(tmp_path)] == ["disk.full"]


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs mount namespaces")
@pytest.mark.parametrize(
    ("options", "keys"),
    [("size=64m,ro", ["disk.read-only", "filesystem.memory"]), ("size=8m", ["disk.full", "filesystem.memory"])],
)
def test_real_mounts_that_are_read_only_or_small(tmp_path: Path, options: str, keys: list[str]) -> None:
    program = (
        "import sys; from pathlib import Path; from inference.doctor import machine; data = Path(sys.argv[1]);"
        "print(*[f.key for c in (machine.check_disk, machine.check_filesystem) for f in c(data)])"
    )
    script = f'mount -t tmpfs -o {options} none "$1" && "$2" -c "$3" "$1"'
    command = ["unshare", "-rm", "sh", "-c", script, "sh", str(tmp_path), sys.executable, program]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    if "unshare" in result.stderr or "mount" in result.stderr:
        pytest.skip("mount namespaces are not allowed here")
    assert result.stdout.split() == keys, result.stderr


@pytest.mark.parametrize(
    ("kind", "key"),
    [("ext4", "ok"), ("overlay", "container"), ("tmpfs", "memory"), ("fuse.mfs", "network"), ("nfs4", "network")],
)
def test_what_the_file_system_means_for_the_data(
    kind: str, key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "filesystem_kind", lambda folder: kind)
    finding = one(machine.check_filesystem(tmp_path))
    assert finding.key == f"filesystem.{key}"
    assert kind in finding.sentence


# --- network and clock ---


def test_a_hub_that_cannot_be_reached_is_named_without_its_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://me:geheim@127.0.0.1:{closed.getsockname()[1]}/x?token=geheim")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        hub, clock = machine.check_hub_and_clock()
    assert hub.severity is Severity.WARNING
    assert hub.sentence.startswith("The hub at http://127.0.0.1:")
    assert "geheim" not in hub.sentence
    assert clock.key == "clock.unknown"


def test_a_hub_that_answers_also_tells_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        assert [finding.key for finding in machine.check_hub_and_clock()] == ["hub.ok", "clock.ok"]


def test_offline_mode_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(machine.httpx2, "head", raiser(AssertionError("asked")))
    assert [finding.key for finding in machine.check_hub_and_clock()] == ["hub.offline", "clock.unknown"]


def test_a_wrong_clock() -> None:
    now = machine.MADE.timestamp() + 10**7
    assert machine.judge_clock(now, now + 60).key == "clock.ok"
    assert machine.judge_clock(now, now + 3 * 3600).sentence.startswith("The clock is 3 hours slow, so sign-ins")
    assert machine.judge_clock(now + 600, now).sentence.startswith("The clock is 10 minutes fast, so")
    past = machine.judge_clock(0.0, None)
    assert past.severity is Severity.ERROR
    assert past.sentence.startswith("The clock says 1970-01-01")


# --- weights ---


@pytest.fixture
def hub_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub-home"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    return tmp_path / "hub-home"


def keys_of(findings: Iterable[Finding]) -> list[str]:
    return [finding.key for finding in findings]


def released() -> tuple[str, str, int]:
    """(name, SHA-256, bytes) of the transformer of the 3B model."""
    file = next(f for f in CATALOGUE["seedvr2-3b"].files[Part.DIT] if f.sha256 is not None)
    assert file.sha256 is not None
    assert file.num_bytes is not None
    return file.name, file.sha256, file.num_bytes


def test_only_the_embedded_model_is_here(hub_home: Path) -> None:
    keys = keys_of(files.check_weights(""))
    assert sorted(set(keys)) in (["weights.none", "weights.ok"], ["weights.none", "weights.unverified"])
    assert keys.count("weights.none") == len(CATALOGUE) - 1


def test_partial_weights(hub_home: Path, tmp_path: Path) -> None:
    name, sha256, size = released()
    blobs = hub_home / "hub" / "models--ByteDance-Seed--SeedVR2-3B" / "blobs"
    blobs.mkdir(parents=True)
    with (blobs / f"{sha256}.part").open("wb") as part:
        part.truncate(3 * 2**30)
    finding = next(finding for finding in files.check_weights("") if finding.key == "weights.partial")
    assert finding.sentence == f"The download of {name} has stopped at 3.0 GiB of {machine.to_gib(size)}."


def test_weights_of_the_wrong_size_and_a_folder_that_is_not_there(hub_home: Path, tmp_path: Path) -> None:
    name, _, size = released()
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / name).write_bytes(b"half")
    (finding,) = [f for f in files.check_weights(str(tmp_path / "weights")) if f.severity is Severity.ERROR]
    assert finding.sentence == (
        f"{tmp_path}/weights/{name} has 4 bytes instead of {size:,}: it is incomplete or another file."
    )
    (finding,) = [f for f in files.check_weights(str(tmp_path / "none")) if f.severity is Severity.ERROR]
    assert finding.sentence == f"The weights folder {tmp_path}/none does not exist."


def test_a_link_that_leads_nowhere(hub_home: Path, tmp_path: Path) -> None:
    name, _, _ = released()
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / name).symlink_to("/volume/gone.pth")
    (finding,) = [f for f in files.check_weights(str(tmp_path / "weights")) if f.severity is Severity.ERROR]
    assert finding.sentence == f"{tmp_path}/weights/{name} is a link to /volume/gone.pth, which is not there."


def test_verified_weights_are_told_from_those_that_nobody_has_read(
    hub_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    for options in CATALOGUE["seedvr2-3b"].files.values():
        file = next(f for f in options if f.repository is not None)
        with (folder / file.name).open("wb") as stream:
            stream.truncate(file.num_bytes or 10)
    assert "weights.unverified" in keys_of(f for f in files.check_weights(str(folder)) if "3b" in f.sentence)
    for options in CATALOGUE["seedvr2-3b"].files.values():
        file = next(f for f in options if f.repository is not None)
        remember_sha256(folder / file.name, file.sha256 or "")
    assert "weights.ok" in keys_of(f for f in files.check_weights(str(folder)) if "3b" in f.sentence)


# --- the examination ---


def test_a_check_that_crashes_and_one_that_hangs_are_findings_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, time\n"
        "import inference.doctor.machine as machine\n"
        "machine.check_memory = lambda: os.kill(os.getpid(), signal.SIGSEGV)\n"
        "machine.check_shm = lambda: time.sleep(1000)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    told: list[Finding] = []
    report = examine(tmp_path, checks=("memory", "filesystem", "shm", "weights"), limit_s=5, tell=told.append)
    assert told == list(report.findings)
    sentences = {finding.sentence for finding in report.findings if finding.key == "doctor.ended"}
    assert sentences == {
        "The check of memory did not come to its end: it crashed (SIGSEGV).",
        "The check of shm did not come to its end: it did not answer within 5 s.",
    }
    assert {"filesystem", "weights"} <= {finding.check for finding in report.findings}
    assert report.worst is Severity.ERROR


def test_a_report_is_kept_in_the_data_folder(tmp_path: Path) -> None:
    report = Report([machine.judge_clock(0.0, None)])
    assert last_report(tmp_path) is None
    assert save_report(tmp_path, report)
    assert last_report(tmp_path) == report
    (tmp_path / "doctor.json").write_text('{"findings": 3}')
    assert last_report(tmp_path) is None
    assert not save_report(tmp_path / "none", report)


def test_the_command_proves_every_backend_and_prints_one_document(tmp_path: Path, hub_home: Path) -> None:
    command = [sys.executable, "-m", "inference.cli", "doctor", "--json", "--data", str(tmp_path / "data")]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(hub_home)}
    result = subprocess.run(
        [*command, "--without", "flash-attn"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    document = json.loads(result.stdout)
    assert result.returncode == int(document["worst"] == "error"), result.stderr
    found = {finding["key"] for finding in document["findings"]}
    assert {"attention.ok", "norms.ok", "convolutions.ok", "codecs.ok", "flash-attn.off", "apex.absent"} <= found
    assert last_report(tmp_path / "data") is not None


def test_a_part_that_there_is_not_cannot_be_left_out(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "inference.cli", "doctor", "--without", "gravity"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert result.stderr.strip() == (
        "There is no part named 'gravity' to do without; it can be flash-attn, apex, kernels."
    )


def raiser(error: BaseException) -> Callable[..., object]:
    def fail(*_: object, **__: object) -> object:
        raise error

    return fail

"""The command line: exit codes, one sentence for people, JSON, and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from inference.cli import app
from inference.settings import describe

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 60.0
COMMANDS = ["restore", "plan", "serve", "parity", "bench", "models", "convert"]


def call(*arguments: str | Path) -> Result:
    return CliRunner(env={"TERMINAL_WIDTH": "200"}).invoke(app, list(map(str, arguments)))


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "inference.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)


@pytest.fixture
def nano(tiny_model: Path) -> list[str]:
    return ["model=nano", "device=cpu", "threads=1", f"weights={tiny_model}"]


def test_a_restored_video_is_told_in_one_line(nano: list[str], make_clip: Any, decoded: Any, tmp_path: Path) -> None:
    result = call("restore", make_clip("in.mp4", 5), tmp_path / "out.mp4", *nano)

    assert result.exit_code == 0
    assert "out.mp4: 5 frames, 48x32" in result.stderr.replace("\n", " ")
    assert "Restoring" in result.stderr
    assert len(decoded(tmp_path / "out.mp4")) == 5


def test_json_is_the_only_thing_on_standard_output(nano: list[str], make_clip: Any, tmp_path: Path) -> None:
    result = call("restore", make_clip("in.mp4", 2), tmp_path / "out.mp4", *nano, "seed=5", "--json", "--quiet")

    summary = json.loads(result.stdout)
    assert (summary["frames"], summary["settings"]["restore"]["seed"]) == (2, 5)
    assert {"seconds", "peak_memory_bytes", "shots", "frames_per_second"} <= set(summary)
    assert result.stderr == ""


def test_a_settings_file_is_read_and_arguments_win(nano: list[str], make_clip: Any, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("restore:\n  factor: 1\n  seed: 9\n")

    result = call(
        "restore", make_clip("in.mp4", 1), tmp_path / "out.mp4", *nano, "seed=8",
        "--config", tmp_path / "s.yaml", "--json", "-q",
    )  # fmt: skip

    summary = json.loads(result.stdout)
    assert (summary["width"], summary["settings"]["restore"]["seed"]) == (24, 8)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("edge/zero_bytes.mp4", "empty"),
        ("edge/text_renamed.mp4", "not a video"),
        ("edge/nul_bytes.mkv", "zero bytes"),
        ("edge/truncated_no_moov.mp4", "cut short"),
        ("edge/audio_only.m4a", "no picture"),
        ("img/truncated.jpg", "damaged"),
        ("img/zero_bytes.png", "empty"),
        ("nothing.mp4", "does not exist"),
    ],
)
def test_a_bad_source_ends_with_one_sentence_and_no_file(
    nano: list[str], shared: Path, tmp_path: Path, name: str, part: str
) -> None:
    target = tmp_path / ("out.png" if name.startswith("img") else "out.mp4")

    result = call("restore", shared / "media" / name, target, *nano, "-q")

    assert (result.exit_code, result.stdout) == (2, "")
    assert part in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_result_replaces_a_file_only_when_told_to(
    nano: list[str], make_clip: Any, decoded: Any, tmp_path: Path
) -> None:
    source, target = make_clip("in.mp4", 2), tmp_path / "out.mp4"
    target.write_bytes(b"the only copy")

    refused = call("restore", source, target, *nano, "-q")

    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "--overwrite" in refused.stderr
    assert target.read_bytes() == b"the only copy"

    assert call("restore", source, target, *nano, "-q", "--overwrite").exit_code == 0
    assert len(decoded(target)) == 2


@pytest.mark.parametrize("name", ["x" * 251 + ".mp4", "\U0001f3ac" * 60 + ".mp4"])
def test_a_name_as_long_as_names_can_be_works(nano: list[str], make_clip: Any, tmp_path: Path, name: str) -> None:
    source = make_clip("in.mp4", 1)

    assert call("restore", source, tmp_path / name, *nano, "-q").exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["in.mp4", name])


def test_a_name_that_is_too_long_is_one_sentence(nano: list[str], make_clip: Any, tmp_path: Path) -> None:
    for arguments in ([make_clip("in.mp4", 1), tmp_path / ("x" * 300 + ".mp4")], ["y" * 300, tmp_path / "out.mp4"]):
        result = call("restore", *arguments, *nano, "-q")
        assert result.exit_code == 2
        assert len(result.stderr.strip().splitlines()) == 1


def test_an_empty_file_is_no_result_to_protect(nano: list[str], make_clip: Any, decoded: Any, tmp_path: Path) -> None:
    target = tmp_path / "out.mp4"
    target.touch()

    assert call("restore", make_clip("in.mp4", 2), target, *nano, "-q").exit_code == 0
    assert len(decoded(target)) == 2


def test_the_source_is_not_replaced_even_when_told_to(nano: list[str], make_clip: Any) -> None:
    source = make_clip("in.mp4", 2)
    content = source.read_bytes()

    for more in ([], ["--overwrite"]):
        result = call("restore", source, source, *nano, "-q", *more)
        assert result.exit_code == 2
        assert "replace its own source" in result.stderr
    assert source.read_bytes() == content


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ("sed=1", "restore.seed"),
        ("resolution=16384", "smaller size"),
        ("model=big", "nano"),
        ("seed", "key=value"),
        ("precision=fp8", "engine.precision=auto"),
    ],
)
def test_a_wrong_setting_ends_with_one_sentence(make_clip: Any, tmp_path: Path, setting: str, part: str) -> None:
    result = call("restore", make_clip("in.mp4", 1), tmp_path / "out.mp4", "device=cpu", setting, "-q")

    assert result.exit_code == 2
    assert part in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_real_process_ends_with_code_2_one_sentence_and_no_traceback(shared: Path, tmp_path: Path) -> None:
    result = run("restore", shared / "media" / "edge" / "text_renamed.mp4", tmp_path / "out.mp4")

    assert (result.returncode, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr
    assert "text_renamed.mp4" in result.stderr.strip().splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_with_130_and_cleans_up(nano_weights: Path, make_clip: Any, tmp_path: Path) -> None:
    source = make_clip("in.mp4", 200)
    arguments = [str(source), str(tmp_path / "out.mp4"), "model=nano", "device=cpu", f"weights={nano_weights}"]
    process = subprocess.Popen([sys.executable, "-m", "inference.cli", "restore", *arguments, "-q"], cwd=ROOT)
    try:
        deadline = time.monotonic() + LIMIT_S
        while not list(tmp_path.glob(".*seedvr*/*")) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(LIMIT_S) == 130
    finally:
        process.kill()
        process.wait(LIMIT_S)

    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    result = call(command, "--help")

    assert result.exit_code == 0
    assert "Usage: " in result.stdout


def test_the_help_of_restore_lists_every_setting() -> None:
    text = call("restore", "--help").stdout

    assert all(info.key in text for info in describe())


def test_plan_tells_what_a_job_would_do_here(nano: list[str], make_clip: Any) -> None:
    result = call("plan", make_clip("in.mp4", 3), *nano)

    assert result.exit_code == 0
    assert "nano in float32" in result.stdout
    assert "cpu" in result.stdout
    assert "33 frames" in result.stdout  # of a window
    assert "device memory" not in result.stdout


def test_plan_for_a_card_that_is_not_here(make_clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.budget.free_host_memory", lambda: 128 * 2**30)
    source = make_clip("in.mp4", 3, height=18, width=32)

    result = call("plan", source, "box=1280x720", "model=seedvr2-3b", "--memory", "11.2", "--json")

    plan = json.loads(result.stdout)
    assert (plan["model"], plan["precision"], plan["window_frames"]) == ("seedvr2-3b", "bfloat16", 65)
    assert plan["moved"] == ["the transformer's weights"]
    assert plan["prediction"]["device"] == max(plan["prediction"][turn] for turn in ("encode", "denoise", "decode"))
    assert plan["prediction"]["device"] < 11.2 * 2**30
    words = call("plan", source, "box=1280x720", "model=seedvr2-3b", "--memory", "11.2").stdout
    assert "11.2 GiB" in words
    assert "main memory" in words


def test_plan_tells_what_fp8_saves(make_clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.budget.free_host_memory", lambda: 128 * 2**30)
    source = make_clip("in.mp4", 3, height=18, width=32)

    asked = ("plan", source, "box=1280x720", "model=seedvr2-7b", "--memory", "22", "--json")
    half, eighth = (json.loads(call(*asked, f"precision={name}").stdout) for name in ("bfloat16", "fp8"))

    assert (half["precision"], eighth["precision"]) == ("bfloat16", "bfloat16 and fp8")
    assert half["moved"] == ["the transformer's weights"]
    assert eighth["moved"] == []
    assert eighth["budget"]["parks_states"]


def test_plan_tells_what_a_long_shot_moves(make_clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.budget.free_host_memory", lambda: 128 * 2**30)

    asked = ("box=1280x720", "model=seedvr2-3b", "--memory", "22")
    short, long = (call("plan", make_clip(f"{n}.mp4", n, height=18, width=32), *asked).stdout for n in (380, 381))

    assert "nothing" in short
    assert "main memory" not in short
    assert "the VAE's states between turns of 381 frames" in " ".join(long.split())
    assert "main memory" in long


def test_plan_says_what_to_change_when_a_job_does_not_fit(make_clip: Any) -> None:
    result = call("plan", make_clip("in.mp4", 3), "box=3840x2160", "model=seedvr2-3b", "--memory", "4")

    assert result.exit_code == 2
    assert "restore.resolution" in result.stderr


def test_models_lists_the_catalogue_and_what_is_there(nano_weights: Path) -> None:
    rows = {row["name"]: row for row in json.loads(call("models", "--weights", nano_weights, "--json").stdout)}

    assert rows["nano"]["ready"]
    assert rows["nano"]["files"]["dit"] == str(nano_weights / "nano_dit.safetensors")
    assert {"nano", "seedvr2-3b", "seedvr2-7b"} <= set(rows)
    assert "seedvr2-7b" in call("models").stdout


def test_converting_a_model_that_is_not_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)

    result = call("convert", "seedvr2-3b")

    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1


class FakeModule(ModuleType):
    """Stands for a module of the project and remembers how its `main` was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, code: int | None) -> None:
        super().__init__(name)
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.code = code
        monkeypatch.setitem(sys.modules, name, self)

    def main(self, *arguments: Any, **named: Any) -> int | None:
        self.calls.append((arguments, named))
        return self.code


def test_bench_passes_its_arguments_and_exit_code_on(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeModule(monkeypatch, "benchmarks.speed", 1)

    result = call("bench", "speed", "--frames", "3", "x=1")

    assert result.exit_code == 1
    assert fake.calls == [((["--frames", "3", "x=1"],), {})]


def test_parity_passes_its_exit_code_on(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeModule(monkeypatch, "inference.parity.__main__", 1)

    assert call("parity", "folder").exit_code == 1
    assert fake.calls == [((["folder"],), {})]


def test_serve_starts_the_app_with_its_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = FakeModule(monkeypatch, "app", None)

    result = call("serve", "--host", "127.0.0.1", "--port", "9000", "--data", tmp_path, "model=nano")

    (options, engine), _ = fake.calls[0]
    assert result.exit_code == 0
    assert (options.host, options.port, options.data) == ("127.0.0.1", 9000, tmp_path)
    assert engine.model == "nano"


def test_serve_refuses_a_model_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeModule(monkeypatch, "app", None)

    result = call("serve", "model=none")

    assert result.exit_code == 2
    assert "nano" in result.stderr
    assert not fake.calls

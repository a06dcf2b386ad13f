"""The Dockerfile: linted, and its instructions read and held against the checkout. `bench rehearsal` runs them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.dockerfile import Stage, build, command_of, context_files, copy, environment_of, parse

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
TEXT = (ROOT / "Dockerfile").read_text()


@pytest.fixture
def stages() -> list[Stage]:
    return parse(TEXT)


def lint(*command: str) -> subprocess.CompletedProcess[str]:
    tool = shutil.which(command[0], path=str(BIN))
    assert tool, f"{command[0]} is missing; it comes with the extra `test`"
    return subprocess.run([tool, *command[1:]], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_the_dockerfile_passes_its_linter() -> None:
    result = lint("hadolint", "--failure-threshold", "info", "Dockerfile")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("script", ["run.sh", "docker/start.sh", ".ci/run"])
def test_the_shell_scripts_pass_their_linter(script: str) -> None:
    result = lint("shellcheck", script)
    assert result.returncode == 0, result.stdout


def test_it_has_two_stages_on_one_base_with_cuda_12_8(stages: list[Stage]) -> None:
    assert [stage.name for stage in stages] == ["build", ""]
    assert {stage.base for stage in stages} == {"${BASE_IMAGE}"}
    base = re.search(r"^ARG BASE_IMAGE=(\S+)$", TEXT, re.MULTILINE)
    assert base
    assert re.fullmatch(r"pytorch/pytorch:2\.1\d\.\d-cuda12\.8-cudnn9-runtime", base[1])


def test_packages_are_wheels_and_the_torch_of_the_base_is_kept(stages: list[Stage]) -> None:
    arguments = [line.text for line in stages[0].instructions if line.name == "ARG"]
    assert {"PIP_ONLY_BINARY=:all:", "SEEDVR_KEEP_TORCH=1", 'BAKE_MODEL=""', "SHARE_HELPER=1"} <= set(arguments)


def test_the_start_command_the_health_check_and_the_environment_name_files_of_the_image(stages: list[Stage]) -> None:
    last = stages[-1]
    health = next(line.text for line in last.instructions if line.name == "HEALTHCHECK")
    named = re.findall(r"/opt/seedvr/(docker/[\w.]+)", " ".join(command_of(last)) + health)
    assert sorted(named) == ["docker/health.py", "docker/start.sh"]
    assert all((ROOT / name).is_file() for name in named)
    assert environment_of(last)["SEEDVR_VOLUME"] == "/workspace"
    assert "video" in environment_of(last)["NVIDIA_DRIVER_CAPABILITIES"]


def test_labels_and_the_port_are_told(stages: list[Stage]) -> None:
    told = " ".join(f"{line.name} {line.text}" for line in stages[-1].instructions)
    for text in ("image.title=", "image.licenses=", "image.revision=", "EXPOSE 7860", "STOPSIGNAL SIGTERM"):
        assert text in told


def test_the_context_holds_the_program_and_nothing_else() -> None:
    files = {str(path) for path in context_files(ROOT, (ROOT / ".dockerignore").read_text())}
    assert {"app.py", "run.sh", "models/weights/nano_dit.safetensors", "docker/start.sh"} <= files
    tops = {name.partition("/")[0] for name in files}
    assert tops & {"tests", "training", ".git", ".venv", "benchmarks", ".github", "docs"} == set()
    assert not [name for name in files if name.endswith((".pyc", ".part"))]


def test_what_each_copy_names_is_in_the_context(stages: list[Stage], tmp_path: Path) -> None:
    copies = [line.text for line in stages[0].instructions if line.name == "COPY"]
    for text in copies:
        copy(text, tmp_path)
    assert (tmp_path / "docker/serverless.txt").is_file()
    assert (tmp_path / "seedvr_ui/static/studio.css").is_file()


def test_run_lines_run_in_the_working_folder_with_the_build_arguments(tmp_path: Path) -> None:
    (stage,) = parse(
        "ARG BASE=x\nFROM ${BASE} AS build\nWORKDIR /opt/it\nARG WORD=no\n# a comment\n"
        "RUN echo ${WORD} \\\n    # in between\n    >word\nRUN apt-get update\n"
    )
    steps = list(build(stage, tmp_path, {"WORD": "yes"}))
    assert (tmp_path / "opt/it/word").read_text() == "yes\n"
    assert [step.seconds is None for step in steps] == [False, True]


def test_a_run_line_that_fails_ends_the_build(tmp_path: Path) -> None:
    (stage,) = parse("FROM x\nWORKDIR /opt\nRUN false | true\n")
    with pytest.raises(subprocess.CalledProcessError):
        list(build(stage, tmp_path, {}))


def test_the_workflow_and_the_rehearsal_agree_on_the_size(stages: list[Stage]) -> None:
    from benchmarks.rehearsal import LIMITS

    assert f"{LIMITS['packages_mb']:g} MB" in (ROOT / "README.md").read_text()

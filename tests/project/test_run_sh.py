"""run.sh and .ci/run, run for real with bash in a copy of the checkout's few files, with a stand-in for Python.

The stand-in (``stand_in_python.sh``) records every call, so the tests see what would have been installed and started.
PATH holds only the tools that run.sh may use, so nothing of the machine leaks in.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = """
    bash cat cksum cmp cp cut dirname env grep head id kill mkdir mktemp rm setsid sleep tee timeout touch
""".split()  # noqa: SIM905 - a list of words reads better


@dataclass
class Checkout:
    """A folder with run.sh in it, a PATH of its own, and the record of what the stand-in Python was told."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, *arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run ``./run.sh`` with these arguments; never longer than 30 s."""
        command = ["/bin/bash", str(self.root / "run.sh"), *arguments]
        return self.call(command, cwd=cwd, **environment)

    def call(self, command: list[str], cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=cwd or self.root,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def add_tool(self, name: str, text: str = "#!/bin/bash\n") -> None:
        tool = self.root / "bin" / name
        tool.write_text(text)
        tool.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        """What the stand-in Python was told, one line a call."""
        log = Path(self.environment["STAND_IN_LOG"])
        return log.read_text().splitlines() if log.exists() else []

    def calls_with(self, text: str) -> list[str]:
        return [call for call in self.calls if text in call]

    def forget(self) -> None:
        Path(self.environment["STAND_IN_LOG"]).write_text("")


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    root = tmp_path / "check out"  # with a blank, as on many a desktop
    (root / "bin").mkdir(parents=True)
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found, f"the machine has no {tool}"
        (root / "bin" / tool).symlink_to(found)
    shutil.copy(ROOT / "run.sh", root / "run.sh")
    shutil.copytree(ROOT / ".ci", root / ".ci")
    shutil.copy(ROOT / "tests/project/stand_in_python.sh", root / "bin/python3")
    (root / "tests/project").mkdir(parents=True)
    shutil.copy(ROOT / "tests/project/summary.py", root / "tests/project/summary.py")
    (root / "docker").mkdir()
    shutil.copy(ROOT / "docker/serverless.txt", root / "docker/serverless.txt")
    (root / "pyproject.toml").write_text("[project]\n")
    (root / "constraints.txt").write_text("einops==0.8.2\n")
    environment = {
        "PATH": str(root / "bin"),
        "HOME": str(tmp_path),
        "STAND_IN_LOG": str(tmp_path / "calls.txt"),
        "STAND_IN_REAL_PYTHON": sys.executable,
    }
    checkout = Checkout(root, environment)
    checkout.add_tool("chromium")
    return checkout


def last_line(result: subprocess.CompletedProcess[str]) -> str:
    return result.stdout.rstrip().splitlines()[-1]


def test_without_arguments_the_app_is_served(checkout: Checkout) -> None:
    result = checkout.run()
    assert result.returncode == 0, result.stderr
    assert last_line(result).startswith("cli: serve in ")


def test_other_words_go_to_the_command_line_unchanged(checkout: Checkout) -> None:
    result = checkout.run("restore", "in put.mp4", "out.mp4", "restore.seed=1")
    assert last_line(result).startswith("cli: restore in put.mp4 out.mp4 restore.seed=1 in ")


def test_relative_paths_mean_the_callers_folder(checkout: Checkout, tmp_path: Path) -> None:
    result = checkout.run("models", cwd=tmp_path)
    assert last_line(result) == f"cli: models in {tmp_path}"


def test_the_exit_code_of_the_command_line_is_passed_on(checkout: Checkout) -> None:
    assert checkout.run("restore", STAND_IN_FAIL="-m inference.cli restore").returncode == 1


def test_torch_is_installed_before_everything_else(checkout: Checkout) -> None:
    checkout.run()
    installs = checkout.calls_with("pip install")
    assert len(installs) == 2
    assert installs[0].endswith("torch==2.13.0")
    assert "constraints.txt" in installs[1]


def test_the_torch_that_is_there_is_pinned_while_the_rest_is_installed(checkout: Checkout) -> None:
    checkout.run()
    assert "-c " + str(checkout.root / ".venv/torch-constraint.txt") in checkout.calls_with(" -e ")[0]
    assert (checkout.root / ".venv/torch-constraint.txt").read_text() == "torch==2.13.0\n"


def test_the_second_start_calls_no_pip(checkout: Checkout) -> None:
    checkout.run()
    checkout.forget()
    result = checkout.run()
    assert last_line(result).startswith("cli: serve")
    assert checkout.calls_with("pip") == []
    assert result.stderr == ""


def test_a_change_of_the_constraints_installs_again_but_keeps_torch(checkout: Checkout) -> None:
    checkout.run()
    checkout.forget()
    (checkout.root / "constraints.txt").write_text("einops==0.8.3\n")
    checkout.run()
    assert len(checkout.calls_with("pip install")) == 1
    assert checkout.calls_with("-m venv") == []


def test_a_failed_install_is_a_sentence_and_is_tried_again(checkout: Checkout) -> None:
    result = checkout.run(STAND_IN_FAIL=" -e ")
    assert result.returncode == 1
    assert "pip could not install the packages" in result.stderr.splitlines()[-1]
    checkout.forget()
    assert checkout.run().returncode == 0
    assert len(checkout.calls_with(" -e ")) == 1


def test_a_python_that_is_too_old_is_a_sentence(checkout: Checkout) -> None:
    result = checkout.run(STAND_IN_OLD="1")
    assert result.returncode == 1
    assert "no Python 3.11 or newer" in result.stderr


def test_a_working_cuda_torch_of_the_machine_is_kept(checkout: Checkout) -> None:
    checkout.add_tool("nvidia-smi")
    checkout.run(STAND_IN_CUDA="1")
    assert "--system-site-packages" in checkout.calls_with("-m venv")[0]
    assert all(" -e " in call for call in checkout.calls_with("pip install"))


def test_a_card_without_torch_gets_the_build_that_its_driver_runs(checkout: Checkout) -> None:
    checkout.add_tool("nvidia-smi", "#!/bin/bash\necho 570.86.10\n")
    checkout.run()
    assert checkout.calls_with("pip install")[0].endswith("torch==2.10.0")


def test_another_torch_can_be_asked_for(checkout: Checkout) -> None:
    checkout.run(SEEDVR_TORCH="torch==2.12.0 --index-url https://example.org/cpu")
    assert checkout.calls_with("pip install")[0].endswith("torch==2.12.0 --index-url https://example.org/cpu")


def test_the_suite_runs_in_two_parts_and_ends_with_their_sum(checkout: Checkout) -> None:
    (checkout.root / "tests" / "ui").mkdir(parents=True, exist_ok=True)
    for name in ("test_browser.py", "test_browser_more.py", "test_other.py"):
        (checkout.root / "tests" / "ui" / name).touch()
    result = checkout.run("test")
    assert result.returncode == 0, result.stderr
    parts = checkout.calls_with("-m pytest")
    assert "--ignore-glob=tests/ui/test_browser*.py" in parts[0]
    assert parts[1].endswith("tests/ui/test_browser.py tests/ui/test_browser_more.py")
    assert last_line(result) == "===== 4 passed in 3.00s ====="


def test_the_test_tools_are_installed_for_the_tests_only(checkout: Checkout) -> None:
    checkout.run("test")
    assert checkout.calls_with(" -e ")[0].endswith("[test]")


def test_what_does_not_fit_into_the_environment_is_installed_beside_it_once(checkout: Checkout) -> None:
    checkout.run("test")
    (call,) = checkout.calls_with("--target")
    assert call.endswith("docker/serverless.txt")
    checkout.forget()
    checkout.run("test")
    assert checkout.calls_with("--target") == []


def test_options_reach_both_parts(checkout: Checkout) -> None:
    checkout.run("test", "-m", "not gpu")
    assert [call.endswith(" -m not gpu") for call in checkout.calls_with("-m pytest")] == [True, True]


def test_a_chosen_file_runs_alone(checkout: Checkout) -> None:
    (checkout.root / "tests/test_one.py").write_text("")
    assert checkout.run("test", "tests/test_one.py::test_it").returncode == 0
    parts = checkout.calls_with("-m pytest")
    assert len(parts) == 1
    assert parts[0].endswith("tests/test_one.py::test_it")


def test_a_failing_test_fails_the_run_after_both_parts(checkout: Checkout) -> None:
    result = checkout.run("test", STAND_IN_PYTEST="fail")
    assert result.returncode != 0
    assert last_line(result) == "===== 2 failed, 2 passed in 3.00s ====="


def test_a_part_that_runs_no_test_fails_the_run(checkout: Checkout) -> None:
    assert checkout.run("test", STAND_IN_PYTEST="empty").returncode != 0


def test_a_suite_that_hangs_is_stopped_and_fails(checkout: Checkout) -> None:
    result = checkout.run("test", STAND_IN_PYTEST="hang", SEEDVR_TEST_LIMITS_S="1 1")
    assert result.returncode != 0
    assert "stopped after 1 s" in result.stderr
    assert last_line(result) == "===== 0 passed, 2 parts incomplete in 0.00s ====="


def test_a_process_that_outlives_its_test_is_ended(checkout: Checkout) -> None:
    assert checkout.run("test", STAND_IN_PYTEST="orphan").returncode == 0
    home = checkout.environment["HOME"]
    assert [p.pid for p in psutil.process_iter() if is_orphan(p, home)] == []


def is_orphan(process: psutil.Process, home: str) -> bool:
    try:
        return process.cmdline() == ["sleep", "4321"] and process.environ().get("HOME") == home
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return False


def test_ci_without_a_browser_fails_with_a_sentence(checkout: Checkout) -> None:
    (checkout.root / "bin/chromium").unlink()
    result = checkout.call(["/bin/bash", str(checkout.root / ".ci/run")])
    assert result.returncode == 1
    assert "no Chromium found" in result.stderr.splitlines()[-1]


def test_a_person_without_a_browser_runs_the_other_tests(checkout: Checkout) -> None:
    (checkout.root / "bin/chromium").unlink()
    result = checkout.run("test")
    assert result.returncode == 0
    assert "the browser tests are left out" in result.stderr
    assert last_line(result) == "===== 2 passed in 1.50s ====="


@pytest.mark.parametrize("name", ["run.sh", ".ci/run"])
def test_the_scripts_can_be_started(name: str) -> None:
    assert os.access(ROOT / name, os.X_OK)

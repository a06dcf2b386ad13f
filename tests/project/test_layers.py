"""The import rules, and the parts of the program that must start without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_imports_go_down_only() -> None:
    """The contracts of pyproject.toml, checked by import-linter."""
    command = [sys.executable, "-c", "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    "module",
    [
        "app",
        "inference.cli",
        "inference.worker",
        "inference.settings",
        "inference.catalogue",
        "inference.media.reader",
        "inference.units",
        "inference.partial",
    ],
)
def test_it_starts_without_torch(module: str) -> None:
    program = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=100, check=False)
    assert result.returncode == 0, result.stderr.decode()


@pytest.mark.parametrize("package", ["inference", "models", "seedvr_ui"])
def test_a_package_itself_imports_nothing(package: str) -> None:
    body = ast.parse((ROOT / package / "__init__.py").read_text()).body
    assert all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)


def test_torchvision_is_not_imported_and_flash_attn_and_apex_only_where_they_are_tried() -> None:
    """The README promises it. Looked for in the sources, since none of them is installed here."""
    found = {}
    for package in ("inference", "models", "seedvr_ui", "benchmarks"):
        for path in (ROOT / package).rglob("*.py"):
            tree = ast.parse(path.read_text())
            on_the_way = {id(node) for node in tree.body}
            for node in ast.walk(tree):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                for name in {n.split(".")[0] for n in names} & {"torchvision", "flash_attn", "apex"}:
                    found[name, path.name] = id(node) in on_the_way
    assert found == {("flash_attn", "attention.py"): False, ("apex", "backends.py"): False}

"""README and its companions against the program, so that they cannot drift apart."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from inference.catalogue import CATALOGUE
from inference.media.probe import probe
from inference.settings import SettingInfo, describe

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
DOCUMENTS = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "samples/README.md", "benchmarks/README.md"]


def row_of(info: SettingInfo) -> str:
    default = getattr(info.default, "value", info.default)
    shown = "empty" if default == "" else f"`{str(default).lower() if isinstance(default, bool) else default}`"
    choices = f" ({', '.join(info.choices)})" if info.choices else ""
    return f"| `{info.key}` | {shown} | {info.help}{choices} |"


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_settings_table_equals_the_settings() -> None:
    table = README.partition("<!-- settings -->")[2].partition("<!-- /settings -->")[0].strip().splitlines()
    assert table[2:] == [row_of(info) for info in describe()]


def test_the_first_screen_shows_both_commands_and_the_picture() -> None:
    first_screen = "\n".join(README.splitlines()[:20])
    assert "    ./run.sh  " in first_screen
    assert "    ./run.sh test" in first_screen
    assert "docs/before-after.png" in first_screen


def test_every_model_is_in_the_table() -> None:
    named = set(re.findall(r"^\| `([\w-]+)` \|", README.partition("## Models")[2].partition("## ")[0], re.MULTILINE))
    assert named == set(CATALOGUE)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    missing = [link for link in links if not ((ROOT / document).parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_a_document_names_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    named = set(re.findall(r"`((?:inference|models|seedvr_ui|benchmarks|samples|tests)/[\w/.]*)`", text))
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_commands_of_the_readme_exist() -> None:
    named = set(re.findall(r"^    \./run\.sh (\w+)", README, re.MULTILINE)) - {"test"}
    result = subprocess.run(
        [sys.executable, "-m", "inference.cli", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert named
    assert [name for name in sorted(named) if not re.search(rf"\b{name}\b", result.stdout)] == []


def test_the_sample_has_sound_and_is_small() -> None:
    (sample,) = (ROOT / "samples").glob("*.mp4")
    info = probe(sample)
    assert info.has_audio
    assert info.num_frames == 96
    assert sample.stat().st_size < 300_000
    assert f"`{sample.name}`" in (ROOT / "samples/README.md").read_text()


def test_the_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert project()["project"]["license"] == "Apache-2.0"


def test_torch_is_not_a_dependency_that_pip_could_replace() -> None:
    names = [re.split(r"[<>=\[ ]", requirement)[0] for requirement in project()["project"]["dependencies"]]
    assert {"torch", "torchvision", "flash-attn", "apex"} & set(names) == set()


def test_every_dependency_is_pinned_for_ci() -> None:
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in constraints()}
    extras = project()["project"]["optional-dependencies"]
    wanted = [re.split(r"[<>=\[ ]", line)[0].lower() for line in project()["project"]["dependencies"] + extras["test"]]
    pinned.add("triton")  # by torch, wherever torch needs it
    assert [name for name in wanted if name.replace("_", "-") not in pinned] == []


def test_the_constraints_name_exact_versions_and_no_place() -> None:
    assert [line for line in constraints() if not re.fullmatch(r"[\w.-]+==[\w.+]+", line)] == []


def constraints() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]

"""Reads the Dockerfile and .dockerignore, and builds their image's folder without Docker, below a folder of its own.

For the rehearsal and the tests: the steps that the image is built with are taken from the file itself, never repeated.
Absolute folders of the image lie below `root`. Steps that change the system (apt-get) are named and left out.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STEP_LIMIT_S = 900.0
_SYSTEM = re.compile(r"\bapt-get\b")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction with its continuation lines joined, such as ("RUN", "mkdir -p share && ...")."""

    name: str
    text: str


@dataclass(slots=True)
class Stage:
    """What follows one FROM."""

    base: str
    name: str
    instructions: list[Instruction] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Step:
    """One RUN that was run, or left out: `seconds` is None then."""

    text: str
    seconds: float | None


def parse(text: str) -> list[Stage]:
    """The stages of a Dockerfile. Comments between continuation lines are dropped, as Docker does."""
    stages: list[Stage] = []
    pending = ""
    for line in text.splitlines():
        if line.lstrip().startswith("#") or not line.strip():
            continue
        pending += line.strip()
        if pending.endswith("\\"):
            pending = pending[:-1]
            continue
        name, _, rest = pending.partition(" ")
        pending = ""
        if name == "FROM":
            base, _, alias = rest.partition(" AS ")
            stages.append(Stage(base.strip(), alias.strip()))
        elif stages:  # an ARG before the first FROM serves the FROM lines only
            stages[-1].instructions.append(Instruction(name, rest.strip()))
    return stages


def context_files(folder: Path, ignore: str) -> list[Path]:
    """The files of `folder` that .dockerignore's text `ignore` leaves in the build's context, relative, sorted."""
    rules = [line.strip() for line in ignore.splitlines() if line.strip() and not line.startswith("#")]
    return sorted(path for path in _tracked_files(folder) if not _is_ignored(path, rules))


def build(stage: Stage, root: Path, arguments: Mapping[str, str]) -> Iterator[Step]:
    """Run the COPY and RUN lines of `stage` with the image's root folder at `root`; one Step for each RUN.

    `arguments` are build arguments, as for `docker build --build-arg`. Raises CalledProcessError when a step fails.
    """
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environment |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    folder = root
    for instruction in stage.instructions:
        match instruction.name:
            case "WORKDIR":
                folder = root / instruction.text.lstrip("/")
                folder.mkdir(parents=True, exist_ok=True)
            case "ARG":
                name, _, default = instruction.text.partition("=")
                environment[name] = arguments.get(name, default.strip('"'))
            case "COPY":
                copy(instruction.text, folder)
            case "RUN" if _SYSTEM.search(instruction.text):
                yield Step(instruction.text, None)
            case "RUN":
                begin = time.perf_counter()
                command = ["/bin/bash", "-o", "pipefail", "-c", instruction.text]
                subprocess.run(
                    command, cwd=folder, env=environment, check=True, timeout=STEP_LIMIT_S, stdin=subprocess.DEVNULL
                )
                yield Step(instruction.text, time.perf_counter() - begin)


def copy(text: str, folder: Path, source: Path = ROOT) -> None:
    """One COPY from the build's context at `source` into `folder`, the stage's working folder."""
    *names, target = shlex.split(text)
    assert not target.startswith("/"), f"COPY to {target} is not understood"
    files = context_files(source, (source / ".dockerignore").read_text())
    for name in names:
        chosen = [path for path in files if name == "." or path == Path(name) or Path(name) in path.parents]
        assert chosen, f"COPY {name}: .dockerignore leaves nothing of it"
        for path in chosen:
            inner = path if name == "." else Path(path.name) if path == Path(name) else path.relative_to(name)
            place = folder / target / inner
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / path, place)


def environment_of(stage: Stage) -> dict[str, str]:
    """What the ENV lines of a stage set."""
    pairs = [
        word.partition("=") for line in stage.instructions if line.name == "ENV" for word in shlex.split(line.text)
    ]
    return {name: value for name, _, value in pairs}


def command_of(stage: Stage) -> list[str]:
    """ENTRYPOINT and CMD of a stage, as one command."""
    words: dict[str, list[str]] = {"ENTRYPOINT": [], "CMD": []}
    for line in stage.instructions:
        if line.name in words:
            words[line.name] = json.loads(line.text)
    return words["ENTRYPOINT"] + words["CMD"]


def _tracked_files(folder: Path) -> Iterator[Path]:
    for path, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in (".git", ".venv")]
        yield from (Path(path, name).relative_to(folder) for name in files)


def _is_ignored(path: Path, rules: list[str]) -> bool:
    """The last rule that matches the path or a folder above it decides, as in Docker."""
    names = [str(path), *(str(parent) for parent in path.parents if parent != Path("."))]
    is_ignored = False
    for rule in rules:
        pattern = rule.removeprefix("!").strip("/")
        if any(_matches(name, pattern) for name in names):
            is_ignored = not rule.startswith("!")
    return is_ignored


def _matches(name: str, pattern: str) -> bool:
    if pattern.startswith("**/"):
        tail = pattern.removeprefix("**/")
        return fnmatch.fnmatchcase(name.rpartition("/")[2], tail)
    parts, wanted = name.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))

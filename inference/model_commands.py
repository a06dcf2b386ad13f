"""`seedvr models`: list, download, verify, import and delete the models of this machine; `seedvr convert` converts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from inference.catalogue import CATALOGUE, ModelEntry, find_model
from inference.console import show_bytes
from inference.download import gigabytes
from inference.errors import CheckpointError
from inference.installed import delete_model, import_folder, survey, verify_model
from inference.locate import check_weights_folder, locate

app = typer.Typer(name="models", add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
_out = Console(stderr=True, highlight=False, soft_wrap=True)

_Name = Annotated[str, typer.Argument(metavar="MODEL", help="Name of a model, see `seedvr models`.")]
_Weights = Annotated[Path | None, typer.Option(help="Folder with model files, as engine.weights.")]


@app.callback(invoke_without_command=True)
def models(
    context: typer.Context,
    weights: _Weights = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List the models, which of their files are on this machine, and what is wrong with them."""
    if context.invoked_subcommand is not None:
        return
    found = survey(weights)
    rows = [_row(CATALOGUE[state.name], weights) | {"bytes": state.num_bytes} for state in found.models]
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return
    table = Table("model", "title", "parameters", "files here", "size", box=None)
    for row, state in zip(rows, found.models, strict=True):
        here = "ready" if row["ready"] else f"needs {', '.join(row['missing'])} ({gigabytes(state.missing_bytes)})"
        table.add_row(
            row["name"], row["title"], f"{row['parameters'] / 1e9:.2f} G", here, gigabytes(row["bytes"])
        )  # fmt: skip
    Console(soft_wrap=True).print(table)
    for problem in found.problems:
        _out.print(f"Problem: {problem.sentence}", markup=False)
    _out.print(f"{gigabytes(found.free_bytes)} are free on the disk that downloads go to.", markup=False)


@app.command()
def download(name: _Name, weights: _Weights = None) -> None:
    """Fetch what is missing of MODEL, or go on with it; Ctrl-C pauses."""
    from inference.download import model_files

    with show_bytes(_out, f"Downloading {name}") as report:
        model_files(find_model(name), weights, report_bytes=report)
    _out.print(f"{name} is complete, and its files are the right ones.", markup=False)


@app.command()
def verify(name: _Name, weights: _Weights = None) -> None:
    """Hash the files of MODEL anew."""
    with show_bytes(_out, f"Verifying {name}") as report:
        number = verify_model(find_model(name), weights, report)
    _out.print(f"{number} files were read, and are the right ones.", markup=False)


@app.command(name="import")
def import_models(folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder with model files.")]) -> None:
    """Take the model files of FOLDER, verified and linked where the file system can; the originals stay."""
    with show_bytes(_out, "Verifying") as report:
        new = import_folder(folder, report_bytes=report)
    for path in new:
        _out.print(f"Imported {path}", markup=False)
    if not new:
        _out.print("Everything in this folder is here already.", markup=False)


@app.command()
def delete(
    name: _Name,
    originals: Annotated[bool, typer.Option("--originals", help="Only float32 files with a converted copy.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete the files of MODEL that no other model on this machine needs."""
    entry = find_model(name)
    if not yes:
        if not sys.stdin.isatty():
            raise CheckpointError(f"Nothing was deleted; say --yes to delete {name} without being asked.")
        typer.confirm(f"Delete {entry.title}?", abort=True, err=True)
    _out.print(f"{gigabytes(delete_model(entry, only_originals=originals))} are free again.", markup=False)


def _row(entry: ModelEntry, weights: Path | None) -> dict[str, Any]:
    folder = check_weights_folder(weights)
    found = {part.value: locate(files, folder) for part, files in entry.files.items()}
    return {
        "name": entry.name,
        "title": entry.title,
        "parameters": entry.num_parameters,
        "ready": all(found.values()),
        "missing": [part for part, file in found.items() if file is None],
        "files": {part: str(file.path) for part, file in found.items() if file is not None},
    }

"""The command line: `seedvr restore | plan | jobs | serve | doctor | accounts | parity | bench | models | convert`.

A RestoreError ends a command with exit code 2 and its sentence on standard error, Ctrl-C with 130. Commands that need
torch import it when they run, so that `--help` is quick.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from inference.catalogue import AUTO_MODEL, find_model
from inference.doctor.findings import Finding
from inference.errors import CancelledError, RestoreError, SettingsError
from inference.logs import configure_logs
from inference.progress import Cancellation
from inference.settings import Precision, describe, load_settings, to_text
from inference.without import NAMES, switch_off

app = typer.Typer(
    name="seedvr",
    help="Restore and upscale videos and images with SeedVR2.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_USER_ERROR = 2
_INTERRUPTED = 130
_WITHOUT_HELP = f"Do without this part of the machine ({', '.join(NAMES)}); may be given again."
_errors = Console(stderr=True, highlight=False, soft_wrap=True)


class Benchmark(StrEnum):
    """The benchmarks that `seedvr bench` runs."""

    QUALITY = "quality"
    SPEED = "speed"
    MEMORY = "memory"
    GPU = "gpu"
    STORE = "store"
    CHAOS = "chaos"
    CANCEL = "cancel"
    RESUME = "resume"
    REHEARSAL = "rehearsal"
    HTTP_SCAN = "http-scan"


def _settings_help() -> str:
    lines = ["Settings, as key=value (a bare name such as seed=1 works too):", ""]
    for info in describe():
        choices = f" ({', '.join(info.choices)})" if info.choices else ""
        default = to_text(info.default)
        lines.append(f"{info.key}={default}  {info.help}{choices}")
    return "\n\n".join(lines)


@app.command(epilog=_settings_help())
def restore(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Video or image to restore.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="File to write: .mp4, .png, .jpg, .webp.")],
    settings: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, see below.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings; those given here win.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists, once all is done.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON document.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary.")] = False,
    without: Annotated[list[str] | None, typer.Option(help=_WITHOUT_HELP)] = None,
) -> None:
    """Restore the video or image IN into the file OUT; a video keeps its sound."""
    with _user_errors():
        switch_off(without or [])
        tree = load_settings(*([config] if config else []), settings or [])
        from inference.media.target import check_is_new

        if not overwrite:
            check_is_new(target, source)
        from inference.console import show_progress
        from inference.engine import Engine

        cancellation = _cancel_on_interrupt()
        silent = contextlib.nullcontext(None)
        with Engine(tree.engine) as engine, silent if quiet else show_progress(_errors) as report:
            summary = engine.restore(source, target, tree.restore, report, cancellation)
    if as_json:
        sys.stdout.write(json.dumps(summary.to_dict(), indent=2) + "\n")
    elif not quiet:
        _errors.print(
            f"{target}: {summary.frames} frames, {summary.width}x{summary.height}, "
            f"{summary.seconds['total']:.1f} s with {summary.model} on {summary.device}"
        )
        for note in summary.notes:
            _errors.print(f"Note: {note}")


@app.command(epilog=_settings_help())
def plan(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Video or image that would be restored.")],
    settings: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, see below.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings; those given here win.")] = None,
    memory: Annotated[
        float | None, typer.Option(metavar="GIB", help="Plan for a CUDA card with so much memory to use.", min=0.1)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Tell how IN would be restored here, and in how much memory; nothing is downloaded or computed."""
    with _user_errors():
        tree = load_settings(*([config] if config else []), settings or [])
        from inference.plan import plan_job

        planned = plan_job(source, tree, memory)
    if as_json:
        sys.stdout.write(json.dumps(planned.to_dict(), indent=2) + "\n")
        return
    table = Table(show_header=False, box=None)
    for row in planned.to_rows():
        table.add_row(*row)
    Console(soft_wrap=True, highlight=False).print(table)


@app.command()
def serve(
    settings: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Engine settings.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "0.0.0.0",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 7860,
    data: Annotated[Path | None, typer.Option(help="Folder for uploads and results.")] = None,
    root_path: Annotated[str, typer.Option(help="Path under which a proxy shows the app.")] = "",
    price_per_hour: Annotated[str, typer.Option(help="What an hour costs, to be shown, such as '0.79 USD'.")] = "",
    folder: Annotated[Path | None, typer.Option(help="Folder of this machine to choose sources from.")] = None,
    accounts: Annotated[Path | None, typer.Option(help="File of accounts; see `seedvr accounts`.")] = None,
    no_login: Annotated[bool, typer.Option("--no-login", help="Let everybody in who reaches the port.")] = False,
    allow_host: Annotated[list[str] | None, typer.Option(help="Another name to answer to on loopback.")] = None,
    share: Annotated[bool, typer.Option("--share", help="Make a public link; needs accounts.")] = False,
    webhook: Annotated[str, typer.Option(help="Address to POST to when a job ends.")] = "",
    stop_idle_minutes: Annotated[float, typer.Option(help="Stop this RunPod pod after that long without work.")] = 0,
    keep_days: Annotated[float, typer.Option(help="Delete uploads and results after so many days.", min=0)] = 7,
    keep_gb: Annotated[float, typer.Option(help="Delete the oldest when all take more; 0: no limit.", min=0)] = 0,
    without: Annotated[list[str] | None, typer.Option(help=_WITHOUT_HELP)] = None,
) -> None:
    """Start the browser app."""
    with _user_errors(logging.INFO):
        configure_logs()
        switch_off(without or [])
        engine = load_settings(settings or []).engine
        if engine.model != AUTO_MODEL:
            find_model(engine.model)  # a name that does not exist is told now, not by the first job
        options = _project_module("seedvr_ui.serve_options").ServeOptions(
            host=host, port=port, root_path=root_path, price_per_hour=price_per_hour, folder=folder, accounts=accounts,
            is_login_off=no_login, allowed_hosts=tuple(allow_host or ()), is_shared=share, webhook=webhook,
            stop_idle_minutes=stop_idle_minutes, keep_days=keep_days, keep_gb=keep_gb,
            **({} if data is None else {"data": data}),
        )  # fmt: skip
        _project_module("app").main(options, engine)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def accounts(context: typer.Context) -> None:
    """Add, list and remove the people who may sign in to the browser app: add, password, list, remove."""
    with _user_errors():
        _project_module("seedvr_ui.account_commands").app(context.args, prog_name="seedvr accounts")


@app.command(
    add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)  # fmt: skip
def jobs(context: typer.Context) -> None:
    """Jobs of a server: list, show, submit, pause, resume, cancel, retry, export, import, reindex."""
    with _user_errors():
        _project_module("seedvr_ui.job_commands").run(context.args)


@app.command()
def parity(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with fixtures: dit, vae or pipeline.")],
) -> None:
    """Compare the networks and the pipeline with stored reference numbers."""
    with _user_errors():
        from inference.parity.__main__ import main as compare

        code = compare([str(folder)])
    raise typer.Exit(code)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(
    context: typer.Context,
    name: Annotated[Benchmark, typer.Argument(help="What to measure.")],
) -> None:
    """Measure quality, speed, memory or the queue; more arguments go to the benchmark (bench quality -- --help)."""
    with _user_errors():
        code = _project_module(f"benchmarks.{name.value.replace('-', '_')}").main(context.args)
    raise typer.Exit(code)


@app.command(
    add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)  # fmt: skip
def models(context: typer.Context) -> None:
    """List the models and their files here; and: download, verify, import, delete."""
    with _user_errors():
        from inference.model_commands import app as commands

        commands(context.args, prog_name="seedvr models")


@app.command()
def convert(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="Model whose files are converted, see `seedvr models`.")],
    weights: Annotated[Path | None, typer.Option(help="Folder with model files, as engine.weights.")] = None,
    precision: Annotated[Precision, typer.Option(help="bfloat16 or float16.")] = Precision.BFLOAT16,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Turn the downloaded float32 files of MODEL into half-precision ones; the originals stay."""
    with _user_errors():
        from inference.convert import Half, convert_model

        halves = {Precision.BFLOAT16: Half.BFLOAT16, Precision.FLOAT16: Half.FLOAT16}
        if precision not in halves:
            raise SettingsError(f"Files cannot be converted to {precision}; use bfloat16 or float16.")
        conversions = convert_model(find_model(name), weights, halves[precision])
    if as_json:
        sys.stdout.write(json.dumps([_plain(asdict(conversion)) for conversion in conversions], indent=2) + "\n")
        return
    for conversion in conversions:
        _errors.print(str(conversion), markup=False)
    if not conversions:
        _errors.print("Everything is converted already.")


@app.command()
def doctor(
    data: Annotated[Path | None, typer.Option(help="Folder for uploads and results, as for serve.")] = None,
    weights: Annotated[str, typer.Option(help="Folder with model files, as engine.weights.")] = "",
    without: Annotated[list[str] | None, typer.Option(help=_WITHOUT_HELP)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Examine this machine: card, torch, every backend by a real call, memory, disk, weights, network.

    Ends with code 1 if something does not work. The server shows the report, and is ready only without errors in it.
    """
    with _user_errors():
        switch_off(without or [])
        from inference.doctor.examine import examine
        from inference.doctor.findings import Severity, save_report

        folder = data or _project_module("seedvr_ui.storage").default_data()
        with Console(stderr=True).status("Examining ...") if not as_json else contextlib.nullcontext():
            report = examine(folder, weights, tell=None if as_json else _show_finding)
        save_report(folder, report)
    if as_json:
        sys.stdout.write(json.dumps(report.to_dict(), indent=2) + "\n")
    if report.worst is Severity.ERROR:
        raise typer.Exit(1)


def _show_finding(finding: Finding) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{finding.severity.value:8}{finding.sentence}", markup=False)
    if finding.action:
        console.print(f"{'':8}> {finding.action}", markup=False)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}


def _project_module(name: str) -> Any:
    """A module of this project that lies outside the installed packages; a script does not start in its folder."""
    root = str(Path(__file__).resolve().parents[1])
    if root not in sys.path:
        sys.path.insert(0, root)
    return importlib.import_module(name)


def _cancel_on_interrupt() -> Cancellation:
    """A cancellation that the first Ctrl-C asks for; the second one ends the program at once."""
    cancellation = Cancellation()

    def interrupt(number: int, frame: object) -> None:
        if cancellation.is_set():
            os._exit(_INTERRUPTED)
        cancellation.cancel()
        _errors.print("Stopping ... (Ctrl-C again to end at once)")

    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    return cancellation


@contextlib.contextmanager
def _user_errors(level: int = logging.WARNING) -> Iterator[None]:
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
    try:
        yield
    except (CancelledError, KeyboardInterrupt) as error:
        _errors.print(str(error) or "Stopped.", markup=False)
        raise typer.Exit(_INTERRUPTED) from None
    except RestoreError as error:
        _errors.print(str(error), markup=False)
        raise typer.Exit(_USER_ERROR) from None


def main() -> None:
    """Entry point of the `seedvr` script."""
    app(prog_name="seedvr")


if __name__ == "__main__":
    main()

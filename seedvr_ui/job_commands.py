"""`seedvr jobs ...`: the jobs of a data folder of this machine, or with --url those of a server elsewhere.

Loaded when it is called, and without gradio and torch, so that it is quick. On the data folder it has an admin's
rights: it lists the jobs of all owners. What it submits belongs to --owner, else to one fixed owner of that folder,
whose id is in its file `local-owner`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from inference.console import show_progress
from inference.errors import CancelledError, RestoreError
from inference.progress import Progress, Stage
from seedvr_ui.api_models import JobDetail, JobInfo
from seedvr_ui.job_clients import Jobs, LocalJobs, RemoteJobs
from seedvr_ui.jobs import FINISHED, JobStatus
from seedvr_ui.operations import MAX_PAGE
from seedvr_ui.wording import media_facts, settings_words, to_range, to_size, to_words

app = typer.Typer(
    name="jobs",
    help="Jobs of the data folder of this machine, or of a server with --url.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Data = Annotated[Path | None, typer.Option(help="Data folder of the server (default: SEEDVR_DATA, or as the server).")]
Url = Annotated[str, typer.Option(help="Address of a server; SEEDVR_USER and SEEDVR_PASSWORD sign in.")]
Owner = Annotated[str, typer.Option(help="Whose jobs: an account's name, or an owner's id.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Ids = Annotated[list[str], typer.Argument(metavar="ID...", help="Jobs, as `list` shows them.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="A job, as `list` shows it.")]

_LOOK_EVERY_S = 0.5
_errors = Console(stderr=True, highlight=False, soft_wrap=True)


def run(arguments: Sequence[str]) -> None:
    """Run the command of `arguments`; ends with SystemExit, or the RestoreError of what went wrong."""
    app(args=list(arguments), prog_name="seedvr jobs")


@app.command("list")
def list_jobs(
    status: Annotated[list[JobStatus] | None, typer.Option(help="Only these states; may be repeated.")] = None,
    search: Annotated[str, typer.Option(help="Words of the name, the state or the settings.")] = "",
    limit: Annotated[int, typer.Option(help="At most so many jobs.", min=1, max=MAX_PAGE)] = 50,
    data: Data = None,
    url: Url = "",
    owner: Owner = "",
    as_json: AsJson = False,
) -> None:
    """List jobs: what runs, what waits in its order, what rests, the latest finished ones."""
    with _opened(data, url) as jobs:
        page = jobs.list(status or [], search, limit, owner)
    if as_json:
        _print_json(page)
        return
    _print_table(page.jobs)
    if page.total > len(page.jobs):
        _errors.print(f"{len(page.jobs)} of {page.total} jobs; --limit and --search show others.")
    if not page.total:
        _errors.print("There are no such jobs.")


@app.command()
def show(job_id: Id, data: Data = None, url: Url = "", as_json: AsJson = False) -> None:
    """Show a job with its settings and its history."""
    with _opened(data, url) as jobs:
        job = jobs.show(job_id)
    if as_json:
        _print_json(job)
        return
    table = Table(box=None, show_header=False)
    for name, value in _facts(job):
        table.add_row(name, value)
    Console(soft_wrap=True, highlight=False, markup=False).print(table)


@app.command()
def submit(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE... [KEY=VALUE]...", help="Files, then settings as for `restore`.")
    ],
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end and show the progress.")] = False,
    data: Data = None,
    url: Url = "",
    owner: Owner = "",
    as_json: AsJson = False,
) -> None:
    """Submit files, one job each; a server that runs on the data folder takes them from the queue."""
    paths, settings = _split(files)
    if url and owner:
        raise RestoreError("With --url a job belongs to whoever signs in; leave --owner out.")
    with _opened(data, url, owner, is_new=True) as jobs:
        submitted = jobs.submit(paths, settings, _show_sent)
        if wait:
            submitted = _follow(jobs, submitted)
    _print_json(submitted) if as_json else _print_table(submitted)
    failed = [job for job in submitted if wait and job.status is not JobStatus.SUCCEEDED]
    if failed:
        raise RestoreError(failed[0].message or f"{failed[0].name} is {failed[0].status.value}.")


@app.command()
def pause(job_ids: Ids, data: Data = None, url: Url = "", as_json: AsJson = False) -> None:
    """Let jobs wait; one that runs stops at its next step and keeps what is finished."""
    _act("pause", job_ids, data, url, as_json)


@app.command()
def resume(job_ids: Ids, data: Data = None, url: Url = "", as_json: AsJson = False) -> None:
    """Let paused jobs go on."""
    _act("resume", job_ids, data, url, as_json)


@app.command()
def cancel(
    job_ids: Ids,
    keep_part: Annotated[bool, typer.Option("--keep-part", help="Keep what is finished, to be watched.")] = False,
    data: Data = None,
    url: Url = "",
    as_json: AsJson = False,
) -> None:
    """Stop jobs; one that runs stops at its next step."""
    _act("cancel", job_ids, data, url, as_json, keep_part)


@app.command()
def retry(job_ids: Ids, data: Data = None, url: Url = "", as_json: AsJson = False) -> None:
    """Queue failed or cancelled jobs once more; what is finished of them is used."""
    _act("retry", job_ids, data, url, as_json)


@app.command("export")
def export_job(
    job_id: Id,
    target: Annotated[Path, typer.Argument(metavar="FILE", help="Archive to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE if it exists.")] = False,
    data: Data = None,
    url: Url = "",
    as_json: AsJson = False,
) -> None:
    """Write a job into FILE, from which `import` goes on elsewhere."""
    if target.exists() and not overwrite:
        raise RestoreError(f"{target} exists; choose another name, or replace it with --overwrite.")
    if not target.parent.is_dir():
        raise RestoreError(f"There is no folder {target.parent}; make it first.")
    with _opened(data, url) as jobs:
        jobs.export(job_id, target)
    size = target.stat().st_size
    _print_json({"file": str(target), "num_bytes": size}) if as_json else _errors.print(
        f"{target}: {to_size(size)}", markup=False
    )


@app.command("import")
def import_job(
    archive: Annotated[Path, typer.Argument(metavar="FILE", help="Archive that `export` wrote.")],
    start: Annotated[bool, typer.Option("--start", help="Let it go on at once.")] = False,
    data: Data = None,
    url: Url = "",
    owner: Owner = "",
    as_json: AsJson = False,
) -> None:
    """Make a new job of FILE."""
    if url and owner:
        raise RestoreError("With --url a job belongs to whoever signs in; leave --owner out.")
    with _opened(data, url, owner, is_new=True) as jobs:
        job = jobs.import_archive(archive, start)
    _print_json(job) if as_json else _print_table([job])


@app.command()
def reindex(data: Data = None, url: Url = "", as_json: AsJson = False) -> None:
    """Build the index of jobs anew from their folders, and print how many there are."""
    with _opened(data, url) as jobs:
        number = jobs.reindex()
    sys.stdout.write(json.dumps({"jobs": number}) + "\n" if as_json else f"{number}\n")


# --- inside ---


@contextmanager
def _opened(data: Path | None, url: str, owner: str = "", *, is_new: bool = False) -> Iterator[Jobs]:
    """The jobs to work on. `is_new` allows a data folder that is not there yet."""
    if url and data is not None:
        raise RestoreError("--url and --data name two places; give one of them.")
    jobs: Jobs
    if url:
        jobs = RemoteJobs(url, os.environ.get("SEEDVR_USER", ""), os.environ.get("SEEDVR_PASSWORD", ""))
    else:
        jobs = LocalJobs(data, owner, is_new=is_new)
    try:
        yield jobs
    except KeyboardInterrupt:
        raise CancelledError("Stopped.") from None
    finally:
        jobs.close()


def _split(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Files and settings: a word with an equals sign is a setting, unless there is a file of that name."""
    settings = [word for word in words if "=" in word and not Path(word).exists()]
    files = [Path(word) for word in words if word not in settings]
    if not files:
        raise RestoreError("Name a file to restore: seedvr jobs submit FILE... [KEY=VALUE]...")
    return files, settings


def _act(
    action: str, job_ids: Sequence[str], data: Path | None, url: str, as_json: bool, keep_part: bool = False
) -> None:
    with _opened(data, url) as jobs:
        changed = [jobs.act(action, job_id, keep_part) for job_id in job_ids]
    _print_json(changed) if as_json else _print_table(changed)


def _follow(jobs: Jobs, submitted: Sequence[JobInfo]) -> list[JobInfo]:
    """Show the progress of jobs, one after another, until all have ended or wait for somebody."""
    ended: list[JobInfo] = []
    try:
        for job in submitted:
            _errors.print(f"{job.name}: job {job.id}", markup=False)
            with show_progress(_errors) as report:
                found: JobInfo = jobs.show(job.id)
                while found.status not in FINISHED and found.status is not JobStatus.PAUSED:
                    if found.progress is not None and found.status is JobStatus.RUNNING:
                        report(_to_progress(found))
                    time.sleep(_LOOK_EVERY_S)
                    found = jobs.show(job.id)
            ended.append(JobInfo(**{name: getattr(found, name) for name in JobInfo.model_fields}))
    except KeyboardInterrupt:
        left = " ".join(job.id for job in submitted[len(ended) :])
        raise CancelledError(
            f"No longer watching; the job goes on. `seedvr jobs show` or `seedvr jobs cancel` with {left}."
        ) from None
    return ended


def _to_progress(job: JobInfo) -> Progress:
    info = job.progress
    assert info is not None
    return Progress(
        Stage(info.stage), info.frames_done, info.frames_total, info.frames_per_second, info.seconds_left_high
    )  # fmt: skip


def _show_sent(name: str, done: int, total: int) -> None:
    if _errors.is_terminal:
        _errors.print(f"\r{name}: {to_size(done)} of {to_size(total)}", end="\n" if done == total else "", markup=False)


def _print_table(jobs: Sequence[JobInfo]) -> None:
    if not jobs:
        return
    has_owner = any(job.owner for job in jobs)
    table = Table("id", "name", "status", "", *(["owner"] if has_owner else []), box=None)
    for job in jobs:
        table.add_row(job.id, job.name, job.status.value, _words(job), *([job.owner] if has_owner else []))
    # The width of a terminal would cut ids, which have to be copied.
    Console(soft_wrap=True, highlight=False, markup=False, width=10_000).print(table)


def _words(job: JobInfo) -> str:
    """What there is to say of a job beside its state."""
    if job.wish:
        return f"will {job.wish} at its next step"
    if job.message:
        return job.message
    progress = job.progress
    if job.status is JobStatus.RUNNING and progress is not None:
        words = [progress.stage] if progress.percent is None else [f"{progress.percent:.0f} %"]
        if progress.seconds_left_low is not None and progress.seconds_left_high is not None:
            words.append(f"{to_range(progress.seconds_left_low, progress.seconds_left_high)} left")
        return ", ".join(words)
    if job.status is JobStatus.QUEUED:
        return f"{job.num_ahead} ahead" if job.num_ahead else "next in line"
    if job.status is JobStatus.SUCCEEDED and job.worked_s:
        return f"in {to_words(job.worked_s)}"
    return "the finished part was kept" if job.has_part else ""


def _facts(job: JobDetail) -> Iterator[tuple[str, str]]:
    yield "id", job.id
    yield "name", job.name
    yield "status", " ".join(filter(None, [job.status.value, _words(job)]))
    if job.owner:
        yield "owner", job.owner
    yield "file", media_facts(job.media)
    for label, value in settings_words(job.settings):
        yield label.lower(), value
    yield "bytes", to_size(job.num_bytes)
    for change in job.history:
        yield time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(change.at)), f"{change.status.value}: {change.reason}"


def _print_json(value: Any) -> None:
    def plain(one: Any) -> Any:
        if isinstance(one, BaseModel):
            return one.model_dump(mode="json")
        return [plain(entry) for entry in one] if isinstance(one, Sequence) and not isinstance(one, str) else one

    sys.stdout.write(json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n")

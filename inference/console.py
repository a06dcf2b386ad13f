"""Work on a terminal: one progress line with stage, frames per second and time left, or with bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.text import Text

from inference.progress import Progress, Report, Stage
from inference.verify import ReportBytes

_TITLES = {
    Stage.PREPARE: "Reading",
    Stage.LOAD: "Loading the model",
    Stage.RESTORE: "Restoring",
    Stage.FINISH: "Finishing the file",
}
_PLAIN_STEP = 0.1


def to_clock(seconds: float | None) -> str:
    """Seconds as m:ss or h:mm:ss, rounded; "-:--" while unknown."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class _Numbers(ProgressColumn):
    """Frames done, frames per second, time left."""

    def render(self, task: Task) -> Text:
        progress: Progress | None = task.fields["progress"]
        return Text("" if progress is None else to_numbers(progress), style="cyan")


def to_numbers(progress: Progress) -> str:
    """The numbers of a snapshot as text; empty while there are none."""
    if progress.stage is Stage.LOAD and progress.bytes_total:
        return f"{progress.bytes_done / 1e9:.2f}/{progress.bytes_total / 1e9:.2f} GB"
    if progress.stage is not Stage.RESTORE:
        return ""
    total = "?" if progress.frames_total is None else str(progress.frames_total)
    speed = "" if progress.frames_per_second is None else f"  {progress.frames_per_second:.2f} frames/s"
    return f"{progress.frames_done}/{total} frames{speed}  {to_clock(progress.eta_s)} left"


@contextmanager
def show_progress(console: Console) -> Iterator[Report]:
    """Draw what the yielded report is told: a live line on a terminal, else a plain line at each tenth of the work."""
    if not console.is_terminal:
        yield _plain(console)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=30), _Numbers())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task(_TITLES[Stage.PREPARE], total=None, progress=None)

        def report(progress: Progress) -> None:
            bar.update(
                task,
                description=_TITLES[progress.stage],
                total=progress.bytes_total or progress.frames_total,
                completed=progress.bytes_done or progress.frames_done,
                progress=progress,
            )

        yield report


@contextmanager
def show_bytes(console: Console, title: str) -> Iterator[ReportBytes]:
    """Draw how many bytes of model files are done: a live line on a terminal, else nothing."""
    if not console.is_terminal:
        yield lambda _done, _total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), DownloadColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _plain(console: Console) -> Report:
    told: tuple[Stage, int] | None = None

    def report(progress: Progress) -> None:
        nonlocal told
        done, total = progress.bytes_done or progress.frames_done, progress.bytes_total or progress.frames_total
        share = done / total if total else 0.0
        step = (progress.stage, int(share / _PLAIN_STEP))
        if step != told:
            told = step
            numbers = to_numbers(progress)
            console.print(f"{_TITLES[progress.stage]}{': ' if numbers else ''}{numbers}", highlight=False)

    return report

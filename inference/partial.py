"""Owns what can be had of a job that is not finished: its units so far, joined into a file that plays. No torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from inference.errors import MediaError
from inference.media.mux import MuxReport, mux
from inference.media.probe import probe
from inference.units import identify_source, intact_units, read_plan


def join_finished(work: Path, source: Path, target: Path, check: Callable[[], None] | None = None) -> MuxReport:
    """Join the finished units in the work folder `work` of a job on `source` into the new file `target`.

    The sound ends with the video. The folder stays as it is, so the job can still go on. `check` is called now and then
    and may raise to stop. Raises MediaError if nothing is finished yet, `source` has changed, or `target` cannot be
    written; then there is no new file.
    """
    plan = read_plan(work)
    units = intact_units(work, check)
    if plan is None or not units:
        raise MediaError(f"Nothing of '{source.name}' is finished yet; let the job run for longer.")
    if plan["identity"]["source"] != identify_source(source):
        raise MediaError(f"'{source.name}' is not the file that the job began with; start the job again.")
    info = probe(source)
    return mux(
        [unit.path for unit in units],
        source,
        target,
        info,
        keep_audio=plan["identity"]["restore"]["keep_audio"],
        num_frames=units[-1].stop,
        is_part=units[-1].stop != info.num_frames,
        check=check,
    )

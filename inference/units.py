"""Owns the work folder of a job: its finished units, on disk as they come. Neither torch nor PyAV.

    plan.json       what the units are made from and how; a folder of another job is started anew
    000003.nut      a segment: the frames of one unit, encoded
    000003.state    what the rest of the shot depends on (`inference.shot_state`); the latest two are kept
    000003.json     the record of the unit, written last: a unit is finished when it has one

Every file is complete or not there (`inference.durable`), so a process may die at any moment: what it was writing is
removed and done again. Units follow each other without gaps, in the order of their numbers. While one is written, the
segment of the next one may be begun (`inference.pending`).

Who works in the folder holds a lock, the file `NAME.lock` beside it. It is not inside, so that it still keeps an older
process out when the folder was removed and made anew; the system frees it when its process ends, in whatever way.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from inference.durable import PART_SUFFIX, part_path, publish, sha256_of_file, sha256_of_samples, write_bytes
from inference.errors import FolderInUseError, MediaError

log = logging.getLogger(__name__)

FORMAT = 2
"""Of everything in a work folder; another one means another program, and a start anew."""

_PLAN = "plan.json"
_SEGMENT, _STATE, _RECORD = ".nut", ".state", ".json"
_OURS = re.compile(r"(plan\.json|\d{6,}\.(nut|state|json))(\.part)?")
_STATES_KEPT = 2
_LOCK_WAIT_S = 30.0
_LOCK_POLL_S = 0.1

_FINISHED_FILE = re.compile(r"plan\.json|\d{6,9}\.(nut|state|json)")

Check = Callable[[], None]
"""Called now and then; may raise to stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A finished piece of the result: frames [first_frame, stop) of the video, all of one shot, in the file `path`."""

    number: int
    shot: int
    first_frame: int
    num_frames: int
    path: Path
    num_bytes: int
    sha256: str

    @property
    def stop(self) -> int:
        """The frame after the last one."""
        return self.first_frame + self.num_frames


@dataclass(frozen=True, slots=True, kw_only=True)
class Bookmark:
    """What going on after a unit needs, beside the state of its shot.

    ends_shot: the unit is the last of its shot, so that no state is needed.
    num_frames, fingerprint: how many of the latest source frames are read again, and what they must be.
    recent: the shot detector's memory. state_bytes, state_sha256: the unit's state file, None when it has none.
    """

    ends_shot: bool
    num_frames: int
    fingerprint: str
    recent: tuple[float, ...] = ()
    state_bytes: int | None = None
    state_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class _Record:
    unit: Unit
    bookmark: Bookmark


def finished_units(work: Path) -> tuple[Unit, ...]:
    """The units that are finished so far, in order; empty if `work` is no work folder. Safe while the job runs.

    Sizes are looked at, contents are not read.
    """
    return tuple(record.unit for record in _records(work, lambda unit: unit.path.stat().st_size == unit.num_bytes))


def intact_units(work: Path, check: Check | None = None) -> tuple[Unit, ...]:
    """Like `finished_units`, and every file is read and held against its SHA-256."""
    return tuple(record.unit for record in _records(work, lambda unit: _is_intact(unit, check)))


def is_unit_file(name: str) -> bool:
    """Whether a complete file of a work folder may have this name."""
    return _FINISHED_FILE.fullmatch(name) is not None


def identify_source(source: Path) -> dict[str, Any]:
    """Tells a source file from another one, and from itself after a change; a copy elsewhere is the same source."""
    try:
        return {"num_bytes": source.stat().st_size, "samples": sha256_of_samples(source)}
    except OSError as error:
        raise MediaError(
            f"'{source.name}' cannot be opened ({error.strerror}); check that it is still there."
        ) from error


@contextmanager
def sole_use(work: Path, check: Check | None = None, wait_s: float = _LOCK_WAIT_S) -> Iterator[None]:
    """The right to work in the folder `work`, which need not be there yet. One process at a time has it.

    A process that is on its way out gets `wait_s` seconds. Raises FolderInUseError after them, and what `check` raises.
    """
    path = work.with_name(f"{work.name}.lock")
    held: list[int] = []
    lock = FileLock(  # a soft lock would outlive a killed process
        path, timeout=0, fallback_to_soft=False, on_acquired=lambda descriptor: held.append(os.fstat(descriptor).st_ino)
    )  # fmt: skip
    deadline = time.monotonic() + wait_s
    while True:
        try:
            lock.acquire()
            if _inode(path) == held[-1]:
                break
            lock.release()  # of a file that the one before us has removed meanwhile
        except Timeout:
            if check is not None:
                check()
            if time.monotonic() >= deadline:
                raise FolderInUseError(
                    "Another process still works on this job, so it waits; end that process, then let it go on."
                ) from None
            time.sleep(_LOCK_POLL_S)
        except OSError as error:
            raise MediaError(
                f"The work folder '{work}' cannot be locked ({error.strerror or error}); choose one on another disk."
            ) from error
    try:
        yield
    finally:
        if not work.exists():
            path.unlink(missing_ok=True)
        lock.release()


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def read_plan(work: Path) -> dict[str, Any] | None:
    """What the units in `work` are made from, as it was given to `UnitStore`; None if `work` is no work folder."""
    try:
        plan = json.loads((work / _PLAN).read_bytes())
    except (OSError, ValueError):
        return None
    is_ours = isinstance(plan, dict) and plan.get("format") == FORMAT and {"identity", "choices"} <= plan.keys()
    return plan if is_ours else None


class UnitStore:
    """The writing side of a work folder; one process at a time.

    `identity` (JSON-able) says what the units are made from: those of another identity are thrown away. `choices` are
    decisions that may fall differently next time but must not change within a job; those of the first time are kept.
    Raises MediaError if the folder cannot be used or holds files of somebody else.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], choices: Mapping[str, Any], check: Check | None = None
    ) -> None:
        self.folder = folder
        with self._disk_errors():
            folder.mkdir(parents=True, exist_ok=True)
            self._refuse_foreign_files()
            plan = json.loads(json.dumps({"format": FORMAT, "identity": identity, "choices": choices}))
            known = read_plan(folder)
            if known is None or known["identity"] != plan["identity"]:
                if known is not None:
                    log.info("%s holds units of another job, which are thrown away", folder.name)
                self._remove_from(0)
                (folder / _PLAN).unlink(missing_ok=True)
                write_bytes(folder / _PLAN, json.dumps(plan, indent=1).encode())
                known = plan
            self.choices: dict[str, Any] = known["choices"]
            self._records = list(_records(folder, lambda unit: _is_intact(unit, check)))
            self._step_back_to_bookmark()

    @property
    def units(self) -> tuple[Unit, ...]:
        """The finished units that the job goes on from, then those that were added."""
        return tuple(record.unit for record in self._records)

    @property
    def num_frames(self) -> int:
        """Frames that all units hold together."""
        return self._records[-1].unit.stop if self._records else 0

    @property
    def bookmark(self) -> Bookmark | None:
        """How to go on after the last unit; None at the start of the video."""
        return self._records[-1].bookmark if self._records else None

    def segment(self, number: int) -> Path:
        """Where the segment of a unit is written."""
        return self._path(number, _SEGMENT)

    def unfinished_state(self, number: int) -> Path:
        """Where the state after a unit is written before that is added; it need not be durable yet."""
        return part_path(self._path(number, _STATE))

    @property
    def latest_state(self) -> Path | None:
        """The state after the last unit; None when it needs none."""
        bookmark = self.bookmark
        return None if bookmark is None or bookmark.ends_shot else self._path(len(self._records) - 1, _STATE)

    def add(self, shot: int, num_frames: int, bookmark: Bookmark) -> Unit:
        """Count the next unit as finished: its segment, and its state where one was written, are there by now.

        What `bookmark` says of the state is filled in here. May be called in another thread, if nothing else is until
        it is done.
        """
        number = len(self._records)
        path, state = self.segment(number), self._path(number, _STATE)
        with self._disk_errors():
            unit = Unit(
                number=number,
                shot=shot,
                first_frame=self.num_frames,
                num_frames=num_frames,
                path=path,
                num_bytes=path.stat().st_size,
                sha256=sha256_of_file(path),
            )
            if (part := self.unfinished_state(number)).exists():
                publish(part, state)
                bookmark = replace(bookmark, state_bytes=state.stat().st_size, state_sha256=sha256_of_file(state))
            values = {"unit": {**asdict(unit), "path": path.name}, "bookmark": asdict(bookmark)}
            write_bytes(self._path(number, _RECORD), json.dumps(values, indent=1).encode())
        self._records.append(_Record(unit, bookmark))
        with self._disk_errors():
            self._remove_old_states()
        return unit

    def step_back(self) -> None:
        """Give up the last unit, and those before it up to one that can be gone on from."""
        self._records.pop()
        with self._disk_errors():
            self._step_back_to_bookmark()

    def clear(self) -> None:
        """Give up all units."""
        self._records.clear()
        with self._disk_errors():
            self._remove_from(0)

    def begin_shot_again(self, choices: Mapping[str, Any]) -> None:
        """Give up the units of the shot at work, whose rest will be made with other `choices`."""
        while self._records and not self._records[-1].bookmark.ends_shot:
            self._records.pop()
        plan = read_plan(self.folder)
        assert plan is not None
        plan["choices"] = json.loads(json.dumps(choices))
        with self._disk_errors():
            self._remove_from(len(self._records))  # first: no unit may lie beside choices that it was not made with
            write_bytes(self.folder / _PLAN, json.dumps(plan, indent=1).encode())
        self.choices = plan["choices"]

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        with self._disk_errors():
            self._remove_from(0)
            (self.folder / _PLAN).unlink(missing_ok=True)
            self.folder.rmdir()

    def _step_back_to_bookmark(self) -> None:
        """Drop units until the rest can be done from what is there."""
        while self._records and not self._has_state(self._records[-1]):
            log.info("%s has no sound state, so it is made again", self._records.pop().unit.path.name)
        self._remove_from(len(self._records))

    def _has_state(self, record: _Record) -> bool:
        """Whether the state that the rest of the shot needs is there and whole; the end of a shot needs none."""
        bookmark, path = record.bookmark, self._path(record.unit.number, _STATE)
        if bookmark.ends_shot:
            return True
        try:
            return path.stat().st_size == bookmark.state_bytes and sha256_of_file(path) == bookmark.state_sha256
        except FileNotFoundError:
            return False

    def _remove_from(self, number: int) -> None:
        """Remove the files of unit `number` and later ones, all but the latest states, and everything unfinished."""
        files = [path for path in self.folder.iterdir() if _OURS.fullmatch(path.name)]
        for path in sorted(files, key=lambda path: path.suffix != _RECORD):  # without its record a unit is not there
            is_plan = path.name == _PLAN
            if path.suffix == PART_SUFFIX or (not is_plan and int(path.stem) >= number):
                path.unlink(missing_ok=True)
        self._remove_old_states()

    def _remove_old_states(self) -> None:
        """Keep the latest states only. Not every unit has one, see `inference.resume`."""
        states = sorted(path for path in self.folder.glob(f"*{_STATE}") if _OURS.fullmatch(path.name))
        for path in states[:-_STATES_KEPT]:
            path.unlink(missing_ok=True)

    def _refuse_foreign_files(self) -> None:
        for path in self.folder.iterdir():
            if not _OURS.fullmatch(path.name):
                raise MediaError(
                    f"The work folder '{self.folder}' holds files of something else ('{path.name}'); choose an empty"
                    " one."
                )

    def _path(self, number: int, suffix: str) -> Path:
        return self.folder / f"{number:06d}{suffix}"

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise MediaError(
                f"The work folder '{self.folder}' cannot be used ({error.strerror or error}); check free disk space and"
                " its rights."
            ) from error


def _records(work: Path, is_sound: Callable[[Unit], bool]) -> Iterator[_Record]:
    """Records in order, as long as they are readable, follow each other, and have a segment that is sound."""
    stop = 0
    for number in range(10**9):
        try:
            values = json.loads((work / f"{number:06d}{_RECORD}").read_bytes())
            unit = Unit(**{**values["unit"], "path": work / f"{number:06d}{_SEGMENT}"})
            bookmark = Bookmark(**{**values["bookmark"], "recent": tuple(values["bookmark"]["recent"])})
            if (unit.number, unit.first_frame) != (number, stop) or not is_sound(unit):
                return
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
            return
        stop = unit.stop
        yield _Record(unit, bookmark)


def _is_intact(unit: Unit, check: Check | None) -> bool:
    if check is not None:
        check()
    return unit.path.stat().st_size == unit.num_bytes and sha256_of_file(unit.path) == unit.sha256

"""Units that are written while the next one is made: none is lost when the job stops, and what goes wrong is told."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from inference import pending
from inference.checkpoint import Models
from inference.errors import CancelledError, MediaError
from inference.media.decode import Frame
from inference.media.reader import FrameReader
from inference.media.writer import SegmentWriter
from inference.meter import Meter
from inference.pending import PendingUnit
from inference.pipeline import Result, prepare, run
from inference.progress import Cancellation, Progress
from inference.settings import load_settings
from inference.tracker import Tracker
from inference.units import Bookmark, Unit, UnitStore, finished_units, intact_units

SHOTS = (22, 12)
UNIT = 8
STARTS = [0, 5, 13, 21, 22, 27, 31]  # of the units of SHOTS
SETTINGS = ["window=9", "overlap=1", "factor=1.5", "encode.preset=ultrafast"]
Restore = Callable[..., Result]


@pytest.fixture
def source(make_clip: Any) -> Path:
    path: Path = make_clip("in.mp4", *SHOTS)
    return path


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "work"


@pytest.fixture
def restore(tiny_models: Models, source: Path, tmp_path: Path) -> Restore:
    """`restore(work, tracker)`, into `out.mp4`."""

    def restore_it(work: Path | None, tracker: Tracker | None = None) -> Result:
        job = prepare(source, tmp_path / "out.mp4", load_settings(SETTINGS).restore)
        return run(job, tiny_models, tracker or Tracker(Meter(torch.device("cpu"))), work, UNIT)

    return restore_it


@pytest.fixture
def undisturbed(restore: Restore, tmp_path: Path) -> bytes:
    restore(None)
    return (tmp_path / "out.mp4").read_bytes()


class Gate:
    """Holds the encoder of unit `number` back at its end, until the gate is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        self.is_reached, self._is_open = threading.Event(), threading.Event()
        close = SegmentWriter.close

        def close_behind_gate(segment: SegmentWriter) -> None:
            if segment.path.name == f"{number:06d}.nut":
                self.is_reached.set()
                assert self._is_open.wait(60)
            close(segment)

        monkeypatch.setattr(SegmentWriter, "close", close_behind_gate)

    def open(self) -> None:
        self._is_open.set()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch, 1)
    yield gate
    gate.open()


class StopWhilePending(Tracker):
    """Ends the job by `error` at the first frame that is encoded while the gate's unit is pending, then opens it."""

    def __init__(self, gate: Gate, error: Exception, *, opens: bool = True) -> None:
        self.units = 0

        def report(progress: Progress) -> None:
            self.units = progress.units

        super().__init__(Meter(torch.device("cpu")), report, Cancellation())
        self._gate, self._error, self._opens = gate, error, opens

    def check(self) -> None:
        if self._gate.is_reached.is_set():
            if self._opens:
                self._gate.open()
            raise self._error


@pytest.mark.parametrize("error", [CancelledError(), ZeroDivisionError(), torch.OutOfMemoryError()], ids=type)
def test_a_unit_that_is_pending_when_the_job_stops_is_finished_and_gone_on_from(
    undisturbed: bytes, restore: Restore, gate: Gate, work: Path, tmp_path: Path, error: Exception
) -> None:
    tracker = StopWhilePending(gate, error)

    with pytest.raises(type(error)):
        restore(work, tracker)

    assert [unit.first_frame for unit in intact_units(work)] == STARTS[:2]
    assert tracker.units == 2
    assert sorted(path.name for path in work.iterdir()) == [
        "000000.json", "000000.nut", "000000.state", "000001.json", "000001.nut", "000001.state", "plan.json"
    ]  # fmt: skip
    told: list[Progress] = []
    restore(work, Tracker(Meter(torch.device("cpu")), told.append))
    assert told[1].units == 2
    assert (tmp_path / "out.mp4").read_bytes() == undisturbed


def test_a_stop_does_not_wait_for_an_encoder_that_hangs(
    undisturbed: bytes,
    restore: Restore,
    work: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing but giving the segment up lets it go."""
    is_pending, frames = threading.Event(), SegmentWriter._frames
    let_go: list[bool] = []

    def slow_frames(segment: SegmentWriter) -> Iterator[Any]:
        for item in frames(segment):
            if segment.path.name == "000001.nut":
                let_go.append(segment._abort.wait(30))
            yield item

    class Stop(Tracker):
        def check(self) -> None:
            if is_pending.is_set():
                raise CancelledError

    class Told(PendingUnit):
        def __init__(self, store: UnitStore, segment: SegmentWriter, *others: Any) -> None:
            super().__init__(store, segment, *others)
            if segment.path.name == "000001.nut":
                is_pending.set()

    with monkeypatch.context() as patches:
        patches.setattr(pending, "_STOP_S", 0.01)
        patches.setattr(pending, "PendingUnit", Told)
        patches.setattr(SegmentWriter, "_frames", slow_frames)
        with pytest.raises(CancelledError):
            restore(work, Stop(Meter(torch.device("cpu"))))

    assert let_go
    assert all(let_go)
    assert [unit.first_frame for unit in finished_units(work)] == STARTS[:1]
    assert not any(thread.name.startswith(("encode", "finish")) for thread in threading.enumerate())
    restore(work)
    assert (tmp_path / "out.mp4").read_bytes() == undisturbed


def test_a_full_disk_while_a_unit_is_pending_is_the_error_of_the_job_which_can_go_on(
    undisturbed: bytes, restore: Restore, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoder of the third unit fails at its end, when the work on the next one has begun."""
    with monkeypatch.context() as patches:
        frames = SegmentWriter._frames

        def frames_until_full(segment: SegmentWriter) -> Iterator[Any]:
            yield from frames(segment)
            if segment.path.name == "000002.nut":
                raise OSError(errno.ENOSPC, "No space left on device")

        patches.setattr(SegmentWriter, "_frames", frames_until_full)
        with pytest.raises(MediaError, match=r"'000002.nut' could not be written \(No space left on device\)"):
            restore(work)

    assert [unit.first_frame for unit in finished_units(work)] == STARTS[:2]
    assert not list(work.glob("*.nut.part"))
    told: list[Progress] = []
    restore(work, Tracker(Meter(torch.device("cpu")), told.append))
    assert told[1].units == 2
    assert (tmp_path / "out.mp4").read_bytes() == undisturbed


def test_what_goes_wrong_with_the_pending_unit_does_not_hide_why_the_job_stops(
    restore: Restore, gate: Gate, work: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    add = UnitStore.add

    def fail(store: UnitStore, *values: Any) -> Unit:
        if len(store.units) == 1:
            raise MediaError("the disk is full")
        return add(store, *values)

    monkeypatch.setattr(UnitStore, "add", fail)

    with pytest.raises(ZeroDivisionError):
        restore(work, StopWhilePending(gate, ZeroDivisionError()))

    assert [unit.first_frame for unit in finished_units(work)] == STARTS[:1]
    assert "the disk is full" in caplog.text


@pytest.mark.parametrize("fails", [False, True])
def test_the_end_of_a_pending_unit_is_noticed_while_frames_are_taken(
    work: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """And not only when the next frames are written, which may be a whole turn of the encoder later."""
    finished: list[int] = []
    told = Tracker(Meter(torch.device("cpu")), lambda progress: finished.append(progress.units))
    units = pending.UnitWriter(UnitStore(work, {}, {}), None, told, is_kept=False)  # type: ignore[arg-type]

    class Over:
        def wait(self, _: float | None = None) -> bool:
            return True

        def raise_error(self) -> None:
            if fails:
                raise MediaError("The disk is full.")

    frames = units.watch(iter("abc"))
    assert next(frames) == "a"
    monkeypatch.setattr(units, "_pending", Over())
    if fails:
        with pytest.raises(MediaError, match="full"):
            next(frames)
    else:
        assert list(frames) == ["b", "c"]
        assert finished == [1]


def test_at_most_one_unit_is_pending_and_progress_tells_of_finished_ones_only(
    restore: Restore, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each unit is pending until somebody waits for it."""
    at_work: dict[str, threading.Event] = {}
    most, told = 0, []
    run_it, wait = PendingUnit._run, PendingUnit.wait

    def run_when_waited_for(unit: PendingUnit) -> None:
        nonlocal most
        is_waited_for = at_work.setdefault(unit._segment.path.name, threading.Event())
        most = max(most, len(at_work))
        assert is_waited_for.wait(60)
        run_it(unit)
        del at_work[unit._segment.path.name]

    def wait_and_let_go(unit: PendingUnit, seconds: float | None = None) -> bool:
        if seconds != 0:
            for is_waited_for in list(at_work.values()):
                is_waited_for.set()
        return wait(unit, seconds)

    def report(progress: Progress) -> None:
        told.append((progress.units, len(finished_units(work))))

    monkeypatch.setattr(PendingUnit, "_run", run_when_waited_for)
    monkeypatch.setattr(PendingUnit, "wait", wait_and_let_go)

    restore(work, Tracker(Meter(torch.device("cpu")), report))

    assert most == 1
    assert all(units <= finished for units, finished in told[:-1])  # with the last report the folder has gone
    assert max(units for units, _ in told) == len(STARTS)


def test_what_is_taken_down_at_a_boundary_knows_nothing_of_frames_that_were_read_ahead(
    restore: Restore, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once each frame is read just in time, once all of them before the first one is taken."""
    bookmarks: list[list[Bookmark]] = []
    write_bookmark = pending.write_bookmark
    run_it, take = FrameReader._run, FrameReader.__next__
    is_read = threading.Event()

    def note(*values: Any, **options: Any) -> Bookmark:
        bookmarks[-1].append(write_bookmark(*values, **options))
        return bookmarks[-1][-1]

    def run_to_the_end(reader: FrameReader) -> None:
        run_it(reader)
        is_read.set()

    def take_late(reader: FrameReader) -> Frame:
        frame = take(reader)
        assert is_read.wait(60)
        return frame

    monkeypatch.setattr(pending, "write_bookmark", note)
    for waiting in (1, 1000):
        monkeypatch.setattr("inference.media.reader.num_waiting_frames", lambda *_, waiting=waiting: waiting)
        bookmarks.append([])
        restore(work)
        monkeypatch.setattr(FrameReader, "_run", run_to_the_end)
        monkeypatch.setattr(FrameReader, "__next__", take_late)

    just_in_time, ahead = bookmarks
    assert len(ahead) == len(STARTS)
    assert ahead == just_in_time
    assert any(len(bookmark.recent) > 1 for bookmark in ahead)

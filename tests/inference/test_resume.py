"""Jobs that die and go on: real processes, real SIGKILL, and in the end the bytes of a run that nothing disturbed."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import pytest
import torch

from inference import resume
from inference.checkpoint import load_models
from inference.resume import identify_job
from inference.settings import RestoreSettings
from inference.shot_state import ShotState
from inference.sizes import Size
from inference.units import finished_units, intact_units
from tests.inference.conftest import MakeClip

ROOT = Path(__file__).resolve().parents[2]
SHOTS = (22, 12)
UNIT = 8
STARTS = [0, 5, 13, 21, 22, 27, 31]  # of the units of SHOTS: a shot's first slice has 5 frames, later ones up to 8
LONG = 330
"""Frames of a shot that outlasts the memory of both halves of the VAE (200 frames, 72 latents)."""
SETTINGS = ["window=9", "overlap=1", "factor=1.5", "encode.preset=ultrafast"]


class MortalJobs:
    """Runs jobs in processes of their own, see `mortal_jobs.py`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("mortal_jobs.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""},
        )
        self._undisturbed: dict[tuple[bytes, ...], bytes] = {}

    def run(
        self,
        source: Path,
        target: Path,
        work: Path | None,
        die: dict[str, Any] | None = None,
        settings: list[str] | None = None,
        frames_per_unit: int | None = UNIT,
        large_histories: int | None = None,
    ) -> dict[str, Any]:
        """One job: {"code", "error", "told"}."""
        job = {
            "source": str(source),
            "target": str(target),
            "work": None if work is None else str(work),
            "settings": SETTINGS if settings is None else settings,
            "frames_per_unit": frames_per_unit,
            "large_histories": large_histories,
            "die": die,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))

    def undisturbed(self, source: Path, settings: list[str] | None = None, frames_per_unit: int = UNIT) -> bytes:
        """The result of a job that nothing happens to."""
        key = (source.read_bytes(), *(text.encode() for text in settings or SETTINGS))
        if key not in self._undisturbed:
            target = source.with_name("undisturbed.mp4")
            assert self.run(source, target, None, None, settings, frames_per_unit)["code"] == 0
            self._undisturbed[key] = target.read_bytes()
            target.unlink()
        return self._undisturbed[key]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        finally:
            self._process.kill()
            self._process.wait(30)
            if self._process.stdout is not None:
                self._process.stdout.close()


@pytest.fixture(scope="module")
def jobs() -> Iterator[MortalJobs]:
    jobs = MortalJobs()
    yield jobs
    jobs.close()


@pytest.fixture
def source(make_clip: Any) -> Path:
    path: Path = make_clip("in.mp4", *SHOTS, height=36, width=64, sound=True)
    return path


@pytest.fixture(scope="module")
def long_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MakeClip(tmp_path_factory.mktemp("long"))("long.mp4", LONG, height=16, width=16)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out.mp4"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "work"


@pytest.fixture
def die_at(jobs: MortalJobs, source: Path, target: Path, work: Path) -> Callable[[dict[str, Any]], None]:
    """Starts the job and lets it die."""

    def start(death: dict[str, Any]) -> None:
        assert jobs.run(source, target, work, death)["code"] == -signal.SIGKILL
        assert not target.exists()

    return start


@pytest.fixture
def go_on(jobs: MortalJobs, source: Path, target: Path, work: Path) -> Callable[..., int]:
    """Finishes the job, compares its bytes and its folder; gives the number of frames that were there at its start."""

    def finish(settings: list[str] | None = None) -> int:
        ended = jobs.run(source, target, work, settings=settings)
        assert (ended["code"], ended["error"]) == (0, "")
        assert target.read_bytes() == jobs.undisturbed(source, settings)
        assert {path.name for path in target.parent.iterdir()} == {"in.mp4", "out.mp4"}
        return int(ended["told"][1])  # the first report comes before the folder was looked at

    return finish


DieAt = Callable[[dict[str, Any]], None]
GoOn = Callable[..., int]


def test_a_work_folder_does_not_change_the_result_and_goes_when_the_job_has_finished(go_on: GoOn) -> None:
    assert go_on() == 0


@pytest.mark.parametrize(
    ("death", "unit"),
    [
        ({"before": "plan.json"}, 0),
        ({"before": "000001.nut"}, 1),
        ({"after": "000001.nut"}, 1),
        ({"before": "000001.state"}, 1),
        ({"after": "000001.state"}, 1),
        ({"before": "000001.json"}, 1),
        ({"after": "000001.json"}, 2),
        ({"after": "000003.json"}, 4),  # the end of the first shot
        ({"after": "000006.json"}, 7),
        ({"before": "out.mp4"}, 7),
    ],
    ids=lambda value: "-".join(map(str, *value.items())) if isinstance(value, dict) else "",
)
def test_a_job_killed_at_any_write_loses_the_unit_in_work_only(
    die_at: DieAt, go_on: GoOn, work: Path, death: dict[str, Any], unit: int
) -> None:
    die_at(death)

    assert [unit.first_frame for unit in finished_units(work)] == STARTS[:unit]
    assert go_on() >= [*STARTS, sum(SHOTS)][unit]


@pytest.mark.parametrize("number", [0, 2, 3], ids=["first", "in a shot", "end of a shot"])
def test_a_job_killed_while_a_unit_is_pending_makes_that_one_again(
    die_at: DieAt, go_on: GoOn, work: Path, number: int
) -> None:
    die_at({"pending": number})

    assert [unit.first_frame for unit in finished_units(work)] == STARTS[:number]
    assert not (work / f"{number:06d}.nut").exists()
    assert (work / f"{number:06d}.state.part").exists() == (number != 3)
    assert go_on() >= STARTS[number]


def test_a_job_killed_again_and_again_comes_to_its_end(
    jobs: MortalJobs, source: Path, target: Path, work: Path
) -> None:
    """Each process makes a few files durable before it dies, one more than a unit needs."""
    deaths, done = 0, [0]
    while jobs.run(source, target, work, {"step": 11})["code"] == -signal.SIGKILL:
        deaths += 1
        done.append(len(intact_units(work)))
        assert deaths < 20

    assert deaths >= 3
    assert done == sorted(done)
    assert target.read_bytes() == jobs.undisturbed(source)
    assert not work.exists()


@pytest.mark.parametrize("seed", range(3))
def test_a_job_killed_at_moments_of_chance_comes_to_the_same_bytes(
    jobs: MortalJobs, source: Path, target: Path, work: Path, go_on: GoOn, seed: int
) -> None:
    chance = random.Random(seed)
    for _ in range(4):
        jobs.run(source, target, work, {"seconds": chance.uniform(0.05, 1.0)})
        if target.exists():
            break

    go_on()


def test_a_job_with_the_usual_settings_goes_on_to_the_same_bytes(
    jobs: MortalJobs, shared: Path, target: Path, work: Path
) -> None:
    """A film with two cuts, with windows, units and an encoder as they are by default."""
    source, whole = shared / "media" / "demo" / "d03_film_640x272_aac.mp4", target.with_name("whole.mp4")
    usual = {"settings": ["resolution=96"], "frames_per_unit": None}
    assert jobs.run(source, whole, None, **usual)["code"] == 0

    for name in ("000000.json", "000002.nut"):
        assert jobs.run(source, target, work, {"after": name}, **usual)["code"] == -signal.SIGKILL
    assert jobs.run(source, target, work, **usual)["code"] == 0

    assert target.read_bytes() == whole.read_bytes()


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("names", "unit"),
    [
        (["000002.nut"], 2),
        (["000002.state"], 2),
        (["000002.json"], 2),
        (["000001.state", "000002.state"], 0),
        (["000001.nut"], 1),
        (["000000.nut"], 0),
        (["plan.json"], 0),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else "",
)
def test_damaged_files_are_noticed_and_made_again(
    die_at: DieAt, go_on: GoOn, work: Path, names: list[str], unit: int
) -> None:
    die_at({"before": "000003.nut"})
    for name in names:
        damage(work / name)

    done = go_on()

    assert done < STARTS[unit + 1]
    assert done >= (0 if names == ["000001.nut"] else STARTS[unit])  # the state before that unit is not kept any more


def test_a_lost_state_costs_no_shot_before(die_at: DieAt, go_on: GoOn, work: Path) -> None:
    die_at({"after": "000004.json"})
    for path in work.glob("*.state"):
        path.unlink()

    assert STARTS[4] <= go_on() < STARTS[5]


def test_other_settings_start_anew(die_at: DieAt, go_on: GoOn) -> None:
    die_at({"after": "000003.json"})

    assert go_on([*SETTINGS, "encode.quality=30"]) == 0


def test_a_changed_source_starts_anew(die_at: DieAt, go_on: GoOn, make_clip: Any) -> None:
    die_at({"after": "000003.json"})
    make_clip("in.mp4", *reversed(SHOTS), height=36, width=64, sound=True)

    assert go_on() == 0


def test_other_weights_start_anew(jobs: MortalJobs, die_at: DieAt, go_on: GoOn, work: Path) -> None:
    die_at({"after": "000003.json"})
    plan = json.loads((work / "plan.json").read_text())
    plan["identity"]["weights"] = "dit:other"
    (work / "plan.json").write_text(json.dumps(plan))

    assert go_on() == 0


def test_a_source_that_gives_other_frames_than_before_starts_anew(die_at: DieAt, go_on: GoOn, work: Path) -> None:
    die_at({"after": "000003.json"})
    record = json.loads((work / "000003.json").read_text())
    record["bookmark"]["fingerprint"] = "0" * 64
    (work / "000003.json").write_text(json.dumps(record))

    assert go_on() == 0


def test_a_folder_with_files_of_somebody_else_is_left_alone(
    jobs: MortalJobs, source: Path, target: Path, work: Path
) -> None:
    work.mkdir()
    (work / "holiday.jpg").write_bytes(b"x")

    ended = jobs.run(source, target, work)

    assert "holiday.jpg" in ended["error"]
    assert [path.name for path in work.iterdir()] == ["holiday.jpg"]
    assert not target.exists()


def test_finished_units_can_be_watched_while_the_rest_is_not_there(die_at: DieAt, work: Path) -> None:
    assert finished_units(work) == ()
    die_at({"before": "000005.nut"})

    units = finished_units(work)

    assert [(unit.number, unit.shot, unit.first_frame) for unit in units] == [
        (0, 0, 0), (1, 0, 5), (2, 0, 13), (3, 0, 21), (4, 1, 22)
    ]  # fmt: skip
    for unit in units:
        with av.open(str(unit.path)) as container:
            assert sum(1 for _ in container.decode(video=0)) == unit.num_frames


def test_what_lies_around_in_the_folder_is_cleared(die_at: DieAt, go_on: GoOn, work: Path) -> None:
    die_at({"after": "000002.json"})
    for name in ("000003.nut.part", "000003.nut", "000003.state", "plan.json.part"):
        (work / name).write_bytes(b"half")
    shutil.copy(work / "000002.json", work / "000009.json")

    assert go_on() >= STARTS[3]


def test_states_of_earlier_units_are_not_kept(die_at: DieAt, work: Path) -> None:
    die_at({"before": "000003.nut"})

    assert sorted(path.name for path in work.glob("*.state")) == ["000001.state", "000002.state"]


def test_where_a_state_could_not_be_saved_only_the_units_since_are_made_again(
    die_at: DieAt, go_on: GoOn, work: Path
) -> None:
    die_at({"before": "000003.nut", "skip": ["000001.state", "000002.state"]})
    assert [path.name for path in work.glob("*.state")] == ["000000.state"]  # old, but the latest

    assert STARTS[1] <= go_on() < STARTS[2]


def test_large_histories_are_not_saved_but_made_again_to_the_same_bytes(
    jobs: MortalJobs, long_source: Path, target: Path, work: Path
) -> None:
    """Killed when more frames have passed than the VAE remembers, and once more soon after that."""
    large: dict[str, Any] = {"large_histories": 0, "frames_per_unit": 24}
    for number in (11, 12):
        record = f"{number:06d}.json"
        assert jobs.run(long_source, target, work, {"after": record}, **large)["code"] == -signal.SIGKILL
        assert all((work / f"{n:06d}.state").stat().st_size < 2**20 for n in (number - 1, number))

    ended = jobs.run(long_source, target, work, **large)

    assert (ended["code"], ended["error"]) == (0, "")
    assert int(ended["told"][1]) >= 21 + 24 * 12
    assert target.read_bytes() == jobs.undisturbed(long_source, frames_per_unit=24)


def test_a_disk_without_room_keeps_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "_SPARE_DISK", 2**60)
    resume._save(ShotState(latents=[torch.zeros(10)]), tmp_path / "0.state")
    assert list(tmp_path.iterdir()) == []


def test_units_of_another_precision_are_of_no_use(tiny_model: Path, make_clip: Any) -> None:
    source, size = make_clip("in.mp4", 2), Size(32, 32)
    usual, in_fp8 = (
        identify_job(source, RestoreSettings(), size, load_models("nano", tiny_model, fp8=fp8), 24)
        for fp8 in (False, True)
    )

    assert usual["precision"] == "torch.float32"  # as folders of earlier versions have it
    assert {key for key in usual if usual[key] != in_fp8[key]} == {"precision"}

"""The chaos benchmark itself: it kills, counts, and notices a wrong file; and the one that stops jobs in order."""

import json
from pathlib import Path

import pytest

from benchmarks import cancel, chaos

pytestmark = pytest.mark.timeout(180)


def test_jobs_survive_a_few_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chaos, "WAITING", 1)
    result = chaos.run_chaos(tmp_path, num_jobs=2, num_kills=3, seed=1)
    assert result["kills"] == result["kills_of_queue"] + result["kills_of_worker"] == 3
    assert result["jobs"] >= 2
    assert result["lost"] == result["wrong"] == 0


def test_a_file_with_other_bytes_counts_as_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = iter(range(10_000))
    monkeypatch.setattr(chaos, "_sha256", lambda path: f"{path.name}{next(taken)}")
    result = chaos.run_chaos(tmp_path, num_jobs=1, num_kills=0, seed=1)
    assert (result["jobs"], result["lost"], result["wrong"]) == (1, 0, 1)


def test_stops_are_measured_over_real_jobs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cancel, "LONGEST_WAIT_S", 0.5)
    assert cancel.main(["--jobs", "1", "--ends", "0"]) in (0, 1)  # whether it was quick is not for a test to say
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["cancel"]["number"] == result["pause"]["number"] == 1

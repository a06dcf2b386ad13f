"""A short form of `bench http-scan`: a part of its attempts against the real app, and that its judgement can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.http_attacks import attacks
from benchmarks.http_scan import Tally, running_target, scan_document, send_attacks

SECRET = b"geheim"


@pytest.mark.timeout(240)
def test_a_part_of_the_scan_finds_nothing(tmp_path: Path) -> None:
    tried = attacks()[::4]
    assert {attack.kind for attack in tried} == {"traversal", "listing", "gradio", "SSRF", "oversize"}
    with running_target(tmp_path) as target:
        tallies = [*send_attacks(target, tried, target.cookie).values(), *send_attacks(target, tried, "").values()]
        read_only = ("--include-method", "GET", "--phases", "coverage")
        tallies.append(scan_document(target, tmp_path, 1, 1, read_only))
        assert target.hits == []
    assert [fault for tally in tallies for fault in tally.faults] == []
    assert tallies[-1].statuses[200] > 5
    assert sum(tally.statuses.total() for tally in tallies) > 200
    assert "Traceback" not in (tmp_path / "server.log").read_text()


@pytest.mark.parametrize(
    ("status", "seconds", "answer", "words"),
    [
        (500, 0.1, b"", "500: GET /x"),
        (200, 0.1, b"a geheim b", "told b'geheim': GET /x"),
        (200, 11.0, b"", "11 s: GET /x"),
    ],
)
def test_what_is_wrong_is_told(status: int, seconds: float, answer: bytes, words: str) -> None:
    tally = Tally()
    tally.note("GET /x", 404, 0.1, b"fine", [SECRET])
    tally.note("GET /x", status, seconds, answer, [SECRET])
    assert tally.faults == [words]
    assert tally.row("it")[:2] == ["it", "2"]

"""The line that ends a test run."""

from pathlib import Path

from tests.project.summary import summarize


def write_report(path: Path, tests: int, failures: int = 0, errors: int = 0, skipped: int = 0) -> Path:
    attributes = f"tests='{tests}' failures='{failures}' errors='{errors}' skipped='{skipped}' time='2.25'"
    path.with_suffix(".xml").write_text(f"<testsuites><testsuite {attributes}/></testsuites>")
    return path


def test_the_parts_are_added_up(tmp_path: Path) -> None:
    reports = [write_report(tmp_path / "main", 10, skipped=1), write_report(tmp_path / "browser", 3)]
    assert summarize(reports) == (["===== 12 passed, 1 skipped in 4.50s ====="], True)


def test_failures_and_errors_both_count_as_failed(tmp_path: Path) -> None:
    lines, is_good = summarize([write_report(tmp_path / "main", 10, failures=1, errors=2)])
    assert lines == ["===== 3 failed, 7 passed in 2.25s ====="]
    assert not is_good


def test_a_part_without_a_report_is_named(tmp_path: Path) -> None:
    lines, is_good = summarize([write_report(tmp_path / "main", 1), tmp_path / "browser"])
    assert "'browser' did not finish" in lines[0]
    assert lines[-1] == "===== 1 passed, 1 parts incomplete in 2.25s ====="
    assert not is_good


def test_a_damaged_report_counts_as_unfinished(tmp_path: Path) -> None:
    (tmp_path / "main.xml").write_text("<testsuites>")
    assert not summarize([tmp_path / "main"])[1]

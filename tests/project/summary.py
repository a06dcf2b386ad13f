"""Adds up the JUnit reports of the parts of a test run and prints one pytest-style summary line.

Owns the last line of ``./run.sh test``. Run as ``python tests/project/summary.py DIR/main DIR/browser``: each argument
is a report's path without its ``.xml``. Ends with 1 when a report is missing or holds no
test, or when a test failed.
"""

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

COUNTS = ("tests", "failures", "errors", "skipped")


def read_counts(report: Path) -> tuple[dict[str, int], float]:
    """Counts by name, and seconds, over all suites of one JUnit file."""
    suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    counts = {name: sum(int(suite.get(name, "0")) for suite in suites) for name in COUNTS}
    return counts, sum(float(suite.get("time", "0")) for suite in suites)


def summarize(reports: list[Path]) -> tuple[list[str], bool]:
    """The lines to print, the summary last, and whether everything ran and passed."""
    lines: list[str] = []
    total, seconds = dict.fromkeys(COUNTS, 0), 0.0
    for report in reports:
        try:
            counts, part_seconds = read_counts(report.with_suffix(".xml"))
        except (OSError, ElementTree.ParseError):
            lines.append(f"run.sh: the part '{report.name}' did not finish, it left no report")
            continue
        if counts["tests"] == 0:
            lines.append(f"run.sh: the part '{report.name}' ran no test")
        total = {name: total[name] + counts[name] for name in COUNTS}
        seconds += part_seconds
    failed = total["failures"] + total["errors"]
    passed = total["tests"] - failed - total["skipped"]
    words = [f"{failed} failed"] if failed else []
    words += [f"{passed} passed"]
    words += [f"{total['skipped']} skipped"] if total["skipped"] else []
    words += [f"{len(lines)} parts incomplete"] if lines else []
    is_good = not failed and not lines
    return [*lines, f"===== {', '.join(words)} in {seconds:.2f}s ====="], is_good


def main(arguments: list[str]) -> int:
    """Print the summary of the reports named by ``arguments``; 0 when all is well."""
    lines, is_good = summarize([Path(argument) for argument in arguments])
    print("\n".join(lines), flush=True)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

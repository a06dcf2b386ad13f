"""Findings and their report. Values only."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from inference.durable import write_bytes


class Severity(StrEnum):
    """How bad a finding is, best first: nothing to know, good to know, worse than it could be, does not work."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check has found: a sentence, and the one thing to do about it (empty if there is nothing to do).

    `key` is its row of the fault table, `check.fault`.
    """

    key: str
    severity: Severity
    sentence: str
    action: str = ""

    @property
    def check(self) -> str:
        """The check that has found it."""
        return self.key.partition(".")[0]

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON-able values."""
        return asdict(self) | {"severity": self.severity.value, "check": self.check}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Finding:
        """The inverse of `to_dict`."""
        severity = Severity(values["severity"])
        return cls(str(values["key"]), severity, str(values["sentence"]), str(values["action"]))


@dataclass(frozen=True, slots=True)
class Report:
    """All findings of one examination, in the order of the checks; `at` is its time in seconds since 1970."""

    findings: Sequence[Finding]
    at: float = field(default_factory=time.time)

    @property
    def worst(self) -> Severity:
        """The worst severity among the findings."""
        order = list(Severity)
        return max((finding.severity for finding in self.findings), key=order.index, default=Severity.OK)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-able values."""
        return {"at": self.at, "worst": self.worst.value, "findings": [f.to_dict() for f in self.findings]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Report:
        """The inverse of `to_dict`. Raises KeyError, TypeError or ValueError for anything else."""
        return cls([Finding.from_dict(finding) for finding in values["findings"]], float(values["at"]))


REPORT = "doctor.json"
"""Name of the last report in the data folder."""


def save_report(data: Path, report: Report) -> bool:
    """Keep `report` as the last one of a data folder; False if it cannot be written there."""
    with contextlib.suppress(OSError):
        write_bytes(data / REPORT, json.dumps(report.to_dict(), indent=1).encode())
        return True
    return False


def last_report(data: Path) -> Report | None:
    """The last report of a data folder, by whichever process; None if there is none."""
    try:
        return Report.from_dict(json.loads((data / REPORT).read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        return None

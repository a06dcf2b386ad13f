"""Structured logs: one form for all processes, the job that a record belongs to, and no secret in any of them.

`configure_logs` is called once by a program. Records are text for people, or JSON lines with `SEEDVR_LOG=json`. Inside
`log_of_job` every record of the thread also goes to the job's own log, a bounded file of JSON lines in its folder.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

JOB_LOG = "log.jsonl"
"""Name of a job's log in its folder."""

MAX_BYTES = 256 * 1024
"""Size of a job's log; when it is reached the older half goes."""

_MAX_TEXT = 8000
_SECRET_VARIABLES = re.compile(r"PASSWORD|SECRET|TOKEN|API_KEY|PRIVATE|^SEEDVR_WEBHOOK$|^SEEDVR_DATABASE_URL$")
_SHORTEST_SECRET = 6  # shorter values would be found in ordinary words
_HIDDEN = "[hidden]"
_PATTERNS = (
    # addresses: what may be a secret is the name and password in front, and all behind ? and #
    (re.compile(r"\b(\w[\w+.-]{0,20}://)[^\s/@'\"]+@"), rf"\1{_HIDDEN}@"),
    (re.compile(r"\b(\w[\w+.-]{0,20}://[^\s?#'\"<>]+)[?#][^\s'\"<>]*"), rf"\1?{_HIDDEN}"),
    (re.compile(r"\b(Bearer|Basic)\s+[\w+/=.~-]{6,}", re.IGNORECASE), rf"\1 {_HIDDEN}"),
    (
        re.compile(
            r"((?:password|passwd|secret|token|api[_-]?key|signature))(\"?\s*[=:]\s*)[\"']?[^\s\"',;&)}]+", re.I
        ),
        rf"\1\2{_HIDDEN}",
    ),
    (re.compile(r"\bhf_[A-Za-z0-9]{8,}"), _HIDDEN),
    (re.compile(r"\b(seedvr_(?:session|login))=[^\s;'\"]+"), rf"\1={_HIDDEN}"),
)


def redact(text: str) -> str:
    """`text` without what may be a secret: known values of the environment, tokens, passwords, queries of addresses."""
    for secret in _secrets():
        text = text.replace(secret, _HIDDEN)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def _secrets() -> list[str]:
    values = [value for name, value in os.environ.items() if _SECRET_VARIABLES.search(name.upper())]
    accounts = os.environ.get("SEEDVR_USERS", "").split()
    values += [entry.partition(":")[2] for entry in accounts]
    return sorted({value for value in values if len(value) >= _SHORTEST_SECRET}, key=len, reverse=True)


# --- jobs ---


@dataclass(frozen=True, slots=True)
class JobLog:
    """The log that records of a thread belong to."""

    job_id: str
    path: Path


_job: ContextVar[JobLog | None] = ContextVar("job", default=None)
_writing = threading.Lock()


@contextlib.contextmanager
def log_of_job(job_id: str, folder: Path) -> Iterator[None]:
    """Inside this context records belong to a job, and are kept in its folder too."""
    before = _job.set(JobLog(job_id, folder / JOB_LOG))
    try:
        yield
    finally:
        _job.reset(before)


class JobHandler(logging.Handler):
    """Writes records that belong to a job into that job's log. Never raises: a full disk is no reason to fail."""

    def emit(self, record: logging.LogRecord) -> None:
        """Append the record as one JSON line."""
        job = _job.get()
        if job is None:
            return
        line = json.dumps(to_entry(record), ensure_ascii=False) + "\n"
        try:
            with _writing:
                _append(job.path, line.encode())
        except OSError:  # told where the job's own files cannot be written
            self.handleError(record) if logging.raiseExceptions and sys.flags.dev_mode else None


def _append(path: Path, line: bytes) -> None:
    if not path.parent.is_dir():  # the job was removed meanwhile
        return
    if path.exists() and path.stat().st_size + len(line) > MAX_BYTES:
        kept = path.read_bytes()[-MAX_BYTES // 2 :].partition(b"\n")[2]
        note = json.dumps({"event": "older lines were dropped"}).encode() + b"\n"
        part = path.with_name(f"{path.name}.part")
        part.write_bytes(note + kept)
        part.replace(path)
    with path.open("ab") as file:
        file.write(line)


# --- records ---


def to_entry(record: logging.LogRecord) -> dict[str, Any]:
    """A record as JSON-able values: at, level, logger, event, and job and trace if there are any. Without secrets."""
    text = redact(record.getMessage())[:_MAX_TEXT]
    entry = {
        "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": text,
    }
    job, process = _job.get(), getattr(record, "worker", None)
    if job is not None:
        entry["job"] = job.job_id
    if process is not None:
        entry["worker"] = str(process)
    trace = _trace(record)
    return {**entry, "trace": trace} if trace else entry


def _trace(record: logging.LogRecord) -> str:
    if given := getattr(record, "trace", ""):
        return redact(str(given))[-_MAX_TEXT:]
    if record.exc_info and record.exc_info[1] is not None:
        return redact("".join(traceback.format_exception(record.exc_info[1])))[-_MAX_TEXT:]
    return ""


# --- programs ---


def configure_logs(level: int = logging.INFO, *, in_jobs: bool = True) -> None:
    """Log to standard error from now on. With `in_jobs`, records that belong to jobs are kept in their folders."""
    is_json = os.environ.get("SEEDVR_LOG", "").lower() == "json"
    handler = logging.StreamHandler()
    handler.setFormatter(_formatter(is_json))
    handlers: list[logging.Handler] = [handler, *([JobHandler()] if in_jobs else [])]
    logging.basicConfig(level=level, handlers=handlers, force=True)


def _formatter(is_json: bool) -> logging.Formatter:
    renderer = structlog.processors.JSONRenderer(ensure_ascii=False) if is_json else _to_text
    return structlog.stdlib.ProcessorFormatter(processors=[_from_record, renderer])


def _from_record(logger: Any, name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    # structlog has taken message and exception out of the record
    values = {"msg": event["event"], "args": (), "exc_info": event.get("exc_info")}
    return to_entry(logging.makeLogRecord(event["_record"].__dict__ | values))


def _to_text(logger: Any, name: str, event: MutableMapping[str, Any]) -> str:
    job = f" [job {event['job'][:8]}]" if "job" in event else ""
    worker = f" worker {event['worker']}" if "worker" in event else ""
    line = f"{event['at']} {event['level'].upper()} {event['logger']}{worker}{job}: {event['event']}"
    return f"{line}\n{event['trace']}" if "trace" in event else line

"""What the page asks for again and again: the jobs of one owner, in parts, and only those parts that have changed.

A part is known by a digest of its content, so "changed" means that the page would show something else: not that
another owner's job went on, and not that the server was started again. When nothing at all has happened since the
last answer to the same question, the answer costs one look at the revision.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from seedvr_ui.jobs import Job, JobStatus
from seedvr_ui.player import Display, job_view
from seedvr_ui.sessions import SessionManager

PARTS = ("running", "waiting", "finished", "ended", "space")
PAGE = 50
MAX_FINISHED = 1000
MAX_SEARCH = 200
_NUM_ENDED = 10
_MAX_KNOWN = 1000

Tags = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Question:
    """What one page shows: so many of the latest finished jobs that match `search`. Owner None is everybody."""

    owner: str | None
    search: str = ""
    limit: int = PAGE


class Snapshots:
    """The answers of one server. `display` is asked anew each time, since what is expected of a job may change.

    `name_of` has the name of an owner, which is told where the jobs of everybody are.
    """

    def __init__(
        self, manager: SessionManager, display: Callable[[], Display], name_of: Callable[[str], str] = str
    ) -> None:
        self._manager = manager
        self._display = display
        self._name_of = name_of
        self._lock = threading.Lock()
        self._known: OrderedDict[Question, tuple[int, dict[str, str]]] = OrderedDict()

    def changes(self, question: Question, tags: Tags) -> dict[str, Any] | None:
        """The parts whose tag is not the one in `tags`, by name, and all tags under "tags"; None if there are none."""
        revision = self._manager.revision
        with self._lock:
            known = self._known.get(question)
        if known is not None and known == (revision, dict(tags)):
            return None
        parts = self._parts(question)
        fresh = {name: _digest(part) for name, part in parts.items()}
        self._remember(question, revision, fresh)
        changed = {name: part for name, part in parts.items() if tags.get(name) != fresh[name]}
        return {**changed, "tags": fresh} if changed else None

    def _parts(self, question: Question) -> dict[str, Any]:
        manager, display = self._manager, self._display()
        line = manager.line()

        def view(job: Job) -> dict[str, Any]:
            seen = job_view(job, line.get(job.id, 0), display)
            return seen if question.owner is not None else {**seen, "owner": self._name_of(job.owner)}

        unfinished = manager.unfinished(question.owner)
        finished, number = manager.finished(question.owner, question.search, question.limit)
        shown = [view(job) for job in finished]
        ended = shown if not question.search else map(view, manager.finished(question.owner, limit=_NUM_ENDED)[0])
        limits = manager.limits
        return {
            "running": [view(job) for job in unfinished if job.status is JobStatus.RUNNING],
            "waiting": [view(job) for job in unfinished if job.status is not JobStatus.RUNNING],
            "finished": {"jobs": shown, "number": number, "search": question.search},
            "ended": [_ended(one) for one in islice(ended, _NUM_ENDED)],
            "space": {
                "used": manager.usage(question.owner).num_bytes,
                "limit": limits.max_stored_bytes,
                "keepDays": round(limits.keep_s / 86400, 2),
            },
        }

    def _remember(self, question: Question, revision: int, tags: dict[str, str]) -> None:
        with self._lock:
            self._known[question] = (revision, tags)
            self._known.move_to_end(question)
            while len(self._known) > _MAX_KNOWN:
                self._known.popitem(last=False)


def _ended(view: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of a job that has ended."""
    return {key: view[key] for key in ("id", "name", "status", "text", "thumbnail", "finishedAt")}


def _digest(part: Any) -> str:
    content = json.dumps(part, sort_keys=True, ensure_ascii=False).encode()
    return hashlib.blake2b(content, digest_size=8).hexdigest()

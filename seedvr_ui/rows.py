"""The statements over the tables of the index: how a job becomes a row and back, who is next, what is counted.

Functions of a connection; transactions and locks are the business of their caller.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, Select, Table, case, func, literal, select, update
from sqlalchemy.dialects import postgresql, sqlite

from inference.progress import Progress
from seedvr_ui import manifest
from seedvr_ui.jobs import FINISHED, Job, JobStatus
from seedvr_ui.tables import JOBS, OWNERS, STATE
from seedvr_ui.wording import settings_words

_FOLLOWED = [column.name for column in JOBS.columns if column.name not in ("id", "progress", "lease_until")]
MAX_SEARCH_WORDS = 8
_SERVED_AT = func.coalesce(OWNERS.c.served_at, 0.0)
_TURN = func.row_number().over(partition_by=(JOBS.c.owner, JOBS.c.priority), order_by=(JOBS.c.place, JOBS.c.id))


def to_job(row: Row[Any], folder: Path) -> Job:
    """The job of a whole row of JOBS, with the newest progress that its holder has told."""
    job = manifest.from_document(json.loads(row.document), folder)
    return job if row.progress is None else job.advance(Progress.from_dict(json.loads(row.progress)))


def upsert(connection: Connection, jobs: Sequence[tuple[Job, str]], lease_until: float | None = None) -> None:
    """Rows that say what the manifests with these stamps say. Without `lease_until` a running job's lease goes on."""
    if not jobs:
        return
    insert = _insert(connection, JOBS)
    followed = [*_FOLLOWED, *(["lease_until"] if lease_until is not None else [])]
    values: dict[str, Any] = {column: insert.excluded[column] for column in followed}
    is_going_on = (insert.excluded.status == JobStatus.RUNNING.value) & literal(lease_until is None)
    values["progress"] = case((is_going_on, JOBS.c.progress), else_=None)
    connection.execute(
        insert.on_conflict_do_update(index_elements=[JOBS.c.id], set_=values),
        [_to_values(job, stamp, lease_until or 0.0) for job, stamp in jobs],
    )


def serve(connection: Connection, owner: str, at: float) -> None:
    """Note that a job of `owner` was taken from the queue."""
    insert = _insert(connection, OWNERS).values(owner=owner, served_at=at)
    connection.execute(insert.on_conflict_do_update(index_elements=[OWNERS.c.owner], set_={"served_at": at}))


def serve_as_started(connection: Connection) -> None:
    """Note of all owners when they were served, as their jobs tell it."""
    started = select(JOBS.c.owner, func.max(JOBS.c.started_at)).where(JOBS.c.started_at.is_not(None))
    for owner, at in connection.execute(started.group_by(JOBS.c.owner)).all():
        serve(connection, owner, at)


def bump(connection: Connection) -> None:
    """Let the revision grow; the last statement of a transaction, since all writers wait for this one row."""
    connection.execute(update(STATE).values(revision=STATE.c.revision + 1))


def with_status(*statuses: JobStatus) -> Select[Any]:
    """All jobs in one of these states."""
    return select(JOBS).where(JOBS.c.status.in_([status.value for status in statuses]))


def next_in_line() -> Select[Any]:
    """The next job, locked: a higher priority first, then whose owner was served longest ago, then its place."""
    return (
        with_status(JobStatus.QUEUED)
        .outerjoin(OWNERS, OWNERS.c.owner == JOBS.c.owner)
        .order_by(JOBS.c.priority.desc(), _SERVED_AT, JOBS.c.place, JOBS.c.id)
        .limit(1)
        .with_for_update(of=JOBS, skip_locked=True)
    )


def whole_line() -> Select[Any]:
    """The ids of all waiting jobs in the order in which `next_in_line` will take them if nothing is added."""
    return (
        with_status(JobStatus.QUEUED)
        .with_only_columns(JOBS.c.id)
        .outerjoin(OWNERS, OWNERS.c.owner == JOBS.c.owner)
        .order_by(JOBS.c.priority.desc(), _TURN, _SERVED_AT, JOBS.c.place, JOBS.c.id)
    )


def of(query: Select[Any], owner: str | None) -> Select[Any]:
    """Of what `query` finds, the jobs of `owner`; of everybody if that is None."""
    return query if owner is None else query.where(JOBS.c.owner == owner)


def finished_of(owner: str | None, search: str = "") -> Select[Any]:
    """The finished jobs of `owner`, or of everybody, that have every word of `search` in their words."""
    return matching(owner, list(FINISHED), search)


def matching(owner: str | None, statuses: Collection[JobStatus], search: str = "") -> Select[Any]:
    """The jobs of `owner`, or of everybody, in one of `statuses` that have every word of `search` in their words."""
    found = of(with_status(*statuses), owner)
    for word in search.casefold().split()[:MAX_SEARCH_WORDS]:
        found = found.where(JOBS.c.words.contains(word, autoescape=True))
    return found


def in_shown_order(query: Select[Any]) -> Select[Any]:
    """What runs first, then what waits in its order, what rests, and the latest of what has finished."""
    ranks = {JobStatus.RUNNING: 0, JobStatus.QUEUED: 1, JobStatus.INTERRUPTED: 1, JobStatus.PAUSED: 2}
    rank = case({status.value: rank for status, rank in ranks.items()}, value=JOBS.c.status, else_=4)
    rank = case((JOBS.c.status == JobStatus.DRAFT.value, 3), else_=rank)
    is_finished = JOBS.c.status.in_([status.value for status in FINISHED])
    priority = case((is_finished, 0), else_=-JOBS.c.priority)
    place = case((is_finished, -func.coalesce(JOBS.c.finished_at, 0.0)), else_=JOBS.c.place)
    return query.order_by(rank, priority, place, JOBS.c.id)


def usage_of(owner: str | None) -> Select[Any]:
    """(jobs that are not finished, bytes of all jobs) of `owner`, or of everybody."""
    unfinished = func.count().filter(JOBS.c.status.not_in([status.value for status in FINISHED]))
    return of(select(unfinished, func.coalesce(func.sum(JOBS.c.num_bytes), 0)).select_from(JOBS), owner)


def _insert(connection: Connection, table: Table) -> Any:
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)


def _to_values(job: Job, stamp: str, lease_until: float) -> dict[str, Any]:
    return {
        "id": job.id,
        "owner": job.owner,
        "status": job.status.value,
        "priority": job.priority,
        "place": job.place,
        "token": job.token,
        "holder": job.holder,
        "lease_until": lease_until,
        "wish": job.wish.value,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "stamp": stamp,
        "document": json.dumps(manifest.to_document(job)),
        "num_bytes": job.num_bytes,
        "is_unseen": job.is_unseen_result,
        "words": search_words(job),
        "news_at": job.news[-1].at if job.news else None,
    }


def search_words(job: Job) -> str:
    """What a job is found by: its name, its state and its settings, without regard to upper and lower case."""
    settings = (f"{label} {value}" for label, value in settings_words(job.settings))
    state = "succeeded done" if job.status is JobStatus.SUCCEEDED else job.status.value
    return " ".join([job.source.name, state, *settings]).casefold()

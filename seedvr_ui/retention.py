"""Which finished jobs go, and when. Pure: it plans, the session manager deletes.

Only what rests can go: finished jobs and drafts. A result that nobody has looked at stays twice as long as the others,
and is the last to go for want of space.
"""

from __future__ import annotations

from collections.abc import Sequence

from seedvr_ui.jobs import Job
from seedvr_ui.store import Resting

UNSEEN_STAYS = 2.0


def plan_expiry(jobs: Sequence[Resting], now: float, keep_s: float, too_many_bytes: int) -> list[Resting]:
    """The jobs to delete: those past their time, then, until `too_many_bytes` are freed, the ones that rest longest."""
    order = sorted(jobs, key=lambda job: (job.is_unseen, job.since))
    expired = [job for job in order if job.since < now - keep_s * (UNSEEN_STAYS if job.is_unseen else 1.0)]
    freed = sum(job.num_bytes for job in expired)
    gone = {job.id for job in expired}
    for job in order:
        if freed >= too_many_bytes:
            break
        if job.id not in gone and job.num_bytes:
            expired.append(job)
            freed += job.num_bytes
    return expired


def stays_until(job: Job, keep_s: float) -> float | None:
    """When a finished job goes for its age, in seconds since the epoch; None while it is not finished."""
    if not job.is_finished or job.finished_at is None:
        return None
    return job.finished_at + keep_s * (UNSEEN_STAYS if job.is_unseen_result else 1.0)

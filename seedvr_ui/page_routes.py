"""The routes behind the queue on the page: what has changed, and what a button does. Short, and no stream.

They are our own instead of Gradio events so that a page comes back by itself after whatever has cut it off: each
request stands alone, and the next one tells the whole truth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from seedvr_ui.access import Access
from seedvr_ui.sessions import SessionManager
from seedvr_ui.snapshots import MAX_FINISHED, MAX_SEARCH, PAGE, PARTS, Question, Snapshots

_NOT_KEPT = {"Cache-Control": "no-store"}


class Action(StrEnum):
    """What the buttons of a job do."""

    CANCEL = "cancel"
    PAUSE = "pause"
    RESUME = "resume"
    RETRY = "retry"
    REMOVE = "remove"
    DUPLICATE = "duplicate"
    UP = "up"
    DOWN = "down"
    BEFORE = "before"
    PRIORITY = "priority"


class Choice(BaseModel):
    """What goes with an action: whether a cancelled job keeps its part; the job that another one is put before;
    the priority that an admin gives it, 0 being the usual one.
    """

    keep: bool = False
    before: str = Field(default="", max_length=64)
    priority: int = Field(default=0, ge=-100, le=100)


def add_page_routes(app: FastAPI, manager: SessionManager, access: Access, snapshots: Snapshots) -> None:
    """Put the routes on `app`; to be called before Gradio is mounted on the root."""
    router = APIRouter(prefix="/studio")

    @router.get("/snapshot")
    def snapshot(
        request: Request,
        tags: Annotated[str, Query(max_length=200)] = "",
        search: Annotated[str, Query(max_length=MAX_SEARCH)] = "",
        limit: Annotated[int, Query(ge=1, le=MAX_FINISHED)] = PAGE,
        everybody: bool = False,
    ) -> Response:
        """The parts that have changed since those with these tags (`a,b,...`, in the order of PARTS); 204 if none.

        With `everybody` an admin gets the jobs of all owners.
        """
        visitor = access.require(request)
        if everybody and not visitor.is_admin:
            raise HTTPException(403, "Only admins see the jobs of everybody.")
        known = dict(zip(PARTS, tags.split(","), strict=False))
        changes = snapshots.changes(Question(None if everybody else visitor.owner, search, limit), known)
        return (
            Response(status_code=204, headers=_NOT_KEPT) if changes is None else JSONResponse(changes, 200, _NOT_KEPT)
        )

    @router.post("/jobs/{job_id}/do/{action}")
    def act(request: Request, job_id: str, action: Action, choice: Choice | None = None) -> dict[str, Any]:
        choice, visitor = choice or Choice(), access.require(request)
        owner = manager.job_for(visitor, job_id).owner
        if action is Action.PRIORITY and not visitor.is_admin:
            raise HTTPException(403, "Only admins set priorities.")
        actions: Mapping[Action, Callable[[str, str], object]] = {
            Action.CANCEL: lambda owner, job: manager.cancel(owner, job, keep_part=choice.keep),
            Action.PAUSE: manager.pause,
            Action.RESUME: manager.resume,
            Action.RETRY: manager.retry,
            Action.REMOVE: manager.remove,
            Action.DUPLICATE: manager.duplicate,
            Action.UP: lambda owner, job: manager.move(owner, job, up=True),
            Action.DOWN: lambda owner, job: manager.move(owner, job, down=True),
            Action.BEFORE: lambda owner, job: manager.move(owner, job, before=choice.before),
            Action.PRIORITY: lambda owner, job: manager.set_priority(job, choice.priority),
        }
        actions[action](owner, job_id)
        return {}

    app.include_router(router)

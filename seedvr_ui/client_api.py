"""The same requests as named endpoints of the Gradio app, for `gradio_client`. Each takes and gives plain JSON values.

Files do not pass through Gradio, whose upload is closed: a client sends them to `api/v1/uploads` and names their ids,
and fetches results from the `download` path of a job. A client signs in with the headers of its requests, such as
`Client(url, headers={"Authorization": "Basic ..."})`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import gradio as gr
from fastapi import HTTPException
from gradio.events import api
from pydantic import BaseModel, ValidationError

from inference.errors import RestoreError
from seedvr_ui.access import Access, Visitor
from seedvr_ui.jobs import JobStatus
from seedvr_ui.operations import MAX_PAGE, Operations

_Answer = TypeVar("_Answer")


class ClientApi:
    """The endpoints of one app. Each is a function whose name, types and docstring Gradio shows to its clients."""

    def __init__(self, operations: Operations, access: Access) -> None:
        self._operations = operations
        self._access = access

    def list_jobs(
        self,
        request: gr.Request,
        statuses: list[str] | None = None,
        search: str = "",
        limit: int = 50,
        offset: int = 0,
    ) -> dict[str, Any]:
        """List your jobs: {"jobs": [...], "total": N, "revision": N}. `statuses` are states such as "running"."""

        def answer(visitor: Visitor) -> BaseModel:
            wanted = [_to_status(status) for status in statuses or ()]
            rows, skipped = _within(limit, 1, MAX_PAGE, "limit"), _within(offset, 0, 10**9, "offset")
            return self._operations.list(visitor, wanted, str(search), rows, skipped)

        return self._answer(request, answer)

    def show_job(self, job_id: str, request: gr.Request) -> dict[str, Any]:
        """Show a job with its settings, its progress and its history."""
        return self._answer(request, lambda visitor: self._operations.show(visitor, job_id))

    def submit_job(
        self, upload_id: str, request: gr.Request, settings: dict[str, Any] | None = None, draft: bool = False
    ) -> dict[str, Any]:
        """Queue a file that was sent to `api/v1/uploads`, with settings such as {"restore.factor": 2}."""

        def answer(visitor: Visitor) -> BaseModel:
            if not isinstance(settings or {}, dict):
                raise RestoreError('Settings are written as {"restore.factor": 2}.')
            return self._operations.submit(visitor, [str(upload_id)], settings or {}, draft=bool(draft))[0]

        return self._answer(request, answer)

    def start_job(self, job_id: str, request: gr.Request) -> dict[str, Any]:
        """Queue a draft."""
        return self._answer(request, lambda visitor: self._operations.start(visitor, job_id))

    def pause_job(self, job_id: str, request: gr.Request) -> dict[str, Any]:
        """Let a job wait; one that runs stops at its next step and keeps what is finished."""
        return self._answer(request, lambda visitor: self._operations.pause(visitor, job_id))

    def resume_job(self, job_id: str, request: gr.Request) -> dict[str, Any]:
        """Let a paused job go on."""
        return self._answer(request, lambda visitor: self._operations.resume(visitor, job_id))

    def cancel_job(self, job_id: str, request: gr.Request, keep_part: bool = False) -> dict[str, Any]:
        """Stop a job; one that runs stops at its next step. With `keep_part` what is finished stays."""
        return self._answer(
            request, lambda visitor: self._operations.cancel(visitor, job_id, keep_part=bool(keep_part))
        )  # fmt: skip

    def retry_job(self, job_id: str, request: gr.Request) -> dict[str, Any]:
        """Queue a failed or cancelled job once more; what is finished of it is used."""
        return self._answer(request, lambda visitor: self._operations.retry(visitor, job_id))

    def duplicate_job(
        self, job_id: str, request: gr.Request, settings: dict[str, Any] | None = None, draft: bool = False
    ) -> dict[str, Any]:
        """A new job for the same file, with the same settings, or with `settings` over the defaults."""
        return self._answer(
            request, lambda visitor: self._operations.duplicate(visitor, job_id, settings, draft=bool(draft))
        )  # fmt: skip

    def delete_job(self, job_id: str, request: gr.Request) -> dict[str, Any]:
        """Forget a job that is not at work, with all its files."""
        self._run(request, lambda visitor: self._operations.delete(visitor, job_id))
        return {"deleted": job_id}

    def job_settings(self, request: gr.Request) -> list[dict[str, Any]]:
        """All settings that a job may have."""
        return self._run(request, lambda _: [field.model_dump(mode="json") for field in self._operations.settings()])

    def server_status(self, request: gr.Request) -> dict[str, Any]:
        """Version, number of jobs per state, space."""
        return self._answer(request, self._operations.status)

    def endpoints(self) -> Sequence[Callable[..., Any]]:
        """All of the above."""
        return [
            self.list_jobs, self.show_job, self.submit_job, self.start_job, self.pause_job, self.resume_job,
            self.cancel_job, self.retry_job, self.duplicate_job, self.delete_job, self.job_settings, self.server_status,
        ]  # fmt: skip

    def attach(self) -> None:
        """Add the endpoints to the gr.Blocks that is being built."""
        for endpoint in self.endpoints():
            api(endpoint, api_name=endpoint.__name__, queue=False)

    # --- inside ---

    def _answer(self, request: gr.Request, answer: Callable[[Visitor], BaseModel]) -> dict[str, Any]:
        return self._run(request, answer).model_dump(mode="json")

    def _run(self, request: gr.Request, work: Callable[[Visitor], _Answer]) -> _Answer:
        try:
            if request.request is None:
                raise HTTPException(401, "This request does not say who sends it.")
            return work(self._access.require(request.request))
        except HTTPException as error:
            raise gr.Error(str(error.detail), print_exception=False) from error
        except (RestoreError, ValidationError) as error:
            raise gr.Error(str(error), print_exception=False) from error


def _to_status(name: str) -> JobStatus:
    try:
        return JobStatus(name)
    except ValueError as error:
        raise RestoreError(f"There is no state {name!r}; use {', '.join(JobStatus)}.") from error


def _within(value: int, low: int, high: int, name: str) -> int:
    if not isinstance(value, int) or not low <= value <= high:
        raise RestoreError(f"{name} is a whole number from {low} to {high}.")
    return value

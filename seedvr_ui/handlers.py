"""What the page's events do: UI values in, UI values out. They submit and read snapshots, and own nothing.

A Gradio event may be lost with its connection, so no handler waits for a job.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from inference.errors import RestoreError
from inference.settings import load_settings, to_dict
from seedvr_ui.access import Access
from seedvr_ui.fields import to_layer
from seedvr_ui.player import job_view
from seedvr_ui.sessions import SessionManager
from seedvr_ui.storage import new_id


class Handlers:
    """The event handlers of one app. `engine` is the layer of engine settings that the process was started with."""

    def __init__(self, manager: SessionManager, access: Access, engine: Mapping[str, Any]) -> None:
        self._manager = manager
        self._access = access
        self._engine = engine

    def watch(self, request: gr.Request) -> dict[str, Any]:
        """The queue of this browser as the page shows it."""
        owner = self._owner(request)
        jobs, line = self._manager.jobs(owner), self._manager.line()
        return {"jobs": [job_view(job, line.get(job.id, 0)) for job in jobs]}

    def submit(
        self, request: gr.Request, drop: Mapping[str, Any] | None, size: str, model: str, *options: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Queue every file that the drop zone holds: the drop zone's answer and the new queue."""
        owner = self._owner(request)
        drop = drop or {}
        ready = list(drop.get("ready", []))
        message = "" if ready or drop.get("repeated") else "Add a video or an image first."
        taken: list[str] = []
        try:
            settings = to_dict(load_settings(self._engine, to_layer(size, model, options)))
            for upload in ready:
                self._manager.submit(owner, [upload], settings)
                taken.append(upload)
        except RestoreError as error:
            message = str(error)
        return {"taken": taken, "message": message, "answer": new_id()}, self.watch(request)

    def act(self, event: gr.EventData, request: gr.Request) -> dict[str, Any]:
        """Cancel, pause, resume, retry or remove one job of this browser: the new queue."""
        owner, action, job_id = self._owner(request), event.action, event.id
        actions: dict[str, Callable[[str, str], object]] = {
            "cancel": self._manager.cancel,
            "pause": self._manager.pause,
            "resume": self._manager.resume,
            "retry": self._manager.retry,
            "remove": self._manager.remove,
        }
        try:
            actions[action](owner, job_id)
        except RestoreError as error:
            raise gr.Error(str(error), title="Not possible", print_exception=False) from error
        return self.watch(request)

    def _owner(self, request: gr.Request) -> str:
        visitor = self._access.visitor(request.request) if request.request else None
        if visitor is None:
            raise gr.Error("Allow cookies for this page, then reload it.", title="No session", print_exception=False)
        return visitor.owner

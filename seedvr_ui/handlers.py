"""What the form's events do: UI values in, UI values out. They submit and look, and own nothing.

A Gradio event may be lost with its connection, so no handler waits for a job. What the queue shows and its buttons do
goes through `page_routes` instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr

from inference.errors import RestoreError
from inference.settings import load_settings, to_dict
from seedvr_ui.access import Access, Visitor
from seedvr_ui.fields import OPTIONS, SIZES, from_settings, size_layers, to_layer
from seedvr_ui.forecast import Forecast
from seedvr_ui.sessions import SessionManager
from seedvr_ui.storage import new_id

FORM = ("size", "model", *OPTIONS)
"""The names under which a browser remembers the form's values, in the order of its fields."""


class Handlers:
    """The event handlers of one app. `engine` is the layer of engine settings that the process was started with."""

    def __init__(
        self, manager: SessionManager, access: Access, engine: Mapping[str, Any], forecast: Forecast | None = None
    ) -> None:
        self._manager = manager
        self._access = access
        self._engine = engine
        self._forecast = forecast

    def submit(
        self, request: gr.Request, drop: Mapping[str, Any] | None, size: str, model: str, *options: Any
    ) -> dict[str, Any]:
        """Queue every file that the drop zone holds: the drop zone's answer."""
        owner = self._owner(request)
        drop = drop or {}
        ready = list(drop.get("ready", []))
        message = "" if ready or drop.get("repeated") else "Add a video or an image first."
        taken: list[str] = []
        try:
            settings = self._settings(size, model, options)
            for upload in ready:
                self._manager.submit(owner, [upload], settings)
                taken.append(upload)
        except RestoreError as error:
            message = str(error)
        return {"taken": taken, "message": message, "answer": new_id()}

    def estimate(
        self, request: gr.Request, drop: Mapping[str, Any] | None, size: str, model: str, *options: Any
    ) -> dict[str, Any]:
        """What the chosen files will take with the chosen settings; see `Forecast.about`."""
        owner = self._owner(request)
        if self._forecast is None:
            return {}
        try:
            settings = self._settings(size, model, options)
        except RestoreError as error:
            return {"lines": [], "warnings": [str(error)], "pending": False}
        return self._forecast.about(owner, list((drop or {}).get("ready", [])), settings, size_layers())

    def use(self, models: Sequence[str]) -> Callable[..., list[Any]]:
        """The handler of a job's form buttons: "use" fills the form with its settings, "again" runs its file with what
        the form says. `models` are the names that the form offers.
        """

        def use(event: gr.EventData, request: gr.Request, size: str, model: str, *options: Any) -> list[Any]:
            visitor, job_id = self._visitor(request), str(event.id)
            try:
                job = self._manager.job_for(visitor, job_id)
                if event.action == "again":
                    self._manager.duplicate(job.owner, job_id, self._settings(size, model, options))
                    return [gr.skip()] * len(FORM)
                values, missing = from_settings(job.settings, models)
            except RestoreError as error:
                raise gr.Error(str(error), title="Not possible", print_exception=False) from error
            if missing:
                gr.Warning(
                    f"The form cannot say everything: {', '.join(missing)}. Duplicate keeps all settings.",
                    title="Not all settings were taken over",
                )
            return [gr.skip() if value is None else value for value in values]

        return use

    def recall(self, models: Sequence[str]) -> Callable[[Any], list[Any]]:
        """The handler that fills the form with what the browser remembers; what is no choice any more stays."""

        def recall(form: Any) -> list[Any]:
            form = form if isinstance(form, Mapping) else {}
            values = {name: form[name] for name in FORM if form.get(name) is not None}
            if values.get("size") not in {value for _, value in SIZES}:
                values.pop("size", None)
            if values.get("model") not in models:
                values.pop("model", None)
            for key in OPTIONS:
                try:
                    if key in values:
                        load_settings({key: values[key]})
                except RestoreError:
                    values.pop(key)
            return [values.get(name, gr.skip()) for name in FORM]

        return recall

    def _settings(self, size: str, model: str, options: Sequence[Any]) -> dict[str, Any]:
        return to_dict(load_settings(self._engine, to_layer(size, model, options)))

    def _owner(self, request: gr.Request) -> str:
        return self._visitor(request).owner

    def _visitor(self, request: gr.Request) -> Visitor:
        visitor = self._access.visitor(request.request) if request.request else None
        if visitor is None:
            raise gr.Error("Allow cookies for this page, then reload it.", title="No session", print_exception=False)
        return visitor

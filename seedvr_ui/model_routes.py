"""The routes of the HTTP API about models: what is installed, and for admins how it comes and goes.

The page uses them too. Paths of the server are told to those who may change things.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, HTTPException, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from inference.installed import ModelState, Survey, Task
from seedvr_ui.access import Access
from seedvr_ui.api_errors import MEANINGS
from seedvr_ui.api_models import ErrorInfo
from seedvr_ui.model_tasks import IMPORTED, ModelTasks, TaskState, TaskStatus


class ModelFileInfo(BaseModel):
    """A file of a model."""

    part: str = Field(description="dit, vae or text")
    name: str = Field(examples=["ema_vae.pth"])
    num_bytes: int
    is_verified: bool | None = Field(description="whether its SHA-256 was checked; null if none is known to check it")
    used_by: list[str] = Field(default_factory=list, description="other models on this machine that need it")
    path: str = Field(default="", description="where it is; told to those only who may change models")


class TaskInfo(BaseModel):
    """What is going on, or was last."""

    task: Task
    status: TaskStatus
    done_bytes: int = Field(default=0, description="of num_bytes")
    num_bytes: int = Field(default=0, description="0 until it is known")
    message: str = Field(default="", description="what was done, or why not")


class ModelInfo(BaseModel):
    """A model and what is here of it."""

    name: str = Field(examples=["seedvr2-3b"])
    title: str
    is_ready: bool = Field(description="it can be used without a download")
    is_embedded: bool = Field(description="a part of the program")
    files: list[ModelFileInfo]
    num_bytes: int = Field(description="bytes of its files, shared ones included")
    missing_bytes: int = Field(description="what a download has still to fetch")
    partial_bytes: int = Field(description="what an unfinished download has fetched")
    convert_saves_bytes: int = Field(description="what bf16 copies take less than the float32 files")
    original_bytes: int = Field(description="float32 files beside their bf16 copies, which may be deleted")
    task: TaskInfo | None = None


class ModelList(BaseModel):
    """All models."""

    models: list[ModelInfo]
    problems: list[str] = Field(description="files that are not what they should be; told to those who can mend it")
    free_bytes: int = Field(description="on the disk that downloads go to")
    may_change: bool = Field(description="whether the one who asks may download, convert, import and delete")
    import_task: TaskInfo | None = None


class Import(BaseModel):
    """A folder of the server with model files."""

    model_config = ConfigDict(extra="forbid")

    folder: str = Field(min_length=1, max_length=4000, description="its path", examples=["/workspace/models"])


class Freed(BaseModel):
    """What a deletion has given back."""

    num_bytes: int


def add_model_routes(router: APIRouter, tasks: ModelTasks, access: Access) -> None:
    """Put the routes on `router`."""

    def may_change(request: Request) -> bool:
        visitor = access.require(request)
        return access.login is None or visitor.is_admin

    def require_admin(request: Request) -> None:
        if not may_change(request):
            raise HTTPException(403, "Only admins change what models are installed; ask one of them.")

    @router.get("/models", tags=["models"], summary="List models and what is installed of them")
    def list_models(request: Request) -> ModelList:
        return model_list(tasks.survey(), tasks, may_change(request))

    @router.post("/models/import", tags=["models"], status_code=202, responses=_CHANGES, summary="Import a folder")
    def import_models(request: Request, new: Import) -> TaskInfo:
        """Model files are taken by their names, and verified. They are linked where the file system can."""
        require_admin(request)
        return task_info(tasks.start(Task.IMPORT, folder=new.folder))

    for task, summary in (
        (Task.DOWNLOAD, "Download a model, or go on with it"),
        (Task.VERIFY, "Hash the files of a model anew"),
        (Task.CONVERT, "Convert a model to bf16"),
    ):
        _add_task(router, tasks, task, summary, require_admin)

    @router.post("/models/{model}/pause", tags=["models"], responses=_CHANGES, summary="Stop what is going on")
    def pause_model(request: Request, model: str) -> TaskInfo:
        """What a download has fetched is kept. `import` stands for the import of a folder."""
        require_admin(request)
        return task_info(tasks.pause(model))

    @router.delete("/models/{model}", tags=["models"], responses=_CHANGES, summary="Delete the files of a model")
    def delete_model(
        request: Request,
        model: str,
        originals: bool = Query(default=False, description="only float32 files that have a bf16 copy"),
    ) -> Freed:
        """Files that another model on this machine needs stay."""
        require_admin(request)
        return Freed(num_bytes=tasks.delete(model, only_originals=originals))


def _add_task(router: APIRouter, tasks: ModelTasks, task: Task, summary: str, require_admin: Any) -> None:
    @router.post(
        f"/models/{{model}}/{task.value}", tags=["models"], status_code=202, responses=_CHANGES, summary=summary,
        name=f"{task.value}_model",
    )  # fmt: skip
    def begin(request: Request, model: str) -> TaskInfo:
        """It goes on by itself: ask for the list to see how far it is."""
        require_admin(request)
        return task_info(tasks.start(task, model))


_CHANGES: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorInfo, "description": MEANINGS[code]} for code in (403, 404, 409)
}


def model_list(found: Survey, tasks: ModelTasks, may_change: bool) -> ModelList:
    """The answer to whoever asks for the models."""
    states = tasks.states()
    return ModelList(
        models=[_model_info(model, states.get(model.name), may_change) for model in found.models],
        problems=[problem.sentence for problem in found.problems] if may_change else [],
        free_bytes=found.free_bytes,
        may_change=may_change,
        import_task=task_info(states[IMPORTED]) if IMPORTED in states and may_change else None,
    )


def _model_info(model: ModelState, state: TaskState | None, may_change: bool) -> ModelInfo:
    info = task_info(state) if state is not None else None
    if info is not None and not may_change:
        info.message = ""  # it may name paths
    return ModelInfo(
        name=model.name,
        title=model.title,
        is_ready=model.is_ready,
        is_embedded=model.is_embedded,
        files=[
            ModelFileInfo(
                part=file.part.value, name=file.name, num_bytes=file.num_bytes, is_verified=file.is_verified,
                used_by=list(file.used_by), path=str(file.path) if may_change else "",
            )
            for file in model.files
        ],
        num_bytes=model.num_bytes,
        missing_bytes=model.missing_bytes,
        partial_bytes=model.partial_bytes,
        convert_saves_bytes=model.convert_saves_bytes,
        original_bytes=model.original_bytes,
        task=info,
    )  # fmt: skip


def task_info(state: TaskState) -> TaskInfo:
    """A task as a documented type."""
    return TaskInfo(
        task=state.task, status=state.status, done_bytes=state.done_bytes, num_bytes=state.num_bytes,
        message=state.message,
    )  # fmt: skip

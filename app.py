"""The composition root: settings, worker, queue, routes and page become one server. The only file that knows them all.

This process never imports torch: restoring happens in the worker process, looking at files in short-lived ones, so the
page is up within seconds and a crash there is a message here.

    python app.py --port 7860 --data ~/.local/share/seedvr
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads it at import: no version check, no telemetry

from fastapi import FastAPI

from inference.catalogue import AUTO_MODEL, CATALOGUE, ModelEntry, Part
from inference.media_proxy import check_media, make_preview
from inference.settings import EngineSettings, load_settings, to_dict
from inference.worker import Worker
from seedvr_ui.folder import ServerFolder
from seedvr_ui.sessions import Limits, Services, SessionManager
from seedvr_ui.storage import Storage
from seedvr_ui.transfers import Transfers

log = logging.getLogger(__name__)

DEFAULT_PORT = 7860
DEFAULT_KEEP_DAYS = 7.0
_SHUTDOWN_LIMIT_S = 2
_DATA_HELP = "folder for uploads and results (default: SEEDVR_DATA or ~/.local/share/seedvr)"
_FOLDER_HELP = "folder of this machine to choose sources from, for everybody who may sign in (default: SEEDVR_FOLDER)"
_KEEP_HELP = "delete uploads and results after this many days (default: %(default)g)"


def default_data() -> Path:
    """The data folder: SEEDVR_DATA, else below the user's home."""
    return Path(os.environ.get("SEEDVR_DATA") or "~/.local/share/seedvr").expanduser()


def default_folder() -> Path | None:
    """The folder of this machine to choose sources from: SEEDVR_FOLDER, else none."""
    return Path(os.environ["SEEDVR_FOLDER"]) if os.environ.get("SEEDVR_FOLDER") else None


def create_app(
    data: Path,
    engine: EngineSettings | None = None,
    *,
    root_path: str = "",
    limits: Limits | None = None,
    folder: Path | None = None,
) -> FastAPI:
    """The whole application over the folder `data`; its lifespan starts and stops the queue and the worker.

    Sources can be chosen from `folder`, if it is given.
    """
    storage = Storage(data)
    os.environ["GRADIO_TEMP_DIR"] = str(storage.gradio_folder)
    worker = Worker()
    services = Services(check=check_media, restore=worker.restore, make_preview=make_preview)
    manager = SessionManager(storage, services, limits, os.environ.get("SEEDVR_DATABASE_URL", ""))
    transfers = Transfers(manager.uploads, ServerFolder(folder) if folder else None)
    return assemble(manager, engine or EngineSettings(), transfers, root_path=root_path, on_stop=worker.kill)


def assemble(
    manager: SessionManager,
    engine: EngineSettings,
    transfers: Transfers,
    *,
    root_path: str = "",
    on_stop: Callable[[], None],
) -> FastAPI:
    """Routes and page around `manager`. `on_stop` ends whatever still works for it when the server stops."""
    import gradio as gr

    from seedvr_ui.access import Access
    from seedvr_ui.handlers import Handlers
    from seedvr_ui.layout import HEAD, build_ui, make_theme
    from seedvr_ui.routes import add_routes

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        manager.start()
        transfers.start()
        yield
        transfers.close()
        manager.close()
        on_stop()
        log.info("SeedVR Studio has stopped")

    app = FastAPI(title="SeedVR Studio", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    access = Access()
    add_routes(app, manager, access, transfers)
    handlers = Handlers(manager, access, {"engine": to_dict(engine)})
    return gr.mount_gradio_app(
        app,
        build_ui(handlers, model_choices(engine.model)),
        path="/",
        theme=make_theme(),
        head=HEAD,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        max_file_size="1kb",  # files come in through our own route; Gradio's must not be a way around the limits
        root_path=root_path or None,
    )


def model_choices(preferred: str = AUTO_MODEL) -> list[tuple[str, str]]:
    """(label, name) of each model in plain words, `preferred` first."""
    choices = [("Automatic: best for this machine", AUTO_MODEL)]
    choices += [(_model_label(entry), entry.name) for entry in CATALOGUE.values()]
    return sorted(choices, key=lambda choice: choice[1] != preferred)


def main(
    host: str = "0.0.0.0",
    port: int = DEFAULT_PORT,
    data: Path | None = None,
    engine: EngineSettings | None = None,
    *,
    root_path: str = "",
    keep_days: float = DEFAULT_KEEP_DAYS,
    folder: Path | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C, which stop the running job and the worker within seconds."""
    import uvicorn

    limits = Limits(keep_s=keep_days * 86400)
    app = create_app(
        data or default_data(), engine, root_path=root_path, limits=limits, folder=folder or default_folder()
    )  # fmt: skip
    log.info("SeedVR Studio is at http://%s:%d", "localhost" if host == "0.0.0.0" else host, port)
    uvicorn.run(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=_SHUTDOWN_LIMIT_S)


def _model_label(entry: ModelEntry) -> str:
    if entry.is_embedded:
        return entry.title
    num_bytes = next(file.num_bytes for file in entry.files[Part.DIT] if file.repository is not None) or 0
    return f"{entry.title} (NVIDIA GPU; downloads {num_bytes / 1e9:.0f} GB once)"


def _parse(arguments: Sequence[str] | None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="app.py", description="SeedVR Studio in the browser.")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on (default: all)")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="port (default: %(default)s)")
    parser.add_argument("--data", type=Path, help=_DATA_HELP)
    parser.add_argument("--folder", type=Path, help=_FOLDER_HELP)
    parser.add_argument("--weights", default="", help="folder with model files")
    parser.add_argument("--root-path", default="", help="path below which a proxy serves the page")
    parser.add_argument("--keep-days", type=float, default=DEFAULT_KEEP_DAYS, help=_KEEP_HELP)
    values = vars(parser.parse_args(arguments))
    weights = values.pop("weights")
    return {**values, "engine": load_settings({"engine.weights": weights}).engine}


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    main(**_parse(None))

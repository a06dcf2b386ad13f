"""The composition root: settings, worker, queue, routes and page become one server. The only file that knows them all.

This process never imports torch: restoring happens in the worker process, looking at files in short-lived ones, so the
page is up within seconds and a crash there is a message here. `seedvr serve` is its command line.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads it at import: no version check, no telemetry

from fastapi import FastAPI

from inference.catalogue import AUTO_MODEL, CATALOGUE, ModelEntry, Part
from inference.doctor.examine import examine
from inference.doctor.machine import expects_card
from inference.errors import CheckpointError
from inference.locate import check_weights_folder, locate
from inference.media_proxy import check_media, count_shots, join_part, make_preview
from inference.settings import EngineSettings, to_dict
from inference.worker import Worker
from seedvr_ui.access import Access
from seedvr_ui.admission import make_access
from seedvr_ui.calibration import Calibration
from seedvr_ui.folder import ServerFolder
from seedvr_ui.forecast import Forecast
from seedvr_ui.metrics import Metrics
from seedvr_ui.model_tasks import ModelTasks
from seedvr_ui.money_guard import MoneyGuard, Pod
from seedvr_ui.parts import Parts
from seedvr_ui.player import Display
from seedvr_ui.price import Price
from seedvr_ui.quick_start import without_collection, without_stub_files
from seedvr_ui.serve_options import ServeOptions
from seedvr_ui.sessions import Services, SessionManager
from seedvr_ui.share import Share
from seedvr_ui.snapshots import Snapshots
from seedvr_ui.storage import Storage
from seedvr_ui.system import System
from seedvr_ui.transfers import Transfers
from seedvr_ui.webhook import Webhook, end_record

log = logging.getLogger(__name__)

_SHUTDOWN_LIMIT_S = 2
_TEST_CLIP = Path(__file__).resolve().parent / "samples" / "sintel_320x136.mp4"


@dataclass(frozen=True, slots=True)
class Health:
    """What tells how the server is: its state, its numbers, and the token for programs that read those."""

    system: System
    metrics: Metrics
    token: str = ""


def create_app(
    options: ServeOptions,
    engine: EngineSettings | None = None,
    *,
    access: Access | None = None,
    share: Share | None = None,
) -> FastAPI:
    """The whole application over the folder `options.data`; its lifespan starts and stops the queue and the worker.

    Without `access` nobody has to sign in, which is for loopback addresses only; `main` decides by the address.
    `share` keeps a public link up. Raises SettingsError.
    """
    price, root_path = options.price, options.root_path
    pod = Pod.of_environment() if options.idle_minutes else None
    engine = engine or EngineSettings()
    storage = Storage(options.data)
    os.environ["GRADIO_TEMP_DIR"] = str(storage.gradio_folder)
    worker = Worker()
    calibration = Calibration(storage.root, worker.restore, _TEST_CLIP if _TEST_CLIP.exists() else None)
    metrics = Metrics(lambda: manager.counts(), lambda: _processes(worker))
    services = Services(
        check=check_media,
        restore=metrics.measured(calibration.restore),
        make_preview=make_preview,
        count_shots=count_shots,
    )
    manager = SessionManager(storage, services, options.limits, os.environ.get("SEEDVR_DATABASE_URL", ""))
    calibration.is_idle = manager.is_idle
    forecast = Forecast(manager, calibration, partial(_download_bytes, engine.weights), price)
    transfers = Transfers(manager.uploads, ServerFolder(folder) if (folder := options.source_folder) else None)

    system = System(manager, partial(examine, storage.root, engine.weights), worker.check_start)

    def stop() -> None:
        system.close()
        calibration.close()
        worker.kill()

    secret = os.environ.get("SEEDVR_WEBHOOK_SECRET", "")
    teller = Webhook(manager, address, secret, root_path) if (address := options.webhook_address) else None
    guard = MoneyGuard(manager, pod, options.idle_minutes, teller.announce if teller else None) if pod else None
    return assemble(
        manager,
        engine,
        transfers,
        forecast,
        price,
        root_path=root_path,
        access=access,
        webhook=teller,
        health=Health(system, metrics, os.environ.get("SEEDVR_METRICS_TOKEN", "")),
        guard=guard,
        share=share,
        on_stop=stop,
    )


def assemble(
    manager: SessionManager,
    engine: EngineSettings,
    transfers: Transfers,
    forecast: Forecast,
    price: Price | None = None,
    *,
    root_path: str = "",
    access: Access | None = None,
    webhook: Webhook | None = None,
    health: Health | None = None,
    guard: MoneyGuard | None = None,
    share: Share | None = None,
    on_stop: Callable[[], None],
) -> FastAPI:
    """Routes and page around `manager`. `on_stop` ends whatever still works for it when the server stops."""
    with without_stub_files():
        import gradio as gr

    from seedvr_ui.api import add_api
    from seedvr_ui.archives import Archives
    from seedvr_ui.client_api import ClientApi
    from seedvr_ui.handlers import Handlers
    from seedvr_ui.layout import HEAD, build_ui, make_theme
    from seedvr_ui.media_routes import add_media_routes
    from seedvr_ui.operations import Operations
    from seedvr_ui.page_routes import add_page_routes
    from seedvr_ui.routes import add_routes
    from seedvr_ui.share_routes import add_share_routes
    from seedvr_ui.system_routes import add_system_routes

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        manager.start()
        transfers.start()
        if health is not None and expects_card():  # what is wrong with a pod is said before the first job
            health.system.start_examination()
        if webhook is not None:
            webhook.start()
        else:
            end_record(manager.storage.root)
        if guard is not None:
            guard.start()
        if share is not None:
            share.start()
        yield
        if share is not None:
            share.close()
        if guard is not None:
            guard.close()
        if webhook is not None:
            webhook.close()
        transfers.close()
        parts.close()
        archives.close()
        models.close()
        manager.close()
        on_stop()
        log.info("SeedVR Studio has stopped")

    app = FastAPI(title="SeedVR Studio", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    access = access or Access(path=root_path)
    manager.engine = to_dict(engine)
    operations = Operations(manager, {"engine": to_dict(engine)})
    archives = Archives(manager)
    models = ModelTasks(engine.weights, offline=engine.offline)
    parts = Parts(manager.storage, join_part, manager.weigh)
    display = Display(keep_s=manager.limits.keep_s, price=price, expect=forecast.expect)
    add_routes(app, manager, access, transfers)
    add_page_routes(app, manager, access, Snapshots(manager, lambda: display, access.name_of))
    add_media_routes(app, manager, access, parts)
    if health is not None:
        add_system_routes(app, access, health.system, health.metrics, health.token)
    add_share_routes(app, access, share)
    add_api(app, operations, access, transfers, archives, models)
    handlers = Handlers(manager, access, {"engine": to_dict(engine)}, forecast)
    return gr.mount_gradio_app(
        app,
        build_ui(handlers, model_choices(engine.model), ClientApi(operations, access)),
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


def main(options: ServeOptions, engine: EngineSettings | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C, which stop the running job and the worker within seconds.

    Who has to sign in is decided by the address, see `make_access`.
    """
    import uvicorn

    access = make_access(options, _tell)
    share = Share(options.data, options.local_host, options.port, _tell) if options.is_shared else None
    with without_collection():
        app = create_app(options, engine, access=access, share=share)
    host, port = options.host, options.port
    log.info("SeedVR Studio is at http://%s:%d", "localhost" if host == "0.0.0.0" else host, port)
    # X-Forwarded-For counts only from the proxies that FORWARDED_ALLOW_IPS names, by default those of this machine.
    uvicorn.run(
        app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=_SHUTDOWN_LIMIT_S, proxy_headers=True,
        server_header=False,
    )  # fmt: skip


def _processes(worker: Worker) -> dict[str, int]:
    """The processes whose memory is measured."""
    return {"server": os.getpid()} | ({} if worker.pid is None else {"worker": worker.pid})


def _tell(text: str) -> None:
    """Something for the terminal and no log."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _download_bytes(weights: str, model: str) -> int:
    """What has to be downloaded before `model` can be used; 0 if it is here, or if the program chooses it later."""
    entry = CATALOGUE.get(model)
    if entry is None:
        return 0
    try:
        folder = check_weights_folder(weights)
    except CheckpointError:  # the job will say it
        return 0
    missing = [files for files in entry.files.values() if files and locate(files, folder) is None]
    return sum(next((file.num_bytes or 0 for file in files if file.repository), 0) for files in missing)


def _model_label(entry: ModelEntry) -> str:
    if entry.is_embedded:
        return entry.title
    num_bytes = next(file.num_bytes for file in entry.files[Part.DIT] if file.repository is not None) or 0
    return f"{entry.title} (NVIDIA GPU; downloads {num_bytes / 1e9:.0f} GB once)"

"""The composition root: settings, worker, queue, routes and page become one server. The only file that knows them all.

This process never imports torch: restoring happens in the worker process, looking at files in short-lived ones, so the
page is up within seconds and a crash there is a message here.

    python app.py --port 7860 --data ~/.local/share/seedvr
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads it at import: no version check, no telemetry

from fastapi import FastAPI

from inference.catalogue import AUTO_MODEL, CATALOGUE, ModelEntry, Part
from inference.doctor.examine import examine
from inference.doctor.machine import expects_card
from inference.errors import CheckpointError, RestoreError, SettingsError
from inference.locate import check_weights_folder, locate
from inference.logs import configure_logs
from inference.media_proxy import check_media, count_shots, join_part, make_preview
from inference.settings import EngineSettings, load_settings, to_dict
from inference.without import NAMES, switch_off
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
from seedvr_ui.price import Price, parse_price
from seedvr_ui.quick_start import without_collection, without_stub_files
from seedvr_ui.sessions import Limits, Services, SessionManager
from seedvr_ui.share import Share
from seedvr_ui.snapshots import Snapshots
from seedvr_ui.storage import Storage, default_data
from seedvr_ui.system import System
from seedvr_ui.transfers import Transfers
from seedvr_ui.webhook import Webhook, end_record

log = logging.getLogger(__name__)

DEFAULT_PORT = 7860
DEFAULT_KEEP_DAYS = 7.0
_SHUTDOWN_LIMIT_S = 2
_DATA_HELP = "folder for uploads and results (default: SEEDVR_DATA or ~/.local/share/seedvr)"
_FOLDER_HELP = "folder of this machine to choose sources from, for everybody who may sign in (default: SEEDVR_FOLDER)"
_ACCOUNTS_HELP = "file of accounts (default: SEEDVR_ACCOUNTS or accounts.json in the data folder)"
_NO_LOGIN_HELP = "let everybody in who reaches the port, without name and password"
_ALLOW_HOST_HELP = "another name to answer to where nobody signs in on a loopback address; may be repeated"
_SHARE_HELP = "make a public link by way of Gradio's share servers; needs accounts"
_KEEP_GB_HELP = "delete the oldest finished jobs when all together take more (default: no such limit)"
_WITHOUT_HELP = f"do without this part of the machine ({', '.join(NAMES)}); may be given again (SEEDVR_WITHOUT)"
_KEEP_HELP = "delete uploads and results after this many days (default: %(default)g)"


_PRICE_HELP = "what an hour of this machine costs, to be shown, such as '0.79 USD' (default: SEEDVR_PRICE_PER_HOUR)"
_WEBHOOK_HELP = "address to POST to when a job ends (default: SEEDVR_WEBHOOK; SEEDVR_WEBHOOK_SECRET signs it)"
_STOP_IDLE_HELP = "stop this RunPod pod after so many idle minutes (default: SEEDVR_STOP_IDLE_MINUTES, else never)"
_TEST_CLIP = Path(__file__).resolve().parent / "samples" / "sintel_320x136.mp4"


def default_folder() -> Path | None:
    """The folder of this machine to choose sources from: SEEDVR_FOLDER, else none."""
    return Path(os.environ["SEEDVR_FOLDER"]) if os.environ.get("SEEDVR_FOLDER") else None


def default_stop_idle() -> float:
    """Minutes without work after which the pod is stopped: SEEDVR_STOP_IDLE_MINUTES, else 0, which is never."""
    text = os.environ.get("SEEDVR_STOP_IDLE_MINUTES", "").strip() or "0"
    try:
        return float(text)
    except ValueError:
        raise SettingsError(f"SEEDVR_STOP_IDLE_MINUTES is {text!r}; write a number of minutes, such as 30.") from None


@dataclass(frozen=True, slots=True)
class Health:
    """What tells how the server is: its state, its numbers, and the token for programs that read those."""

    system: System
    metrics: Metrics
    token: str = ""


def create_app(
    data: Path,
    engine: EngineSettings | None = None,
    *,
    root_path: str = "",
    limits: Limits | None = None,
    price: Price | None = None,
    folder: Path | None = None,
    access: Access | None = None,
    webhook: str = "",
    stop_idle_minutes: float = 0,
    share: Share | None = None,
) -> FastAPI:
    """The whole application over the folder `data`; its lifespan starts and stops the queue and the worker.

    `price` is what an hour of this machine costs, to be shown. Sources can be chosen from `folder`, if it is given.
    Without `access` nobody has to sign in, which is for loopback addresses only; `main` decides by the address.
    `webhook` is the address that is told when a job ends. With `stop_idle_minutes` the pod that this runs on is stopped
    after that time without work. `share` keeps a public link up.
    """
    pod = Pod.of_environment() if stop_idle_minutes else None
    engine = engine or EngineSettings()
    storage = Storage(data)
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
    manager = SessionManager(storage, services, limits, os.environ.get("SEEDVR_DATABASE_URL", ""))
    calibration.is_idle = manager.is_idle
    forecast = Forecast(manager, calibration, partial(_download_bytes, engine.weights), price)
    transfers = Transfers(manager.uploads, ServerFolder(folder) if folder else None)

    system = System(manager, partial(examine, storage.root, engine.weights), worker.check_start)

    def stop() -> None:
        system.close()
        calibration.close()
        worker.kill()

    secret = os.environ.get("SEEDVR_WEBHOOK_SECRET", "")
    teller = Webhook(manager, webhook, secret, root_path) if webhook else None
    guard = MoneyGuard(manager, pod, stop_idle_minutes, teller.announce if teller else None) if pod else None
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


def main(
    host: str = "0.0.0.0",
    port: int = DEFAULT_PORT,
    data: Path | None = None,
    engine: EngineSettings | None = None,
    *,
    root_path: str = "",
    keep_days: float = DEFAULT_KEEP_DAYS,
    keep_gb: float = 0,
    price_per_hour: str = "",
    folder: Path | None = None,
    accounts: Path | None = None,
    is_login_off: bool = False,
    allowed_hosts: Sequence[str] = (),
    is_shared: bool = False,
    webhook: str = "",
    stop_idle_minutes: float = 0,
) -> None:
    """Serve until SIGTERM or Ctrl-C, which stop the running job and the worker within seconds.

    Who has to sign in is decided by `host`, see `make_access`.
    """
    import uvicorn

    data = data or default_data()
    access = make_access(
        host, data, accounts, root_path=root_path, is_login_off=is_login_off, is_shared=is_shared,
        allowed_hosts=allowed_hosts, tell=_tell,
    )  # fmt: skip
    with without_collection():
        app = create_app(
            data,
            engine,
            root_path=root_path,
            limits=Limits(keep_s=keep_days * 86400, keep_bytes=int(keep_gb * 1e9) or None),
            price=parse_price(price_per_hour or os.environ.get("SEEDVR_PRICE_PER_HOUR", "")),
            folder=folder or default_folder(),
            access=access,
            webhook=webhook or os.environ.get("SEEDVR_WEBHOOK", ""),
            stop_idle_minutes=stop_idle_minutes or default_stop_idle(),
            share=Share(data, "127.0.0.1" if host in ("", "0.0.0.0", "::") else host, port, _tell)
            if is_shared
            else None,
        )
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


def _parse(arguments: Sequence[str] | None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="app.py", description="SeedVR Studio in the browser.")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on (default: all)")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="port (default: %(default)s)")
    parser.add_argument("--data", type=Path, help=_DATA_HELP)
    parser.add_argument("--folder", type=Path, help=_FOLDER_HELP)
    parser.add_argument("--weights", default="", help="folder with model files")
    parser.add_argument("--root-path", default="", help="path below which a proxy serves the page")
    parser.add_argument("--price-per-hour", default="", help=_PRICE_HELP)
    parser.add_argument("--accounts", type=Path, help=_ACCOUNTS_HELP)
    parser.add_argument("--no-login", action="store_true", dest="is_login_off", help=_NO_LOGIN_HELP)
    parser.add_argument("--allow-host", action="append", default=[], dest="allowed_hosts", help=_ALLOW_HOST_HELP)
    parser.add_argument("--share", action="store_true", dest="is_shared", help=_SHARE_HELP)
    parser.add_argument("--webhook", default="", help=_WEBHOOK_HELP)
    parser.add_argument("--stop-idle-minutes", type=float, default=0, help=_STOP_IDLE_HELP)
    parser.add_argument("--keep-days", type=float, default=DEFAULT_KEEP_DAYS, help=_KEEP_HELP)
    parser.add_argument("--keep-gb", type=float, default=0, help=_KEEP_GB_HELP)
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help=_WITHOUT_HELP)
    values = vars(parser.parse_args(arguments))
    weights = values.pop("weights")
    switch_off(values.pop("without"))
    return {**values, "engine": load_settings({"engine.weights": weights}).engine}


if __name__ == "__main__":
    configure_logs()
    try:
        main(**_parse(None))
    except RestoreError as error:
        sys.exit(str(error))

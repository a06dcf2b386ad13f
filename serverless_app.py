"""The composition root of MODE=serverless: RunPod's job loop around the worker. Needs the package `runpod`.

    python serverless_app.py                                     on RunPod
    python serverless_app.py --rp_serve_api --rp_api_port 8000   RunPod's own local test server

`./run.sh install serverless` puts that package into `.serverless`; it is imported in this mode only.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from inference.settings import load_settings, to_dict
from inference.worker import Worker
from seedvr_ui.network import Network
from seedvr_ui.serverless import JobHandler

ROOT = Path(__file__).resolve().parent
PACKAGES = ROOT / ".serverless"
USER_ERROR = 2


def main(network: Network | None = None) -> None:
    """Take jobs until the process is ended. `network` is where links may lead, for tests."""
    sys.path.insert(0, str(PACKAGES))
    try:
        import runpod
    except ImportError as error:
        sys.stderr.write(f"MODE=serverless needs RunPod's package ({error}); run `./run.sh install serverless`.\n")
        raise SystemExit(USER_ERROR) from None
    baked = ROOT / "baked" / "weights"
    engine = load_settings({"engine.weights": str(baked) if baked.is_dir() else ""}).engine
    with Worker() as worker:
        handler = JobHandler(restore=worker.restore, engine=to_dict(engine), network=network or Network())

        def handle(job: dict[str, Any]) -> dict[str, Any]:
            return handler.handle(job.get("input"), lambda progress: runpod.serverless.progress_update(job, progress))

        runpod.serverless.start({"handler": handle})


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    main()

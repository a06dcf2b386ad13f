"""The server as a process: what it loads, what its page names, how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.ui.server import ROOT, running_server

_LIST_MODULES = """
import json, sys
from pathlib import Path
import app
app.create_app(Path(sys.argv[1]))
print(json.dumps([name for name in ("torch", "av", "inference.engine") if name in sys.modules]))
"""


@pytest.mark.timeout(120)
def test_the_server_process_loads_neither_torch_nor_decoders(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LIST_MODULES, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


@pytest.mark.timeout(120)
def test_the_server_serves_the_page_keeps_its_files_in_the_data_folder_and_ends_on_sigterm(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        with urllib.request.urlopen(server.url, timeout=20) as reply:
            page = reply.read().decode()
        assert server.stop() in (0, -15)
    assert "SeedVR Studio" in page
    assert (tmp_path / "data" / "sessions").is_dir()
    assert "SeedVR Studio has stopped" in server.log.read_text()
    assert "Traceback" not in server.log.read_text()

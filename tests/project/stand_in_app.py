"""A stand-in for the app in the tests of the start script: serves /healthz on --port, behaves as STAND_IN says.

crash: ends by SIGKILL once it has answered, at its first start only. mute: never answers. mistake: exit code 2.
stubborn: does not hear SIGTERM. Each start is written down in STAND_IN_LOG, and so is an orderly end.
"""

import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

log = Path(os.environ["STAND_IN_LOG"])
number = log.read_text().count("start") + 1 if log.exists() else 1


def note(text: str) -> None:
    with log.open("a") as file:
        file.write(f"{text}\n")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
        if self.path == "/crash":
            os.kill(os.getpid(), signal.SIGKILL)

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


def end(*_: object) -> None:
    note("end")
    sys.exit(0)


kind = os.environ.get("STAND_IN", "")
note(f"start {' '.join(sys.argv[1:])}")
signal.signal(signal.SIGTERM, signal.SIG_IGN if kind == "stubborn" else end)
if kind == "mistake":
    sys.exit(2)
if kind == "early" and number == 1:
    sys.exit(1)
if kind == "mute":
    signal.pause()
HTTPServer(("127.0.0.1", int(os.environ["SEEDVR_PORT"])), Handler).serve_forever()

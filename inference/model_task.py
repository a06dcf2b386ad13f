"""Long work on model files in a process of its own: download, verify, convert, import.

    python -m inference.model_task download '{"model": "seedvr2-3b", "weights": "", "offline": false}'

Answers on standard output with JSON lines: {"bytes": [done, in all]} at most four times a second, last {"result"} or
{"error"}. It may be killed at any moment: a download goes on from there, the rest begins anew. It ends by itself when
its standard input closes, as it does when its parent has died.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from inference.catalogue import find_model
from inference.errors import RestoreError, to_message
from inference.installed import Task, import_folder, verify_model
from inference.verify import ReportBytes

_INTERVAL_S = 0.25


def run(task: Task, values: Mapping[str, Any], report_bytes: ReportBytes) -> str:
    """Does it; returns a sentence about what was done. Raises RestoreError."""
    weights = values.get("weights", "")
    if task is Task.IMPORT:
        new = import_folder(values["folder"], report_bytes=report_bytes)
        return (
            f"Imported {', '.join(path.name for path in new)}." if new else "Everything in this folder is here already."
        )
    entry = find_model(values["model"])
    if task is Task.DOWNLOAD:
        from inference.download import model_files

        model_files(entry, weights, values.get("offline", False), report_bytes)
        return f"{entry.title} is complete, and its files are the right ones."
    if task is Task.VERIFY:
        return f"{verify_model(entry, weights, report_bytes)} files were read, and are the right ones."
    from inference.convert import convert_model
    from inference.download import gigabytes

    done = convert_model(entry, weights, report_bytes=report_bytes)
    saved = sum(one.saved_bytes for one in done)
    if not done:
        return "Everything is converted already."
    return f"Converted to bf16. Delete the float32 originals to save {gigabytes(saved)}."


def main(arguments: list[str]) -> int:
    """Runs the task that the arguments name."""
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is no answer

    def send(message: Mapping[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        result = run(Task(arguments[0]), json.loads(arguments[1]), _throttled(send))
    except RestoreError as error:
        send({"error": to_message(error)})
        return 2
    send({"result": result})
    return 0


def _throttled(send: Callable[[Mapping[str, Any]], None]) -> ReportBytes:
    next_at = 0.0

    def report(done: int, total: int) -> None:
        nonlocal next_at
        now = time.monotonic()
        if now >= next_at or done >= total:
            next_at = now + _INTERVAL_S
            send({"bytes": [done, total]})

    return report


def _end_with_parent() -> None:
    while os.read(0, 1):  # not by way of `sys.stdin`, whose lock would be held when this process ends
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What is measured while the server runs, in the form that Prometheus reads. Without gradio.

Labels are states, stages, models, kinds of errors, methods and route patterns: no name, path, address or id, so that
their number is bounded and nothing of a person or a file is told.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inference.errors import CancelledError, RestoreError
from inference.progress import Cancellation, Progress, Report, Stage
from seedvr_ui.attempt import Restore

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (1, 3, 10, 30, 60, 180, 600, 1800, 3600, 10800, 36000, 86400)
_STAGE_SECONDS = (0.1, 0.3, 1, 3, 10, 30, 60, 180, 600, 1800, 3600, 10800, 36000)
_CARD_EVERY_S = 5.0
_CARD_LIMIT_S = 3.0
_QUERY = ("nvidia-smi", "--query-gpu=index,memory.used,memory.total,utilization.gpu", "--format=csv,noheader,nounits")


class Metrics:
    """The registry of one server. `count_jobs` gives the number of jobs of each state, for each scrape."""

    def __init__(self, count_jobs: Callable[[], Mapping[str, int]], processes: Callable[[], Mapping[str, int]]) -> None:
        self.registry = CollectorRegistry()
        new = self.registry
        self._jobs = Histogram(
            "seedvr_job_seconds", "Time of one attempt at a job.", ["outcome"], buckets=_SECONDS, registry=new
        )
        self._stages = Histogram(
            "seedvr_stage_seconds", "Time of a stage of an attempt.", ["stage"], buckets=_STAGE_SECONDS, registry=new
        )
        self._frames = Counter("seedvr_frames", "Frames that were restored.", ["model"], registry=new)
        self._speed = Gauge("seedvr_frames_per_second", "Speed of the job at work; 0 while none is.", registry=new)
        self._errors = Counter(
            "seedvr_job_errors", "Attempts that failed, by the kind of error.", ["kind"], registry=new
        )
        self._requests = Counter("seedvr_http_requests", "Requests.", ["method", "route", "status"], registry=new)
        self._request_s = Histogram(
            "seedvr_http_request_seconds", "Time until a request is answered.", ["method"], registry=new
        )
        ProcessCollector(namespace="seedvr_server", registry=self.registry)
        self.registry.register(_Now(count_jobs, processes))

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def measured(self, restore: Restore) -> Restore:
        """`restore`, with its time, stages, speed and errors measured."""

        def measured(
            source: Path, target: Path, settings: Mapping[str, Any], report: Report, cancellation: Cancellation, *,
            work: Path,
        ) -> Mapping[str, Any]:  # fmt: skip
            began = time.monotonic()
            clock = _StageClock(self._stages)

            def watch(progress: Progress) -> None:
                clock.enter(progress.stage)
                self._speed.set(progress.frames_per_second or 0)
                report(progress)

            outcome = "failed"
            try:
                summary = restore(source, target, settings, watch, cancellation, work=work)
                outcome = "succeeded"
                self._frames.labels(str(summary.get("model", "unknown"))).inc(int(summary.get("frames", 0)))
                return summary
            except CancelledError:
                outcome = "stopped"
                raise
            except Exception as error:
                kind = type(error).__name__ if isinstance(error, RestoreError) else "unexpected"
                self._errors.labels(kind).inc()
                raise
            finally:
                clock.leave()
                self._speed.set(0)
                self._jobs.labels(outcome).observe(time.monotonic() - began)

        return measured

    def count_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request to the pattern `route` was answered."""
        method = method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS") else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._request_s.labels(method).observe(seconds)


class _StageClock:
    def __init__(self, stages: Histogram) -> None:
        self._stages = stages
        self._stage: Stage | None = None
        self._began = 0.0

    def enter(self, stage: Stage) -> None:
        if stage is not self._stage:
            self.leave()
            self._stage, self._began = stage, time.monotonic()

    def leave(self) -> None:
        if self._stage is not None:
            self._stages.labels(self._stage.value).observe(time.monotonic() - self._began)
            self._stage = None


class _Now(Collector):
    """What is asked for at each scrape: queue, memory, cards."""

    def __init__(self, count_jobs: Callable[[], Mapping[str, int]], processes: Callable[[], Mapping[str, int]]) -> None:
        self._count_jobs, self._processes = count_jobs, processes
        self._lock = threading.Lock()
        self._cards: tuple[float, list[list[float]]] = (-_CARD_EVERY_S, [])

    def collect(self) -> Iterator[GaugeMetricFamily]:
        jobs = GaugeMetricFamily("seedvr_jobs", "Jobs by state.", labels=["state"])
        for state, number in self._count_jobs().items():
            jobs.add_metric([str(state)], number)
        yield jobs
        memory = psutil.virtual_memory()
        yield GaugeMetricFamily("seedvr_memory_available_bytes", "Main memory that is free.", memory.available)
        yield GaugeMetricFamily("seedvr_memory_total_bytes", "Main memory of the machine.", memory.total)
        used = GaugeMetricFamily("seedvr_process_memory_bytes", "Main memory of a process.", labels=["process"])
        for name, pid in self._processes().items():
            try:
                used.add_metric([name], psutil.Process(pid).memory_info().rss)
            except psutil.Error:  # it has just ended
                continue
        yield used
        families = [
            GaugeMetricFamily(f"seedvr_card_{name}", text, labels=["card"])
            for name, text in (
                ("memory_used_bytes", "Device memory in use."),
                ("memory_total_bytes", "Device memory of the card."),
                ("utilization_ratio", "Share of the time in which the card computes."),
            )
        ]
        for card, *values in self._read_cards():
            for family, value, unit in zip(families, values, (2**20, 2**20, 0.01), strict=True):
                family.add_metric([f"{card:.0f}"], value * unit)
        yield from families

    def _read_cards(self) -> list[list[float]]:
        with self._lock:
            if time.monotonic() - self._cards[0] >= _CARD_EVERY_S:
                self._cards = time.monotonic(), _ask_cards()
            return self._cards[1]


def _ask_cards() -> list[list[float]]:
    try:
        answer = subprocess.run(_QUERY, capture_output=True, text=True, timeout=_CARD_LIMIT_S, check=True)
        return [
            [float(value) for value in line.split(",")] for line in answer.stdout.splitlines() if line.count(",") == 3
        ]
    except (OSError, subprocess.SubprocessError, ValueError):  # no card, or a driver that does not answer now
        return []


class RequestCounter:
    """ASGI middleware that counts requests by the pattern of their route, never by their path."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._metrics.count_request(scope["method"], _pattern(scope), status, time.monotonic() - began)
            await send(message)

        await self._app(scope, receive, watch)


def _pattern(scope: Scope) -> str:
    """The pattern of the route that answers, such as /studio/jobs/{job_id}; none for what has no route of ours."""
    return str(getattr(scope.get("route"), "path", "") or "other")

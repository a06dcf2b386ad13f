"""What the server answers to requests that nobody sends by accident: no 5xx, and nothing of anybody else's.

    ./run.sh bench http-scan
    ./run.sh bench http-scan --examples 100 --seed 3 --save

The real app on loopback with three accounts: the victim has a job, the scanner is somebody else who has signed in, and
nobody is signed in at all. First schemathesis sends what the OpenAPI document allows, and what it does not; then come
the attempts of `benchmarks.http_attacks`: as the scanner, and as nobody. A listener beside the server must never be
reached. Every answer is searched for what only the server and the victim know. Ends with 1 when there was an answer of
5xx, a wrong status, a leak, one that took over ten seconds, or a connection to the listener. The last line is one JSON
object. Needs the extra `bench`.
"""

import argparse
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from urllib.parse import urlencode

from benchmarks.chaos import open_queue, submit
from benchmarks.clips import moving_texture, write_h264
from benchmarks.http_attacks import Attack, attacks
from benchmarks.jobs import SERVE
from benchmarks.report import add_save_option, publish, table
from inference.worker import Worker
from seedvr_ui.accounts import AccountsFile

ROOT = Path(__file__).resolve().parents[1]
MIN_REQUESTS = 1000
ANSWER_LIMIT_S = 10.0
START_LIMIT_S = 120.0
END_LIMIT_S = 20.0
SCAN_LIMIT_S = 3600.0
PASSWORD = "correct horse battery"
MARKER = "geheim-7d1f"
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "response_headers_conformance,negative_data_rejection,missing_required_header,ignored_auth"
)


@dataclass
class Tally:
    """The answers to one kind of requests, and what is wrong with them."""

    statuses: Counter[int] = field(default_factory=Counter)
    slowest_s: float = 0.0
    faults: list[str] = field(default_factory=list)

    def note(self, what: str, status: int, seconds: float, answer: bytes, secrets: Sequence[bytes]) -> None:
        """One answer. A `status` of 0 stands for a connection that the server closed without one."""
        self.statuses[status] += 1
        self.slowest_s = max(self.slowest_s, seconds)
        if status >= 500:
            self.faults.append(f"{status}: {what}")
        if seconds > ANSWER_LIMIT_S:
            self.faults.append(f"{seconds:.0f} s: {what}")
        self.faults += [f"told {secret[:40]!r}: {what}" for secret in secrets if secret in answer]

    def row(self, name: str) -> list[str]:
        """A row of the table."""
        by_class = Counter(f"{status // 100}xx" if status else "closed" for status in self.statuses.elements())
        counts = [str(by_class[key]) for key in ("2xx", "3xx", "4xx", "5xx", "closed")]
        return [name, str(self.statuses.total()), *counts, f"{self.slowest_s:.2f}", str(len(self.faults))]


@dataclass(frozen=True)
class Target:
    """A running server; `values` fill the attempts, `secrets` may be in no answer, `cookie` is the scanner's."""

    port: int
    values: Mapping[str, str]
    secrets: Sequence[bytes]
    cookie: str
    hits: list[str]
    """Who has reached the listener that nobody may be led to."""


# --- the server ---


@contextlib.contextmanager
def running_target(folder: Path) -> Iterator[Target]:
    """The app as a process of its own, with a victim's job and a scanner who has signed in."""
    data = folder / "data"
    accounts = AccountsFile(data / "accounts.json")
    victim = accounts.add("victim", PASSWORD, is_admin=True).id
    accounts.add("scanner", PASSWORD)
    (folder / "choose").mkdir()
    clip = folder / f"{MARKER}.mp4"
    write_h264(clip, moving_texture(64, 48, 8), Fraction(24), 20)
    manager = open_queue(data, Worker())
    job = submit(manager, victim, clip)
    manager.close()
    port = _free_port()
    command = [
        *(*SERVE, "--host", "127.0.0.1", "--port", str(port)),
        *("--data", str(data), "--folder", str(folder / "choose")),
    ]
    with (folder / "server.log").open("wb") as log, _canary() as (canary, hits):
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env=os.environ | {"HF_HOME": str(folder / "hf")},
        )  # fmt: skip
        try:
            _wait_for(port, process)
            values = {"data": str(data), "victim": victim, "job": job.id, "port": str(port), "canary": str(canary)}
            secrets = [MARKER.encode(), victim.encode(), str(data).encode(), b"$argon2id$", b"Traceback", b"root:x:0"]
            secrets += [(data / "secret.key").read_bytes(), clip.read_bytes()[200:230]]
            yield Target(port, values, secrets, _sign_in(port), hits)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(END_LIMIT_S)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def _canary() -> Iterator[tuple[int, list[str]]]:
    """A listener on this machine, and who has come to it."""
    hits: list[str] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def listen() -> None:
        with contextlib.suppress(OSError):  # it was closed
            while True:
                connection, address = listener.accept()
                hits.append(f"{address[0]}:{address[1]}")
                connection.close()

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], hits
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(END_LIMIT_S)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5).close()
            return
        time.sleep(0.2)
    raise RuntimeError("the server does not answer")


def _sign_in(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    form = urlencode({"name": "scanner", "password": PASSWORD})
    connection.request("POST", "/login", form, {"content-type": "application/x-www-form-urlencoded"})
    cookie = connection.getresponse().getheader("set-cookie", "")
    connection.close()
    assert cookie is not None
    return cookie.partition(";")[0]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- what the document describes ---


def scan_document(target: Target, folder: Path, examples: int, seed: int, more: Sequence[str] = ()) -> Tally:
    """Everything that schemathesis makes of the OpenAPI document, and what its checks found; `more` are its options."""
    har = folder / "scan.har"
    url = f"http://127.0.0.1:{target.port}/api"
    command = [
        *(sys.executable, "-c", "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())"),
        *("run", f"{url}/openapi.json", "--url", url, "--header", f"Cookie: {target.cookie}"),
        *("--phases", "coverage,fuzzing", "--max-examples", str(examples), "--seed", str(seed), "--checks", CHECKS),
        *("--report", "har", "--report-har-path", str(har), "--output-sanitize", "false"),
        *("--generation-database", "none", "--continue-on-failure", "--no-color", "--request-timeout", "30"),
        *("--suppress-health-check", "all", "--no-shrink", *more),
    ]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=SCAN_LIMIT_S, check=False, stdin=subprocess.DEVNULL
    )
    if not har.exists():
        raise RuntimeError(f"schemathesis did not run:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    tally = Tally()
    for entry in json.loads(har.read_text())["log"]["entries"]:
        request, response = entry["request"], entry["response"]
        text = json.dumps(response["headers"]) + response["content"].get("text", "")
        what = f"{request['method']} {request['url'][:200]}"
        tally.note(what, response["status"], entry["time"] / 1000, text.encode(), target.secrets)
    if done.returncode:
        (folder / "schemathesis.txt").write_text(done.stdout)
        tally.faults.append(f"schemathesis found faults; --keep DIR keeps its report:\n{done.stdout[-3000:]}")
    return tally


# --- what nobody describes ---


def send_attacks(target: Target, tried: Sequence[Attack], cookie: str) -> dict[str, Tally]:
    """Each attempt once, by kind; without a `cookie` nobody may get further than the refusal."""
    tallies: dict[str, Tally] = {}
    for attack in tried:
        tally = tallies.setdefault(attack.kind, Tally())
        start = time.perf_counter()
        status, answer = _send(target, attack, cookie)
        what = f"{attack.method} {attack.path[:120]} {attack.body[:60]}".strip()
        echoed = _fill(target, attack.path + attack.body).encode()
        secrets = [secret for secret in target.secrets if secret not in echoed]
        tally.note(what, status, time.perf_counter() - start, answer, secrets)
        allowed = attack.statuses if cookie else (303, 307, 400, 401, 403, 404, 405, 411, 413, 414, 422, 431)
        if status and status < 500 and status not in allowed:
            tally.faults.append(f"{status}, not {' or '.join(map(str, allowed))}: {what}")
    return tallies


def check_links(target: Target) -> list[str]:
    """What is wrong with the links that were taken: each has to end as an error, and nobody was led to the listener."""
    deadline = time.monotonic() + 60
    uploads: list[dict[str, object]] = []
    while time.monotonic() < deadline:
        _, answer = _send(target, Attack("", "GET", "/studio/uploads", ()), target.cookie)
        body = json.loads(answer.partition(b"\n\n")[2])
        uploads = [one for one in (body if isinstance(body, list) else body["uploads"]) if not one.get("error")]
        if not uploads:
            break
        time.sleep(0.5)
    return [f"a link was fetched or never refused: {one}" for one in uploads] + [
        f"reached from {hit}" for hit in target.hits
    ]


def _fill(target: Target, text: str) -> str:
    for name, value in target.values.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def _send(target: Target, attack: Attack, cookie: str) -> tuple[int, bytes]:
    """(status, headers, an empty line and body), the path as it stands: no client tidies it up. (0, b"") if closed."""
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=30)
    body = _fill(target, attack.body).encode("utf-8", "surrogatepass")
    headers = dict(attack.headers) | ({"cookie": cookie} if cookie else {})
    if attack.is_chunked:
        headers["transfer-encoding"] = "chunked"
    elif attack.method != "GET":
        headers.setdefault("content-length", str(len(body) * attack.repeat))
    try:
        connection.connect()
        line = f"{attack.method} {_fill(target, attack.path)} HTTP/1.1\r\nhost: 127.0.0.1:{target.port}\r\n"
        line += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        with contextlib.suppress(ConnectionError):  # it may answer before it has read everything
            connection.sock.sendall(line.encode() + b"\r\n")
            for _ in range(attack.repeat):
                piece = b"%x\r\n%s\r\n" % (len(body), body) if attack.is_chunked and body else body
                connection.sock.sendall(piece)
            if attack.is_chunked:
                connection.sock.sendall(b"0\r\n\r\n")
        reply = http.client.HTTPResponse(connection.sock, method=attack.method)
        reply.begin()
        return reply.status, str(reply.headers).encode() + b"\n\n" + reply.read(2**22)
    except (ConnectionError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the scan; 1 if it found something."""
    parser = argparse.ArgumentParser(prog="bench http-scan", description=__doc__.partition("\n")[0])
    parser.add_argument("--examples", type=int, default=60, help="per operation of the API (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of what schemathesis sends (default: %(default)s)")
    parser.add_argument("--keep", type=Path, help="folder to leave the server's log and the report of a failure in")
    add_save_option(parser)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        with running_target(folder) as target:
            tallies = {
                f"{kind}, signed in": tally for kind, tally in send_attacks(target, attacks(), target.cookie).items()
            }
            tallies["SSRF, signed in"].faults += check_links(target)
            tallies |= {f"{kind}, nobody": tally for kind, tally in send_attacks(target, attacks(), "").items()}
            tallies = {"OpenAPI": scan_document(target, folder, options.examples, options.seed)} | tallies
        log = (folder / "server.log").read_text(errors="replace")
    return _report(tallies, log, options)


def _report(tallies: Mapping[str, Tally], log: str, options: argparse.Namespace) -> int:
    rows = [tally.row(name) for name, tally in tallies.items()]
    faults = [f"{name}: {fault}" for name, tally in tallies.items() for fault in tally.faults]
    faults += [f"log: {secret}" for secret in (PASSWORD, "seedvr_login=") if secret in log]
    faults += ["log: a traceback"] if "Traceback" in log else []
    num_requests = sum(tally.statuses.total() for tally in tallies.values())
    if options.examples >= 60 and num_requests < MIN_REQUESTS:
        faults.append(f"only {num_requests} requests")
    header = ["requests", "sent", "2xx", "3xx", "4xx", "5xx", "closed", "slowest s", "faults"]
    body = table(header, rows) + f"\n\n{num_requests} requests, {len(faults)} faults."
    body += "".join(f"\n- {fault}" for fault in faults[:100])
    statuses = {name: dict(sorted(tally.statuses.items())) for name, tally in tallies.items()}
    result = {"requests": num_requests, "faults": faults, "statuses": statuses, "seed": options.seed}
    publish("http-scan", "HTTP scan", body, result, options.results if options.save else None)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

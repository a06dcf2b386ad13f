"""The two ways in which the command line reaches jobs: the data folder of this machine, or a server's HTTP API.

Both answer alike. Errors are RestoreErrors with the sentence that the server would say. Without gradio.
"""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

import httpx2

from inference.durable import publish
from inference.errors import MediaError, RestoreError
from inference.settings import load_settings, to_dict
from seedvr_ui.access import COOKIE, Visitor
from seedvr_ui.accounts import load_accounts
from seedvr_ui.admission import accounts_path
from seedvr_ui.api_models import ImportInfo, JobDetail, JobInfo, JobPage, UploadInfo
from seedvr_ui.folder import clone
from seedvr_ui.jobs import JobStatus
from seedvr_ui.operations import Operations
from seedvr_ui.sessions import Services, SessionManager
from seedvr_ui.storage import Storage, default_data, is_id, local_owner

Sent = Callable[[str, int, int], None]
"""(name, bytes done, bytes in all): how far a file is on its way."""

_BLOCK_BYTES = 2**20
_PIECE_BYTES = 8 * 2**20
_RETRY_WAITS_S = (0.5, 1.0, 2.0, 5.0, 10.0)
_POLL_S = 0.5
_TIMEOUT = httpx2.Timeout(60.0, connect=10.0)


class Jobs(Protocol):
    """What the command line asks for."""

    def list(self, statuses: Sequence[JobStatus], search: str, limit: int, owner: str) -> JobPage:
        """The jobs in these states, by default in all, that match `search`."""
        ...

    def show(self, job_id: str) -> JobDetail:
        """All that is known of a job."""
        ...

    def submit(self, files: Sequence[Path], settings: Sequence[str], sent: Sent) -> Sequence[JobInfo]:
        """One job per file; `settings` are `key=value`."""
        ...

    def act(self, action: str, job_id: str, keep_part: bool = False) -> JobInfo:
        """Pause, resume, cancel or retry a job."""
        ...

    def export(self, job_id: str, target: Path) -> None:
        """Write a job as an archive to `target`."""
        ...

    def import_archive(self, archive: Path, start: bool) -> JobInfo:
        """A new job from an archive."""
        ...

    def reindex(self) -> int:
        """Build the index of jobs anew; returns their number."""
        ...

    def close(self) -> None:
        """Close files and connections."""
        ...


class LocalJobs:
    """The jobs in the data folder `data`, as an admin sees them. What is submitted belongs to `owner`.

    Any number of processes may do this at once, also beside a server, which takes what is submitted from its queue.
    """

    def __init__(self, data: Path | None = None, owner: str = "", *, is_new: bool = False) -> None:
        from inference.media_proxy import check_media, make_preview

        root = (data or default_data()).expanduser()
        if not is_new and not (root / "sessions").is_dir():
            raise RestoreError(f"There are no jobs in {root}; name the server's folder with --data, or its --url.")
        self._root = root
        owner = self._owner(owner)
        services = Services(check=check_media, restore=_leave_to_a_server, make_preview=make_preview)
        self._manager = SessionManager(Storage(root), services, database_url=os.environ.get("SEEDVR_DATABASE_URL", ""))
        self._operations = Operations(self._manager, is_local=True)
        self._visitor = Visitor(owner or local_owner(self._manager.storage.root), "command line", is_admin=True)

    def list(self, statuses: Sequence[JobStatus], search: str, limit: int, owner: str) -> JobPage:
        """See Jobs."""
        return self._operations.list(self._visitor, statuses, search, limit, owner=self._owner(owner))

    def show(self, job_id: str) -> JobDetail:
        """See Jobs."""
        return self._operations.show(self._visitor, job_id)

    def submit(self, files: Sequence[Path], settings: Sequence[str], sent: Sent) -> Sequence[JobInfo]:
        """See Jobs."""
        tree = to_dict(load_settings(settings))
        uploads: list[str] = []
        try:
            for file in files:
                uploads.append(self._take_in(file, sent))
            return self._operations.submit(self._visitor, uploads, tree)
        except BaseException:
            for upload_id in uploads:
                self._discard(upload_id)
            raise

    def act(self, action: str, job_id: str, keep_part: bool = False) -> JobInfo:
        """See Jobs."""
        if action == "cancel":
            return self._operations.cancel(self._visitor, job_id, keep_part=keep_part)
        acts = {"pause": self._operations.pause, "resume": self._operations.resume, "retry": self._operations.retry}
        return acts[action](self._visitor, job_id)

    def export(self, job_id: str, target: Path) -> None:
        """See Jobs."""
        job = self._operations.job(self._visitor, job_id)
        self._manager.export_job(job.owner, job.id, target)

    def import_archive(self, archive: Path, start: bool) -> JobInfo:
        """See Jobs."""
        require_file(archive)
        return self._operations.import_archive(self._visitor, archive, start=start)

    def reindex(self) -> int:
        """See Jobs."""
        return self._manager.reindex()

    def close(self) -> None:
        """See Jobs."""
        self._manager.close()

    def _take_in(self, file: Path, sent: Sent) -> str:
        """An upload with a copy of `file`, checked; where the file system can, the copy shares its blocks."""
        uploads, owner = self._manager.uploads, self._visitor.owner
        with require_file(file).open("rb") as original:
            size = os.fstat(original.fileno()).st_size
            upload = uploads.begin(owner, file.name, size)
            try:
                try:
                    uploads.adopt(owner, upload.id, lambda target: clone(original, target))
                except OSError:
                    with uploads.writing(owner, upload.id, 0) as part:
                        while block := original.read(_BLOCK_BYTES):
                            part.write(block)
                            sent(file.name, part.received, size)
                upload = uploads.finish(owner, upload.id)
                if not upload.is_ready:
                    raise MediaError(upload.error or f"{file} has changed while it was read; submit it again.")
            except BaseException:
                self._discard(upload.id)
                raise
        return upload.id

    def _owner(self, named: str) -> str:
        """The owner's id that is given, or that of the account of this name; empty for none. Raises RestoreError."""
        if not named or is_id(named):
            return named
        return load_accounts(accounts_path(self._root), self._root).owner_named(named)

    def _discard(self, upload_id: str) -> None:
        folder = self._manager.storage.upload_folder(self._visitor.owner, upload_id)
        self._manager.storage.remove(folder)


class RemoteJobs:
    """The jobs of the user who signs in at the server `url`; without a user, of this machine's own owner."""

    def __init__(self, url: str, user: str = "", password: str = "") -> None:
        self._url = url
        try:
            base = httpx2.URL(url if url.endswith("/") else f"{url}/")
        except httpx2.InvalidURL as error:
            raise RestoreError(f"{url!r} is no address ({error}); write it as https://host/.") from error
        if base.scheme not in ("http", "https") or not base.host:
            raise RestoreError(f"{url!r} is no address; write it as https://host/.")
        auth = httpx2.BasicAuth(user, password) if user else None
        cookies = {} if user else {COOKIE: local_owner(default_data())}
        self._client = httpx2.Client(base_url=base, auth=auth, cookies=cookies, timeout=_TIMEOUT)

    def list(self, statuses: Sequence[JobStatus], search: str, limit: int, owner: str) -> JobPage:
        """See Jobs."""
        query = {"status": [status.value for status in statuses], "search": search, "limit": limit, "owner": owner}
        return JobPage.model_validate(self._ask("GET", "api/v1/jobs", params=query).json())

    def show(self, job_id: str) -> JobDetail:
        """See Jobs."""
        return JobDetail.model_validate(self._ask("GET", f"api/v1/jobs/{_quoted(job_id)}").json())

    def submit(self, files: Sequence[Path], settings: Sequence[str], sent: Sent) -> Sequence[JobInfo]:
        """See Jobs."""
        load_settings(settings)  # what cannot work is told before anything is sent
        layer = dict(text.split("=", 1) for text in settings)
        for file in files:
            require_file(file)
        uploads: list[str] = []
        try:
            for file in files:
                uploads.append(self._send(file, sent))
                self._wait_for(uploads[-1])
            answer = self._ask("POST", "api/v1/jobs", json={"uploads": uploads, "settings": layer})
        except RestoreError:
            for upload_id in uploads:
                self._client.delete(f"api/v1/uploads/{upload_id}")
            raise
        return [JobInfo.model_validate(job) for job in answer.json()]

    def act(self, action: str, job_id: str, keep_part: bool = False) -> JobInfo:
        """See Jobs."""
        body = {"keep_part": keep_part} if action == "cancel" else None
        return JobInfo.model_validate(self._ask("POST", f"api/v1/jobs/{_quoted(job_id)}/{action}", json=body).json())

    def export(self, job_id: str, target: Path) -> None:
        """See Jobs."""
        part = target.with_name(f"{target.name}.part")
        while True:
            with self._client.stream("GET", f"api/v1/jobs/{_quoted(job_id)}/export") as answer:
                if answer.status_code == 503 and "retry-after" in answer.headers:
                    wait_s = float(answer.headers["retry-after"])
                elif answer.status_code != 200:
                    answer.read()
                    self._refuse(answer)
                else:
                    with part.open("wb") as file:
                        for block in answer.iter_bytes(_BLOCK_BYTES):
                            file.write(block)
                    publish(part, target)
                    return
            time.sleep(wait_s)

    def import_archive(self, archive: Path, start: bool) -> JobInfo:
        """See Jobs."""
        headers = {"Content-Length": str(require_file(archive).stat().st_size)}
        answer = self._ask(
            "POST", "api/v1/imports", params={"start": start}, content=_blocks(archive), headers=headers
        )  # fmt: skip
        found = ImportInfo.model_validate(answer.json())
        while not found.is_done:
            time.sleep(_POLL_S)
            found = ImportInfo.model_validate(self._ask("GET", f"api/v1/imports/{found.id}").json())
        if found.job is None:
            raise RestoreError(found.error)
        return found.job

    def reindex(self) -> int:
        """See Jobs."""
        raise RestoreError("The index is rebuilt on the server's machine: leave --url out and name its --data.")

    def close(self) -> None:
        """See Jobs."""
        self._client.close()

    # --- inside ---

    def _send(self, file: Path, sent: Sent) -> str:
        """Send `file` in pieces by the tus protocol; a lost connection goes on where the file ends. Returns its id."""
        size = file.stat().st_size
        name = base64.b64encode(file.name.encode("utf-8", "replace")).decode()
        tus = {"Tus-Resumable": "1.0.0"}
        created = self._ask(
            "POST", "studio/uploads", headers={**tus, "Upload-Length": str(size), "Upload-Metadata": f"filename {name}"}
        )  # fmt: skip
        upload_id = created.headers["location"].rpartition("/")[2]
        offset, failures = 0, 0
        with file.open("rb") as content:
            while offset < size:
                content.seek(offset)
                piece = content.read(min(_PIECE_BYTES, size - offset))
                if not piece:
                    raise MediaError(f"{file} has become shorter while it was sent; submit it again.")
                headers = {**tus, "Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream"}
                try:
                    answer = self._client.patch(f"studio/uploads/{upload_id}", content=piece, headers=headers)
                    if answer.status_code not in (204, 408, 409, 423) and answer.status_code < 500:
                        self._refuse(answer)
                    if answer.status_code == 204:
                        offset, failures = int(answer.headers["upload-offset"]), 0
                        sent(file.name, offset, size)
                        continue
                except httpx2.TransportError as error:
                    if failures >= len(_RETRY_WAITS_S):
                        raise self._lost(error) from error
                if failures >= len(_RETRY_WAITS_S):
                    self._refuse(answer)
                time.sleep(_RETRY_WAITS_S[failures])
                failures += 1
                offset = self._offset(upload_id, offset, tus)
        return upload_id

    def _offset(self, upload_id: str, known: int, headers: Mapping[str, str]) -> int:
        """How many bytes are there; `known` while the server does not answer."""
        try:
            answer = self._client.head(f"studio/uploads/{upload_id}", headers=dict(headers))
        except httpx2.TransportError:
            return known
        if answer.status_code == 404:
            raise RestoreError("The server no longer knows this upload; submit the file again.")
        return int(answer.headers.get("upload-offset", known))

    def _wait_for(self, upload_id: str) -> None:
        """Wait until the server has checked an upload. Raises MediaError for a file that cannot be used."""
        while True:
            found = UploadInfo.model_validate(self._ask("GET", f"api/v1/uploads/{upload_id}").json())
            if found.error:
                raise MediaError(found.error)
            if found.is_ready:
                return
            time.sleep(_POLL_S)

    def _ask(self, method: str, path: str, **request: Any) -> httpx2.Response:
        try:
            answer = self._client.request(method, path, **request)
        except httpx2.TransportError as error:
            raise self._lost(error) from error
        if not answer.is_success:
            self._refuse(answer)
        return answer

    def _lost(self, error: httpx2.TransportError) -> RestoreError:
        return RestoreError(f"{self._url} does not answer ({error}); check the address, and that the server runs.")

    def _refuse(self, answer: httpx2.Response) -> NoReturn:
        try:
            sentence = answer.json()
            sentence = str(sentence.get("error") or sentence.get("detail") or "")
        except (ValueError, AttributeError):
            sentence = ""
        if answer.status_code == 401:
            raise RestoreError(f"{self._url} wants a login; set SEEDVR_USER and SEEDVR_PASSWORD.")
        raise RestoreError(
            sentence or f"{self._url} answers {answer.status_code}; is it the address of SeedVR Studio's page?"
        )  # fmt: skip


def require_file(path: Path) -> Path:
    """`path`, if it is a file that can be read. Raises MediaError."""
    if not path.is_file():
        raise MediaError(f"There is no file {path}; check its name.")
    if not os.access(path, os.R_OK):
        raise MediaError(f"{path} may not be read; change its permissions.")
    return path


def _leave_to_a_server(*_: object, **__: object) -> NoReturn:
    """What this process has for an engine: its queue is never started, so that jobs stay with the servers."""
    raise RestoreError("The command line runs no jobs; start a server on this data folder.")


def _quoted(job_id: str) -> str:
    if not is_id(job_id):
        raise RestoreError(f"{job_id!r} is no job; `seedvr jobs list` shows those that there are.")
    return job_id


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block

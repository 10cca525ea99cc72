"""Talk to a running ComfyUI: upload, queue, follow, download, interrupt.

One class for `cartoon`, `queue` and the tests, whether the server is ours or somebody else's.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from . import workflow as workflows
from .errors import UserError
from .workflow import Workflow

POLL_S = 2.0
_ENDINGS = ("execution_success", "execution_error", "execution_interrupted")


@dataclass(frozen=True)
class OutputFile:
    """A file that a node made, as /view names it."""

    node_id: str
    filename: str
    subfolder: str
    type: str


@dataclass(frozen=True)
class JobResult:
    """files: what was saved, or where nothing was, previews. texts: what nodes say in words."""

    prompt_id: str
    files: list[OutputFile]
    texts: list[str]
    outputs: dict[str, Any]


@dataclass(frozen=True)
class Update:
    """Where a job is. fraction: 0..1 of the whole job, by nodes and their own steps."""

    job: int
    title: str
    step: int
    steps: int
    fraction: float


@dataclass
class _Job:
    index: int
    prompt_id: str
    workflow: Workflow
    seen: set[str] = field(default_factory=set)
    node_id: str = ""
    started: bool = False
    over: bool = False

    def update(self, step: int = 0, steps: int = 0) -> Update:
        finished = len(self.seen - {self.node_id})
        within = step / steps if steps else 0.0
        fraction = 1.0 if self.over else (finished + within) / max(1, len(self.workflow))
        name = workflows.title(self.workflow, self.node_id) if self.node_id else ""
        return Update(self.index, name, step, steps, min(1.0, fraction))


def server_address(text: str) -> str:
    """'127.0.0.1:8188' or a full address -> 'http://127.0.0.1:8188'.

    Raises: UserError.
    """
    full = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(full)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise UserError(f"{text!r} is no address", "write for example http://127.0.0.1:8188")
    return full.rstrip("/")


class ComfyClient:
    """`async with ComfyClient(url) as client: …`

    timeout_s: a running job that shows no sign of progress for so long is interrupted.
    check_server: called while waiting; raises if the server is known to be dead.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 900.0,
        check_server: Callable[[], None] = lambda: None,
    ) -> None:
        self.url = server_address(url)
        self.client_id = uuid.uuid4().hex
        self._timeout_s = timeout_s
        self._check_server = check_server
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> ComfyClient:
        limits = aiohttp.ClientTimeout(total=None, connect=10.0, sock_read=120.0)
        self._session = aiohttp.ClientSession(timeout=limits)
        return self

    async def __aexit__(self, *unused: object) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("use `async with ComfyClient(…)`")
        return self._session

    async def _call(self, method: str, path: str, **options: Any) -> tuple[int, bytes]:
        try:
            async with self._http.request(method, self.url + path, **options) as answer:
                return answer.status, await answer.read()
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            self._check_server()
            raise self._silent(error) from error

    def _silent(self, error: BaseException) -> UserError:
        return UserError(
            f"the server {self.url} does not answer ({error or type(error).__name__})",
            "start ComfyUI there, or leave --server out to start one of ours",
        )

    async def _json(self, method: str, path: str, **options: Any) -> Any:
        status, body = await self._call(method, path, **options)
        try:
            if status != 200:
                raise ValueError(f"HTTP {status}")
            return json.loads(body)
        except ValueError as error:
            raise UserError(
                f"{self.url}{path} gave no answer of a ComfyUI ({error})",
                "check the address of the server",
            ) from error

    async def object_info(self, class_type: str = "") -> dict[str, Any]:
        """One node's description ({} if unknown), or all of them by class."""
        if not class_type:
            return await self._json("GET", "/object_info")
        return (await self._json("GET", f"/object_info/{class_type}")).get(class_type, {})

    async def system_stats(self) -> dict[str, Any]:
        return await self._json("GET", "/system_stats")

    async def upload(self, name: str, data: bytes) -> str:
        """Put a picture into the server's input folder; returns the value for LoadImage."""
        form = aiohttp.FormData(quote_fields=False)
        form.add_field("image", data, filename=name, content_type="application/octet-stream")
        form.add_field("type", "input")
        status, body = await self._call("POST", "/upload/image", data=form)
        if status != 200:
            raise UserError(
                f"{self.url} did not take {name} (HTTP {status}: {body[:200]!r})",
                "check the server's free disk space",
            )
        got = json.loads(body)
        return f"{got['subfolder']}/{got['name']}" if got.get("subfolder") else got["name"]

    async def submit(self, workflow: Workflow, extra: dict[str, Any] | None = None) -> str:
        """Queue a workflow; returns its id. extra: for the metadata, such as {'workflow': …}.

        Raises: UserError with each node's reason if the server refuses it.
        """
        body: dict[str, Any] = {"prompt": workflow, "client_id": self.client_id}
        if extra:
            body["extra_data"] = {"extra_pnginfo": extra}
        status, raw = await self._call("POST", "/prompt", json=body)
        try:
            answer = json.loads(raw)
        except ValueError:
            answer = {"error": f"HTTP {status}"}
        if status != 200 or not answer.get("prompt_id"):
            raise UserError(
                f"the workflow was refused: {workflows.refusal(workflow, answer)}",
                "change these inputs with --set, or install what is missing on the server",
            )
        return answer["prompt_id"]

    async def run(
        self,
        jobs: Sequence[Workflow],
        on_update: Callable[[Update], None] = lambda update: None,
        extra: dict[str, Any] | None = None,
    ) -> list[JobResult]:
        """Queue workflows, wait for all of them and return what each made, in order.

        On an error or Ctrl-C the rest is taken off the queue and the running one interrupted.
        Raises: UserError.
        """
        followed: list[_Job] = []
        try:
            async with self._events() as events:
                for index, workflow in enumerate(jobs):
                    prompt_id = await self.submit(workflow, extra)
                    followed.append(_Job(index, prompt_id, workflow))
                await self._follow(followed, events, on_update)
            return [await self.result(job.prompt_id, job.workflow) for job in followed]
        except BaseException:
            open_ids = [job.prompt_id for job in followed if not job.over]
            with suppress(UserError, asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.shield(self.cancel(open_ids)), 10.0)
            raise

    def _events(self) -> _Events:
        return _Events(self._http, f"{self.url}/ws?clientId={self.client_id}")

    async def _follow(
        self, jobs: list[_Job], events: _Events, on_update: Callable[[Update], None]
    ) -> None:
        by_id = {job.prompt_id: job for job in jobs}
        last_sign = last_poll = time.monotonic()
        while not all(job.over for job in jobs):
            event = await events.next(POLL_S)
            job = by_id.get(event.get("data", {}).get("prompt_id", ""))
            ended = False
            if job is not None and not job.over:
                last_sign = time.monotonic()
                ended = _apply(job, event, on_update)
            now = time.monotonic()
            # The websocket can be lost; the history cannot.
            if ended or now - last_poll >= POLL_S:
                last_poll = now
                if await self._mark_ended(jobs, on_update):
                    last_sign = now
            started = any(job.started and not job.over for job in jobs)
            if started and now - last_sign > self._timeout_s:
                raise UserError(
                    f"no progress for {self._timeout_s:.0f} s, so the job was interrupted",
                    "look at the server's log, or allow more with --timeout",
                )

    async def _mark_ended(self, jobs: list[_Job], on_update: Callable[[Update], None]) -> bool:
        """Look for finished jobs in the history; True if one was found."""
        self._check_server()
        found = False
        for job in jobs:
            if not job.over and await self._history(job.prompt_id) is not None:
                job.over = found = True
                on_update(job.update())
        return found

    async def _history(self, prompt_id: str) -> dict[str, Any] | None:
        return (await self._json("GET", f"/history/{prompt_id}")).get(prompt_id)

    async def result(self, prompt_id: str, workflow: Workflow | None = None) -> JobResult:
        """What a finished job made.

        Raises: UserError if it failed, naming the node and the host's own words.
        """
        entry = await self._history(prompt_id)
        if entry is None:
            raise UserError(f"the server forgot the job {prompt_id}", "queue it again")
        status = entry.get("status") or {}
        for kind, data in status.get("messages", []):
            if kind == "execution_error":
                raise _failure(data, workflow or {})
            if kind == "execution_interrupted":
                raise UserError("the job was interrupted on the server", "queue it again")
        outputs = entry.get("outputs", {})
        return JobResult(prompt_id, _files(outputs), _texts(outputs), outputs)

    async def download(self, file: OutputFile) -> bytes:
        query = {"filename": file.filename, "subfolder": file.subfolder, "type": file.type}
        status, body = await self._call("GET", "/view", params=query)
        if status != 200:
            raise UserError(
                f"{self.url} does not hand out {file.filename} (HTTP {status})",
                "look into the server's output folder",
            )
        return body

    async def cancel(self, prompt_ids: Iterable[str]) -> None:
        """Take jobs off the queue; interrupt the running one if it is among them."""
        wanted = set(prompt_ids)
        if not wanted:
            return
        await self._call("POST", "/queue", json={"delete": sorted(wanted)})
        queue = await self._json("GET", "/queue")
        for entry in queue.get("queue_running", []):
            if entry[1] in wanted:
                await self._call("POST", "/interrupt", json={"prompt_id": entry[1]})

    async def free(self) -> None:
        """Ask the server to give memory back."""
        await self._call("POST", "/free", json={"unload_models": True, "free_memory": True})


class _Events:
    """The server's websocket; without one, next() just waits, and polling does the work."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url
        self._socket: aiohttp.ClientWebSocketResponse | None = None

    async def __aenter__(self) -> _Events:
        with suppress(aiohttp.ClientError, asyncio.TimeoutError, OSError):
            self._socket = await asyncio.wait_for(
                self._session.ws_connect(self._url, heartbeat=30.0, max_msg_size=0), 10.0
            )
        return self

    async def __aexit__(self, *unused: object) -> None:
        if self._socket is not None:
            await self._socket.close()

    async def next(self, limit_s: float) -> dict[str, Any]:
        """The next JSON event, or {} after limit_s or for a binary preview."""
        if self._socket is None or self._socket.closed:
            await asyncio.sleep(limit_s)
            return {}
        try:
            message = await self._socket.receive(limit_s)
        except asyncio.TimeoutError:
            return {}
        if message.type is not aiohttp.WSMsgType.TEXT:
            return {}
        try:
            event = json.loads(message.data)
        except ValueError:
            return {}
        good = isinstance(event, dict) and isinstance(event.get("data"), dict)
        return event if good else {}


def _apply(job: _Job, event: dict[str, Any], on_update: Callable[[Update], None]) -> bool:
    """Take an event of this job in; True if it may have ended."""
    kind, data = event.get("type"), event["data"]
    job.started = True
    if kind == "execution_cached":
        job.seen.update(map(str, data.get("nodes", [])))
    elif kind == "executing" and data.get("node") is None:
        return True
    elif kind == "executing":
        job.node_id = str(data["node"])
        job.seen.add(job.node_id)
        on_update(job.update())
    elif kind == "progress":
        on_update(job.update(int(data.get("value", 0)), int(data.get("max", 0))))
    return kind in _ENDINGS


def _failure(data: dict[str, Any], workflow: Workflow) -> UserError:
    node_id = str(data.get("node_id", "?"))
    kind = data.get("node_type", "")
    name = workflows.title(workflow, node_id) if node_id in workflow else kind
    message = str(data.get("exception_message", "")).strip() or data.get("exception_type", "")
    # The host adds advice in further lines to some errors; ours name the next step themselves.
    what, marker, step = message.partition("Next step:")
    return UserError(
        f"node {node_id} ({name}) failed: {what if marker else message}",
        step if marker else "change what it complains about; the server's log has the details",
    )


def _files(outputs: dict[str, Any]) -> list[OutputFile]:
    found = [
        OutputFile(str(node), item["filename"], item.get("subfolder", ""), item.get("type", ""))
        for node, output in outputs.items()
        for values in output.values()
        if isinstance(values, list)
        for item in values
        if isinstance(item, dict) and "filename" in item
    ]
    saved = [file for file in found if file.type == "output"]
    return saved or found


def _texts(outputs: dict[str, Any]) -> list[str]:
    return [
        line.strip()
        for output in outputs.values()
        for text in output.get("text") or []
        if isinstance(text, str)
        for line in text.splitlines()
        if line.strip()
    ]

"""The client against a small stand-in of ComfyUI's API: lost websockets, stalls, errors, Ctrl-C."""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from realtoon.host import client as clients
from realtoon.host.client import ComfyClient
from realtoon.host.errors import UserError
from realtoon.host.progress import JobBar

GRAPH = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}, "_meta": {"title": "Keep"}},
}
PICTURE = {"filename": "x_1.png", "subfolder": "sub", "type": "output"}
SUCCESS = {
    "status": {"status_str": "success", "messages": [["execution_start", {}]]},
    "outputs": {"2": {"images": [PICTURE]}, "1": {"text": ["one\ntwo", " "]}},
}


class Fake:
    """A server whose behaviour a test sets: what a job sends, and when it is in the history."""

    def __init__(self):
        self.history = {}
        self.sockets = []
        self.deleted = []
        self.interrupted = []
        self.running = []
        self.prompts = []
        self.entry = SUCCESS
        self.has_socket = True
        self.finishes = True
        self.refusal = None
        self.silent_finish = False

    async def prompt(self, request):
        body = await request.json()
        if self.refusal:
            return web.json_response(self.refusal, status=400)
        self.prompts.append(body)
        prompt_id = f"job{len(self.prompts)}"
        self.running.append([0, prompt_id])
        self.task = asyncio.create_task(self.work(prompt_id))
        return web.json_response({"prompt_id": prompt_id, "node_errors": {}})

    async def send(self, kind, **data):
        for socket in self.sockets:
            if not socket.closed:
                await socket.send_json({"type": kind, "data": data})

    async def work(self, prompt_id):
        await asyncio.sleep(0.02)
        if not self.silent_finish:
            await self.send("executing", node="1", prompt_id=prompt_id)
            await self.send("executing", node="1", prompt_id="somebody else's")
            await self.send("executing", node="2", prompt_id=prompt_id)
            await self.send("progress", value=3, max=4, node="2", prompt_id=prompt_id)
        if not self.finishes:
            return
        self.history[prompt_id] = self.entry
        self.running.clear()
        if not self.silent_finish:
            await self.send("execution_success", prompt_id=prompt_id)

    async def ws(self, request):
        if not self.has_socket:
            return web.Response(status=500)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.sockets.append(socket)
        await socket.send_bytes(b"\x00\x00\x00\x01preview")
        await socket.send_str("not json")
        await socket.send_json([1, 2])
        async for _ in socket:
            pass
        return socket

    async def queue_post(self, request):
        self.deleted += (await request.json())["delete"]
        return web.Response()

    async def interrupt(self, request):
        self.interrupted.append((await request.json())["prompt_id"])
        return web.Response()

    async def upload(self, request):
        form = await request.post()
        name = form["image"].filename
        return web.json_response({"name": name, "subfolder": "in", "type": "input"})

    @asynccontextmanager
    async def client(self, **options):
        app = web.Application()
        app.router.add_post("/prompt", self.prompt)
        app.router.add_get("/ws", self.ws)
        app.router.add_post("/queue", self.queue_post)
        app.router.add_post("/interrupt", self.interrupt)
        app.router.add_post("/upload/image", self.upload)

        async def answer(request):
            job = request.match_info["job"]
            return web.json_response({job: self.history[job]} if job in self.history else {})

        async def queue(request):
            return web.json_response({"queue_running": self.running, "queue_pending": []})

        async def view(request):
            return web.Response(body=json.dumps(dict(request.query)).encode())

        app.router.add_get("/history/{job}", answer)
        app.router.add_get("/queue", queue)
        app.router.add_get("/view", view)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        try:
            async with ComfyClient(f"127.0.0.1:{port}", **options) as client:
                yield client
        finally:
            await runner.cleanup()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(clients, "POLL_S", 0.05)


@pytest.fixture
def fake():
    return Fake()


def do(fake, action, **options):
    async def body():
        async with fake.client(**options) as client:
            return await asyncio.wait_for(action(client), 20)

    return asyncio.run(body())


def test_a_job_is_followed_and_its_files_come_back(fake):
    updates = []
    [result] = do(fake, lambda client: client.run([GRAPH], updates.append, {"workflow": {"a": 1}}))
    assert [(file.filename, file.subfolder, file.type) for file in result.files] == [
        ("x_1.png", "sub", "output")
    ]
    assert result.texts == ["one", "two"]
    assert [update.title for update in updates[:3]] == ["LoadImage", "Keep", "Keep"]
    fractions = [update.fraction for update in updates]
    assert fractions == [0.0, 0.5, 0.875, 1.0]
    assert fake.prompts[0]["extra_data"] == {"extra_pnginfo": {"workflow": {"a": 1}}}
    assert (fake.deleted, fake.interrupted) == ([], [])


@pytest.mark.parametrize("lost", ["has_socket", "silent_finish"])
def test_without_events_the_history_is_enough(fake, lost):
    setattr(fake, lost, lost == "silent_finish")
    results = do(fake, lambda client: client.run([GRAPH, GRAPH]))
    assert [result.prompt_id for result in results] == ["job1", "job2"]


def test_a_job_without_progress_is_interrupted(fake):
    fake.finishes = False
    with pytest.raises(UserError, match=r"no progress for 0 s.*--timeout"):
        do(fake, lambda client: client.run([GRAPH]), timeout_s=0.3)
    assert fake.deleted == ["job1"]
    assert fake.interrupted == ["job1"]


def test_a_cancelled_run_takes_its_jobs_back(fake):
    fake.finishes = False

    async def action(client):
        work = asyncio.create_task(client.run([GRAPH, GRAPH]))
        while len(fake.prompts) < 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    do(fake, action)
    assert fake.deleted == ["job1", "job2"]
    assert fake.interrupted == ["job1", "job2"]


def test_somebody_elses_running_job_is_left_alone(fake):
    fake.running = [[0, "theirs"]]
    do(fake, lambda client: client.cancel(["mine"]))
    assert fake.deleted == ["mine"]
    assert fake.interrupted == []


def test_a_server_that_died_ends_the_waiting(fake):
    fake.finishes = False

    def dead():
        raise UserError("it died", "read its log")

    with pytest.raises(UserError, match="it died"):
        do(fake, lambda client: client.run([GRAPH]), check_server=dead)


def error_entry(**data):
    message = {"node_id": "2", "node_type": "SaveImage", "exception_type": "E", **data}
    return {"status": {"status_str": "error", "messages": [["execution_error", message]]}}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            {"exception_message": "x.pb: expected A, got B. Next step: fetch it again."},
            "node 2 (Keep) failed: x.pb: expected A, got B. Next step: fetch it again.",
        ),
        (
            {"exception_message": "too\nmany\n lines"},
            "node 2 (Keep) failed: too many lines. Next step: change what it complains about; "
            "the server's log has the details.",
        ),
        (
            {"exception_message": "", "exception_type": "ValueError"},
            "node 2 (Keep) failed: ValueError. Next step: change what it complains about; "
            "the server's log has the details.",
        ),
    ],
)
def test_a_failed_node_is_named_in_one_line(fake, data, said):
    fake.entry = error_entry(**data)
    with pytest.raises(UserError) as caught:
        do(fake, lambda client: client.run([GRAPH]))
    assert str(caught.value) == said


def test_an_interrupted_job_says_so(fake):
    fake.entry = {"status": {"messages": [["execution_interrupted", {}]]}, "outputs": {}}
    with pytest.raises(UserError, match="interrupted on the server"):
        do(fake, lambda client: client.run([GRAPH]))


def test_previews_count_only_where_nothing_was_saved(fake):
    preview = {"filename": "p.png", "subfolder": "", "type": "temp"}
    fake.entry = {"outputs": {"1": {"images": [preview]}, "2": {"images": [PICTURE]}}}
    [result] = do(fake, lambda client: client.run([GRAPH]))
    assert [file.filename for file in result.files] == ["x_1.png"]
    fake.entry = {"outputs": {"1": {"images": [preview]}}}
    [result] = do(fake, lambda client: client.run([GRAPH]))
    assert [file.filename for file in result.files] == ["p.png"]


def test_a_refused_workflow_names_its_nodes(fake):
    fake.refusal = {
        "error": {"message": "no"},
        "node_errors": {"2": {"errors": [{"message": "Too big", "details": "x"}]}},
    }
    with pytest.raises(UserError, match=r"refused: node 2 \(Keep\): Too big x"):
        do(fake, lambda client: client.run([GRAPH]))


def test_upload_and_download(fake):
    assert do(fake, lambda client: client.upload("ä.png", b"data")) == "in/ä.png"
    file = clients.OutputFile("2", "a b.png", "s/t", "output")
    got = json.loads(do(fake, lambda client: client.download(file)))
    assert got == {"filename": "a b.png", "subfolder": "s/t", "type": "output"}


def test_no_server_and_a_server_of_another_kind(fake):
    async def nobody():
        async with ComfyClient("127.0.0.1:9") as client:
            await client.system_stats()

    with pytest.raises(UserError, match="does not answer"):
        asyncio.run(nobody())
    with pytest.raises(UserError, match=r"no answer of a ComfyUI \(HTTP 404\)"):
        do(fake, lambda client: client.system_stats())


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost:8188", "http://localhost:8188"),
        ("https://a.example/comfy/", "https://a.example/comfy"),
        ("[::1]:8188", "http://[::1]:8188"),
    ],
)
def test_addresses(text, address):
    assert clients.server_address(text) == address


@pytest.mark.parametrize("text", ["", "http://", "ftp://a", "a:b:c", "http://a:99999"])
def test_what_is_no_address(text):
    with pytest.raises(UserError, match="is no address"):
        clients.server_address(text)


def test_progress_without_a_terminal_is_a_line_per_node(capsys):
    with JobBar(2) as bar:
        for job in (0, 1):
            for step in (0, 1, 2):
                bar.update(clients.Update(job, "Draw", step, 2, step / 2))
            bar.update(clients.Update(job, "", 0, 0, 1.0))
    assert capsys.readouterr().out == "  1/2 Draw\n  2/2 Draw\n"


def test_progress_in_a_terminal_is_one_bar(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with JobBar(2) as bar:
        bar.update(clients.Update(0, "Draw", 1, 2, 0.5))
        # Cached nodes are reported late; the bar never goes back.
        bar.update(clients.Update(0, "Draw", 0, 2, 0.1))
        assert bar._bar.n == 0.5
        bar.update(clients.Update(0, "", 0, 0, 1.0))
        bar.update(clients.Update(1, "", 0, 0, 1.0))
        assert bar._bar.n == bar._bar.total == 2
    said = capsys.readouterr()
    assert "1/2 Draw 1/2" in said.err
    assert said.out == ""


def test_the_client_must_be_opened():
    async def closed():
        await ComfyClient("127.0.0.1:9").system_stats()

    with pytest.raises(RuntimeError, match="async with"):
        asyncio.run(closed())

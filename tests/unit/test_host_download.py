"""Downloads against a server on this machine that breaks off, resumes, lies and refuses."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from realtoon.host import download
from realtoon.host.errors import UserError

DATA = bytes(range(256)) * 400
SHA256 = hashlib.sha256(DATA).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves DATA. breaks: how many bytes each of the next answers sends before it hangs up."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.breaks = []
        self.ranges = []
        self.status = 200
        self.data = DATA
        self.knows_ranges = True

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/file.bin"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802
        server = self.server
        wanted = self.headers.get("Range")
        server.ranges.append(wanted)
        if server.status != 200:
            self.send_error(server.status)
            return
        start = int(wanted.split("=")[1].rstrip("-")) if wanted and server.knows_ranges else 0
        if start and start >= len(server.data):
            self.send_error(416)
            return
        body = server.data[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header(
                "Content-Range", f"bytes {start}-{len(server.data) - 1}/{len(server.data)}"
            )
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.breaks.pop(0)] if server.breaks else body)

    def log_message(self, *unused):
        """Keep the test's output clean."""


@pytest.fixture
def server():
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


def fetch(server, target, **more):
    return download.fetch(server.url, target, pause_s=0, timeout_s=5, **more)


def test_a_whole_file_arrives(server, tmp_path):
    seen = []
    target = tmp_path / "deep" / "file.bin"
    got = fetch(server, target, sha256=SHA256, progress=lambda done, total: seen.append(done))
    assert target.read_bytes() == DATA
    assert got == SHA256
    assert seen[-1] == len(DATA)
    assert list(target.parent.iterdir()) == [target]


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(breaks=st.lists(st.integers(0, len(DATA) - 1), max_size=4))
def test_a_broken_connection_is_resumed_where_it_broke(server, tmp_path, breaks):
    target = tmp_path / "file.bin"
    target.unlink(missing_ok=True)
    server.breaks = list(breaks)
    server.ranges = []
    assert fetch(server, target, sha256=SHA256) == SHA256
    have, expected = 0, [None]
    for count in breaks:
        have = min(len(DATA), have + count)
        expected.append(f"bytes={have}-" if have else None)
    assert server.ranges == expected[: len(server.ranges)]
    assert target.read_bytes() == DATA


def test_the_next_call_goes_on_from_what_an_earlier_one_left(server, tmp_path):
    target = tmp_path / "file.bin"
    server.breaks = [1000]
    with pytest.raises(UserError, match="goes on where it stopped"):
        fetch(server, target, tries=1)
    assert not target.exists()
    fetch(server, target, sha256=SHA256, tries=1)
    assert server.ranges == [None, "bytes=1000-"]
    assert target.read_bytes() == DATA


def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.knows_ranges = False
    server.breaks = [5000]
    assert fetch(server, tmp_path / "file.bin", sha256=SHA256) == SHA256


def test_a_complete_part_is_only_checked(server, tmp_path):
    target = tmp_path / "file.bin"
    target.with_name("file.bin.part").write_bytes(DATA)
    assert fetch(server, target, sha256=SHA256) == SHA256


def test_a_foreign_part_is_thrown_away_and_fetched_afresh(server, tmp_path):
    target = tmp_path / "file.bin"
    target.with_name("file.bin.part").write_bytes(b"x" * 500)
    assert fetch(server, target, sha256=SHA256) == SHA256
    assert target.read_bytes() == DATA


@pytest.mark.parametrize(
    "wrong",
    [{"sha256": "0" * 64}, {"size_bytes": 17}, {"size_bytes": len(DATA) + 1}, {"max_bytes": 99}],
)
def test_a_wrong_file_leaves_nothing(server, tmp_path, wrong):
    with pytest.raises(UserError, match=r"file\.bin could not be downloaded"):
        fetch(server, tmp_path / "file.bin", **wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_is_not_retried_but_the_next_address_is(server, tmp_path):
    server.status = 404
    with pytest.raises(UserError, match="HTTP 404"):
        fetch(server, tmp_path / "file.bin")
    assert len(server.ranges) == 1
    server.status = 200
    target = tmp_path / "other.bin"
    download.fetch(["http://127.0.0.1:9/nothing", server.url], target, pause_s=0, tries=1)
    assert target.read_bytes() == DATA


def test_a_busy_server_is_retried(server, tmp_path):
    server.status = 503
    with pytest.raises(UserError, match="HTTP 503"):
        fetch(server, tmp_path / "file.bin", tries=3)
    assert len(server.ranges) == 3

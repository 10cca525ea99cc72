"""Starting, watching and ending a host; a small program stands in for ComfyUI's main.py."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from realtoon.host import base_folder, paths, serve, server
from realtoon.host.errors import UserError
from realtoon.host.sources import Host

ROOT = Path(__file__).resolve().parents[2]
# Answers what ComfyServer asks, and shows that it was started as main.py is.
MAIN = """
import json, os, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import server as sibling
port = int(sys.argv[sys.argv.index("--port") + 1])
known = {known}
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.rsplit("/", 1)[1]
        body = {{"argv": sys.argv, "name": __name__, "sibling": sibling.WHOSE, "stdin": None}}
        if "object_info" in self.path:
            body = {{name: {{"input": {{}}}}}} if name in known else {{}}
        data = json.dumps(body).encode()
        self.send_response(200); self.end_headers(); self.wfile.write(data)
    def log_message(self, *unused): pass
{before}
ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def make_host(folder, known=paths.NODE_IDS, before="", flags=("--cpu", "--database-url")):
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").write_text(MAIN.format(known=list(known), before=before))
    (folder / "server.py").write_text("WHOSE = 'the host'\n")
    text = "\n".join(f'parser.add_argument("{flag}")' for flag in flags)
    (folder / "comfy" / "cli_args.py").write_text(text)
    return Host(folder, "0.33.0", "test", owned=True)


@pytest.fixture
def start(tmp_path):
    """Starts a stand-in host in tmp_path; nothing of it is left after the test."""

    def starter(**options):
        host = make_host(tmp_path / "host", **options)
        return server.running(host, Path(sys.executable), tmp_path / "cache", cpu=True)

    yield starter
    assert list((tmp_path / "cache" / "runs").iterdir()) == []


def get(url):
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)


def test_a_host_runs_as_its_own_main_and_ends(start):
    with start() as comfy:
        body = get(comfy.url + "/system_stats")
        link = comfy.base / "custom_nodes" / paths.LINK_NAME
        assert link.resolve() == ROOT
        assert (body["name"], body["sibling"]) == ("__main__", "the host")
        argv = body["argv"]
        assert argv[0] == str(comfy.host.folder / "main.py")
        assert argv[argv.index("--database-url") + 1] == "sqlite:///:memory:"
        assert "--cpu" in argv
        assert "--disable-api-nodes" not in argv
        assert comfy.alive
    assert not comfy.alive
    with pytest.raises(OSError, match="refused"):
        get(comfy.url + "/system_stats")
    assert ROOT.joinpath("pyproject.toml").exists()


def test_a_host_that_dies_is_told_in_its_own_words(start):
    before = "raise ModuleNotFoundError(\"No module named 'torchsde'\")"
    with (
        pytest.raises(
            UserError, match="ended with code 1: ModuleNotFoundError: No module named 'torchsde'"
        ),
        start(before=before),
    ):
        raise AssertionError("started")


def test_a_host_without_our_nodes_says_why(start):
    log = f"Cannot import /x/{paths.LINK_NAME} module for custom nodes: No module named 'cv3'"
    others = [each for each in paths.NODE_IDS if each != "PrepareImage"]
    with (
        pytest.raises(UserError, match="without our PrepareImage: No module named 'cv3'"),
        start(known=others, before=f"print({log!r}, flush=True)"),
    ):
        raise AssertionError("started")


def test_a_host_that_never_answers_is_ended(start, monkeypatch):
    original = server.ComfyServer.start
    monkeypatch.setattr(server.ComfyServer, "start", lambda self: original(self, 0.5))
    with (
        pytest.raises(UserError, match="did not answer within 0 s"),
        start(before="import time; time.sleep(60)"),
    ):
        raise AssertionError("started")


def test_an_error_in_between_ends_it_too(start):
    with pytest.raises(ZeroDivisionError), start() as comfy:
        pid = comfy.pid
        raise ZeroDivisionError
    assert is_gone(pid)


def test_what_the_host_started_ends_with_it(start, tmp_path):
    note = tmp_path / "pid"
    before = (
        "import subprocess; child = subprocess.Popen([sys.executable, '-c', "
        "'import time; time.sleep(60)']); "
        f"open({str(note)!r}, 'w').write(str(child.pid))"
    )
    if sys.platform == "win32":
        pytest.skip("process groups are POSIX")
    with start(before=before):
        child = int(note.read_text())
        assert is_running(child)
    assert is_gone(child)


def is_running(pid):
    """Whether a process lives; one that only waits for its parent to look does not."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat")
        return not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def is_gone(pid, within_s=5):
    ends = time.monotonic() + within_s
    while is_running(pid) and time.monotonic() < ends:
        time.sleep(0.05)
    return not is_running(pid)


PARENT = """
import sys, time
sys.path.insert(0, {tests!r})
import conftest
from pathlib import Path
from realtoon.host import server
from realtoon.host.sources import Host
host = Host(Path({host!r}), "0.33.0", "test", owned=True)
with server.running(host, Path(sys.executable), Path({cache!r}), cpu=True) as comfy:
    print(comfy.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="asks /proc and kills as POSIX does")
def test_a_killed_parent_takes_its_host_along(tmp_path):
    host = make_host(tmp_path / "host")
    cache = tmp_path / "cache"
    code = PARENT.format(tests=str(ROOT / "tests"), host=str(host.folder), cache=str(cache))
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    # The line before it says which ComfyUI starts.
    pid = next(int(line) for line in parent.stdout if line.strip().isdecimal())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert is_gone(pid)
    assert len(list((cache / "runs").iterdir())) == 1
    # What it left behind goes with the next run; the pack behind its link stays.
    base_folder.remove_abandoned(cache / "runs")
    assert list((cache / "runs").iterdir()) == []
    assert (ROOT / "run.py").exists()


def test_a_folder_that_is_in_use_is_not_abandoned(tmp_path):
    base = base_folder.prepare(tmp_path / "runs" / "a", ROOT)
    with base_folder.in_use(base):
        base_folder.remove_abandoned(tmp_path / "runs")
        assert base.exists()


def test_a_system_without_links_gets_a_copy(tmp_path, monkeypatch):
    pack = tmp_path / "pack"
    (pack / "nodes").mkdir(parents=True)
    (pack / "tests").mkdir()
    (pack / "__init__.py").write_text("one")

    def refuse(*unused, **more):
        raise OSError("no privilege")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    link = tmp_path / "custom_nodes" / "pack"
    link.parent.mkdir()
    assert base_folder.link_pack(link, pack) == "copy"
    assert sorted(p.name for p in link.iterdir()) == ["__init__.py", "nodes"]
    (pack / "__init__.py").write_text("two")
    assert base_folder.link_pack(link, pack) == "copy"
    assert (link / "__init__.py").read_text() == "two"


def test_every_models_folder_is_told_to_the_host(tmp_path):
    for name in ("a/dctnet", "a/loras", "b/vae", "c"):
        (tmp_path / name).mkdir(parents=True)
    folders = [tmp_path / name for name in ("a", "b", "c", "nowhere")]
    config = json.loads(base_folder.write_model_paths(tmp_path / "x", folders).read_text())
    assert config == {
        "realtoon_0": {"base_path": str(tmp_path / "a"), "dctnet": "dctnet", "loras": "loras"},
        "realtoon_1": {"base_path": str(tmp_path / "b"), "vae": "vae"},
    }


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("x\nTraceback (most recent call last):\n  a\nOSError: no\nbye", "OSError: no"),
        ("a.b.CustomError: no", "a.b.CustomError: no"),
        ("only this", "only this"),
        ("", "it wrote nothing"),
    ],
)
def test_last_words(log, said):
    assert server.last_words(log) == said


def test_workflows_in_the_browser_are_updated_but_not_when_edited(tmp_path):
    source, user = tmp_path / "source", tmp_path / "user"
    source.mkdir()
    for name in ("a.json", "b.json"):
        (source / name).write_text("1")
    assert serve.copy_workflows(source, user) == ["a.json", "b.json"]
    (user / "RealToon" / "b.json").write_text("mine")
    for name in ("a.json", "b.json"):
        (source / name).write_text("2")
    assert serve.copy_workflows(source, user) == ["a.json"]
    assert (user / "RealToon" / "a.json").read_text() == "2"
    assert (user / "RealToon" / "b.json").read_text() == "mine"


@pytest.mark.parametrize(
    "line",
    [
        "Cannot import /a/custom_nodes/{} module for custom nodes: no module named x",
        "[WARNING] Error while calling comfy_entrypoint in /a/custom_nodes/{}: no module named x",
        "Error while calling comfy_entrypoint in C:\\a\\custom_nodes\\{}: no module named x",
    ],
)
def test_a_pack_that_fails_to_load_says_why(line):
    log = f"Starting\n{line.format(paths.LINK_NAME)}\nStarting server\n"
    assert server.import_error(log) == "no module named x"

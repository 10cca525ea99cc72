"""Real ComfyUIs for tests: which are at hand, one started as a process, and its API without async.

tests/host and tests/browser make their fixtures from these.
"""

import asyncio
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
from PIL import Image
from realtoon.host import paths, server, sources, torch_choice, workflow
from realtoon.host.client import ComfyClient, JobResult
from realtoon.host.sources import Host

NONE = "no ComfyUI at hand: run `python run.py test`, or set COMFYUI_PATH"
ROOT = Path(__file__).resolve().parent.parent
CARTOON = ROOT / "workflows" / "api" / "cartoon_1024.json"


def at_hand() -> list[Host]:
    """COMFYUI_PATH or the one that run.py has cached, and those of REALTOON_TEST_HOSTS.

    REALTOON_TEST_HOSTS: more ComfyUI folders, separated as in PATH.
    """
    first = sources.find_local(os.environ.get("COMFYUI_PATH"), paths.cache_folder(), ROOT)
    named = os.environ.get("REALTOON_TEST_HOSTS", "").split(os.pathsep)
    more = [sources.find_local(name, paths.cache_folder(), ROOT) for name in named if name]
    unique = {host.folder: host for host in [first, *more] if host is not None}
    return list(unique.values())


@cache
def needs_cpu() -> bool:
    """Whether the hosts must be told --cpu. Asked once, it can take seconds."""
    return torch_choice.needs_cpu_flag(Path(sys.executable))


class Comfy:
    """A running ComfyUI, for tests: no async, pictures as PIL."""

    def __init__(self, running: server.ComfyServer) -> None:
        self.server = running
        self.url = running.url
        self.version = running.host.version

    def do(self, action):
        """Run `action(client)` to its end; returns what it returns."""

        async def body():
            check = self.server.raise_if_dead
            async with ComfyClient(self.url, timeout_s=300, check_server=check) as client:
                return await action(client)

        return asyncio.run(body())

    def info(self, class_type: str) -> dict:
        return self.do(lambda client: client.object_info(class_type))

    def upload(self, picture: Image.Image | bytes, name: str = "picture.png") -> str:
        """Put a picture into the host's input folder; returns LoadImage's value."""
        if isinstance(picture, Image.Image):
            out = io.BytesIO()
            picture.save(out, "PNG")
            picture = out.getvalue()
        return self.do(lambda client: client.upload(name, picture))

    def run(self, graph: workflow.Workflow, on_update=lambda update: None) -> JobResult:
        [result] = self.do(lambda client: client.run([graph], on_update))
        return result

    def pictures(self, result: JobResult) -> list[Image.Image]:
        """What a job saved, decoded."""
        data = [self.do(lambda client, f=file: client.download(f)) for file in result.files]
        found = [Image.open(io.BytesIO(item)) for item in data]
        for picture in found:
            picture.load()
        return found


def found_by(script: str, limit_s: float):
    """A fixture: what a script of cases in tests/host finds on each host at hand, once a module."""
    hosts = at_hand()
    cases = Path(__file__).parent / "host" / script

    @pytest.fixture(
        scope="module",
        params=hosts or [None],
        ids=[f"comfyui-{host.version}" for host in hosts] or ["no-comfyui"],
    )
    def found(request, tmp_path_factory) -> dict:
        if request.param is None:
            pytest.skip(NONE)
        return found_in_process(cases, request.param, tmp_path_factory.mktemp("base"), limit_s)

    return found


def found_in_process(cases: Path, host: Host, base: Path, limit_s: float) -> dict:
    """What a script of cases finds in the host's own process: its last line, which is JSON.

    base: an empty folder for the host.
    """
    for name in ("custom_nodes", "input", "output", "temp", "user", "models"):
        (base / name).mkdir()
    done = subprocess.run(
        [sys.executable, str(cases), str(host.folder), str(base)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONUTF8": "1"},
        timeout=limit_s,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def started(host: Host, **options) -> Iterator[Comfy]:
    """The host as a process with this checkout in it; gone afterwards.

    options: of realtoon.host.server.running, such as model_folders.
    """
    with server.running(
        host, Path(sys.executable), paths.cache_folder(), cpu=needs_cpu(), **options
    ) as running:
        yield Comfy(running)

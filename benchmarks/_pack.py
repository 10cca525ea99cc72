"""Brings the pack in as ``realtoon``, and the peers that the parity tests run against."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
PARITY = ROOT / "tests" / "parity"


def load() -> None:
    """Make ``import realtoon`` find this checkout, and the modules of tests/parity importable.

    The root itself must stay off sys.path: its ``nodes`` would hide ComfyUI's.
    """
    _load_file("realtoon", ROOT / "__init__.py", [str(ROOT)])
    if str(PARITY) not in sys.path:
        sys.path.append(str(PARITY))


def _load_file(name: str, path: Path, search: list[str]) -> ModuleType:
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=search)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module

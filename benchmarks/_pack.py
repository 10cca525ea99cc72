"""Brings the pack in as ``realtoon``, and the peers and seeded weights of its tests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
TESTS = [ROOT / "tests" / "parity", ROOT / "tests" / "unit"]


def load() -> None:
    """Make ``import realtoon`` find this checkout, and the modules beside its tests importable.

    The root itself must stay off sys.path: its ``nodes`` would hide ComfyUI's.
    """
    _load_file("realtoon", ROOT / "__init__.py", [str(ROOT)])
    sys.path.extend(str(folder) for folder in TESTS if str(folder) not in sys.path)


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

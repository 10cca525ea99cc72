"""Loads the pack under its installed name, whatever its folder and wherever pytest runs."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def load_pack() -> None:
    """Put the checkout into sys.modules as ``realtoon``.

    The root itself must stay off sys.path: its ``nodes`` would hide ComfyUI's.
    """
    if "realtoon" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        "realtoon", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{ROOT / '__init__.py'} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules["realtoon"] = module
    spec.loader.exec_module(module)


load_pack()

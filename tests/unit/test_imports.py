"""The directions between the rooms (see DESIGN): who may import whom, read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
COMFY = {"comfy", "comfy_api", "comfy_execution", "folder_paths", "server", "nodes", "node_helpers"}
STANDARD = set(sys.stdlib_module_names)
# The room's own modules are always allowed; ours are written as realtoon.<room>.
ALLOWED = {
    "engine": {"torch"},
    "weights_loader": {"torch", "safetensors"},
    "nodes": {"torch", "realtoon.engine", "realtoon.weights_loader", *COMFY},
    # The catalogue is data: what there is to download and where it belongs. Plans of memory are
    # arithmetic, and need no torch.
    "host": {
        *("aiohttp", "tqdm", "PIL", "realtoon.weights_loader.catalog"),
        *("realtoon.engine.vram_plan", "realtoon.engine.vram_words"),
    },
}
# pytest's own entry needs pytest; the bench's example photo comes from scikit-image; ComfyUI writes
# its pictures with Pillow.
EXTRA = {
    "nodes/_chart.py": {"PIL"},
    # Memory of this process, for a run without a card; ComfyUI needs it as well.
    "nodes/_guard_reading.py": {"psutil"},
    "nodes/_saving.py": {"PIL"},
    "nodes/_strip.py": {"PIL"},
    "host/pytest_entry.py": {"pytest"},
    "host/pictures.py": {"skimage"},
}
# Packages that need not be there: imported inside the function that uses them, nowhere else.
LAZY = {"weights_loader/gpen_onnx.py": {"onnxruntime"}}
# Files in nodes/ that may name the host's modules: each is what one subject needs of them.
HOST_ADAPTERS = {
    "_host.py",
    "_modulation.py",
    "_qwen.py",
    "_qwen_patcher.py",
    "_conditioning.py",
    "_sampling.py",
    "_saving.py",
    "_lora.py",
    "_streaming.py",
    "_guard.py",
    "_guard_clones.py",
}
# They take a folder off the path, or put ComfyUI's there; none may add the pack's root.
PATH_EDITORS = {"host/launch.py", "host/pytest_entry.py", "run.py"}


def imports(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Every import of a file as (line, full dotted name).

    package: the dotted package that the file lies in, for relative imports.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def violations(source: str, package: str, allowed: set[str]) -> list[str]:
    """Imports that are neither standard library, nor allowed, nor the room's own."""
    room = ".".join(package.split(".")[:2])
    found = []
    for line, name in imports(source, package):
        ok = name.split(".")[0] in STANDARD or any(
            f"{name}.".startswith(f"{each}.") for each in (*allowed, room)
        )
        if not ok:
            found.append(f"line {line}: {name}")
    return found


def lazily_only(source: str, packages: set[str]) -> bool:
    """Whether every import of these packages stands inside a function, so that none runs when the
    file is imported."""
    tree = ast.parse(source)
    inner = {
        node
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    outer = [n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))]
    text = "\n".join(ast.unparse(node) for node in outer if node not in inner)
    return not any(name.split(".")[0] in packages for _, name in imports(text, "realtoon"))


def absolute_own(source: str) -> list[int]:
    """Lines that import the pack by its name instead of relatively."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        else:
            continue
        if any(name.split(".")[0] == "realtoon" for name in names):
            lines.append(node.lineno)
    return lines


def forbidden_calls(source: str) -> list[str]:
    """Prints, basicConfig, and edits of sys.path."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name == "print" or name.endswith("basicConfig"):
                found.append(f"line {node.lineno}: {name}")
            if name.startswith("sys.path."):
                found.append(f"line {node.lineno}: {name}")
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets += [node.target] if isinstance(node, ast.AugAssign) else []
        if any(ast.unparse(target).startswith("sys.path") for target in targets):
            found.append(f"line {node.lineno}: assigns to sys.path")
    return found


def files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def package_of(path: Path) -> str:
    return ".".join(["realtoon", *path.relative_to(ROOT).parent.parts])


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    assert files(room), f"no files in {room}"
    for path in files(room):
        name = path.relative_to(ROOT).as_posix()
        lazy = LAZY.get(name, set())
        allowed = ALLOWED[room] | EXTRA.get(name, set()) | lazy
        source = path.read_text("utf-8")
        assert violations(source, package_of(path), allowed) == [], name
        assert lazily_only(source, lazy), f"{name} imports {lazy} at once"
        assert absolute_own(source) == [], f"{name} imports the pack by name"


def test_only_adapters_name_the_hosts_modules() -> None:
    """Schemas come from comfy_api; all else that ComfyUI offers goes through a file for it."""
    rest = COMFY - {"comfy_api"}
    for path in files("nodes"):
        if path.name in HOST_ADAPTERS:
            continue
        taken = [
            f"{path.name} line {line}: {name}"
            for line, name in imports(path.read_text("utf-8"), package_of(path))
            if name.split(".")[0] in rest and not name.startswith("comfy.model_patcher.")
        ]
        assert taken == []


def test_nothing_imports_nodes() -> None:
    for path in [*files("engine"), *files("weights_loader"), *files("host"), ROOT / "run.py"]:
        for line, name in imports(path.read_text("utf-8"), package_of(path)):
            assert not f"{name}.".startswith("realtoon.nodes."), f"{path} line {line}"


@pytest.mark.parametrize("room", ALLOWED)
def test_no_prints_no_logging_setup_no_path_edits(room: str) -> None:
    for path in files(room):
        name = path.relative_to(ROOT).as_posix()
        found = forbidden_calls(path.read_text("utf-8"))
        if name in PATH_EDITORS:
            found = [each for each in found if "sys.path" not in each]
        assert found == [], name


def test_what_the_command_line_starts_with_is_standard_library() -> None:
    """run.py makes the environment: until then no package is there, not even through the
    catalogue of weights that it lists."""
    starts = ["run.py", "weights_loader/__init__.py", "weights_loader/catalog.py"]
    starts += [f"host/{name}.py" for name in ("__init__", "bootstrap", "environment", "sources")]
    for start in starts:
        source = (ROOT / start).read_text("utf-8")
        top = ast.Module([n for n in ast.parse(source).body if not isinstance(n, ast.If)], [])
        for line, name in imports(ast.unparse(top), package_of(ROOT / start)):
            own = name.startswith(("realtoon.host.", "realtoon.weights_loader."))
            assert name.split(".")[0] in STANDARD or own, f"{start} line {line}: {name}"


def test_loading_the_pack_takes_its_root_off_the_path() -> None:
    """With the root on sys.path, our ``nodes`` would hide ComfyUI's module of that name."""
    code = (
        "import importlib.util, sys\n"
        "root = sys.argv[1]\n"
        "sys.path.insert(0, root)\n"
        "import run\n"
        "run.load_pack()\n"
        "assert root not in sys.path, sys.path\n"
        "assert importlib.util.find_spec('nodes') is None\n"
        "import realtoon.host.plan\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-I", "-c", code, str(ROOT)], check=True, timeout=60)


@pytest.mark.parametrize(
    ("source", "package", "allowed"),
    [
        ("import comfy.utils", "realtoon.engine", {"torch"}),
        ("from ..nodes import _tensors", "realtoon.engine", {"torch"}),
        ("from ...nodes._tensors import to_bchw", "realtoon.engine.faces", {"torch"}),
        ("from .. import host", "realtoon.engine", {"torch"}),
        ("def f():\n    import numpy as np", "realtoon.engine", {"torch"}),
        ("import torchvision", "realtoon.engine", {"torch"}),
    ],
)
def test_a_wrong_import_is_seen(source: str, package: str, allowed: set[str]) -> None:
    assert violations(source, package, allowed)


@pytest.mark.parametrize(
    ("source", "lazily"),
    [
        ("import onnxruntime", False),
        ("try:\n    from onnxruntime import x\nexcept ImportError:\n    x = None", False),
        ("class A:\n    import onnxruntime.capi", False),
        ("def f():\n    import onnxruntime", True),
        ("import onnx\nclass A:\n    def f(self):\n        from onnxruntime import x", True),
    ],
)
def test_an_import_at_once_is_seen(source: str, lazily: bool) -> None:
    assert lazily_only(source, {"onnxruntime"}) is lazily


@pytest.mark.parametrize(
    "source",
    [
        "print(1)",
        "logging.basicConfig()",
        "sys.path.insert(0, x)",
        "sys.path = []",
        "sys.path += x",
    ],
)
def test_a_wrong_call_is_seen(source: str) -> None:
    assert forbidden_calls(source)


def test_a_right_import_passes() -> None:
    source = "from .tiles import plan\nfrom . import dctnet\nimport torch.nn as nn\nimport math"
    assert violations(source, "realtoon.engine", {"torch"}) == []

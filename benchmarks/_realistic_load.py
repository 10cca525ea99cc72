"""Loading the real-size DiT: a file of holes with the official names and shapes, opened by ComfyUI.

As a script, in a process of its own: arguments ComfyUI's folder, an empty folder for it, and
"table" or "weights". The last line on stdout is JSON.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent))

import _pack  # noqa: E402
from _child import ChildError, measured  # noqa: E402
from _measure import PeakMemory  # noqa: E402
from _table import Row, missing  # noqa: E402

LIMIT_S, LIMIT_BYTES = 10, 2e9
_GB = 1e9
_MARKER = "__index_timestep_zero__"


def loading(settings: SimpleNamespace) -> Iterator[Row]:
    """Seconds and memory from a 20.4 GB fp8 file to a patcher that samplers take."""
    import _comfy

    comfy = _comfy.folder()
    for modulation in ("table", "weights"):
        what = f"load: 20.4 GB fp8 DiT (holes), modulation {modulation}"
        bound = f"{LIMIT_S} s, {LIMIT_BYTES / _GB:.0f} GB"
        if comfy is None:
            yield missing(what, _comfy.NO_COMFY, bound)
            continue
        try:
            with tempfile.TemporaryDirectory() as base:
                found = measured(Path(__file__).name, [comfy, base, modulation])
        except ChildError as error:
            yield missing(what, str(error), bound)
            continue
        seconds, peak = found["seconds"], found["peak_bytes"]
        ours = (
            f"{seconds:.1f} s, whole process {peak / _GB:.2f} GB at its highest"
            f" ({found['private_bytes'] / _GB:.2f} GB of it private), model"
            f" {found['model_bytes'] / _GB:.2f} GB, ComfyUI {found['comfyui']}"
        )
        yield Row(what, ours, bound=bound, met=seconds <= LIMIT_S and peak <= LIMIT_BYTES)


def write_holes(path: Path, marked: bool) -> int:
    """A file of float8 with a real header and no numbers. Returns: its bytes.

    marked: whether it says that it is a 2511.
    """
    qwen_keys = importlib.import_module("realtoon.weights_loader.qwen_keys")
    config = importlib.import_module("realtoon.weights_loader.qwen_parts").DiTConfig()
    header: dict[str, object] = {}
    if marked:
        header[_MARKER] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    offset = 0
    for name, shape in qwen_keys.dit_shapes(config).items():
        end = offset + math.prod(shape)
        header[name] = {"dtype": "F8_E4M3", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    return offset


def main(argv: list[str]) -> int:
    """Measure and write one line."""
    comfy, base, modulation = Path(argv[0]), Path(argv[1]), argv[2]
    sys.path.insert(0, str(comfy))
    os.chdir(comfy)
    sys.argv = ["main.py", "--cpu", "--base-directory", str(base)]
    importlib.import_module("comfy.options").enable_args_parsing()
    _pack.load()
    torch = importlib.import_module("torch")
    qwen = importlib.import_module("realtoon.nodes._qwen")
    qwen_image = importlib.import_module("realtoon.weights_loader.qwen_image")
    path = base / "holes.safetensors"
    write_holes(path, qwen.knows_2511())
    watched = PeakMemory()
    with torch.inference_mode(), watched.watch():
        started = time.perf_counter()
        patcher = qwen.load_dit(qwen_image.describe_base(path).dit, modulation == "table")
        seconds = time.perf_counter() - started
    result = {
        "seconds": seconds,
        "peak_bytes": watched.peak,
        "private_bytes": _private_bytes(),
        "model_bytes": patcher.model_size(),
        "comfyui": importlib.import_module("comfyui_version").__version__,
    }
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


def _private_bytes() -> int:
    """Memory that no file stands behind; all that is resident where the system does not tell."""
    status = Path("/proc/self/status")
    for line in status.read_text(encoding="ascii").splitlines() if status.exists() else ():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    import psutil

    return psutil.Process().memory_info().rss


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

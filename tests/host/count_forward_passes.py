"""Run GPENRestore inside a ComfyUI's own process and count its networks' forward passes.

    python tests/host/count_forward_passes.py COMFYUI BASE MODELS

BASE is an empty folder for the host; MODELS holds facedetection/mtcnn.safetensors. The last line
of standard output is JSON: what was changed -> network -> forward passes.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent


def main() -> None:
    comfyui, base, models = map(Path, sys.argv[1:])
    for name in ("custom_nodes", "input", "output", "temp", "user", "models/gpen"):
        (base / name).mkdir(parents=True)
    shutil.copytree(models / "facedetection", base / "models" / "facedetection")
    sys.path[:0] = [str(comfyui), str(TESTS), str(TESTS / "unit")]
    os.chdir(comfyui)
    sys.argv = ["main.py", "--cpu", "--base-directory", str(base)]
    importlib.import_module("comfy.options").enable_args_parsing()
    importlib.import_module("conftest")
    sys.stdout.write(json.dumps(count(base)) + "\n")


def count(base: Path) -> dict[str, dict[str, int]]:
    import torch
    from gpen_weights import TINY, parsenet, state
    from skimage import data

    torch.save(state(TINY, 1, kernels=True), base / "models" / "gpen" / "small.pth")
    torch.save(parsenet(), base / "models" / "facedetection" / "ParseNet-latest.pth")
    node = importlib.import_module("realtoon.nodes.gpen_restore").GPENRestore
    host = importlib.import_module("realtoon.nodes._host")
    host.register_folders()
    counts = counters()
    image = torch.from_numpy(data.astronaut()).float()[None] / 255
    settings = {
        "model": "small.pth",
        "strength": 1.0,
        "skin_smooth": 1.0,
        "max_faces": 0,
        "face_order": "largest",
        "min_face_px": 40,
        "mode": "faces",
        "tile_px": 512,
        "tile_overlap_px": 64,
        "precision": "fp32",
    }
    changes = {
        "first": {},
        "strength": {"strength": 0.4},
        "skin_smooth": {"skin_smooth": 0.1},
        "mask": {"mask": torch.rand(1, 512, 512)},
        "max_faces": {"max_faces": 1},
    }
    found = {}
    with torch.inference_mode():
        for name, change in changes.items():
            found[name] = run(node, {**settings, **change}, image, counts)
        importlib.import_module("comfy.model_management").unload_all_models()
        name = "after the model was unloaded"
        found[name] = run(node, settings, image, counts)
    return found


def counters() -> dict[str, int]:
    """Count from now on each call of a network's forward."""
    counts: dict[str, int] = {}
    places = {
        "GPEN": ("engine.gpen", "GPEN"),
        "ParseNet": ("engine.faces.parse", "ParseNet"),
        "MTCNN": ("engine.faces.mtcnn", "OutputNet"),
    }
    for name, (module, network) in places.items():
        cls = getattr(importlib.import_module(f"realtoon.{module}"), network)
        counts[name] = 0
        cls.forward = counted(cls.forward, counts, name)
    return counts


def counted(forward, counts: dict[str, int], name: str):
    def call(*args, **kwargs):
        counts[name] += 1
        return forward(*args, **kwargs)

    return call


def run(node, settings: dict, image, counts: dict[str, int]) -> dict[str, int]:
    before = dict(counts)
    node.execute(image.clone(), **settings)
    return {name: counts[name] - before[name] for name in counts}


if __name__ == "__main__":
    main()

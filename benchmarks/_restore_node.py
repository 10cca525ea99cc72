"""GPENRestore itself, in a process of its own, on a ComfyUI that runs on the processor.

Argument: JSON with comfy (ComfyUI's folder), detector (weights of the face detector), size (of the
generator), threads, task ("photo" or "large") and what the task reads. The last line on stdout is
JSON.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import _pack  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from _measure import Clock, PeakMemory  # noqa: E402
from _pictures import photo  # noqa: E402
from torch import Tensor  # noqa: E402

MODEL = "seeded.safetensors"
DEFAULTS = {
    "model": MODEL,
    "strength": 1.0,
    "skin_smooth": 1.0,
    "max_faces": 0,
    "face_order": "largest",
    "min_face_px": 20,
    "mode": "faces",
    "tile_px": 512,
    "tile_overlap_px": 64,
    "precision": "fp32",
    "mask": None,
}


class Node:
    """The node with seeded weights; counts the faces that reach the network, times detection."""

    def __init__(self, settings: dict[str, Any], models: Path) -> None:
        sys.path.insert(0, settings["comfy"])
        from comfy.cli_args import args

        args.cpu = True
        _pack.load()
        import folder_paths
        import gpen_published
        import gpen_weights
        from realtoon.engine.gpen import GPEN
        from realtoon.nodes import _faces, _host, gpen_restore
        from realtoon.weights_loader import gpen as loader

        _host.register_folders()
        for name in (_host.GPEN_FOLDER, _host.FACES_FOLDER, _host.RESTORERS_FOLDER):
            (models / name).mkdir()
            _, endings = folder_paths.folder_names_and_paths[name]
            folder_paths.folder_names_and_paths[name] = ([str(models / name)], endings)
        detector = Path(settings["detector"])
        copy = shutil.copytree if detector.is_dir() else shutil.copy
        copy(detector, models / _host.FACES_FOLDER / detector.name)
        config = gpen_weights.published(settings["size"], *gpen_published.WIDTHS[settings["size"]])
        state = gpen_weights.state(config)
        loader.write(models / _host.GPEN_FOLDER / MODEL, config, state)
        self._execute = gpen_restore.GPENRestore.execute
        self.clock = Clock()
        self.faces = 0
        _faces.detect_all = self.clock.around("detection", _faces.detect_all)
        GPEN.forward = self._counted(GPEN.forward)

    def _counted(self, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def counted(net: object, faces: Tensor, *rest: object) -> Tensor:
            self.faces += len(faces)
            return forward(net, faces, *rest)

        return counted

    def run(self, image_bhwc: Tensor, **inputs: object) -> tuple[Any, ...]:
        """image, faces, face_mask, report."""
        with torch.inference_mode(), redirect_stdout(sys.stderr):
            return self._execute(image_bhwc, **(DEFAULTS | inputs)).result


def photo_task(node: Node, settings: dict[str, Any]) -> dict[str, Any]:
    """All faces of a photo, or only some; then what sliders run anew and leave as it is."""
    from PIL import Image

    with Image.open(settings["photo"]) as opened:
        pixels = np.asarray(opened.convert("RGB")).astype(np.float32) / 255
    image = torch.from_numpy(pixels)[None]
    # What libraries set up once is not the picture's.
    node.run(photo(256, 256).movedim(1, -1), strength=0.0)
    watched, started = PeakMemory(), time.perf_counter()
    with watched.watch():
        drawn, squares, shown, report = node.run(image, max_faces=settings["max_faces"])
    result = {
        "seconds": time.perf_counter() - started,
        "growth_bytes": watched.growth,
        "restored": node.faces,
        "squares": len(squares),
        "report": report,
        "changed": bool((drawn != image).any()),
        "outside_equal": bool(torch.equal(drawn[shown == 0], image[shown == 0])),
        "outside_share": float((shown == 0).float().mean()),
    }
    before = node.faces
    half = torch.zeros(1, *image.shape[1:3])
    half[:, :, : image.shape[2] // 2] = 1.0
    changes = {"strength": 0.5, "skin_smooth": 0.3, "mask": half}
    differ = []
    for name, value in changes.items():
        other = node.run(image, max_faces=settings["max_faces"], **{name: value})[0]
        differ.append(bool((other != drawn).any()))
    result["slider_passes"] = node.faces - before
    result["sliders_work"] = all(differ)
    off = node.run(image, max_faces=settings["max_faces"], strength=0.0)[0]
    result["off_equal"] = bool(torch.equal(off, image))
    return result


def large_task(node: Node, settings: dict[str, Any]) -> dict[str, Any]:
    """The same face in a small and in a large picture; seconds without detection."""
    small = photo(1024, 1024).movedim(1, -1).contiguous()
    height, width = settings["hw"]
    ramp = torch.linspace(0.2, 0.6, width)[None, None, :, None]
    large = ramp.expand(1, height, width, 3).contiguous()
    top, left = (height - 1024) // 2, (width - 1024) // 2
    large[:, top : top + 1024, left : left + 1024] = small
    seconds: dict[str, list[float]] = {"small": [], "large": []}
    restored = []
    node.run(small)
    for turn in range(settings["rounds"]):
        for name, image in (("small", small), ("large", large)):
            image[0, 0, turn] = turn / 100  # another picture, of which nothing is kept
            before, detection = node.faces, node.clock.seconds["detection"]
            started = time.perf_counter()
            node.run(image)
            taken = time.perf_counter() - started
            seconds[name].append(taken - (node.clock.seconds["detection"] - detection))
            restored.append(node.faces - before)
    return {"seconds": seconds, "restored": restored}


def main(argv: list[str]) -> int:
    """Measure and write one line."""
    settings = json.loads(argv[0])
    torch.set_num_threads(settings["threads"])
    with tempfile.TemporaryDirectory() as folder:
        with redirect_stdout(sys.stderr):
            node = Node(settings, Path(folder))
        task = {"photo": photo_task, "large": large_task}[settings["task"]]
        result = task(node, settings)
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

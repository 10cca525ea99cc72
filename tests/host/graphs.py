"""Small workflows and pictures for the tests that run in a real ComfyUI."""

from __future__ import annotations

import asyncio
import io
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from comfy_hosts import ROOT, Comfy
from PIL import Image
from realtoon.host import qwen_weights
from realtoon.host.client import JobResult
from realtoon.host.errors import UserError
from realtoon.host.sources import Host
from realtoon.weights_loader import catalog, qwen_image, qwen_tiny, safetensors_file
from realtoon.weights_loader import dctnet as styles

# What writes styles without the loader under test.
for room in ("parity", "unit"):
    if str(ROOT / "tests" / room) not in sys.path:
        sys.path.append(str(ROOT / "tests" / room))

import gpen_weights  # noqa: E402
from tensorflow_graph import frozen_graph, random_tensors  # noqa: E402
from weights_files import port  # noqa: E402

Link = list[Any]
BUILT_IN = "cel (built-in)"
QWEN_PARTS = [entry for entry in catalog.ENTRIES if entry.id in catalog.SETS["realistic"]]
slow = bool(os.environ.get("REALTOON_SLOW"))


class Graph(dict):
    """An API workflow: ``add`` puts a node in and returns its id."""

    def add(self, class_type: str, **inputs: Any) -> str:
        node_id = str(len(self) + 1)
        self[node_id] = {"class_type": class_type, "inputs": inputs}
        return node_id

    def load(self, name: str) -> Link:
        return [self.add("LoadImage", image=name), 0]

    def cartoon(self, image: Link, style: str, **inputs: Any) -> str:
        values: dict[str, Any] = {
            "style_strength": 1.0,
            "line_crispness": 1.0,
            "face_pass": False,
            "max_faces": 10,
            "min_face_px": 40,
            "chunk": 0,
        }
        return self.add("DCTNetCartoon", image=image, style=style, **{**values, **inputs})

    def restore(self, image: Link, model: str, **inputs: Any) -> str:
        values: dict[str, Any] = {
            "strength": 1.0,
            "skin_smooth": 1.0,
            "max_faces": 0,
            "face_order": "largest",
            "min_face_px": 20,
            "mode": "faces",
            "tile_px": 256,
            "tile_overlap_px": 64,
            "precision": "fp32",
        }
        return self.add("GPENRestore", image=image, model=model, **{**values, **inputs})

    def save(self, image: Link) -> str:
        return self.add("SaveImage", images=image, filename_prefix="test")

    def save_mask(self, mask: Link) -> str:
        return self.save([self.add("MaskToImage", mask=mask), 0])


def one(name: str, style: str, **inputs: Any) -> Graph:
    """LoadImage, DCTNetCartoon, SaveImage."""
    graph = Graph()
    graph.save([graph.cartoon(graph.load(name), style, **inputs), 0])
    return graph


def empty(width: int, height: int, style: str, **inputs: Any) -> Graph:
    """As ``one`` with a picture that the host makes, so that large ones need no upload."""
    graph = Graph()
    picture = graph.add("EmptyImage", width=width, height=height, batch_size=1, color=0x6688AA)
    graph.save([graph.cartoon([picture, 0], style, **inputs), 0])
    return graph


def saved(comfy: Comfy, result: JobResult) -> dict[str, list[Image.Image]]:
    """What each SaveImage wrote."""
    found: dict[str, list[Image.Image]] = {}
    for file, picture in zip(result.files, comfy.pictures(result), strict=True):
        found.setdefault(file.node_id, []).append(picture)
    return found


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """RGB with soft areas and edges, a different one for each seed."""
    draw = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 256, (9, 9, 3), generator=draw, dtype=torch.uint8).numpy()
    return Image.fromarray(small, "RGB").resize((width, height), Image.Resampling.BICUBIC)


def png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def style_folder(comfy: Comfy) -> Path:
    """The running host's own models/dctnet."""
    folder = comfy.server.base / "models" / "dctnet"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def put_style(comfy: Comfy, name: str, seed: int = 0, form: str = "safetensors") -> str:
    """Write a style of random weights into the running host; returns its name.

    form: safetensors or pb (the official network), or pth (the PyTorch port's checkpoint).
    """
    folder, tensors = style_folder(comfy), random_tensors(seed)
    if form == "safetensors":
        styles.write(folder / f"{name}.safetensors", styles.DCTNetConfig(), tensors)
    elif form == "pb":
        (folder / f"{name}.pb").write_bytes(frozen_graph(tensors))
    else:
        torch.save({"netG": port(tensors)}, folder / f"{name}.pth")
    return name


def put_gpen(comfy: Comfy, name: str, seed: int = 0, folder: str = "gpen") -> str:
    """Write a small generator of random weights into the running host; returns its name."""
    models = comfy.server.base / "models" / folder
    models.mkdir(parents=True, exist_ok=True)
    torch.save(gpen_weights.state(gpen_weights.TINY, seed, kernels=True), models / name)
    return name


def put_qwen(comfy: Comfy) -> None:
    """Write a small Qwen-Image-Edit that this host can run, repacked as ComfyUI's files are, and a
    LoRA for it, into the running host under the names that the workflows have."""
    write_qwen(comfy.server.base / "models", comfy.server.host)


def write_qwen(models: Path, host: Host) -> None:
    """The same for a folder of models and a host that is yet to start."""
    names = {entry.kind: models / entry.folder / entry.files[0].save_as for entry in QWEN_PARTS}
    edition = "2511" if qwen_weights.runs_2511(host) else "2509"
    with tempfile.TemporaryDirectory() as folder:
        base = qwen_image.describe_base(qwen_tiny.write(Path(folder), edition))
        for kind, part in (("diffusion", base.dit), ("text", base.text), ("vae", base.vae)):
            assert part is not None
            safetensors_file.write(names[kind], qwen_image.state(part), {})
    entry = catalog.find("lightning-4")
    qwen_tiny.write_lora(models / entry.folder / entry.files[0].save_as)


def detector(comfy: Comfy) -> bool:
    """Whether the running host has the face detector."""
    folders = [comfy.server.base / "models", *comfy.server._models]
    return any((folder / "facedetection" / "mtcnn.safetensors").is_file() for folder in folders)


def free(comfy: Comfy) -> None:
    status, _ = post(comfy, "/free", {"unload_models": True, "free_memory": True})
    assert status == 200
    # The worker takes the wish before its next job.
    time.sleep(1.0)


def outcome(comfy: Comfy, prompt_id: str, limit_s: float = 180.0) -> JobResult | UserError:
    """Wait for a job that was queued with ``submit``; its failure is returned, not raised."""

    async def wait(client):
        ends = time.monotonic() + limit_s
        while time.monotonic() < ends:
            if await client._history(prompt_id) is not None:
                try:
                    return await client.result(prompt_id)
                except UserError as error:
                    return error
            await asyncio.sleep(0.05)
        raise TimeoutError(f"the job did not end within {limit_s} s")

    return comfy.do(wait)


def get(comfy: Comfy, path: str) -> tuple[int, bytes]:
    """GET from the running host: (status, body)."""
    return comfy.do(lambda client: client._call("GET", path))


def post(comfy: Comfy, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
    return comfy.do(lambda client: client._call("POST", path, json=body))


def log(comfy: Comfy) -> str:
    return comfy.server.log.read_text("utf-8", errors="replace")

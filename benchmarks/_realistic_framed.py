"""Pictures through the realistic pipeline without denoising, in a process of its own, on a ComfyUI
that runs on the processor: what comes out, and where it lies.

Argument: JSON with comfy (ComfyUI's folder), threads, task ("framing" or "inputs") and, for
framing, sizes ([width, height] each). The last line on stdout is JSON: one entry a picture.
"""

from __future__ import annotations

import json
import struct
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import _pack  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor  # noqa: E402

TOKEN_PX = 16
BLOCK_PX = 8
"""What the VAE keeps one number for; finer than this there is nothing to compare."""
MAX_SIDE = 640
WORKFLOW_SIDE = 1024
CHOICES = {
    "prompt": "as it is",
    "negative": " ",
    "start": "picture",
    "reference_method": "auto",
    "vision_px": 112,
}
MOVES = range(-4, 5)


class Pipeline:
    """PrepareImage, EncodeForEdit, the host's sampler at denoise 0, its decoder, RestoreFraming."""

    def __init__(self, comfy: str) -> None:
        sys.path.insert(0, comfy)
        from comfy.cli_args import args

        args.cpu = True
        _pack.load()
        sys.path.append(str(_pack.ROOT / "tests/host"))
        import _blurring_vae
        import comfy.sd
        import encode_cases
        from comfy_extras.nodes_qwen import TextEncodeQwenImageEditPlus
        from realtoon.nodes.encode_for_edit import EncodeForEdit
        from realtoon.nodes.prepare_image import PrepareImage
        from realtoon.nodes.restore_framing import RestoreFraming
        from realtoon.weights_loader.qwen_keys import vae_name

        import nodes as host

        weights = _blurring_vae.tensors()
        self.vae = comfy.sd.VAE(sd={vae_name(name): each for name, each in weights.items()})
        self.vae.throw_exception_if_invalid()
        self.clip, self.model, self.host = encode_cases.clip(), encode_cases.dit(), host
        self.ours = SimpleNamespace(
            prepare=PrepareImage.execute,
            encode=EncodeForEdit.execute,
            restore=RestoreFraming.execute,
        )
        self.peer = TextEncodeQwenImageEditPlus.execute

    def run(self, image: Tensor, mask: Tensor | None = None) -> dict[str, Any]:
        """The picture as it was prepared, what came back, and the sizes on the way."""
        choices = {"max_side": MAX_SIDE, "background": "white", "mask": mask}
        # Without the padding: what has to come back, found without the framing under test.
        [alone, *_] = self.ours.prepare(image, multiple_of=1, **choices).args
        [prepared, _, framing] = self.ours.prepare(image, multiple_of=16, **choices).args
        positive, negative, latent, _ = self.ours.encode(
            clip=self.clip, vae=self.vae, image=prepared, **CHOICES
        ).args
        [sampled] = self.host.common_ksampler(
            self.model, 1, 4, 1.0, "euler", "simple", positive, negative, latent, denoise=0.0
        )
        [decoded] = self.host.VAEDecode().decode(self.vae, sampled)
        [restored, _] = self.ours.restore(decoded, framing, "prepared").args
        return {
            "alone": alone[0],
            "restored": restored[0],
            "size equal": restored.shape == alone.shape,
        }

    def references(self, image: Tensor) -> dict[str, float]:
        """How far the reference lies off at the workflows' size, ours and the host's own node's."""
        [prepared, *_] = self.ours.prepare(image, WORKFLOW_SIDE, 16, "white").args
        ours = self.ours.encode(clip=self.clip, vae=self.vae, image=prepared, **CHOICES).args[0]
        peer = self.peer(clip=_Silent(), prompt="", vae=_Ruler(), image1=prepared).args[0]
        result_hw = tuple(prepared.shape[1:3])
        held = (each[0][1]["reference_latents"][0] for each in (ours, peer))
        off, peer_off = (off_px(result_hw, _picture_hw(each)) for each in held)
        return {"off": off, "peer off": peer_off}


class _Silent:
    """A text encoder that nobody listens to."""

    def tokenize(self, *_: object, **__: object) -> dict[str, Any]:
        return {}

    def encode_from_tokens_scheduled(self, _: object) -> list[list[Any]]:
        return [[torch.zeros(1, 1, 1), {}]]


class _Ruler:
    """A VAE that only measures."""

    latent_channels, latent_dim = 16, 3

    def encode(self, image: Tensor) -> Tensor:
        height, width = image.shape[1:3]
        return torch.zeros(1, 16, 1, height // BLOCK_PX, width // BLOCK_PX)


def _picture_hw(latent: Tensor) -> tuple[int, int]:
    height, width = latent.shape[-2:]
    return height * BLOCK_PX, width * BLOCK_PX


def off_px(result_hw: tuple[int, int], reference_hw: tuple[int, int]) -> float:
    """How far an edge of the reference lies from that of the result, in the model's own grid.

    The model numbers tokens from the middle, of the reference as of the result (process_img in
    ComfyUI's ldm/qwen_image/model.py), so a reference of another size is shown zoomed.
    """
    far = 0.0
    for result, reference in zip(result_hw, reference_hw, strict=True):
        begins = [-(-(-side // TOKEN_PX) // 2) * TOKEN_PX for side in (result, reference)]
        ends = [begins[0] + result, begins[1] + reference]
        far = max(far, abs(begins[0] - begins[1]), abs(ends[0] - ends[1]))
    return far


def shift_px(expected: Tensor, got: Tensor) -> list[float]:
    """(down, right) in pixels by phase correlation: the mean over channels, a photo each.

    Both are brought to the VAE's grid first: what is finer was not kept, and would be noise to a
    method that gives every frequency one vote. A window keeps the frame, which cannot move, out.
    """
    from skimage.registration import phase_cross_correlation

    found = []
    for one, other in zip(expected.unbind(-1), got.unbind(-1), strict=True):
        small = [_windowed(each.numpy()) for each in (one, other)]
        shift, *_ = phase_cross_correlation(small[0], small[1], upsample_factor=200)
        scale = np.array(one.shape) / np.array(small[0].shape)
        found.append(-shift * scale)
    return np.mean(found, axis=0).tolist()


def _windowed(picture: np.ndarray) -> np.ndarray:
    height, width = (max(1, round(side / BLOCK_PX)) for side in picture.shape)
    small = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))
    return (small - small.mean()) * np.outer(np.hanning(height), np.hanning(width))


def best_move(expected: Tensor, got: Tensor) -> list[int]:
    """The (down, right) of MOVES by which the result has to go back to be most like the picture."""
    reach = MOVES[-1]
    inner = expected[reach:-reach, reach:-reach]
    height, width = inner.shape[:2]

    def apart(move: tuple[int, int]) -> float:
        top, left = (reach + each for each in move)
        return float((got[top : top + height, left : left + width] - inner).square().mean())

    return list(min(((y, x) for y in MOVES for x in MOVES), key=apart))


def _cropped(photo: np.ndarray, width: int, height: int) -> Image.Image:
    """The middle of a photo in the asked proportions, scaled to the asked size, grey."""
    scale = min(photo.shape[1] / width, photo.shape[0] / height)
    part_w, part_h = int(width * scale), int(height * scale)
    top, left = (photo.shape[0] - part_h) // 2, (photo.shape[1] - part_w) // 2
    part = Image.fromarray(photo[top : top + part_h, left : left + part_w]).convert("L")
    return part.resize((width, height), Image.Resampling.LANCZOS)


def three_photos(width: int, height: int) -> Tensor:
    """(1,H,W,3): another photo in each channel, so that one picture measures three times."""
    from skimage import data

    photos = (data.astronaut(), data.coffee(), data.chelsea())
    planes = [np.asarray(_cropped(each, width, height)) for each in photos]
    return torch.from_numpy(np.stack(planes, axis=-1).astype(np.float32) / 255)[None]


def framing_task(pipeline: Pipeline, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each size: the shift, and what a picture that was moved by a pixel would have read."""
    for width, height in settings["sizes"]:
        image = three_photos(width, height)
        done = pipeline.run(image)
        expected, got = done.pop("alone"), done.pop("restored")
        yield {
            "size": [width, height],
            "shift": shift_px(expected, got) if done["size equal"] else [float("inf")] * 2,
            "moved": shift_px(expected, got.roll((1, -1), (0, 1))) if done["size equal"] else [],
            **pipeline.references(image),
            **done,
        }


def files(folder: Path) -> dict[str, Path]:
    """The kinds of file that people bring, their pictures soft enough for the VAE to keep."""
    from skimage import data

    colour = Image.fromarray(data.astronaut())
    made: dict[str, Image.Image | bytes] = {
        "grey": _soft(colour, 333, 251).convert("L"),
        "palette": _soft(colour, 301, 287).quantize(64),
        "RGBA": _transparent(_soft(colour, 345, 211)),
        "16 bit RGB": _deep_png(_soft(colour, 401, 273)),
        "16 bit grey": _deep_grey(_soft(colour, 263, 401)),
        "64×64": _soft(colour, 64, 64),
        "6000×200": _soft(colour, 6000, 200),
    }
    found = {}
    for index, (name, picture) in enumerate(made.items()):
        found[name] = folder / f"{index}.png"
        if isinstance(picture, bytes):
            found[name].write_bytes(picture)
        else:
            picture.save(found[name])
    return found


def _soft(photo: Image.Image, width: int, height: int) -> Image.Image:
    scale = min(1.0, MAX_SIDE / max(width, height)) / 32
    few = (max(3, round(width * scale)), max(3, round(height * scale)))
    small = photo.resize(few, Image.Resampling.LANCZOS)
    return small.resize((width, height), Image.Resampling.BICUBIC)


def _transparent(picture: Image.Image) -> Image.Image:
    clear = picture.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(picture.size))
    return clear


def _deep_grey(picture: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)


def _deep_png(picture: Image.Image) -> bytes:
    """A PNG of 16 bits a colour, which Pillow does not write."""
    numbers = np.asarray(picture).astype(">u2") * 257
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in numbers)
    head = struct.pack(">IIBBBBB", *picture.size, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def inputs_task(pipeline: Pipeline, _: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each kind of file through LoadImage."""
    import folder_paths

    with tempfile.TemporaryDirectory() as folder:
        folder_paths.set_input_directory(folder)
        for name, path in files(Path(folder)).items():
            image, mask = pipeline.host.LoadImage().load_image(path.name)[:2]
            done = pipeline.run(image, mask)
            expected, got = done.pop("alone"), done.pop("restored")
            yield {
                "name": name,
                "source": list(image.shape[1:3]),
                "result": list(got.shape[:2]),
                # Some ComfyUI cut 16 bits of grey off at white.
                "lost": bool((image >= 1).float().mean() > 0.9),
                "finite": bool(got.isfinite().all()),
                "move": best_move(expected, got) if done["size equal"] else [],
                "apart": float((expected - got).abs().mean()) if done["size equal"] else 1.0,
                **done,
            }


def main(argv: list[str]) -> int:
    """Measure and write one line."""
    settings = json.loads(argv[0])
    torch.set_num_threads(settings["threads"])
    task = {"framing": framing_task, "inputs": inputs_task}[settings["task"]]
    with redirect_stdout(sys.stderr), torch.inference_mode():
        found = list(task(Pipeline(settings["comfy"]), settings))
    sys.stdout.write(json.dumps({"pictures": found}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

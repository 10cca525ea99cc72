"""Tiny weights through our nodes and through diffusers, in one process with ComfyUI in it.

Argument: JSON with comfy (ComfyUI's folder) and threads. The last line on stdout is JSON. CFG is 1:
with more, diffusers and ComfyUI's CFGNorm scale the guided prediction back in ways of their own.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import _pack  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

SIDE = 448
"""A multiple of 32, which diffusers rounds to, and of 28, which the vision part sees: so no one
scales the picture."""
SIGMAS = (1.0, 0.8, 0.5, 0.2)
PROMPT = "transform the image to realistic photograph, high quality, 4k, natural skin texture"
SEED = 5
FOLDER = "twin"


def main() -> None:
    settings = json.loads(sys.argv[1])
    comfy = Path(settings["comfy"])
    torch.set_num_threads(settings["threads"])
    with tempfile.TemporaryDirectory() as base, redirect_stdout(sys.stderr):
        start(comfy, Path(base))
        qwen = importlib.import_module("realtoon.nodes._qwen")
        edition = "2511" if qwen.knows_2511() else "2509"
        official = write(Path(base), edition)
        picture = photo()
        noise = torch.randn(
            (1, 16, 1, SIDE // 8, SIDE // 8), generator=torch.Generator().manual_seed(SEED)
        )
        with torch.inference_mode():
            peers = theirs(official, comfy, picture, noise)
            found = {what: apart(tensor, peers[what]) for what, tensor in ours(picture, noise)}
    version = importlib.import_module("diffusers").__version__
    sys.stdout.write(
        json.dumps({"edition": edition, "diffusers": version, "differences": found}) + "\n"
    )


def start(comfy: Path, base: Path) -> None:
    """ComfyUI's modules in this process, on the processor, with its folders in ``base``."""
    _pack.load()
    sys.path.insert(0, str(comfy))
    os.chdir(comfy)
    sys.argv = ["main.py", "--cpu", "--base-directory", str(base)]
    importlib.import_module("comfy.options").enable_args_parsing()
    importlib.import_module("realtoon.nodes._host").register_folders()


def write(base: Path, edition: str) -> Path:
    """The official folder, in fp32; transformers takes a head for a part of the hidden size."""
    tiny = importlib.import_module("realtoon.weights_loader.qwen_tiny")
    hidden = tiny.TEXT_HEADS * 128
    sizes = replace(tiny.TINY, joint=hidden, vocabulary=tiny.VOCABULARY)
    folder = base / "models/diffusers" / FOLDER
    return tiny.write(folder, edition, sizes=sizes, dtype=torch.float32)


def photo() -> Tensor:
    """(1, SIDE, SIDE, 3) of whole 8-bit values in [0, 1]."""
    from _pictures import photo as cut

    return (cut(SIDE, SIDE).movedim(1, -1) * 255).round() / 255


def theirs(official: Path, comfy: Path, picture: Tensor, noise: Tensor) -> dict[str, Tensor]:
    """What diffusers' pipeline says of the text, its latents, and its picture."""
    import transformers
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImageEditPlusPipeline,
        QwenImageTransformer2DModel,
    )
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as module
    from PIL import Image

    # ComfyUI brings the official tokenizer's files.
    words = comfy / "comfy/text_encoders/qwen25_tokenizer"
    tokenizer = transformers.Qwen2Tokenizer.from_pretrained(words)
    processor = transformers.Qwen2VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(),
        tokenizer=tokenizer,
        video_processor=transformers.Qwen2VLVideoProcessor(),
    )
    text = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        official / "text_encoder", dtype=torch.float32
    )
    text.forward = with_token_types(text.forward, text.config.image_token_id)
    dit = QwenImageTransformer2DModel.from_pretrained(official / "transformer")
    vae = AutoencoderKLQwenImage.from_pretrained(official / "vae")
    # Given sigmas are taken as they are.
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=False, shift=1.0)
    pipe = QwenImageEditPlusPipeline(
        scheduler=scheduler,
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        processor=processor,
        transformer=dit,
    )
    module.CONDITION_IMAGE_SIZE = module.VAE_IMAGE_SIZE = SIDE * SIDE
    kept: dict[str, Tensor] = {}

    def keep(_pipe: object, _step: int, _time: object, given: dict[str, Tensor]) -> dict[str, Any]:
        kept.update(given)
        return {}

    picture_hwc = (picture[0] * 255).round().to(torch.uint8).numpy()
    side = SIDE // 8
    image = pipe(
        image=Image.fromarray(picture_hwc),
        prompt=PROMPT,
        height=SIDE,
        width=SIDE,
        num_inference_steps=len(SIGMAS),
        sigmas=list(SIGMAS),
        true_cfg_scale=1.0,
        latents=pipe._pack_latents(noise[:, :, 0], 1, 16, side, side),
        output_type="pt",
        callback_on_step_end=keep,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
    ).images
    return {
        "conditioning": kept["prompt_embeds"],
        "latents": pipe._unpack_latents(kept["latents"], SIDE, SIDE, 8),
        "picture": image.movedim(1, -1),
    }


def with_token_types(forward: Callable[..., Any], picture_token: int) -> Callable[..., Any]:
    """The text encoder, told which tokens are a picture's.

    transformers 4 saw that for itself; 5 wants it said, and diffusers 0.42 does not: without, a
    picture's tokens get the positions of a line of text.
    """
    if "mm_token_type_ids" not in inspect.signature(forward).parameters:
        return forward

    def told(*, input_ids: Tensor, **inputs: object) -> object:
        types = (input_ids == picture_token).int()
        return forward(input_ids=input_ids, mm_token_type_ids=types, **inputs)

    return told


def ours(picture: Tensor, noise: Tensor) -> list[tuple[str, Tensor]]:
    """The same through QwenEditLoader, EncodeForEdit, the host's sampler and the VAE."""
    import comfy.sample
    import comfy.samplers

    def node(module: str, name: str, **inputs: object) -> tuple[Any, ...]:
        made = getattr(importlib.import_module(f"realtoon.nodes.{module}"), name)
        return made.execute(**inputs).args

    model, clip, vae, _ = node(
        "qwen_edit_loader",
        "QwenEditLoader",
        base=f"{FOLDER}/",
        text_encoder="from the folder",
        vae="from the folder",
        weight_dtype="as stored",
        modulation="table",
        attention="auto",
        offload="auto",
    )
    positive, negative, latent, _ = node(
        "encode_for_edit",
        "EncodeForEdit",
        clip=clip,
        vae=vae,
        image=picture,
        prompt=PROMPT,
        negative=" ",
        start="noise",
        reference_method="auto",
        vision_px=SIDE,
    )
    sampled = comfy.sample.sample_custom(
        model,
        noise,
        1.0,
        comfy.samplers.sampler_object("euler"),
        torch.tensor([*SIGMAS, 0.0]),
        positive,
        negative,
        latent["samples"],
        disable_pbar=True,
        seed=SEED,
    )
    decoded = vae.decode(sampled)
    return [
        ("conditioning", positive[0][0]),
        ("latents", model.model.process_latent_in(sampled)),
        ("picture", decoded.reshape(1, SIDE, SIDE, 3)),
    ]


def apart(one: Tensor, other: Tensor) -> float:
    """The difference's norm as a share of the other's."""
    if one.shape != other.shape:
        raise ValueError(f"{tuple(one.shape)} against {tuple(other.shape)}")
    one, other = one.double(), other.double()
    return ((one - other).norm() / other.norm()).item()


if __name__ == "__main__":
    main()

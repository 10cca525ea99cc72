"""What EncodeForEdit asks of ComfyUI's text encoder and VAE. Holds on ComfyUI 0.3.75 and 0.33."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..engine.edit_reference import TEMPLATE
from . import _qwen, _streaming
from ._tensors import InputError

AUTO = "auto"
LATENT_CHANNELS = 16
LATENT_DIMS = 3

_TEXT = "qwen25_7b"
"""What ComfyUI calls the tokens of Qwen2.5-VL 7B."""

Conditioning = list[list[Any]]
"""ComfyUI's: [[(B,tokens,width) tensor, what else the model is told]]."""


def methods() -> list[str]:
    """Ways to tell the model which tokens are references, as this host's model knows them.

    An older host takes a name that it does not know for "offset" and says nothing.
    """
    newest = ["index_timestep_zero"] if _qwen.knows_2511() else []
    return [AUTO, *newest, "index", "offset"]


def check_vae(vae: Any) -> None:  # noqa: ANN401
    """Raises: InputError where it is not of Qwen-Image's kind."""
    found = getattr(vae, "latent_channels", None), getattr(vae, "latent_dim", None)
    if found != (LATENT_CHANNELS, LATENT_DIMS):
        expected = f"Qwen-Image's VAE ({LATENT_CHANNELS} channels, {LATENT_DIMS} dimensions)"
        got = "none" if vae is None else f"one of {found[0]} channels, {found[1]} dimensions"
        raise InputError("vae", expected, got, "join Qwen Edit Loader's vae here")


def encode_picture(vae: Any, image_bhwc: Tensor, step: Callable[[float], None]) -> Tensor:  # noqa: ANN401
    """The latents of pictures, in fp32 and strips; a batch is not the frames of a film.

    image_bhwc: (B,H,W,3) in [0,1], sides multiples of 16. step: told of parts that add up to 1.
    Returns: (B,16,1,H/8,W/8) on the host's device for latents.
    """
    count = len(image_bhwc)
    return _streaming.encode(vae, image_bhwc, "fp32", 0, lambda part: step(part / count))[0]


def tokenize(clip: Any, prompt: str, copies: Sequence[Tensor]) -> dict[str, Any]:  # noqa: ANN401
    """The tokens of a prompt about pictures, in the words that the model was trained with.

    copies: (1,H,W,3) each, in the order in which the prompt may call them Picture 1, 2, 3.
    Raises: InputError where the text encoder is another one.
    """
    pictures = "".join(
        f"Picture {index + 1}: <|vision_start|><|image_pad|><|vision_end|>"
        for index in range(len(copies))
    )
    tokens = {}
    if clip is not None:
        tokens = clip.tokenize(pictures + prompt, images=list(copies), llama_template=TEMPLATE)
    if set(tokens) != {_TEXT}:
        expected = "the text encoder Qwen2.5-VL 7B, loaded as qwen_image"
        got = f"one for {', '.join(tokens)}" if tokens else "none"
        raise InputError("clip", expected, got, "join Qwen Edit Loader's clip here")
    return tokens


def encode_text(clip: Any, tokens: Sequence[dict[str, Any]]) -> Conditioning:  # noqa: ANN401
    """The conditioning of one prompt about a batch of pictures: one row for each of ``tokens``.

    All must be of one length, as they are for pictures of one size.
    """
    made = [clip.encode_from_tokens_scheduled(each) for each in tokens]
    return [_joined(entries) for entries in zip(*made, strict=True)]


def _joined(entries: Iterable[list[Any]]) -> list[Any]:
    texts, extras = zip(*entries, strict=True)
    extra = dict(extras[0])
    for name, value in extra.items():
        if isinstance(value, Tensor):
            extra[name] = torch.cat([each[name] for each in extras])
    return [torch.cat(texts), extra]


def with_references(
    conditioning: Conditioning, latents: Sequence[Tensor], method: str
) -> Conditioning:
    """A conditioning that shows the model pictures.

    latents: (B or 1,16,1,h,w) each, as the VAE gives them.
    method: one of methods(). "auto" says nothing, so that each model falls back on its own: that is
        2511's where its weights carry the mark, which Qwen Edit Loader sets from the config.
    Raises: InputError where this host does not know the method.
    """
    if method not in methods():
        expected = f"one of {', '.join(methods())}"
        raise InputError(
            "reference_method", expected, repr(method), "choose one, or update ComfyUI"
        )
    told: dict[str, Any] = {"reference_latents": list(latents)}
    if method != AUTO:
        told["reference_latents_method"] = method
    return [[text, {**extra, **told}] for text, extra in conditioning]

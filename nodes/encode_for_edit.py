"""EncodeForEdit: what Qwen-Image-Edit is told and shown, without drift."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..engine.edit_reference import (
    REFERENCE_MULTIPLE,
    VISION_PX,
    is_aligned,
    plan_reference,
    reference_tokens,
    vision_size,
    vision_tokens,
)
from ..engine.image_prep import Framing, describe_framing, frame_rows, framing_between
from . import _conditioning, _host
from ._tensors import InputError, Pictures, clean_bchw, to_bhwc

STARTS = ("noise", "picture")


@dataclass(frozen=True)
class Reference:
    """A picture, or a batch, that the model is shown: as a reference and as a vision copy."""

    name: str
    pictures: Pictures
    framing: Framing
    vision_hw: tuple[int, int]

    def image_bhwc(self) -> Tensor:
        """(B,H,W,3) as the VAE gets it; not a pixel is touched where nothing is to be scaled."""
        if not (self.framing.is_scaled or self.framing.is_cut):
            return to_bhwc(clean_bchw(self.pictures))
        count = range(len(self.pictures))
        return torch.cat([_framed(self.pictures, index, self.framing) for index in count])

    def copies(self) -> list[Tensor]:
        """(1,h,w,3) for each picture, as the text encoder gets it."""
        framing = framing_between(self.pictures.hw, self.vision_hw)
        return [_framed(self.pictures, index, framing) for index in range(len(self.pictures))]

    def told(self, number: int) -> str:
        """What the model is shown of it, in words."""
        shown = describe_framing(self.framing)
        tokens = _counted(reference_tokens(self.framing.padded_hw), "token")
        height, width = self.vision_hw
        return (
            f"Picture {number} ({self.name}): {shown}, {tokens}; vision copy"
            f" {width}×{height}, {_counted(vision_tokens(self.vision_hw), 'token')}"
        )


class EncodeForEdit(io.ComfyNode):
    """Prompt and pictures as conditioning; the reference has the frame of the result, exactly."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _host.schema(
            node_id="EncodeForEdit",
            display_name="Encode For Edit",
            category="RealToon",
            description=(
                "Prompts and pictures for Qwen-Image-Edit (2511, 2509). The picture is encoded at"
                " the size it has, so that the result lies exactly on it: no zoom, no shift. The"
                " text encoder gets a small copy of its own. Both conditionings and the latent come"
                " out ready for the sampler."
            ),
            search_aliases=[
                "qwen",
                "text encode",
                "image edit",
                "reference latent",
                "conditioning",
            ],
            inputs=_inputs(),
            outputs=_outputs(),
        )

    @classmethod
    def validate_inputs(
        cls, start: str | None = None, reference_method: str | None = None
    ) -> bool | str:
        """A value that no list offers is refused before the run."""
        answer = _host.one_of("start", start, STARTS)
        known = _conditioning.methods()
        return (
            _host.one_of("reference_method", reference_method, known) if answer is True else answer
        )

    @classmethod
    def execute(
        cls,
        clip: Any,  # noqa: ANN401
        vae: Any,  # noqa: ANN401
        image: Tensor,
        prompt: str,
        negative: str,
        start: str,
        reference_method: str,
        vision_px: int,
        image_2: Tensor | None = None,
        image_3: Tensor | None = None,
    ) -> io.NodeOutput:
        shown = _references(image, image_2, image_3, vision_px)
        count = len(shown[0].pictures)
        _conditioning.check_vae(vae)
        copies = [each.copies() for each in shown]
        prompts = [_tokens(clip, text, copies, count) for text in (prompt, negative)]
        progress = _host.Progress(len(shown) + len(prompts))
        latents = []
        for each in shown:
            progress.step(0)
            latents.append(_conditioning.encode_picture(vae, each.image_bhwc(), progress.step))
        conditionings = []
        for tokens in prompts:
            told = _conditioning.encode_text(clip, tokens)
            conditionings.append(_conditioning.with_references(told, latents, reference_method))
            progress.step()
        samples = latents[0].clone() if start == "picture" else torch.zeros_like(latents[0])
        report = _report(shown, conditionings, reference_method, start)
        return io.NodeOutput(
            *conditionings, {"samples": samples}, report, ui=ui.PreviewText(report)
        )


def _references(
    image: Tensor, image_2: Tensor | None, image_3: Tensor | None, vision_px: int
) -> list[Reference]:
    """The pictures in the order in which the prompt may count them. Raises: InputError."""
    named = {"image": image, "image_2": image_2, "image_3": image_3}
    found = []
    for name, each in named.items():
        if each is None:
            continue
        pictures = _checked(name, each)
        if not found:
            _check_working(pictures)
            framing = framing_between(pictures.hw, pictures.hw)
        else:
            _check_count(name, len(pictures), len(found[0].pictures))
            framing = plan_reference(pictures.hw, area_px=_area(found[0].pictures.hw))
        found.append(Reference(name, pictures, framing, vision_size(pictures.hw, vision_px)))
    return found


def _checked(name: str, image: Tensor) -> Pictures:
    pictures = Pictures(image)
    broken = int(image.isnan().any(dim=-1).sum())
    if broken:
        step = "run the node before it in fp32, or let Prepare Image fill them"
        raise InputError(name, "numbers", f"{_counted(broken, 'pixel')} of NaN", step)
    return pictures


def _check_working(pictures: Pictures) -> None:
    height, width = pictures.hw
    if not is_aligned(pictures.hw):
        step = f"put Prepare Image before it, multiple_of {REFERENCE_MULTIPLE}"
        expected = f"sides that are multiples of {REFERENCE_MULTIPLE}"
        raise InputError("image", expected, f"{width}×{height}", step)


def _check_count(name: str, got: int, count: int) -> None:
    if got not in (1, count):
        expected = f"1 picture or {count}, one for each of image" if count > 1 else "1 picture"
        raise InputError(name, expected, str(got), "take one of them out of its batch")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _area(hw: tuple[int, int]) -> int:
    return hw[0] * hw[1]


def _framed(pictures: Pictures, index: int, framing: Framing) -> Tensor:
    """One picture in its frame, (1,H,W,3) float32."""
    height, width = framing.padded_hw
    room = pictures.image_bhwc.new_empty((height, width, 3), dtype=torch.float32)
    frame_rows(pictures.reader(index), framing, room.permute(2, 0, 1), _host.check_interrupted)
    return room[None]


def _tokens(
    clip: Any,  # noqa: ANN401
    prompt: str,
    copies: list[list[Tensor]],
    count: int,
) -> list[dict[str, Any]]:
    """The tokens for each picture of the batch; a single further reference serves them all."""
    rows = [[each[index % len(each)] for each in copies] for index in range(count)]
    return [_conditioning.tokenize(clip, prompt, row) for row in rows]


def _report(
    shown: list[Reference],
    conditionings: list[_conditioning.Conditioning],
    method: str,
    start: str,
) -> str:
    height, width = shown[0].pictures.hw
    count = len(shown[0].pictures)
    batch = f", {_counted(count, 'picture')}" if count > 1 else ""
    texts = [str(each[0][0].shape[1]) for each in conditionings]
    auto = "auto: the model's own (2511: index_timestep_zero; 2509 and before: index)"
    lines = [
        f"working size: {width}×{height}{batch}; latent {width // 8}×{height // 8}",
        *(each.told(number) for number, each in enumerate(shown, 1)),
        f"text tokens: {texts[0]} positive, {texts[1]} negative",
        f"reference method: {auto if method == _conditioning.AUTO else method}",
        f"start: {'noise, for denoise 1' if start == 'noise' else 'the picture itself'}",
    ]
    notes = [f"{each.name}: {note}" for each in shown for note in each.pictures.notes()]
    return "\n".join([*lines, *notes])


def _inputs() -> list[io.Input]:
    return [
        io.Clip.Input(
            "clip", tooltip="The text encoder: Qwen Edit Loader's, or any Qwen2.5-VL 7B."
        ),
        io.Vae.Input("vae", tooltip="Qwen-Image's VAE, from Qwen Edit Loader."),
        io.Image.Input(
            "image",
            tooltip=(
                "What is to be edited, from Prepare Image with multiple_of 16. It is encoded as it"
                " is; the result has its size and its frame. A batch is edited picture by picture."
            ),
        ),
        io.String.Input(
            "prompt",
            multiline=True,
            dynamic_prompts=True,
            default="",
            tooltip=(
                "What to do. With several pictures call them Picture 1, Picture 2, Picture 3, in"
                " the order in which they are joined."
            ),
        ),
        io.String.Input(
            "negative",
            multiline=True,
            dynamic_prompts=True,
            default=" ",
            tooltip=(
                "What to stay away from. One space is the model's own choice. Without effect at"
                " CFG 1."
            ),
        ),
        io.Combo.Input(
            "start",
            options=list(STARTS),
            default=STARTS[0],
            tooltip=(
                "The latent output. noise: empty, for the sampler at denoise 1, as the model is"
                " meant to be used. picture: the picture itself, for a denoise below 1."
            ),
        ),
        io.Combo.Input(
            "reference_method",
            options=_conditioning.methods(),
            default=_conditioning.AUTO,
            tooltip=(
                "How the model tells references from the result. auto is right for every model:"
                " each uses the one that it was trained with. The others are for experiments."
            ),
        ),
        io.Int.Input(
            "vision_px",
            default=VISION_PX,
            min=112,
            max=2048,
            step=8,
            tooltip=(
                "Side of the square that is as large as the copy for the text encoder. 384 is what"
                " the model was trained with; more costs memory and time."
            ),
        ),
        io.Image.Input(
            "image_2",
            optional=True,
            tooltip=(
                "A further reference of any size, Picture 2: scaled down to at most the area of"
                " image, cut to multiples of 16. One, or as many as image has."
            ),
        ),
        io.Image.Input(
            "image_3",
            optional=True,
            tooltip="One more reference, as image_2. It is Picture 2 if that is not joined.",
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        io.Conditioning.Output(
            display_name="positive", tooltip="The prompt with its pictures, for the sampler."
        ),
        io.Conditioning.Output(
            display_name="negative",
            tooltip="The negative prompt with the same pictures and references.",
        ),
        io.Latent.Output(
            display_name="latent", tooltip="Where the sampler starts, at the working size."
        ),
        io.String.Output(
            display_name="report",
            tooltip="Sizes, references, tokens, and the reference method.",
        ),
    ]

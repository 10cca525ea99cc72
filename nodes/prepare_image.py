"""PrepareImage: any picture becomes RGB, no larger than asked, with sides a model can take."""

from __future__ import annotations

from comfy_api.latest import io, ui
from torch import Tensor

from ..engine.image_prep import (
    MULTIPLES,
    Framing,
    count_bands,
    describe_framing,
    frame_rows,
    plan_framing,
)
from . import _host
from ._tensors import BACKGROUNDS, Pictures, clean_bchw, new_bchw, to_bhwc

FramingType = io.Custom("REALTOON_FRAMING")


class PrepareImage(io.ComfyNode):
    """Alpha onto a colour, long side limited with LANCZOS, padded to a multiple."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _host.schema(
            node_id="PrepareImage",
            display_name="Prepare Image",
            category="RealToon",
            description=(
                "Brings any picture into the form that the other nodes like best: RGB,"
                " transparency on a plain colour, the long side limited, both sides a multiple of"
                " what a model needs. Nothing is cut off, stretched or enlarged."
            ),
            search_aliases=["resize", "letterbox", "pad", "flatten alpha", "lanczos", "limit size"],
            inputs=_inputs(),
            outputs=_outputs(),
        )

    @classmethod
    def validate_inputs(
        cls, multiple_of: int | None = None, background: str | None = None
    ) -> bool | str:
        """A value that no list offers is refused before the run."""
        fits = _host.one_of("multiple_of", multiple_of, MULTIPLES)
        return fits if fits is not True else _host.one_of("background", background, BACKGROUNDS)

    @classmethod
    def execute(
        cls,
        image: Tensor,
        max_side: int,
        multiple_of: int,
        background: str,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        pictures = Pictures(image, mask, background)
        framing = plan_framing(pictures.hw, max_side, multiple_of)
        if framing.is_scaled or framing.is_padded:
            image_bchw = _framed(pictures, framing)
        else:
            image_bchw = clean_bchw(pictures).to(pictures.wire_dtype)
        count = [f"{len(pictures)} pictures"] if len(pictures) > 1 else []
        report = "; ".join([describe_framing(framing), *count, *pictures.notes()])
        return io.NodeOutput(to_bhwc(image_bchw), report, framing, ui=ui.PreviewText(report))


def _framed(pictures: Pictures, framing: Framing) -> Tensor:
    out_bchw = new_bchw(pictures, framing.padded_hw)
    progress = _host.Progress(len(pictures) * count_bands(framing))
    for index, out_chw in enumerate(out_bchw):
        frame_rows(pictures.reader(index), framing, out_chw, check=progress.step)
    return out_bchw


def _inputs() -> list[io.Input]:
    return [
        io.Image.Input("image", tooltip="One picture or a batch: grey, RGB or RGBA, any size."),
        io.Int.Input(
            "max_side",
            default=1024,
            min=0,
            max=16384,
            step=8,
            tooltip=(
                "Pictures whose longer side has more pixels are scaled down to this with LANCZOS,"
                " proportions kept. Smaller ones are left alone. 0 keeps every size."
            ),
        ),
        io.Combo.Input(
            "multiple_of",
            options=list(MULTIPLES),
            default=1,
            tooltip=(
                "Make both sides a multiple of this by repeating the picture's edge all round, the"
                " picture in the middle. 1 adds nothing, and is right for the cartoon; many"
                " diffusion models want 8, 16 or 32."
            ),
        ),
        io.Combo.Input(
            "background",
            options=list(BACKGROUNDS),
            default="white",
            tooltip=(
                "The colour that shows through where the picture is transparent. White suits most"
                " models."
            ),
        ),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip=(
                "What is transparent: join Load Image's mask here, because Load Image takes the"
                " transparency out of the picture. Not needed for pictures without transparency."
            ),
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        io.Image.Output(display_name="image", tooltip="The picture: RGB, scaled and padded."),
        io.String.Output(
            display_name="report",
            tooltip='What was done, for example "scaled to 1024×683, 66.7 %".',
        ),
        FramingType.Output(
            display_name="framing",
            tooltip=(
                "Where the picture lies inside its padding: what is needed to cut the padding off"
                " again."
            ),
        ),
    ]

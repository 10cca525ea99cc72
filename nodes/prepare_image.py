"""PrepareImage: any picture becomes RGB, no larger than asked, with sides a model can take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from comfy_api.latest import io, ui
from torch import Tensor

from ..engine import clean_up, depth
from ..engine.image_prep import (
    FITS,
    MULTIPLES,
    Filters,
    Framing,
    count_bands,
    describe_framing,
    frame_rows,
    plan_framing,
)
from . import _host
from ._tensors import BACKGROUNDS, Pictures, clean_bchw, new_bchw, to_bhwc

FramingType = io.Custom("REALTOON_FRAMING")
# The bar's share of a filter, as many as bands of rows.
FILTER_STEPS = 40


@dataclass(frozen=True)
class Amounts:
    """How much of each filter, 0 (off) to 1."""

    denoise: float
    depth_compensation: float
    smooth: float

    @property
    def steps(self) -> int:
        """How long the filters take on the bar, for one picture."""
        passes = 2 * (self.denoise > 0) + (self.depth_compensation > 0) + (self.smooth > 0)
        return passes * FILTER_STEPS

    def notes(self) -> list[str]:
        """What was done, in words."""
        named = {
            "denoised": self.denoise,
            "depth compensated": self.depth_compensation,
            "smoothed": self.smooth,
        }
        return [f"{name} {amount:g}" for name, amount in named.items() if amount > 0]


class PrepareImage(io.ComfyNode):
    """Alpha onto a colour, denoised, long side limited, sharpened, smoothed, fitted to a multiple.

    The later inputs are optional so that API workflows from before they were there still run.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _host.schema(
            node_id="PrepareImage",
            display_name="Prepare Image",
            category="RealToon",
            description=(
                "Brings any picture into the form that the other nodes like best: RGB,"
                " transparency on a plain colour, the long side limited, both sides a multiple of"
                " what a model needs. Noise, blur by depth of field and rough areas can be cleaned"
                " up on the way. Nothing is stretched or enlarged."
            ),
            search_aliases=[
                "resize",
                "letterbox",
                "pad",
                "crop",
                "flatten alpha",
                "lanczos",
                "denoise",
                "deblur",
                "smooth",
            ],
            inputs=_inputs(),
            outputs=_outputs(),
        )

    @classmethod
    def validate_inputs(
        cls,
        multiple_of: int | None = None,
        background: str | None = None,
        fit: str | None = None,
    ) -> bool | str:
        """A value that no list offers is refused before the run."""
        answers = (
            _host.one_of("multiple_of", multiple_of, MULTIPLES),
            _host.one_of("background", background, BACKGROUNDS),
            _host.one_of("fit", fit, FITS),
        )
        return next((answer for answer in answers if answer is not True), True)

    @classmethod
    def execute(
        cls,
        image: Tensor,
        max_side: int,
        multiple_of: int,
        background: str,
        fit: str = FITS[0],
        depth_compensation: float = 0.0,
        denoise: float = 0.0,
        smooth: float = 0.0,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        pictures = Pictures(image, mask, background)
        framing = plan_framing(pictures.hw, max_side, multiple_of, fit)
        amounts = Amounts(denoise, depth_compensation, smooth)
        if framing.is_scaled or framing.is_padded or framing.is_cut or amounts.steps:
            # Rows count in the notes as they are read, and measuring noise reads them as well.
            measured = Pictures(image, mask, background) if denoise > 0 else None
            image_bchw = _framed(pictures, framing, amounts, measured)
        else:
            image_bchw = clean_bchw(pictures).to(pictures.wire_dtype)
        count = [f"{len(pictures)} pictures"] if len(pictures) > 1 else []
        notes = [*amounts.notes(), *count, *pictures.notes()]
        report = "; ".join([describe_framing(framing), *notes])
        return io.NodeOutput(to_bhwc(image_bchw), report, framing, ui=ui.PreviewText(report))


def _framed(
    pictures: Pictures, framing: Framing, amounts: Amounts, measured: Pictures | None
) -> Tensor:
    out_bchw = new_bchw(pictures, framing.padded_hw)
    progress = _host.Progress(len(pictures) * (count_bands(framing) + amounts.steps))

    def check(share: float) -> None:
        progress.step(share * FILTER_STEPS)

    for index, out_chw in enumerate(out_bchw):
        filters = _filters(amounts, measured and measured.reader(index), pictures.hw, check)
        read = pictures.reader(index)
        frame_rows(read, framing, out_chw, progress.step, filters, check)
    return out_bchw


def _filters(
    amounts: Amounts,
    measured: Callable[[int, int], Tensor] | None,
    hw: tuple[int, int],
    check: Callable[[float], None],
) -> Filters:
    """The filters for one picture; its noise is its own."""
    before, after = [], []
    if measured is not None:
        noise = clean_up.measure_noise(measured, hw, check=check)
        before.append(clean_up.denoise(amounts.denoise, noise))
    if amounts.depth_compensation > 0:
        after.append(depth.compensate(amounts.depth_compensation))
    if amounts.smooth > 0:
        after.append(clean_up.smooth(amounts.smooth))
    return Filters(tuple(before), tuple(after))


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
                "Make both sides a multiple of this, the picture in the middle; fit says how. 1"
                " changes nothing, and is right for the cartoon; many diffusion models want 8, 16"
                " or 32."
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
        io.Combo.Input(
            "fit",
            options=list(FITS),
            default=FITS[0],
            optional=True,
            tooltip=(
                "How to reach the multiple. pad: repeat the picture's edge all round, nothing is"
                " lost. crop: cut off evenly, at most one multiple less a pixel."
            ),
        ),
        io.Float.Input(
            "depth_compensation",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.05,
            optional=True,
            tooltip=(
                "Sharpens where the picture is out of focus, by as much as it is, for game"
                " screenshots with depth of field. Sharp places, plain areas and noise stay. 0 is"
                " off."
            ),
        ),
        io.Float.Input(
            "denoise",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.05,
            optional=True,
            tooltip=(
                "Takes out the noise that the picture is found to have and keeps edges, before"
                " anything else is done. 0 is off, 1 takes all of it."
            ),
        ),
        io.Float.Input(
            "smooth",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.05,
            optional=True,
            tooltip=(
                "Evens out areas between edges, after everything else: a bilateral filter. To clean"
                " up a cartoon, put a second Prepare Image behind it. 0 is off."
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
        io.Image.Output(display_name="image", tooltip="The picture: RGB, scaled and fitted."),
        io.String.Output(
            display_name="report",
            tooltip='What was done, for example "scaled to 1024×683, 66.7 %".',
        ),
        FramingType.Output(
            display_name="framing",
            tooltip=(
                "Where the picture lies inside its padding. Restore Framing cuts the padding off"
                " again with it."
            ),
        ),
    ]

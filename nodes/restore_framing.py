"""RestoreFraming: takes off what Prepare Image added, and scales back if asked."""

from __future__ import annotations

from comfy_api.latest import io, ui
from torch import Tensor

from ..engine.image_prep import Framing, count_bands, framing_between, resize, restore_framing
from . import _host
from ._tensors import InputError, Pictures, clean_bchw, to_bhwc
from .prepare_image import FramingType

SIZES = ("prepared", "original")


class RestoreFraming(io.ComfyNode):
    """Padding cut off exactly; on wish scaled to the size of the picture that came in."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _host.schema(
            node_id="RestoreFraming",
            display_name="Restore Framing",
            category="RealToon",
            description=(
                "Undoes what Prepare Image did to a picture's frame: cuts the padding off to the"
                " pixel and, if asked, scales back to the size of the source. Pictures that were"
                " enlarged in between are cut in proportion."
            ),
            search_aliases=["unpad", "crop padding", "undo letterbox", "original size"],
            inputs=_inputs(),
            outputs=_outputs(),
        )

    @classmethod
    def validate_inputs(cls, size: str | None = None) -> bool | str:
        """A value that no list offers is refused before the run."""
        return _host.one_of("size", size, SIZES)

    @classmethod
    def execute(cls, image: Tensor, framing: Framing, size: str) -> io.NodeOutput:
        if not isinstance(framing, Framing):
            raise InputError(
                "framing",
                "what Prepare Image hands out",
                type(framing).__name__,
                "join Prepare Image's framing output here",
            )
        pictures = Pictures(image)
        restored_bchw = restore_framing(clean_bchw(pictures), framing)
        cut_hw = (restored_bchw.shape[-2], restored_bchw.shape[-1])
        notes = [_sizes("cut", pictures.hw, cut_hw)]
        if size == "original" and cut_hw != framing.original_hw:
            bands = count_bands(framing_between(cut_hw, framing.original_hw))
            progress = _host.Progress(len(pictures) * bands)
            restored_bchw = resize(restored_bchw, framing.original_hw, progress.step)
            notes.append(_sizes("scaled", cut_hw, framing.original_hw))
        if size == "original" and framing.is_cut:
            lost = f"{framing.source_hw[1]}×{framing.source_hw[0]}"
            notes.append(f"the border that was cut off the source ({lost}) does not come back")
        report = "; ".join([*notes, *pictures.notes()])
        image_bhwc = to_bhwc(restored_bchw.to(pictures.wire_dtype))
        return io.NodeOutput(image_bhwc, report, ui=ui.PreviewText(report))


def _sizes(verb: str, before: tuple[int, int], after: tuple[int, int]) -> str:
    if before == after:
        return f"nothing to cut at {after[1]}×{after[0]}"
    return f"{verb} from {before[1]}×{before[0]} to {after[1]}×{after[0]}"


def _inputs() -> list[io.Input]:
    return [
        io.Image.Input(
            "image",
            tooltip=(
                "The picture, or a batch, that went through the other nodes. It may have been"
                " scaled in between if its proportions were kept."
            ),
        ),
        FramingType.Input(
            "framing", tooltip="From the Prepare Image node that this picture went through."
        ),
        io.Combo.Input(
            "size",
            options=list(SIZES),
            default=SIZES[0],
            tooltip=(
                "prepared: cut the padding off and keep the pixels as they are. original: also"
                " scale to the size that the source had, with LANCZOS."
            ),
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        io.Image.Output(display_name="image", tooltip="The picture in its own frame."),
        io.String.Output(
            display_name="report",
            tooltip='What was done, for example "cut from 1024×688 to 1024×683".',
        ),
    ]

"""ResultCaption: saves pictures together with how they were made."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..engine.captions import caption
from . import _host, _saving, _strip
from ._tensors import Pictures

DRAW = ("off", "below")


class ResultCaption(io.ComfyNode):
    """Resolution, CFG, steps and weight as text, on the node, in the file and on the picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _host.schema(
            node_id="ResultCaption",
            display_name="Result Caption",
            category="RealToon",
            description=(
                "Saves pictures with a caption that says how they were made, such as “Resolution:"
                " 1024×683, CFG: 4.0, Steps: 40, Weight: …”: on the node, in the file beside"
                " the workflow and, if asked, drawn below the picture."
            ),
            search_aliases=["save image", "caption", "metadata", "label", "annotate"],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=_inputs(),
            outputs=_outputs(),
        )

    @classmethod
    def validate_inputs(cls, draw: str | None = None, format: str | None = None) -> bool | str:
        """A value that no list offers is refused before the run."""
        known = _host.one_of("draw", draw, DRAW)
        return known if known is not True else _host.one_of("format", format, _saving.FORMATS)

    @classmethod
    def execute(
        cls,
        image: Tensor,
        cfg: float,
        steps: int,
        weight: str,
        note: str,
        draw: str,
        filename_prefix: str,
        format: str,
        sampler: str = "",
    ) -> io.NodeOutput:
        pictures = Pictures(image)
        text = caption(pictures.hw, cfg, steps, weight, sampler, note)
        about = _saving.inside(text, cls.hidden.prompt, cls.hidden.extra_pnginfo)
        folder = _saving.Folder(filename_prefix, pictures.hw)
        progress = _host.Progress(len(pictures))
        files, notes, drawn = [], [], []
        for index in range(len(pictures)):
            rows = pictures.reader(index)(0, pictures.hw[0])
            picture, missing = _saving.as_picture(rows), ""
            if draw == "below":
                picture, missing = _strip.below(picture, text)
            drawn.append(picture)
            data, dropped = _saving.encoded(picture, format, about)
            files.append(folder.write(data, format, index))
            notes = _notes(missing, dropped)
            progress.step()
        told = [text, *notes, *pictures.notes()]
        shown = {"images": files, "text": ["\n".join(told)]}
        return io.NodeOutput(image, text, _saving.as_image(drawn), ui=shown)


def _notes(missing: str, dropped: list[str]) -> list[str]:
    notes = []
    if missing:
        notes.append(f"no font here has {missing}: drawn as ?, whole in the file's metadata")
    if dropped:
        notes.append(f"no room in a JPG for: {', '.join(dropped)}; png and webp keep them")
    return notes


def _inputs() -> list[io.Input]:
    return [
        io.Image.Input("image", tooltip="The picture, or a batch: each becomes a file."),
        io.Float.Input(
            "cfg",
            default=0.0,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip="CFG for the caption: join Edit Preset's cfg here. 0 leaves it out.",
        ),
        io.Int.Input(
            "steps",
            default=0,
            min=0,
            max=10000,
            tooltip="Steps for the caption: join Edit Preset's steps here. 0 leaves them out.",
        ),
        io.String.Input(
            "weight",
            default="",
            tooltip="Which weights made the picture, a LoRA's version for instance. May be empty.",
        ),
        io.String.Input(
            "note", default="", tooltip="Anything else, at the end of the caption. May be empty."
        ),
        io.Combo.Input(
            "draw",
            options=list(DRAW),
            default=DRAW[0],
            tooltip=(
                "below: also draw the caption on a strip under the saved picture, which becomes"
                " higher by it. The picture itself keeps every pixel."
            ),
        ),
        io.String.Input(
            "filename_prefix",
            default="RealToon",
            tooltip=(
                "Begin of the file names in ComfyUI's output folder, as for Save Image: folders and"
                " %date:yyyy-MM-dd%, %width%, %height% may be in it."
            ),
        ),
        io.Combo.Input(
            "format",
            options=list(_saving.FORMATS),
            default=_saving.FORMATS[0],
            tooltip=(
                "png keeps every pixel and the workflow; webp (quality 95) is small and keeps the"
                " workflow; jpg (quality 95) is for handing over and loses a long workflow."
            ),
        ),
        io.String.Input(
            "sampler",
            default="",
            optional=True,
            tooltip="Sampler for the caption: join Edit Preset's settings here. Optional.",
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        io.Image.Output(
            display_name="image", tooltip="The pictures as they came in, without the strip."
        ),
        io.String.Output(display_name="caption", tooltip="The caption, one line of text."),
        io.Image.Output(
            display_name="drawn",
            tooltip="The pictures as they are in the files, with the strip where one is drawn.",
        ),
    ]

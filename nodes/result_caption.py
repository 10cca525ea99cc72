"""ResultCaption: saves pictures together with how they were made."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from comfy_api.latest import io
from torch import Tensor

from ..engine.captions import caption
from . import _host, _saving, _strip
from ._tensors import InputError, Pictures

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
                " the workflow and, if asked, drawn below the picture. Up to three versions lie"
                " side by side in one file."
            ),
            search_aliases=[
                "save image",
                "caption",
                "metadata",
                "label",
                "compare",
                "side by side",
            ],
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
        image_2: Tensor | None = None,
        weight_2: str = "",
        image_3: Tensor | None = None,
        weight_3: str = "",
    ) -> io.NodeOutput:
        def told(hw: tuple[int, int], weight: str) -> str:
            return caption(hw, cfg, steps, weight, sampler, note)

        given = {
            "image": (image, weight),
            "image_2": (image_2, weight_2),
            "image_3": (image_3, weight_3),
        }
        parts = [
            _Part(name, pictures, told, its_weight, draw == "below")
            for name, (pictures, its_weight) in given.items()
            if pictures is not None
        ]
        text = "\n".join(part.text for part in parts)
        about = _saving.inside(text, cls.hidden.prompt, cls.hidden.extra_pnginfo)
        count = _count(parts)
        folder = _saving.Folder(filename_prefix, parts[0].pictures.hw)
        progress = _host.Progress(count)
        files, drawn, dropped = [], [], []
        for index in range(count):
            drawn.append(_strip.side_by_side([part.drawn(index) for part in parts]))
            data, dropped = _saving.encoded(drawn[-1], format, about)
            files.append(folder.write(data, format, index))
            progress.step()
        notes = _notes(parts, dropped)
        notes += [
            f"no {name} is joined: its weight is left out"
            for name, (pictures, its_weight) in given.items()
            if pictures is None and its_weight
        ]
        shown = {"images": files, "text": ["\n".join([text, *notes])]}
        return io.NodeOutput(image, text, _saving.as_image(drawn), ui=shown)


class _Part:
    """What lies side by side in a file: a picture of each batch, with its caption.

    told: (height and width, weight) -> the caption. strip: draw it below.
    """

    def __init__(
        self,
        name: str,
        image: Tensor,
        told: Callable[[tuple[int, int], str], str],
        weight: str,
        strip: bool,
    ) -> None:
        self.name, self.pictures, self._strip = name, Pictures(image), strip
        self.text = told(self.pictures.hw, weight)
        self.missing = ""
        self._last: _strip.Picture | None = None

    def drawn(self, index: int) -> _strip.Picture:
        """The picture of that number as it stands in the file; a batch of 1 has it for all."""
        if self._last is None or len(self.pictures) > 1:
            picture = _saving.as_picture(self.pictures.reader(index)(0, self.pictures.hw[0]))
            if self._strip:
                picture, self.missing = _strip.below(picture, self.text)
            self._last = picture
        return self._last

    def notes(self) -> list[str]:
        called = "" if self.name == "image" else f"{self.name}: "
        return [called + note for note in self.pictures.notes()]


def _count(parts: Sequence[_Part]) -> int:
    """How many files there will be. Raises: InputError if batches are of several lengths."""
    count = max(len(part.pictures) for part in parts)
    for part in parts:
        if len(part.pictures) not in (1, count):
            raise InputError(
                part.name,
                f"1 picture or {count}, as another input has",
                str(len(part.pictures)),
                "give batches of one length, or a single picture that stands beside each",
            )
    return count


def _notes(parts: Sequence[_Part], dropped: Sequence[str]) -> list[str]:
    notes = []
    missing = "".join(sorted(set().union(*(part.missing for part in parts))))
    if missing:
        notes.append(f"no font here has {missing}: drawn as ?, whole in the file's metadata")
    if dropped:
        notes.append(f"no room in a JPG for: {', '.join(dropped)}; png and webp keep them")
    return notes + [note for part in parts for note in part.notes()]


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
        io.Image.Input(
            "image_2",
            optional=True,
            tooltip=(
                "Another version of the picture, to the right of the first in the same file. A"
                " batch pairs with the first one's by number; a single picture stands beside each."
            ),
        ),
        io.String.Input(
            "weight_2",
            optional=True,
            force_input=True,
            tooltip="Which weights made image_2: join LoRA Hot Inject's name here.",
        ),
        io.Image.Input(
            "image_3",
            optional=True,
            tooltip="A third version, to the right of the others. Batches as for image_2.",
        ),
        io.String.Input(
            "weight_3",
            optional=True,
            force_input=True,
            tooltip="Which weights made image_3: join LoRA Hot Inject's name here.",
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        io.Image.Output(
            display_name="image", tooltip="The first pictures as they came in, with no strip."
        ),
        io.String.Output(display_name="caption", tooltip="The caption, a line for each picture."),
        io.Image.Output(
            display_name="drawn",
            tooltip="The pictures as they are in the files: with the strip, and side by side.",
        ),
    ]

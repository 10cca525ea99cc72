"""DCTNetCartoon: a photo becomes a cartoon, faces drawn at their own scale."""

from __future__ import annotations

import time

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..engine import cartoon
from . import _faces, _host, _styles
from ._tensors import Pictures, clean_bchw, fit_mask, is_placeholder, mask_to_wire, to_bhwc


class DCTNetCartoon(io.ComfyNode):
    """The person cartoon of DCT-Net, in styles from ``models/dctnet`` or the built-in one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _host.schema(
            node_id="DCTNetCartoon",
            display_name="DCT-Net Cartoon",
            category="RealToon",
            description=(
                "Draws a photo as a cartoon: the whole picture first, then every face again at the"
                " scale that the style was trained for. Any size; large pictures are drawn in tiles"
                " that join without a seam."
            ),
            search_aliases=["cartoon", "anime", "cartoonize", "stylize", "toon", "DCT-Net"],
            inputs=_inputs(),
            outputs=_outputs(),
        )

    @classmethod
    def fingerprint_inputs(cls, style: str, **_: object) -> str:
        """A style's file that was replaced, or a detector that has come, is a change."""
        return _styles.fingerprint(style)

    @classmethod
    def validate_inputs(cls, style: str | None = None) -> bool | str:
        """An unknown style is refused before the run."""
        return _host.one_of("style", style, _styles.names())

    @classmethod
    def execute(
        cls,
        image: Tensor,
        style: str,
        style_strength: float,
        line_crispness: float,
        face_pass: bool,
        max_faces: int,
        min_face_px: int,
        chunk: int,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        started = time.perf_counter()
        pictures = Pictures(image)
        image_bchw = clean_bchw(pictures)
        where = None
        if mask is not None and not is_placeholder(mask):
            where = fit_mask(mask, len(pictures), pictures.hw)
        networks = _styles.open_style(style)
        faces, face_text = [[] for _ in image_bchw], "off"
        if face_pass:
            faces, face_text = _faces.find(image_bchw, max_faces, min_face_px)
        look = cartoon.Look(style_strength, line_crispness)
        drawn, windows = _styles.draw(networks, image_bchw, faces, look, where, chunk)
        face_mask = torch.zeros(len(pictures), 1, *pictures.hw)
        for found, plane in zip(faces, face_mask[:, 0], strict=True):
            cartoon.add_face_masks(found, plane)
        report = "\n".join(
            [
                f"style: {style}, strength {style_strength:g}, crispness {line_crispness:g}",
                f"faces: {face_text}",
                f"tiles: {windows}",
                f"seconds: {time.perf_counter() - started:.2f}",
                *pictures.notes(),
            ]
        )
        image_out = to_bhwc(drawn.to(pictures.wire_dtype))
        return io.NodeOutput(image_out, mask_to_wire(face_mask), report, ui=ui.PreviewText(report))


def _inputs() -> list[io.Input]:
    return [
        io.Image.Input("image", tooltip="The photo, or a batch of photos of one size."),
        io.Combo.Input(
            "style",
            options=_styles.names(),
            tooltip=(
                "What is in models/dctnet, and the built-in style. Official styles:"
                " python run.py weights lists them."
            ),
        ),
        io.Float.Input(
            "style_strength",
            default=0.75,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip=(
                "How much of the drawing reaches the picture. 0 is the photo, 1 the network's own"
                " result. 0.5 keeps skin and hair, 0.75 suits most, 0.9 is bold."
            ),
        ),
        io.Float.Input(
            "line_crispness",
            default=1.0,
            min=0.0,
            max=2.0,
            step=0.05,
            tooltip="Lines softer (below 1) or harder (above 1); colour and tone stay the same.",
        ),
        io.Boolean.Input(
            "face_pass",
            default=True,
            tooltip="Draw every face again at the scale that head models are trained for.",
        ),
        io.Int.Input(
            "max_faces",
            default=10,
            min=0,
            max=100,
            tooltip="At most so many faces, the largest first. 0 draws all of them.",
        ),
        io.Int.Input(
            "min_face_px",
            default=40,
            min=12,
            max=1024,
            tooltip="Faces smaller than this many pixels are left to the first pass.",
        ),
        io.Int.Input(
            "chunk",
            default=0,
            min=0,
            max=64,
            tooltip="Pictures of a batch that are drawn at once. 0 chooses from the free memory.",
        ),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="Where to draw: white becomes cartoon, black stays the photo. Optional.",
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        io.Image.Output(display_name="image", tooltip="The cartoon, at the photo's size."),
        io.Mask.Output(display_name="face_mask", tooltip="Where faces were drawn on their own."),
        io.String.Output(
            display_name="report", tooltip="Style, faces found, tiles and seconds, as text."
        ),
    ]

"""GPENRestore: every face of a picture sharp again, and nothing else touched."""

from __future__ import annotations

import time

from comfy_api.latest import io, ui
from torch import Tensor

from . import _gpen, _host
from ._restoring import Job
from ._tensors import (
    InputError,
    Pictures,
    clean_bchw,
    fit_mask,
    is_placeholder,
    mask_to_wire,
    to_bhwc,
)

MODES = ("faces", "tiled")
ORDERS = ("largest", "left_to_right", "score")


class GPENRestore(io.ComfyNode):
    """GPEN's face restoration, with weights from ``models/gpen``."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _host.schema(
            node_id="GPENRestore",
            display_name="GPEN Face Restore",
            category="RealToon",
            description=(
                "Restores every face of a picture with GPEN and puts it back where it was; all"
                " other pixels stay as they are. Or restores the whole picture in tiles. Moving"
                " strength, skin_smooth or mask runs no network again."
            ),
            search_aliases=["face restore", "face enhance", "upscale face", "GPEN", "GFPGAN"],
            inputs=_inputs(),
            outputs=_outputs(),
        )

    @classmethod
    def fingerprint_inputs(cls, model: str, **_: object) -> str:
        """A file that was replaced, or a detector or parser that has come, is a change."""
        return _gpen.fingerprint(model)

    @classmethod
    def validate_inputs(cls, model: str | None = None) -> bool | str:
        """What the host cannot know is refused before the run."""
        # The host says it once for each input that is named here, so the tiles are not.
        if not _gpen.names():
            return _gpen.missing()
        return _host.one_of("model", model, _gpen.names())

    @classmethod
    def execute(
        cls,
        image: Tensor,
        model: str,
        strength: float,
        skin_smooth: float,
        max_faces: int,
        face_order: str,
        min_face_px: int,
        mode: str,
        tile_px: int,
        tile_overlap_px: int,
        precision: str,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        started = time.perf_counter()
        if mode == "tiled" and tile_overlap_px >= tile_px:
            raise InputError(
                "tile_overlap_px",
                f"less than tile_px ({tile_px})",
                str(tile_overlap_px),
                "lower it, or raise tile_px",
            )
        pictures = Pictures(image)
        image_bchw = clean_bchw(pictures)
        keep = None
        if mask is not None and not is_placeholder(mask):
            keep = fit_mask(mask, len(pictures), pictures.hw)
        generator = _gpen.open_generator(model, precision)
        job = Job(image_bchw, keep, strength, skin_smooth, generator)
        if strength == 0.0:
            told = "off (strength 0)"
        elif mode == "tiled":
            told = job.tiled(tile_px, tile_overlap_px)
        else:
            told = job.faces(max_faces, face_order, min_face_px)
        report = "\n".join(
            [
                f"model: {model}, {generator.size} px, {generator.precision}",
                f"{mode}: {told}",
                f"seconds: {time.perf_counter() - started:.2f}",
                *pictures.notes(),
            ]
        )
        image_out = to_bhwc(job.out_bchw.to(pictures.wire_dtype))
        faces_out = to_bhwc(job.squares_bchw().to(pictures.wire_dtype))
        return io.NodeOutput(
            image_out, faces_out, mask_to_wire(job.mask_b1hw), report, ui=ui.PreviewText(report)
        )


def _inputs() -> list[io.Input]:
    return [
        io.Image.Input("image", tooltip="The picture, or a batch of pictures of one size."),
        io.Combo.Input(
            "model",
            options=_gpen.names(),
            tooltip=(
                "GPEN weights in models/gpen, and those in models/facerestore_models. To get some:"
                " python run.py weights download gpen-512."
            ),
        ),
        io.Float.Input(
            "strength",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="How much of the restored face reaches the picture. 0 leaves it untouched.",
        ),
        io.Float.Input(
            "skin_smooth",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip=(
                "1 is the network's own skin. Lower values give the picture's pores and wrinkles"
                " back where the network lost them: 0.3 suits sharp photos."
            ),
        ),
        io.Int.Input(
            "max_faces",
            default=0,
            min=0,
            max=100,
            tooltip="At most so many faces a picture, by face_order. 0 restores all of them.",
        ),
        io.Combo.Input(
            "face_order",
            options=list(ORDERS),
            default="largest",
            tooltip="Which faces come first: by size, from the left, or the surest.",
        ),
        io.Int.Input(
            "min_face_px",
            default=20,
            min=12,
            max=1024,
            tooltip="Faces smaller than this many pixels are left alone.",
        ),
        io.Combo.Input(
            "mode",
            options=list(MODES),
            default="faces",
            tooltip=(
                "faces: find faces and restore each. tiled: restore the whole picture in tiles, for"
                " a picture that is all face or a face larger than the model."
            ),
        ),
        io.Int.Input(
            "tile_px",
            default=512,
            min=128,
            max=2048,
            step=8,
            tooltip="Tiled mode: side of a tile. It is scaled to the model's own size.",
        ),
        io.Int.Input(
            "tile_overlap_px",
            default=64,
            min=0,
            max=512,
            step=8,
            tooltip="Tiled mode: how far tiles overlap; there the one fades into the other.",
        ),
        io.Combo.Input(
            "precision",
            options=list(_gpen.PRECISIONS),
            default="auto",
            tooltip=(
                "mixed computes large layers in half precision: half the memory, and faster where"
                " the hardware is made for it. auto chooses it only there."
            ),
        ),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="Where texture stays as it is: white is left untouched. Optional.",
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        io.Image.Output(display_name="image", tooltip="The picture with its faces restored."),
        io.Image.Output(
            display_name="faces",
            tooltip="The restored faces (or tiles), upright, at the model's size. Black if none.",
        ),
        io.Mask.Output(display_name="face_mask", tooltip="Where the picture was restored."),
        io.String.Output(
            display_name="report", tooltip="Model, precision, faces found and seconds, as text."
        ),
    ]

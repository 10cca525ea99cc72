"""TiledVAEEncode: the full encode in strips, the twin of TiledVAEDecode."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from . import _host, _streaming
from ._tensors import Pictures


class TiledVAEEncode(io.ComfyNode):
    """Pictures to latents, exactly as the full encode gives them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _host.schema(
            node_id="TiledVAEEncode",
            display_name="Tiled VAE Encode (exact)",
            category="RealToon",
            description=(
                "Encodes pictures strip by strip with Qwen-Image's and Wan's VAE. What comes out is"
                " the full encode, exact to the border, in a fraction of its memory. Other VAEs"
                " encode by ComfyUI itself."
            ),
            search_aliases=["vae encode", "tiled encode", "image to latent", "low vram encode"],
            inputs=_inputs(),
            outputs=_outputs(),
        )

    @classmethod
    def validate_inputs(cls, precision: str | None = None) -> bool | str:
        """A value that no list offers is refused before the run."""
        return _host.one_of("precision", precision, _streaming.PRECISIONS)

    @classmethod
    def execute(
        cls,
        pixels: Tensor,
        vae: Any,  # noqa: ANN401
        precision: str,
        strip_rows: int,
    ) -> io.NodeOutput:
        image_bhwc = Pictures(pixels).image_bhwc
        latent, report = _streaming.encode(vae, image_bhwc, precision, strip_rows)
        return io.NodeOutput({"samples": latent}, report, ui=ui.PreviewText(report))


def _inputs() -> list[io.Input]:
    return [
        io.Image.Input(
            "pixels",
            tooltip="One picture or a batch. What exceeds a multiple of 8 px is cut off.",
        ),
        io.Vae.Input("vae", tooltip="The VAE of the model that will take the latent."),
        io.Combo.Input(
            "precision",
            options=list(_streaming.PRECISIONS),
            default="fp32",
            tooltip=(
                "fp32 keeps the finest detail, such as hair. bf16 takes half the memory. as loaded:"
                " the precision that ComfyUI chose for this VAE."
            ),
        ),
        io.Int.Input(
            "strip_rows",
            default=0,
            min=0,
            max=2048,
            tooltip=(
                "Rows of the latent at once, 8 rows of the picture each. It changes memory only,"
                " never the picture. 0 chooses by free memory."
            ),
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        io.Latent.Output(display_name="samples", tooltip="The latents, one for each picture."),
        io.String.Output(
            display_name="report",
            tooltip="Exact or not, strips, predicted peak of memory and seconds, as text.",
        ),
    ]

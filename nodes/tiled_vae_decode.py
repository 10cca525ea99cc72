"""TiledVAEDecode: the full decode in strips, in a fifth of its memory and without a seam."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from . import _host, _streaming


class TiledVAEDecode(io.ComfyNode):
    """Latents to pictures, exactly as the full decode gives them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _host.schema(
            node_id="TiledVAEDecode",
            display_name="Tiled VAE Decode (exact)",
            category="RealToon",
            description=(
                "Decodes a latent strip by strip with Qwen-Image's and Wan's VAE. What comes out is"
                " the full decode, without seams or a shift of colour, in a fraction of its memory"
                " and in full precision. Other VAEs are decoded by ComfyUI itself."
            ),
            search_aliases=["vae decode", "tiled decode", "latent to image", "low vram decode"],
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
        samples: dict[str, Any],
        vae: Any,  # noqa: ANN401
        precision: str,
        strip_rows: int,
    ) -> io.NodeOutput:
        image, report = _streaming.decode(vae, samples["samples"], precision, strip_rows)
        return io.NodeOutput(image, report, ui=ui.PreviewText(report))


def _inputs() -> list[io.Input]:
    return [
        io.Latent.Input("samples", tooltip="The latent, from a sampler. Batches go one by one."),
        io.Vae.Input("vae", tooltip="The VAE of the model that made the latent, in any precision."),
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
        io.Image.Output(display_name="image", tooltip="The decoded pictures."),
        io.String.Output(
            display_name="report",
            tooltip="Exact or not, strips, predicted peak of memory and seconds, as text.",
        ),
    ]

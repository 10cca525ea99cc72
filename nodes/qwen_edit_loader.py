"""QwenEditLoader: Qwen-Image-Edit from any of its layouts, once for every workflow."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..weights_loader import qwen_convert, qwen_image
from . import _host, _qwen, _qwen_files, _qwen_patcher, _qwen_report
from ._tensors import InputError

MODULATIONS = ("table", "weights")
AUTO = "auto"


class QwenEditLoader(io.ComfyNode):
    """The model, its text encoder and VAE, as ComfyUI's own loaders would hand them out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _host.schema(
            node_id="QwenEditLoader",
            display_name="Qwen Edit Loader",
            category="RealToon",
            description=(
                "Loads Qwen-Image-Edit (2511, 2509, the first) with text encoder and VAE: the"
                " official folder as its makers publish it, or repacked single files. A third of"
                " the model need not be in memory. Loaded once for all workflows."
            ),
            search_aliases=["qwen", "load diffusion model", "unet loader", "image edit", "2511"],
            inputs=_inputs(),
            outputs=_outputs(),
        )

    @classmethod
    def fingerprint_inputs(cls, base: str, text_encoder: str, vae: str, **_: object) -> str:
        """A file that was replaced is a change."""
        return _qwen_files.fingerprint(base, text_encoder, vae)

    @classmethod
    def validate_inputs(cls, base: str | None = None) -> bool | str:
        """What the host cannot know is refused before the run."""
        # The host says it once for each input that is named here.
        known = _names(_qwen_files.bases())
        return _host.one_of("base", base, known) if known else _qwen_files.missing()

    @classmethod
    def execute(
        cls,
        base: str,
        text_encoder: str,
        vae: str,
        modulation: str,
        attention: str,
        weight_dtype: str,
        offload: str,
    ) -> io.NodeOutput:
        _check_choices(modulation, attention, weight_dtype, offload)
        described = _qwen_files.base_of(base)
        dit = described.dit
        text_part = _qwen_files.text_of(text_encoder, described)
        vae_part = _qwen_files.vae_of(vae, described)
        # Everything is refused before anything is loaded.
        qwen_image.check_fit(dit, text_part, vae_part)
        qwen_convert.check(dit, weight_dtype)
        for part in (dit, text_part):
            _qwen.check(part)
        tabled = modulation == MODULATIONS[0]
        shared, state_of = _qwen_patcher.shared, _qwen_files.state_of
        model = shared(
            ("dit", tabled, weight_dtype, offload, state_of(dit)),
            lambda: _qwen.load_dit(dit, tabled, weight_dtype, offload),
        ).clone()
        clip = shared(("text", state_of(text_part)), lambda: _qwen.load_text(text_part))
        decoder = shared(("vae", state_of(vae_part)), lambda: _qwen.load_vae(vae_part))
        if attention != AUTO:
            _qwen_patcher.set_attention(model, attention)
        report = _qwen_report.told(
            described, text_part, vae_part, (model, clip.patcher, decoder.patcher), attention
        )
        return io.NodeOutput(model, clip, decoder, report, ui=ui.PreviewText(report))


def _check_choices(modulation: str, attention: str, weight_dtype: str, offload: str) -> None:
    """Raises: InputError; older hosts do not hold a combo to its options."""
    for name, value, known in (
        ("modulation", modulation, MODULATIONS),
        ("attention", attention, _attentions()),
        ("weight_dtype", weight_dtype, qwen_convert.WEIGHT_DTYPES),
        ("offload", offload, _qwen_patcher.OFFLOADS),
    ):
        if value not in known:
            expected = f"one of {', '.join(known)}"
            raise InputError(name, expected, repr(value), "choose one of these")


def _names(found: dict[str, object]) -> list[str]:
    return sorted(found, key=str.casefold)


def _attentions() -> list[str]:
    return [AUTO, *_qwen_patcher.attentions()]


def _inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "base",
            options=_names(_qwen_files.bases()),
            tooltip=(
                "Files of Qwen-Image-Edit in models/diffusion_models, and official folders in"
                " models/diffusers (their names end in /). Told by their content."
            ),
        ),
        io.Combo.Input(
            "text_encoder",
            options=[_qwen_files.FROM_FOLDER, *_names(_qwen_files.texts())],
            default=_qwen_files.FROM_FOLDER,
            tooltip=(
                "Qwen2.5-VL 7B in models/text_encoders; or the one in the official folder, where"
                " the base is one."
            ),
        ),
        io.Combo.Input(
            "vae",
            options=[_qwen_files.FROM_FOLDER, *_names(_qwen_files.vaes())],
            default=_qwen_files.FROM_FOLDER,
            tooltip="Files in models/vae; or the one in the official folder, where base is one.",
        ),
        io.Combo.Input(
            "modulation",
            options=list(MODULATIONS),
            default=MODULATIONS[0],
            tooltip=(
                "table: a third of the model stays on disk and is answered from a small table; the"
                " picture is the same. weights: as ComfyUI's own loader does it, for LoRA hooks."
            ),
        ),
        io.Combo.Input(
            "attention",
            options=_attentions(),
            default=AUTO,
            tooltip=(
                "auto: what ComfyUI was started with. Others are there where they are installed;"
                " they differ in speed, and a little in their rounding."
            ),
        ),
        io.Combo.Input(
            "weight_dtype",
            options=list(qwen_convert.WEIGHT_DTYPES),
            default=qwen_convert.AS_STORED,
            tooltip=(
                "Of the diffusion model; text encoder and VAE stay as stored. fp8 e4m3 scaled:"
                " halves attention and MLPs of a bf16 file while it loads, with a scale for each"
                " matrix; the rest stays in full. bf16: fp8 is multiplied out."
            ),
        ),
        io.Combo.Input(
            "offload",
            options=list(_qwen_patcher.OFFLOADS),
            default=_qwen_patcher.AUTO,
            tooltip=(
                "Of the diffusion model. auto: ComfyUI decides how much of it is on the card."
                " none: all of it or the run fails. sequential: weights come from main memory"
                " layer by layer, for the smallest cards; slow."
            ),
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        io.Model.Output(display_name="model", tooltip="The diffusion model, for samplers."),
        io.Clip.Output(display_name="clip", tooltip="The text encoder, which also sees pictures."),
        io.Vae.Output(display_name="vae", tooltip="Encodes and decodes pictures."),
        io.String.Output(
            display_name="report",
            tooltip=(
                "What was found, its bytes on disk and in memory by dtype, the attention in use"
                " and the peak to be expected at 1024²."
            ),
        ),
    ]

"""QwenEditLoader: Qwen-Image-Edit from any of its layouts, once for every workflow."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..weights_loader import qwen_image
from ..weights_loader.qwen_image import Part
from . import _host, _modulation, _qwen, _qwen_files
from ._tensors import InputError

MODULATIONS = ("table", "weights")
AUTO = "auto"
_GB = 1e9


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
        cls, base: str, text_encoder: str, vae: str, modulation: str, attention: str
    ) -> io.NodeOutput:
        if attention not in _attentions():
            expected = f"one of {', '.join(_attentions())}"
            raise InputError("attention", expected, repr(attention), "choose one of these")
        described = _qwen_files.base_of(base)
        text_part = _qwen_files.text_of(text_encoder, described)
        vae_part = _qwen_files.vae_of(vae, described)
        # Everything is refused before anything is loaded.
        qwen_image.check_fit(described.dit, text_part, vae_part)
        for part in (described.dit, text_part):
            _qwen.check(part)
        tabled = modulation == "table"
        model = _qwen.shared(
            ("dit", tabled, _qwen_files.state_of(described.dit)),
            lambda: _qwen.load_dit(described.dit, tabled),
        ).clone()
        clip = _qwen.shared(
            ("text", _qwen_files.state_of(text_part)), lambda: _qwen.load_text(text_part)
        )
        decoder = _qwen.shared(
            ("vae", _qwen_files.state_of(vae_part)), lambda: _qwen.load_vae(vae_part)
        )
        if attention != AUTO:
            _qwen.set_attention(model, attention)
        used = _qwen.usual_attention() if attention == AUTO else attention
        report = "\n".join(
            [
                f"base: {described.release}, {_found(described.dit)}",
                f"modulation: {_modulation_told(model, described.dit)}",
                f"text encoder: {_found(text_part)}",
                f"VAE: {_found(vae_part)}",
                f"model resident: {model.model_size() / _GB:.2f} GB; text encoder"
                f" {clip.patcher.model_size() / _GB:.2f} GB; VAE"
                f" {decoder.patcher.model_size() / _GB:.2f} GB",
                f"attention: {used}",
            ]
        )
        return io.NodeOutput(model, clip, decoder, report, ui=ui.PreviewText(report))


def _names(found: dict[str, object]) -> list[str]:
    return sorted(found, key=str.casefold)


def _attentions() -> list[str]:
    return [AUTO, *_qwen.attentions()]


def _found(part: Part) -> str:
    """What a part is on disk."""
    formats = part.quantisation.formats
    kind = part.quantisation.kind
    stored = part.dtype if kind == "none" else f"{kind} ({', '.join(formats)})"
    files = f"{len(part.files)} files" if len(part.files) > 1 else part.files[0].name
    return f"{part.layout}, {stored}, {part.total_bytes / _GB:.2f} GB in {files}"


def _modulation_told(model: object, part: Part) -> str:
    size = part.bytes_by.get("modulation", 0) / _GB
    if _modulation.table_of(model.model) is None:  # type: ignore[attr-defined]
        return f"weights, {size:.2f} GB of the model"
    return f"table; {size:.2f} GB of weights stay on disk"


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
    ]


def _outputs() -> list[io.Output]:
    return [
        io.Model.Output(display_name="model", tooltip="The diffusion model, for samplers."),
        io.Clip.Output(display_name="clip", tooltip="The text encoder, which also sees pictures."),
        io.Vae.Output(display_name="vae", tooltip="Encodes and decodes pictures."),
        io.String.Output(
            display_name="report",
            tooltip="What was found, its bytes on disk and in memory, and the attention in use.",
        ),
    ]

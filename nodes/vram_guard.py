"""VRAMGuard: the memory of a run known before, held during it, shown after it."""

from __future__ import annotations

from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui

from ..engine import vram_words
from . import _chart, _guard, _guard_clones, _guard_parts, _guard_reading, _host

_SIDE = 1024


class VRAMGuard(io.ComfyNode):
    """A model, text encoder and VAE that keep to their budgets; a plan as text and as a chart."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _host.schema(
            node_id="VRAMGuard",
            display_name="VRAM Guard",
            category="RealToon",
            description=(
                "Predicts how much memory a Qwen-Image-Edit run takes in each phase, plans it"
                " within the card, and gives the model, text encoder and VAE budgets that they"
                " keep to. Shows the plan as text and as a chart before the first step."
            ),
            search_aliases=["memory", "VRAM", "offload", "budget", "out of memory", "OOM"],
            hidden=[io.Hidden.unique_id],
            inputs=_inputs(),
            outputs=_outputs(),
        )

    @classmethod
    def validate_inputs(cls, on_exceed: str | None = None) -> bool | str:
        """A value that no list offers is refused before the run."""
        return _host.one_of("on_exceed", on_exceed, _guard.ON_EXCEED)

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        card_gb: float,
        text_encoder_gb: float,
        dit_gb: float,
        vae_gb: float,
        reserve_gb: float,
        width: int,
        height: int,
        on_exceed: str,
        clip: Any = None,
        vae: Any = None,
    ) -> io.NodeOutput:
        asked = {"text_encoder": text_encoder_gb, "dit": dit_gb, "vae": vae_gb}
        budgets = {name: _guard.bytes_of(gb) for name, gb in asked.items() if gb}
        wishes = _guard.Wishes(
            _guard.bytes_of(card_gb), _guard.bytes_of(reserve_gb), budgets, on_exceed
        )
        node_id = cls.hidden.unique_id
        loaded = _guard_parts.loaded(model, clip, vae)
        guard = _guard.Guard(loaded, wishes, model.load_device, node_id)
        known = bool(width and height)
        job = _guard_parts.job(width if known else _SIDE, height if known else _SIDE)
        # Until the sampler knows the size, a size that is only supposed stops nobody.
        made = guard.settle(job, binding=known)
        before = _guard.last_run(node_id)
        lines = vram_words.told(made, loaded) + _notes(guard, known)
        report = "\n".join([*lines, *_guard_reading.told(before, guard.device)])
        chart = _chart.draw(
            made, guard.card, {name: each.used for name, each in before.items()}, guard.limits
        )
        held = _guard_clones.guarded(model, clip, vae, guard)
        return io.NodeOutput(*held, report, chart, ui=ui.PreviewText(report))


def _notes(guard: _guard.Guard, known: bool) -> list[str]:
    notes = [f"on_exceed: {guard.wishes.on_exceed}"]
    if not known:
        notes.append("width and height are 0: planned anew when the sampler knows the size")
    if not guard.holds:
        notes.append("no card here: the plan is of main memory, and budgets hold nothing back")
    notes += [
        f"budget of the {vram_words.NAMES[name]}: {vram_words.size(limit)}"
        for name, limit in guard.limits.items()
    ]
    return notes


def _inputs() -> list[io.Input]:
    size = {"min": 0.0, "max": 512.0, "step": 0.1}
    side = {"default": 0, "min": 0, "max": 16384, "step": 16}
    return [
        io.Model.Input(
            "model",
            tooltip=(
                "Qwen-Image-Edit with its LoRAs and preset. What comes out is a clone; this model"
                " stays as it is."
            ),
        ),
        io.Float.Input(
            "card_gb",
            default=0.0,
            **size,
            tooltip="Memory of the card to plan for, in GB. 0: all that is there.",
        ),
        io.Float.Input(
            "text_encoder_gb",
            default=0.0,
            **size,
            tooltip="The most that the text encoder may hold, in GB. 0: planned.",
        ),
        io.Float.Input(
            "dit_gb",
            default=0.0,
            **size,
            tooltip=(
                "The most that the diffusion model's weights may hold, in GB; the rest comes layer"
                " by layer, which is slower. 0: planned."
            ),
        ),
        io.Float.Input(
            "vae_gb",
            default=0.0,
            **size,
            tooltip="The most that the VAE's weights may hold, in GB. 0: planned.",
        ),
        io.Float.Input(
            "reserve_gb",
            default=0.5,
            **size,
            tooltip="Left free for the desktop and other programs, in GB.",
        ),
        io.Int.Input(
            "width",
            **side,
            tooltip=(
                "Width of the result in px, for a plan at once. 0: planned when the sampler starts,"
                " from what it is given."
            ),
        ),
        io.Int.Input("height", **side, tooltip="Height of the result in px, as width."),
        io.Combo.Input(
            "on_exceed",
            options=list(_guard.ON_EXCEED),
            default=_guard.ADAPT,
            tooltip=(
                "When the run needs more than there is. adapt: plan around it, weights leave or"
                " stream. warn: only say so. stop: end with one message before the model is"
                " loaded."
            ),
        ),
        io.Clip.Input(
            "clip",
            optional=True,
            tooltip="The text encoder, to be planned and held too. Use the one that comes out.",
        ),
        io.Vae.Input(
            "vae",
            optional=True,
            tooltip="The VAE, to be planned and held too. Use the one that comes out.",
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        io.Model.Output(display_name="model", tooltip="The model, guarded. For the sampler."),
        io.Clip.Output(display_name="clip", tooltip="The text encoder, guarded."),
        io.Vae.Output(display_name="vae", tooltip="The VAE, guarded."),
        io.String.Output(
            display_name="report",
            tooltip="The plan by phases, and what the run before was measured to take, as text.",
        ),
        io.Image.Output(
            display_name="chart",
            tooltip="Each phase's predicted memory as a bar, with the card and budgets.",
        ),
    ]

"""EditPreset: everything that a way of sampling Qwen-Image-Edit needs, by one name."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui
from torch import Tensor

from ..engine import edit_presets as presets
from . import _host, _sampling

SAMPLERS = sorted({preset.sampler for preset in presets.PRESETS.values()})
SCHEDULERS = sorted({preset.scheduler for preset in presets.PRESETS.values()})


class EditPreset(io.ComfyNode):
    """The model with its patches, and the values for KSampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _host.schema(
            node_id="EditPreset",
            display_name="Edit Preset",
            category="RealToon",
            description=(
                "Sampling settings for Qwen-Image-Edit by name: gives KSampler its values, the"
                " model its shift and CFGNorm, and a prompt that makes art a photograph. Says what"
                " each preset needs and where it departs from the model's own settings."
            ),
            search_aliases=["sampler settings", "RealCharacters", "Lightning", "shift", "CFGNorm"],
            inputs=_inputs(),
            outputs=_outputs(),
        )

    @classmethod
    def validate_inputs(cls, preset: str | None = None, scene: str | None = None) -> bool | str:
        """A value that no list offers is refused before the run."""
        known = _host.one_of("preset", preset, presets.PRESETS)
        return known if known is not True else _host.one_of("scene", scene, presets.SCENES)

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        preset: str,
        scene: str,
        skin: bool,
        prompt: str,
        negative: str,
    ) -> io.NodeOutput:
        plan = presets.plan(preset, scene, skin, prompt, negative)
        chosen = plan.preset
        model = _sampling.patched(model, chosen.shift, chosen.cfg_norm)
        report = "\n".join(
            [
                f"preset: {plan.settings}",
                f"{plan.steps} steps, CFG {plan.cfg}",
                _told(_sampling.noise_levels(model, chosen.scheduler, plan.steps)),
                *plan.notes,
                f"prompt: {plan.prompt}",
            ]
        )
        return io.NodeOutput(
            model,
            plan.steps,
            plan.cfg,
            chosen.sampler,
            chosen.scheduler,
            1.0,
            plan.prompt,
            plan.negative,
            plan.settings,
            report,
            ui=ui.PreviewText(report),
        )


def _told(levels: Tensor) -> str:
    before = levels[:-1]
    high, low = int((before > 0.5).sum()), int((before < 0.1).sum())
    first, last = float(before[0]), float(before[-1])
    return (
        f"noise from {first:.3g} to {last:.3g}: {high} of {len(before)} steps above 0.5,"
        f" {low} below 0.1"
    )


def _inputs() -> list[io.Input]:
    return [
        io.Model.Input(
            "model",
            tooltip=(
                "Qwen-Image-Edit from QwenEditLoader, with its LoRAs. What comes out is a clone;"
                " this model stays as it is."
            ),
        ),
        io.Combo.Input(
            "preset",
            options=list(presets.PRESETS),
            default=presets.DEFAULT,
            tooltip=(
                "official: the model's own settings, 40 steps for the best picture. Lightning: 8 or"
                " 4 steps, needs the Lightning LoRA for as many steps. RealCharacters: DPM++ 2M"
                " Karras, CFG 7, 30 steps, as that workflow was published; oversaturates."
            ),
        ),
        io.Combo.Input(
            "scene",
            options=list(presets.SCENES),
            default=presets.SCENES[0],
            tooltip=(
                "crowded: many people. RealCharacters then takes 35 steps; the other presets keep"
                " theirs and the report says so."
            ),
        ),
        io.Boolean.Input(
            "skin",
            default=False,
            tooltip=(
                "More skin detail: adds “subsurface scattering, pore-level detail” to the prompt."
                " RealCharacters also goes from CFG 7 to 6.5."
            ),
        ),
        io.String.Input(
            "prompt",
            default="",
            multiline=True,
            tooltip=(
                "What to make of the picture. Empty: “transform the image to realistic photograph,"
                " high quality, 4k, natural skin texture”."
            ),
        ),
        io.String.Input(
            "negative",
            default="",
            multiline=True,
            tooltip=(
                "What to keep out of the picture. Empty: one space, as the model's makers do. It"
                " has no effect at CFG 1, so with Lightning."
            ),
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        io.Model.Output(
            display_name="model", tooltip="The model with the preset's shift and CFGNorm."
        ),
        io.Int.Output(display_name="steps", tooltip="For KSampler's steps."),
        io.Float.Output(display_name="cfg", tooltip="For KSampler's cfg."),
        _sampling.Choice.Output(
            display_name="sampler_name", options=SAMPLERS, tooltip="For KSampler's sampler_name."
        ),
        _sampling.Choice.Output(
            display_name="scheduler", options=SCHEDULERS, tooltip="For KSampler's scheduler."
        ),
        io.Float.Output(
            display_name="denoise", tooltip="For KSampler's denoise: 1, the whole way from noise."
        ),
        io.String.Output(
            display_name="prompt", tooltip="For the prompt of the node that encodes the edit."
        ),
        io.String.Output(
            display_name="negative", tooltip="For the negative of the node that encodes the edit."
        ),
        io.String.Output(
            display_name="settings",
            tooltip="Sampler, schedule, shift and preset in one line, for Result Caption.",
        ),
        io.String.Output(
            display_name="report", tooltip="What was set, what it needs, what to know, as text."
        ),
    ]

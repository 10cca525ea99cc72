"""Sampling settings for Qwen-Image-Edit by name, as data, and what a scene and a wish for skin make
of them.

Sources: the official workflow of Qwen-Image-Edit-2511 (euler, simple, shift 3.1, CFGNorm 1, CFG 4,
40 steps), the Lightning LoRAs' own (CFG 1, shift 3), and the settings published for "Anything to
RealCharacters 2.5D" (DPM++ 2M Karras, CFG 7, 30 steps; 35 for crowds; CFG 6.5 for skin).
"""

from __future__ import annotations

from dataclasses import dataclass

PROMPT = "transform the image to realistic photograph, high quality, 4k, natural skin texture"
SKIN = ", subsurface scattering, pore-level detail"
# Empty text is no prompt to the text encoder: the official pipeline sends one space.
NEGATIVE = " "
SCENES = ("usual", "crowded")


@dataclass(frozen=True)
class Preset:
    """steps, cfg, sampler and scheduler for KSampler. shift and cfg_norm for the model, None: as it
    is. crowded_steps and skin_cfg where its makers name some. notes: what to know before using it.
    """

    steps: int
    cfg: float
    sampler: str = "euler"
    scheduler: str = "simple"
    shift: float | None = 3.1
    cfg_norm: float | None = None
    crowded_steps: int | None = None
    skin_cfg: float | None = None
    notes: tuple[str, ...] = ()


def _lightning(steps: int) -> Preset:
    needs = (
        f"needs the Lightning LoRA for {steps} steps, at strength 1, between the loader and this"
        " node; without it the picture stays unfinished"
    )
    return Preset(steps, 1.0, shift=3.0, notes=(needs,))


PRESETS = {
    "official, 40 steps": Preset(40, 4.0, cfg_norm=1.0),
    "official, 20 steps": Preset(
        20, 4.0, cfg_norm=1.0, notes=("half the time of the official 40 steps, less fine detail",)
    ),
    "Lightning, 8 steps": _lightning(8),
    "Lightning, 4 steps": _lightning(4),
    "RealCharacters": Preset(
        30,
        7.0,
        "dpmpp_2m",
        "karras",
        shift=None,
        crowded_steps=35,
        skin_cfg=6.5,
        notes=(
            "departs from the model's own settings: Karras pays no heed to the model's shift and"
            " spends most steps where little noise is left",
            "CFG this high without CFGNorm oversaturates; ComfyUI's CFGNorm node behind this one"
            " tames it",
        ),
    ),
}
DEFAULT = next(iter(PRESETS))


@dataclass(frozen=True)
class Plan:
    """A preset with scene, skin and the user's own words worked in.

    settings: one line for a caption. notes: what was done and what to know, one line each.
    """

    name: str
    preset: Preset
    steps: int
    cfg: float
    prompt: str
    negative: str
    settings: str
    notes: tuple[str, ...]


def plan(name: str, scene: str, skin: bool, prompt: str = "", negative: str = "") -> Plan:
    """The settings of a preset for one run.

    name: in PRESETS. scene: in SCENES. prompt, negative: blank stands for the preset's.
    A crowded scene takes more steps, and skin another CFG, only where the preset names them; skin
    adds to the prompt, also to the user's, unless it says so already.
    Raises: KeyError for an unknown name.
    """
    preset = PRESETS[name]
    steps, cfg, notes = preset.steps, preset.cfg, []
    words = prompt.strip() or PROMPT
    if scene == "crowded" and preset.crowded_steps:
        steps = preset.crowded_steps
        notes.append(f"crowded scene: {steps} steps instead of {preset.steps}")
    elif scene == "crowded":
        notes.append(f"crowded scene: no other steps are known for this preset, {steps} stay")
    if skin:
        cfg = preset.skin_cfg or cfg
        words += "" if words.endswith(SKIN) else SKIN
        was = f" instead of {preset.cfg}" if preset.skin_cfg else " stays"
        notes.append(f'skin: "{SKIN}" at the end of the prompt; CFG {cfg}{was}')
    if cfg == 1.0:
        notes.append("CFG 1: the negative prompt has no effect")
    return Plan(
        name=name,
        preset=preset,
        steps=steps,
        cfg=cfg,
        prompt=words,
        negative=negative if negative.strip() else NEGATIVE,
        settings=_settings(name, scene, skin),
        notes=(*notes, *preset.notes),
    )


def _settings(name: str, scene: str, skin: bool) -> str:
    preset = PRESETS[name]
    parts = [f"{preset.sampler}/{preset.scheduler}"]
    if preset.shift is not None:
        parts.append(f"shift {preset.shift:g}")
    if preset.cfg_norm is not None:
        parts.append(f"CFGNorm {preset.cfg_norm:g}")
    called = [name, *(["crowded"] if scene == "crowded" else []), *(["skin"] if skin else [])]
    return f"{', '.join(parts)} ({', '.join(called)})"

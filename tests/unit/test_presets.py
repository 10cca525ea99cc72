"""Sampling presets as data: what a scene and a wish for skin make of each."""

import pytest
from realtoon.engine import edit_presets as presets

NAMES = list(presets.PRESETS)
OTHERS = [name for name in NAMES if name != "RealCharacters"]
WORDS = (
    "transform the image to realistic photograph, high quality, 4k, natural skin texture"
    ", subsurface scattering, pore-level detail"
)


def test_the_official_one_comes_first() -> None:
    plan = presets.plan(presets.DEFAULT, "usual", False)
    assert presets.DEFAULT == "official, 40 steps"
    assert (plan.steps, plan.cfg) == (40, 4.0)
    assert (plan.preset.sampler, plan.preset.scheduler) == ("euler", "simple")
    assert (plan.preset.shift, plan.preset.cfg_norm) == (3.1, 1.0)
    assert plan.settings == "euler/simple, shift 3.1, CFGNorm 1 (official, 40 steps)"
    assert (plan.notes, plan.negative) == ((), " ")


@pytest.mark.parametrize("steps", [8, 4])
def test_lightning_asks_for_its_lora(steps: int) -> None:
    plan = presets.plan(f"Lightning, {steps} steps", "usual", False)
    assert (plan.steps, plan.cfg, plan.preset.shift) == (steps, 1.0, 3.0)
    told = "\n".join(plan.notes)
    assert f"the Lightning LoRA for {steps} steps" in told
    assert "negative prompt has no effect" in told


@pytest.mark.parametrize(
    ("scene", "skin", "steps", "cfg"),
    [
        ("usual", False, 30, 7.0),
        ("crowded", False, 35, 7.0),
        ("usual", True, 30, 6.5),
        ("crowded", True, 35, 6.5),
    ],
)
def test_realcharacters_is_as_published(scene: str, skin: bool, steps: int, cfg: float) -> None:
    plan = presets.plan("RealCharacters", scene, skin)
    assert (plan.steps, plan.cfg) == (steps, cfg)
    assert (plan.preset.sampler, plan.preset.scheduler) == ("dpmpp_2m", "karras")
    assert plan.prompt == (WORDS if skin else presets.PROMPT)
    assert "departs from the model's own settings" in "\n".join(plan.notes)
    assert ("35 steps instead of 30" in "\n".join(plan.notes)) == (scene == "crowded")
    assert ("CFG 6.5 instead of 7.0" in "\n".join(plan.notes)) == skin


@pytest.mark.parametrize("name", OTHERS)
def test_others_keep_steps_and_cfg_and_say_so(name: str) -> None:
    plain, both = (presets.plan(name, *wish) for wish in (("usual", False), ("crowded", True)))
    assert (plain.steps, plain.cfg) == (both.steps, both.cfg)
    assert both.prompt == WORDS
    told = "\n".join(both.notes)
    assert f"no other steps are known for this preset, {plain.steps} stay" in told
    assert f"CFG {plain.cfg} stays" in told
    assert both.settings.endswith(f"({name}, crowded, skin)")


def test_the_users_words_come_first() -> None:
    plan = presets.plan(NAMES[0], "usual", True, " a photo ", "blur")
    assert plan.prompt == "a photo" + presets.SKIN
    assert plan.negative == "blur"
    again = presets.plan(NAMES[0], "usual", True, plan.prompt, " \n ")
    assert again.prompt == plan.prompt, "not twice"
    assert again.negative == presets.NEGATIVE


def test_a_name_that_is_none_is_an_error() -> None:
    with pytest.raises(KeyError):
        presets.plan("official", "usual", False)

"""EditPreset in a real ComfyUI, before a real KSampler on a tiny Qwen-Image."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import comfy_hosts
import graphs
import numpy as np
import pytest
from comfy_hosts import NONE
from graphs import Graph
from realtoon.engine import edit_presets

HOSTS = comfy_hosts.at_hand()
CHOICE = {"preset": edit_presets.DEFAULT, "scene": "usual", "skin": False}
CHOICE |= {"prompt": "", "negative": ""}


@pytest.fixture(
    scope="module",
    params=HOSTS or [None],
    ids=[f"comfyui-{host.version}" for host in HOSTS] or ["no-comfyui"],
)
def tiny(request, tmp_path_factory) -> Iterator[comfy_hosts.Comfy]:
    """A host with a pack that makes a tiny model."""
    if request.param is None:
        pytest.skip(NONE)
    folder = tmp_path_factory.mktemp("packs")
    pack = folder / "custom_nodes" / "tiny_qwen"
    pack.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("tiny_qwen_pack.py"), pack / "__init__.py")
    file = folder / "paths.yaml"
    config = {"base_path": str(folder), "custom_nodes": "custom_nodes"}
    file.write_text(json.dumps({"tests": config}), "utf-8")
    arguments = ("--extra-model-paths-config", str(file))
    with comfy_hosts.started(request.param, extra_arguments=arguments) as running:
        yield running


class Sampled(Graph):
    """The tiny model and a latent; samplers are added."""

    def __init__(self) -> None:
        super().__init__()
        self.made = self.add("TinyQwen", flow=True)
        latent = self.add("EmptySD3LatentImage", width=64, height=64, batch_size=1)
        self.rest = {
            "seed": 5,
            "positive": [self.made, 1],
            "negative": [self.made, 2],
            "latent_image": [latent, 0],
        }

    def preset(self, **values) -> str:  # noqa: ANN003
        return self.add("EditPreset", model=[self.made, 0], **{**CHOICE, **values})

    def by_preset(self, **values) -> str:  # noqa: ANN003
        node = self.preset(**values)
        names = ("model", "steps", "cfg", "sampler_name", "scheduler", "denoise")
        self.keep(self.add("KSampler", **{n: [node, i] for i, n in enumerate(names)}, **self.rest))
        return node

    def by_hand(self, model: graphs.Link, steps, cfg, sampler="euler", scheduler="simple") -> None:
        values = {"steps": steps, "cfg": cfg, "sampler_name": sampler, "scheduler": scheduler}
        self.keep(self.add("KSampler", model=model, denoise=1.0, **values, **self.rest))

    def keep(self, latent: str) -> None:
        self.add("SaveLatent", samples=[latent, 0], filename_prefix="preset/x")


def latents(comfy, graph: Graph) -> tuple[list[np.ndarray], str]:
    """What each SaveLatent of the graph wrote, in its order, and what the nodes said."""
    result = comfy.run(graph)
    found = []
    for node_id in (n for n, node in graph.items() if node["class_type"] == "SaveLatent"):
        [file] = result.outputs[node_id]["latents"]
        data = (comfy.server.base / "output" / file["subfolder"] / file["filename"]).read_bytes()
        header = int.from_bytes(data[:8], "little")
        start, end = json.loads(data[8 : 8 + header])["latent_tensor"]["data_offsets"]
        found.append(np.frombuffer(data[8 + header + start : 8 + header + end], np.float32))
    assert all(np.isfinite(each).all() and each.std() > 0.01 for each in found)
    return found, "\n".join(result.texts)


@pytest.mark.parametrize(
    ("preset", "shift", "norm", "values"),
    [
        ("official, 40 steps", 3.1, True, (40, 4.0)),
        ("official, 20 steps", 3.1, True, (20, 4.0)),
        ("Lightning, 8 steps", 3.0, False, (8, 1.0)),
        ("Lightning, 4 steps", 3.0, False, (4, 1.0)),
        ("RealCharacters", None, False, (30, 7.0, "dpmpp_2m", "karras")),
    ],
)
def test_the_same_bits_as_by_hand(tiny, preset: str, shift, norm: bool, values: tuple) -> None:
    """As with the host's own nodes and the numbers typed in; and the model stays what it was."""
    graph = Sampled()
    graph.by_preset(preset=preset)
    model = [graph.made, 0]
    if shift:
        model = [graph.add("ModelSamplingAuraFlow", model=model, shift=shift), 0]
    if norm:
        model = [graph.add("CFGNorm", model=model, strength=1.0), 0]
    graph.by_hand(model, *values)
    graph.by_hand([graph.made, 0], *values)
    (ours, theirs, untouched), told = latents(tiny, graph)
    assert np.array_equal(ours, theirs)
    assert np.array_equal(ours, untouched) == (shift is None)
    assert f"({preset})" in told


def said(tiny, outputs: dict[str, int], **values) -> tuple[dict[str, str], str]:  # noqa: ANN003
    """What some of the node's outputs hold, and what stands on the node."""
    graph = Sampled()
    node = graph.preset(**values)
    shown = {name: graph.add("PreviewAny", source=[node, i]) for name, i in outputs.items()}
    result = tiny.run(graph)
    texts = {name: result.outputs[each]["text"][0] for name, each in shown.items()}
    return texts, "\n".join(result.outputs.get(node, {}).get("text", []))


def test_the_report_counts_the_steps_by_their_noise(tiny) -> None:
    """The figures of the help page."""
    # Not what stands on the node: a job's history lacks nodes that an earlier job has run.
    found = {name: said(tiny, {"report": 9}, preset=name) for name in edit_presets.PRESETS}
    told = {name: texts["report"] for name, (texts, _) in found.items()}
    assert "31 of 40 steps above 0.5, 1 below 0.1" in told["official, 40 steps"]
    assert "4 of 30 steps above 0.5, 18 below 0.1" in told["RealCharacters"]
    assert "CFG this high without CFGNorm oversaturates" in told["RealCharacters"]
    for steps in (4, 8):
        assert f"Lightning LoRA for {steps} steps" in told[f"Lightning, {steps} steps"]


def test_scene_skin_and_own_words(tiny) -> None:
    outputs = {"steps": 1, "cfg": 2, "prompt": 6, "negative": 7, "settings": 8}
    texts, told = said(tiny, outputs, preset="RealCharacters", scene="crowded", skin=True)
    assert (texts["steps"], texts["cfg"]) == ("35", "6.5")
    assert texts["prompt"] == edit_presets.PROMPT + edit_presets.SKIN
    assert texts["negative"] == " "
    assert texts["settings"] == "dpmpp_2m/karras (RealCharacters, crowded, skin)"
    assert "35 steps instead of 30" in told and "CFG 6.5 instead of 7.0" in told
    texts, told = said(tiny, outputs, scene="crowded", prompt="a photo", negative="blur")
    assert (texts["steps"], texts["prompt"], texts["negative"]) == ("40", "a photo", "blur")
    assert "40 stay" in told


def test_other_samplers_take_the_choices_too(tiny) -> None:
    graph = Sampled()
    node = graph.preset(preset="Lightning, 4 steps")
    model = [node, 0]
    sampler = graph.add("KSamplerSelect", sampler_name=[node, 3])
    sigmas = graph.add("BasicScheduler", model=model, scheduler=[node, 4], steps=[node, 1],
                       denoise=[node, 5])  # fmt: skip
    noise = graph.add("RandomNoise", noise_seed=5)
    guider = graph.add("CFGGuider", model=model, cfg=[node, 2],
                       **{name: graph.rest[name] for name in ("positive", "negative")})  # fmt: skip
    made = graph.add("SamplerCustomAdvanced", noise=[noise, 0], guider=[guider, 0],
                     sampler=[sampler, 0], sigmas=[sigmas, 0],
                     latent_image=graph.rest["latent_image"])  # fmt: skip
    graph.keep(made)
    graph.by_preset(preset="Lightning, 4 steps")
    (one, other), _ = latents(tiny, graph)
    assert np.array_equal(one, other)


def refused(tiny, graph: Graph) -> str:
    with pytest.raises(graphs.UserError) as refusal:
        tiny.run(graph)
    return str(refusal.value)


def test_a_choice_does_not_fit_another_list(tiny) -> None:
    graph = Sampled()
    node = graph.preset()
    values = {"steps": 2, "cfg": 1.0, "denoise": 1.0, "scheduler": "simple"}
    values |= {"sampler_name": [node, 4]}
    graph.keep(graph.add("KSampler", model=[node, 0], **values, **graph.rest))
    assert "sampler_name" in refused(tiny, graph)


@pytest.mark.parametrize(("name", "value"), [("preset", "best"), ("scene", "empty")])
def test_a_value_that_no_list_offers_is_refused(tiny, name: str, value: str) -> None:
    graph = Sampled()
    graph.by_preset(**{name: value})
    assert name in refused(tiny, graph)


def test_a_model_that_is_no_flow_is_refused(tiny) -> None:
    graph = Sampled()
    graph[graph.made]["inputs"]["flow"] = False
    graph.by_preset()
    told = refused(tiny, graph)
    assert "model: expected a flow model such as Qwen-Image-Edit" in told
    assert "Next step: join QwenEditLoader's model output here" in told

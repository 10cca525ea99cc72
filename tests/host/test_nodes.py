"""What every ComfyUI at hand sees of the pack: ids, schema, help, languages, and rivals."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import comfy_hosts
import graphs
import pytest
from comfy_hosts import NONE
from realtoon.host import paths

NODE_IDS = (
    "DCTNetCartoon",
    "EditPreset",
    "EncodeForEdit",
    "GPENRestore",
    "LoRAHotInject",
    "PrepareImage",
    "QwenEditLoader",
    "RestoreFraming",
    "ResultCaption",
    "TiledVAEDecode",
    "TiledVAEEncode",
    "VRAMGuard",
)
INPUTS = {
    "DCTNetCartoon": {
        "image": ("IMAGE", None),
        "style": ("COMBO", None),
        "style_strength": ("FLOAT", (0.75, 0.0, 1.0, 0.01)),
        "line_crispness": ("FLOAT", (1.0, 0.0, 2.0, 0.05)),
        "face_pass": ("BOOLEAN", (True, None, None, None)),
        "max_faces": ("INT", (10, 0, 100, None)),
        "min_face_px": ("INT", (40, 12, 1024, None)),
        "chunk": ("INT", (0, 0, 64, None)),
        "mask": ("MASK", None),
    },
    "EditPreset": {
        "model": ("MODEL", None),
        "preset": ("COMBO", None),
        "scene": ("COMBO", None),
        "skin": ("BOOLEAN", (False, None, None, None)),
        "prompt": ("STRING", ("", None, None, None)),
        "negative": ("STRING", ("", None, None, None)),
    },
    "EncodeForEdit": {
        "clip": ("CLIP", None),
        "vae": ("VAE", None),
        "image": ("IMAGE", None),
        "prompt": ("STRING", ("", None, None, None)),
        "negative": ("STRING", (" ", None, None, None)),
        "start": ("COMBO", None),
        "reference_method": ("COMBO", None),
        "vision_px": ("INT", (384, 112, 2048, 8)),
        "image_2": ("IMAGE", None),
        "image_3": ("IMAGE", None),
    },
    "GPENRestore": {
        "image": ("IMAGE", None),
        "model": ("COMBO", None),
        "strength": ("FLOAT", (1.0, 0.0, 1.0, 0.01)),
        "skin_smooth": ("FLOAT", (1.0, 0.0, 1.0, 0.01)),
        "max_faces": ("INT", (0, 0, 100, None)),
        "face_order": ("COMBO", None),
        "min_face_px": ("INT", (20, 12, 1024, None)),
        "mode": ("COMBO", None),
        "tile_px": ("INT", (512, 128, 2048, 8)),
        "tile_overlap_px": ("INT", (64, 0, 512, 8)),
        "precision": ("COMBO", None),
        "mask": ("MASK", None),
    },
    "LoRAHotInject": {
        "model": ("MODEL", None),
        "lora": ("COMBO", None),
        "strength": ("FLOAT", (1.0, -4.0, 4.0, 0.05)),
        "mode": ("COMBO", None),
        "keep_in_memory_mb": ("INT", (2048, 0, 65536, None)),
    },
    "PrepareImage": {
        "image": ("IMAGE", None),
        "max_side": ("INT", (1024, 0, 16384, 8)),
        "multiple_of": ("COMBO", None),
        "background": ("COMBO", None),
        "fit": ("COMBO", None),
        "depth_compensation": ("FLOAT", (0.0, 0.0, 1.0, 0.05)),
        "denoise": ("FLOAT", (0.0, 0.0, 1.0, 0.05)),
        "smooth": ("FLOAT", (0.0, 0.0, 1.0, 0.05)),
        "mask": ("MASK", None),
    },
    "QwenEditLoader": {
        "base": ("COMBO", None),
        "text_encoder": ("COMBO", None),
        "vae": ("COMBO", None),
        "modulation": ("COMBO", None),
        "attention": ("COMBO", None),
        "weight_dtype": ("COMBO", None),
        "offload": ("COMBO", None),
    },
    "RestoreFraming": {
        "image": ("IMAGE", None),
        "framing": ("REALTOON_FRAMING", None),
        "size": ("COMBO", None),
    },
    "ResultCaption": {
        "image": ("IMAGE", None),
        "cfg": ("FLOAT", (0.0, 0.0, 100.0, 0.1)),
        "steps": ("INT", (0, 0, 10000, None)),
        "weight": ("STRING", ("", None, None, None)),
        "note": ("STRING", ("", None, None, None)),
        "draw": ("COMBO", None),
        "filename_prefix": ("STRING", ("RealToon", None, None, None)),
        "format": ("COMBO", None),
        "sampler": ("STRING", ("", None, None, None)),
        "image_2": ("IMAGE", None),
        "weight_2": ("STRING", None),
        "image_3": ("IMAGE", None),
        "weight_3": ("STRING", None),
    },
    "TiledVAEDecode": {
        "samples": ("LATENT", None),
        "vae": ("VAE", None),
        "precision": ("COMBO", None),
        "strip_rows": ("INT", (0, 0, 2048, None)),
    },
    "TiledVAEEncode": {
        "pixels": ("IMAGE", None),
        "vae": ("VAE", None),
        "precision": ("COMBO", None),
        "strip_rows": ("INT", (0, 0, 2048, None)),
    },
    "VRAMGuard": {
        "model": ("MODEL", None),
        "card_gb": ("FLOAT", (0.0, 0.0, 512.0, 0.1)),
        "text_encoder_gb": ("FLOAT", (0.0, 0.0, 512.0, 0.1)),
        "dit_gb": ("FLOAT", (0.0, 0.0, 512.0, 0.1)),
        "vae_gb": ("FLOAT", (0.0, 0.0, 512.0, 0.1)),
        "reserve_gb": ("FLOAT", (0.5, 0.0, 512.0, 0.1)),
        "width": ("INT", (0, 0, 16384, 16)),
        "height": ("INT", (0, 0, 16384, 16)),
        "on_exceed": ("COMBO", None),
        "clip": ("CLIP", None),
        "vae": ("VAE", None),
    },
}
# Those of PrepareImage came later: API workflows from before do not name them.
OPTIONAL = {
    "DCTNetCartoon": ["mask"],
    "EditPreset": [],
    "EncodeForEdit": ["image_2", "image_3"],
    "GPENRestore": ["mask"],
    "LoRAHotInject": [],
    "PrepareImage": ["fit", "depth_compensation", "denoise", "smooth", "mask"],
    "QwenEditLoader": [],
    "RestoreFraming": [],
    "ResultCaption": ["sampler", "image_2", "weight_2", "image_3", "weight_3"],
    "TiledVAEDecode": [],
    "TiledVAEEncode": [],
    "VRAMGuard": ["clip", "vae"],
}
OUTPUTS = {
    "DCTNetCartoon": (["IMAGE", "MASK", "STRING"], ["image", "face_mask", "report"]),
    # Into KSampler's lists goes what the presets send.
    "EditPreset": (
        [
            *("MODEL", "INT", "FLOAT", ["dpmpp_2m", "euler"], ["karras", "simple"], "FLOAT"),
            *("STRING", "STRING", "STRING", "STRING"),
        ],
        [
            *("model", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
            *("prompt", "negative", "settings", "report"),
        ],
    ),
    "EncodeForEdit": (
        ["CONDITIONING", "CONDITIONING", "LATENT", "STRING"],
        ["positive", "negative", "latent", "report"],
    ),
    "GPENRestore": (
        ["IMAGE", "IMAGE", "MASK", "STRING"],
        ["image", "faces", "face_mask", "report"],
    ),
    "LoRAHotInject": (["MODEL", "STRING", "STRING"], ["model", "name", "report"]),
    "PrepareImage": (["IMAGE", "STRING", "REALTOON_FRAMING"], ["image", "report", "framing"]),
    "QwenEditLoader": (["MODEL", "CLIP", "VAE", "STRING"], ["model", "clip", "vae", "report"]),
    "RestoreFraming": (["IMAGE", "STRING"], ["image", "report"]),
    "ResultCaption": (["IMAGE", "STRING", "IMAGE"], ["image", "caption", "drawn"]),
    "TiledVAEDecode": (["IMAGE", "STRING"], ["image", "report"]),
    "TiledVAEEncode": (["LATENT", "STRING"], ["samples", "report"]),
    "VRAMGuard": (
        ["MODEL", "CLIP", "VAE", "STRING", "IMAGE"],
        ["model", "clip", "vae", "report", "chart"],
    ),
}


def all_inputs(info: dict) -> dict[str, list]:
    return {**info["input"].get("required", {}), **info["input"].get("optional", {})}


@pytest.mark.parametrize("node_id", NODE_IDS)
def test_the_schema_is_the_one_that_workflows_rely_on(comfy, node_id: str) -> None:
    info = comfy.info(node_id)
    assert info["name"] == node_id
    assert info["category"] == "RealToon"
    assert info["display_name"] and info["description"]
    assert (info["output"], info["output_name"]) == OUTPUTS[node_id]
    assert info["output_node"] is (node_id == "ResultCaption")
    assert list(info["input"].get("optional", {})) == OPTIONAL[node_id]
    found = all_inputs(info)
    assert list(found) == list(INPUTS[node_id])
    for name, (kind, numbers) in INPUTS[node_id].items():
        # Older hosts name a combo by the list of its options.
        assert found[name][0] == kind or isinstance(found[name][0], list), name
        if numbers:
            options = found[name][1]
            limits = tuple(options.get(key) for key in ("default", "min", "max", "step"))
            assert tuple(limits[i] for i, n in enumerate(numbers) if n is not None) == tuple(
                n for n in numbers if n is not None
            ), name


@pytest.mark.parametrize("node_id", NODE_IDS)
def test_everything_has_a_tooltip(comfy, node_id: str) -> None:
    info = comfy.info(node_id)
    for name, (_, options) in all_inputs(info).items():
        assert len(options.get("tooltip", "")) > 20, name
    assert len(info["output_tooltips"]) == len(info["output"])
    assert all(tooltip and len(tooltip) > 10 for tooltip in info["output_tooltips"])


def test_combos_offer_what_they_should(comfy) -> None:
    def options(node_id: str, name: str) -> list:
        kind, more = all_inputs(comfy.info(node_id))[name]
        return kind if isinstance(kind, list) else more["options"]

    assert options("DCTNetCartoon", "style")[0] == graphs.BUILT_IN
    assert options("EditPreset", "preset")[0] == "official, 40 steps"
    assert options("EditPreset", "scene") == ["usual", "crowded"]
    assert options("ResultCaption", "draw") == ["off", "below"]
    assert options("ResultCaption", "format") == ["png", "jpg", "webp"]
    assert options("GPENRestore", "mode") == ["faces", "tiled"]
    assert options("GPENRestore", "face_order") == ["largest", "left_to_right", "score"]
    assert options("GPENRestore", "precision") == ["auto", "fp32", "mixed"]
    assert options("PrepareImage", "multiple_of") == [1, 8, 16, 32]
    assert options("PrepareImage", "background") == ["white", "black", "grey"]
    assert options("PrepareImage", "fit") == ["pad", "crop"]
    assert options("QwenEditLoader", "text_encoder")[0] == "from the folder"
    assert options("QwenEditLoader", "vae")[0] == "from the folder"
    assert options("QwenEditLoader", "modulation") == ["table", "weights"]
    assert options("QwenEditLoader", "attention")[:2] == ["auto", "pytorch"]
    assert options("RestoreFraming", "size") == ["prepared", "original"]
    # A style that was put there while the host runs is there after a refresh.
    graphs.put_style(comfy, "just arrived")
    assert "just arrived" in options("DCTNetCartoon", "style")


def test_the_pack_came_in_without_a_word_of_trouble(comfy) -> None:
    # Later lines are other tests' jobs, some of which are there to fail.
    text = graphs.log(comfy).partition("got prompt")[0]
    assert "IMPORT FAILED" not in text
    for line in text.splitlines():
        assert not re.search(r"realtoon.*(error|traceback|deprecat)", line, re.IGNORECASE), line
    # Nobody else has our ids here.
    assert "is also registered by" not in text


@pytest.mark.parametrize("node_id", NODE_IDS)
@pytest.mark.parametrize("page", ["{}.md", "{}/zh.md"])
def test_help_pages_are_served(comfy, node_id: str, page: str) -> None:
    path = f"/extensions/{paths.LINK_NAME}/docs/{page.format(node_id)}"
    status, body = graphs.get(comfy, path)
    assert status == 200, path
    text = body.decode("utf-8")
    for name in all_inputs(comfy.info(node_id)):
        assert f"`{name}`" in text, f"{page} says nothing of {name}"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_host_hands_out_our_languages(comfy, language: str) -> None:
    status, body = graphs.get(comfy, "/i18n")
    assert status == 200
    texts = json.loads(body)[language]["nodeDefs"]
    for node_id in NODE_IDS:
        info = comfy.info(node_id)
        assert set(texts[node_id]["inputs"]) == set(all_inputs(info))
        assert set(texts[node_id]["outputs"]) == {str(i) for i in range(len(info["output"]))}
        if language == "en":
            assert texts[node_id]["display_name"] == info["display_name"]


# --- another pack with our ids --------------------------------------------------------------------

RIVAL = """
class Theirs:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}
    RETURN_TYPES = ()
    FUNCTION = "run"
    CATEGORY = "rival"
    def run(self):
        return ()

NODE_CLASS_MAPPINGS = {"NODE_ID": Theirs}
"""


@pytest.fixture(scope="module")
def crowded(request, tmp_path_factory) -> Iterator[comfy_hosts.Comfy]:
    """A host with two packs that take our ids, one loaded before ours and one behind it, and with
    nothing in its model folders."""
    hosts = comfy_hosts.at_hand()
    if not hosts:
        pytest.skip(NONE)
    folder = tmp_path_factory.mktemp("rivals")
    config = {}
    for when, node_id in (("early", "DCTNetCartoon"), ("late", "PrepareImage")):
        pack = folder / when / f"rival_{when}"
        pack.mkdir(parents=True)
        (pack / "__init__.py").write_text(RIVAL.replace("NODE_ID", node_id), "utf-8")
        config[when] = {"base_path": str(folder), "custom_nodes": when, "is_default": False}
    # The default folder is searched first.
    config["early"]["is_default"] = True
    file = folder / "paths.yaml"
    file.write_text(json.dumps(config), "utf-8")
    before = pytest.MonkeyPatch()
    before.setenv("REALTOON_CACHE", str(folder / "cache"))
    arguments = ("--extra-model-paths-config", str(file))
    try:
        with comfy_hosts.started(hosts[0], extra_arguments=arguments) as running:
            yield running
    finally:
        before.undo()


def test_a_pack_with_our_id_is_named_whichever_came_first(crowded) -> None:
    text = graphs.log(crowded)
    early = re.search(r"DCTNetCartoon is also registered by (\S+); it is replaced by", text)
    late = re.search(r"PrepareImage is also registered by (\S+); it replaces", text)
    assert early and "rival_early" in early[1]
    assert late and "rival_late" in late[1]
    assert text.count("is also registered by") == 2
    assert crowded.info("DCTNetCartoon")["category"] == "RealToon"
    assert crowded.info("PrepareImage")["category"] == "rival"


def test_without_a_detector_the_node_says_so_and_draws(crowded) -> None:
    name = crowded.upload(graphs.photo(60, 44))
    style = graphs.put_style(crowded, "random")
    both = graphs.Graph()
    image = both.load(name)
    for face_pass in (True, False):
        both.save([both.cartoon(image, style, face_pass=face_pass), 0])
    result = crowded.run(both)
    text = "\n".join(result.texts)
    assert "faces: no detector" in text
    assert "Next step: python run.py weights faces" in text
    assert str(Path("models") / "facedetection") in text
    with_pass, without = (pictures[0] for pictures in graphs.saved(crowded, result).values())
    assert with_pass.size == (60, 44)
    assert with_pass.tobytes() == without.tobytes()

"""QwenEditLoader in a real ComfyUI, on tiny weights: what qwen_loader_cases.py finds in the host's
own process, and what the API answers."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import comfy_hosts
import pytest
from graphs import Graph, outcome
from realtoon.host import workflow
from realtoon.host.errors import UserError

sys.path.append(str(Path(__file__).resolve().parent.parent / "unit"))
import qwen_weights  # noqa: E402  (the makers of tiny weights lie with the unit tests)

found = comfy_hosts.found_by("qwen_loader_cases.py", limit_s=300)


def test_official_folder_and_repacked_files_give_the_same_bits(found) -> None:
    """Latents, texts and pictures, with the table and with the weights."""
    assert len(found["layouts"]["differences"]) == 9
    assert set(found["layouts"]["differences"]) == {0.0}
    assert found["control"] > 1e-3


def test_the_table_keeps_the_modulation_out_of_memory(found) -> None:
    layouts = found["layouts"]
    # Two blocks of two, width 64, in bf16.
    modulation = 4 * (6 * 64 * 64 + 6 * 64) * 2
    held = layouts["dit.safetensors weights bytes"] - layouts["dit.safetensors table bytes"]
    assert held in (modulation, 2 * modulation), "held in bf16 or in fp32, as the host chooses"


def test_the_report_says_what_was_found(found) -> None:
    reports = found["layouts"]["reports"]
    release = "2511" if found["knows 2511"] else "2509"
    official, repacked = (reports[f"{name} table"] for name in ("Qwen/tiny/", "dit.safetensors"))
    assert f"base: Qwen-Image-Edit-{release}, official, BF16" in official
    assert "in 3 files" in official
    assert "repacked, BF16" in repacked and "in text.safetensors" in repacked
    for name, report in reports.items():
        assert f"modulation: {name.rpartition(' ')[2]}" in report
        assert "attention: sub_quad" in report


@pytest.mark.parametrize("scheme", ["fp8", "scaled_fp8", "comfy_quant", "metadata"])
def test_fp8_files_run_near_the_full_model(found, scheme: str) -> None:
    quantised = found["quantised"][scheme]
    # An older host casts what such a file leaves unquantised as well, as its own loader does.
    rough = scheme == "fp8" or (scheme == "scaled_fp8" and not found["knows 2511"])
    assert 0 < quantised["from full"] < (0.5 if rough else 0.1)
    assert 0 < quantised["text"] < (0.6 if scheme == "fp8" else 0.3)
    # Scales are multiplied out in one pass here and in another by the host.
    assert quantised["table"] == 0 if scheme == "fp8" else quantised["table"] < 0.02
    if found["knows 2511"]:
        assert found["quantised"]["said"] == []


def test_a_base_is_loaded_once_and_let_go_with_its_last_user(found) -> None:
    assert all(found["sharing"].values()), found["sharing"]
    assert len(found["sharing"]) == 9


def test_attention_is_chosen_for_one_model_only(found) -> None:
    attention = found["attention"]
    assert "pytorch" in attention["names"]
    assert 0 < attention["differences"][0] < 1e-3, "another function computed it"
    assert attention["others untouched"]


def test_newer_hosts_can_make_the_same_model_again(found) -> None:
    again = found["again"]
    if not again:
        pytest.skip("this ComfyUI makes no model anew")
    assert again.pop("difference") == 0.0
    assert all(again.values()), again


MATRICES = 2 * (8 * 64 * 64 + 4 * 4 * 64 * 64)
"""Numbers in attention and MLPs: two blocks, width 64, two streams."""


def test_bf16_becomes_scaled_fp8_where_it_spares_most(found) -> None:
    for modulation in ("table", "weights"):
        made = found["dtypes"][f"dit {modulation} to fp8 e4m3 scaled"]
        assert 0 < made["apart"] < 0.08
        assert made["held"]["float8_e4m3fn"] == MATRICES
        assert len(made["quantised"]) == 2 * 12
        kinds = {name.split(".")[2] for name in made["quantised"]}
        assert kinds == {"attn", "img_mlp", "txt_mlp"}, "first, last, modulation stay in full"
    full = found["dtypes"]["dit table to bf16"]
    assert full["apart"] == 0 and set(full["held"]) == {"bfloat16"}
    assert full["held"]["bfloat16"] > 2 * MATRICES
    report = found["dtypes"]["dit table to fp8 e4m3 scaled"]["report"]
    resident = re.search(r"resident model: (\S+) MB \(float8_e4m3fn 0.20 MB", report)
    assert resident and float(resident[1]) > 0.2, report


def test_fp8_is_multiplied_out_to_bf16(found) -> None:
    for name in ("fp8", "scaled_fp8", "comfy_quant"):
        made = found["dtypes"][f"dit {name} table to bf16"]
        assert set(made["held"]) == {"bfloat16"}
        # An older host casts what a scaled_fp8 file leaves unquantised as well; here nothing is.
        rough = name == "scaled_fp8" and not found["knows 2511"]
        assert made["apart"] <= (0.5 if rough else 0.01)
    assert found["dtypes"]["dit metadata table to fp8 e4m3 scaled"]["apart"] == 0


def test_weights_that_are_views_of_their_file_can_be_used_as_any(found) -> None:
    """Patched, unpatched, unloaded, saved, written to: the file stays as it is."""
    mapped = found["mapped"]
    if sys.platform == "linux":
        assert mapped["is mapped"] is True
    assert mapped["patch moves"] > 1e-3 and mapped["written"] > 1e-3
    assert mapped["unpatched"] == mapped["unloaded"] == mapped["loaded again"] == 0
    same, saved, stored = mapped["saved"]
    assert same == saved == stored == 77
    assert mapped["file kept"]


@pytest.mark.parametrize("base", ["dit", "dit metadata"])
def test_offload_says_how_much_is_on_the_device(found, base: str) -> None:
    """On a processor, where the host's budget for partial loading is asked for by hand."""
    auto, none, sequential = (
        found["offload"][f"{base} {name}"] for name in ("auto", "none", "sequential")
    )
    assert auto["apart"] == none["apart"] == sequential["apart"] == 0
    assert auto["loaded"] == none["loaded"] == 1 and sequential["loaded"] < 0.01
    assert 0 < auto["kept"] < 1 and auto["freed"] > 0
    assert none["kept"] == 1 and none["freed"] == 0
    assert sequential["kept"] < 0.01
    assert none["static"] and sequential["static"]
    assert none["cloned"] and sequential["cloned"]


def test_without_any_model_the_node_says_where_one_belongs(found) -> None:
    told = found["nothing there"]
    assert told.startswith("base: expected Qwen-Image-Edit in models/diffusion_models")
    assert "got none. Next step: put one there" in told


def test_what_cannot_run_says_what_to_do(found) -> None:
    refusals = found["refusals"]
    if found["knows 2511"]:
        assert refusals["2511"] == ""
    else:
        assert "update ComfyUI to 0.5.0 or newer" in refusals["2511"]
    assert "1 missing: diffusion_pytorch_model-00002-of-00003" in refusals["torn"]
    assert refusals["gone"].startswith("InputError: base: expected one of")
    assert "text_encoder: expected a file" in refusals["no text"]
    assert "expected one of auto, pytorch" in refusals["attention"]
    assert "expected one of as stored, bf16" in refusals["dtype"]
    assert "expected one of auto, none, sequential" in refusals["offload"]
    assert "rounded to float8_e4m3fn without scales" in refusals["fp8 without scales"]
    others = ("dtype", "offload", "fp8 without scales")
    told = [refusals[name] for name in ("torn", "gone", "no text", "attention", *others)]
    assert all("Next step: " in each for each in told)


def test_only_what_is_one_is_offered(found) -> None:
    offered = found["refusals"]["offered"]
    assert {"Qwen/tiny/", "new/", "torn/", "dit.safetensors"} < set(offered)
    assert "other.safetensors" not in offered
    assert "text.safetensors" in found["refusals"]["texts"]


# --- through the API ------------------------------------------------------------------------------


def graph(base: str) -> Graph:
    """A picture and a prompt through the model, two steps."""
    made = Graph()
    folder = {"text_encoder": "from the folder", "vae": "from the folder"}
    choices = {"modulation": "table", "attention": "auto"}
    choices |= {"weight_dtype": "as stored", "offload": "auto"}
    loader = made.add("QwenEditLoader", base=base, **folder, **choices)
    model, clip, vae = ([loader, output] for output in range(3))
    picture = [made.add("EmptyImage", width=64, height=64, batch_size=1, color=0x4080C0), 0]
    encoder = "TextEncodeQwenImageEditPlus"
    latent = [made.add("VAEEncode", pixels=picture, vae=vae), 0]
    texts = {}
    for name, prompt in (("positive", "a person"), ("negative", " ")):
        text = [made.add(encoder, clip=clip, prompt=prompt, image1=picture), 0]
        texts[name] = [made.add("ReferenceLatent", conditioning=text, latent=latent), 0]
    how = {"seed": 3, "steps": 2, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple"}
    sampled = made.add("KSampler", model=model, latent_image=latent, denoise=1.0, **texts, **how)
    made.save([made.add("VAEDecode", samples=[sampled, 0], vae=vae), 0])
    return made


@pytest.fixture
def tiny(comfy):
    """An official folder that the host's own tokenizer and nodes can run."""
    folder = comfy.server.base / "models/diffusers/tiny"
    # The host's tokenizer gives numbers up to the official vocabulary's.
    sizes = qwen_weights.Sizes(vocabulary=152064)
    # One that every host knows: 2511's reference method came with 0.5.
    yield qwen_weights.write_official(folder, sizes, edition="2509")
    shutil.rmtree(folder)


def test_a_base_that_is_not_there_is_refused_with_what_is(comfy) -> None:
    """Other tests' models, or those of the machine, may lie there."""
    others = workflow.options(comfy.info("QwenEditLoader"), "base")
    expected = f"one of {others[0]}" if others else "Qwen-Image-Edit in models/diffusion_models"
    with pytest.raises(UserError, match="refused") as refusal:
        comfy.run(graph("gone.safetensors"))
    assert f"expected {expected}" in str(refusal.value)


def test_a_tiny_official_folder_runs_through_the_api(comfy, tiny: Path) -> None:
    result = comfy.run(graph("tiny/"))
    [picture] = comfy.pictures(result)
    assert picture.size == (64, 64)
    low, high = picture.convert("L").getextrema()
    assert high - low > 8, "noise, not one colour"
    with pytest.raises(UserError, match="refused") as refusal:
        comfy.run(graph("other/"))
    assert "tiny/" in str(refusal.value)


def test_a_folder_that_is_not_whole_is_refused_on_the_node(comfy, tiny: Path) -> None:
    next((tiny / "text_encoder").glob("*-00002-*")).unlink()
    failure = outcome(comfy, comfy.do(lambda client: client.submit(graph("tiny/"))))
    assert isinstance(failure, UserError)
    assert "1 missing: model-00002-of-00003" in str(failure)
    assert "Next step" in str(failure)

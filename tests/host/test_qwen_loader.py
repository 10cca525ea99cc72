"""QwenEditLoader in a real ComfyUI, on tiny weights: what qwen_loader_cases.py finds in the host's
own process, and what the API answers. A tiny model does not run through the API: the host fixes
the sizes of the text encoder's vision part."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import comfy_hosts
import pytest
from graphs import Graph, outcome
from realtoon.host.errors import UserError

sys.path.append(str(Path(__file__).resolve().parent.parent / "unit"))
import qwen_weights  # noqa: E402  (the makers of tiny weights lie with the unit tests)

CASES = Path(__file__).with_name("qwen_loader_cases.py")
HOSTS = comfy_hosts.at_hand()


@pytest.fixture(
    scope="module",
    params=HOSTS or [None],
    ids=[f"comfyui-{host.version}" for host in HOSTS] or ["no-comfyui"],
)
def found(request, tmp_path_factory) -> dict:
    """What qwen_loader_cases.py found on each host at hand."""
    if request.param is None:
        pytest.skip("no ComfyUI at hand: run `python run.py test`, or set COMFYUI_PATH")
    return comfy_hosts.found_in_process(
        CASES, request.param, tmp_path_factory.mktemp("base"), limit_s=300
    )


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
    told = [refusals[name] for name in ("torn", "gone", "no text", "attention")]
    assert all("Next step: " in each for each in told)


def test_only_what_is_one_is_offered(found) -> None:
    offered = found["refusals"]["offered"]
    assert {"Qwen/tiny/", "new/", "torn/", "dit.safetensors"} < set(offered)
    assert "other.safetensors" not in offered
    assert "text.safetensors" in found["refusals"]["texts"]


# --- through the API ------------------------------------------------------------------------------


def graph(base: str) -> Graph:
    made = Graph()
    folder = {"text_encoder": "from the folder", "vae": "from the folder"}
    loader = made.add("QwenEditLoader", base=base, modulation="table", attention="auto", **folder)
    latent = made.add("EmptyLatentImage", width=64, height=64, batch_size=1)
    made.save([made.add("VAEDecode", samples=[latent, 0], vae=[loader, 2]), 0])
    return made


def test_without_any_model_the_node_says_where_one_belongs(comfy) -> None:
    with pytest.raises(UserError, match="refused") as refusal:
        comfy.run(graph("qwen_image_edit_2511.safetensors"))
    assert "expected Qwen-Image-Edit in models/diffusion_models" in str(refusal.value)


def test_a_model_that_this_host_cannot_run_is_refused_on_the_node(comfy) -> None:
    folder = comfy.server.base / "models/diffusers/tiny"
    qwen_weights.write_official(folder, edition="2509")
    try:
        with pytest.raises(UserError, match="refused") as refusal:
            comfy.run(graph("other/"))
        assert "tiny/" in str(refusal.value)
        failure = outcome(comfy, comfy.do(lambda client: client.submit(graph("tiny/"))))
        assert isinstance(failure, UserError)
        assert "text_encoder: expected a vision part of 32 layers" in str(failure)
        assert "Next step" in str(failure)
    finally:
        shutil.rmtree(folder)

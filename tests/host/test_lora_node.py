"""LoRAHotInject in a real ComfyUI, on a tiny Qwen-Image DiT: what lora_cases.py finds in the host's
own process."""

from __future__ import annotations

import comfy_hosts
import pytest

found = comfy_hosts.found_by("lora_cases.py", limit_s=540)


def test_beside_is_folded_to_the_last_digits_of_fp32(found) -> None:
    kinds = dict(found["kinds"])
    assert kinds.pop("plain again") == 0
    assert len(kinds) == 5 * 2 + 4
    for name, (apart, effect) in kinds.items():
        assert apart <= 1e-5, name
        assert effect > 1e-3, name


def test_nothing_of_the_base_is_touched(found) -> None:
    untouched = found["untouched"]
    assert untouched["effect"] > 1e-3
    assert all(untouched[each] for each in ("uuid", "weights", "memory", "names"))
    assert untouched["backup"] == untouched["plain again"] == 0
    assert len(untouched["wrapped"]) == 2
    assert untouched["wrapped after"] == untouched["wrapped unloaded"] == []


def test_chains_stack_with_ours_and_with_the_hosts(found) -> None:
    chains = found["chains"]
    assert chains["effect"] > 1e-3
    ways = ("two beside", "the other way round", "folded, beside", "beside, folded")
    for way in (*ways, "core before", "core after", "on one layer", "plain again"):
        assert chains[way] <= 1e-5, way
    assert chains["names"] == ["lora (0.7) + lokr (-0.4)", "lora (0.7)", "none"]


def test_workflows_on_one_base_do_not_hear_each_other(found) -> None:
    shared = found["shared_base"]
    assert set(shared["steps"].values()) == {0.0}, shared["steps"]
    assert len(shared["steps"]) == 10
    assert shared["apart"] > 1e-3 and shared["patched"] <= 1e-5
    assert shared["wrapped"] == []


def test_modulation_layers_answer_as_with_weights_from_the_table(found) -> None:
    for dtype in ("float32", "bfloat16"):
        table = {key: value for key, value in found["table"].items() if key.startswith(dtype)}
        assert table[f"{dtype} effect"] > 1e-3
        same = (" cfg 1", " cfg 4", " plain again", " filled again", " folded")
        assert [table[dtype + each] for each in same] == [0] * 5


def test_a_cancelled_step_leaves_the_base_clean(found) -> None:
    interrupted = found["interrupted"]
    assert interrupted["stopped"]
    assert interrupted["plain"] == interrupted["whole"] == 0
    assert interrupted["wrapped"] == []


def test_the_hosts_bypass_over_and_under(found) -> None:
    if found["bypass"] is None:
        pytest.skip("this ComfyUI has no bypass")
    bypass = found["bypass"]
    assert max(bypass["over"], bypass["under"]) <= 1e-5
    assert bypass["plain after over"] == bypass["plain after under"] == 0


def test_an_fp8_base_loses_nothing_of_the_change(found) -> None:
    fp8 = found["fp8"]
    assert fp8["dtype"] == "torch.float8_e4m3fn"
    assert fp8["beside"] <= 0.01 < 0.1 < fp8["folded"]
    assert fp8["effect"] > 1e-3


def test_the_host_loads_counts_and_frees_the_adapters(found) -> None:
    memory = found["memory"]
    assert memory["counted"] and memory["base"] and memory["freed"]
    assert memory["entries"] == ["QwenImage"]


def test_weights_that_come_layer_by_layer(found) -> None:
    assert found["lowvram"] == {"difference": 0, "wrapped": []}


def test_files_are_kept_within_the_limit_until_they_change(found) -> None:
    kept = found["kept"]
    assert kept["said"] == [False, False, True, False, False]
    assert kept["A, B, A"] == 0 and kept["B"] > 1e-5
    assert not kept["after a change"] and kept["fingerprint"]
    assert not kept["after a copy of its time"]


def test_what_the_node_offers_refuses_and_says(found) -> None:
    asked = found["asked"]
    options = asked["options"]
    assert options[0] == "none" and options.index("v_9.safetensors") + 1 == options.index(
        "v_20.safetensors"
    )
    assert asked["valid"] == [True] * 3 and asked["off"] == [True, True]
    assert "expected one of" in asked["invalid"]["gone.safetensors"]
    assert "Next step" in asked["invalid"]["broken.safetensors"]
    for said in (asked["invalid"]["sdxl.safetensors"], asked["sdxl"]):
        assert "SDXL" in said and "Next step" in said
    assert "broken.safetensors" in asked["broken"]
    assert "beside the weights" in asked["mode"]
    name, report = asked["report"]
    assert name == "v_20 (0.5)"
    assert "nowhere" in report and "seconds" in report and "rank" in report

"""The modulation table in a real ComfyUI: a tiny Qwen-Image DiT with it and without, sampled in the
host's own process by modulation_cases.py."""

from __future__ import annotations

import comfy_hosts
import pytest

FP8_BYTES = 13_700_000_000
BF16_BYTES = 27_400_000_000
TABLE_BYTES = 135_000_000


found = comfy_hosts.found_by("modulation_cases.py", limit_s=540)


def test_another_number_in_a_weight_would_be_seen(found) -> None:
    assert min(found["control"].values()) > 1e-6


def test_latents_are_the_same_bits_with_every_sampler(found) -> None:
    differences = found["samplers"]["differences"]
    assert len(differences) == 2 * (4 * 2 + 1)
    assert set(differences.values()) == {0.0}, differences
    assert found["samplers"]["rows"] == [1, 2], "CFG 4 runs both prompts as one batch"


def test_only_what_lies_between_the_sigmas_costs_more_passes(found) -> None:
    """Four layers: one pass over the weights each, and again for each timestep that is met."""
    filled = found["samplers"]["layers filled"]
    assert max(filled["euler"] + filled["dpmpp_2m"]) <= 4
    assert min(filled["dpmpp_sde"]) >= 8


def test_reference_tokens_are_modulated_by_their_own_row(found, request) -> None:
    references = found["references"]
    assert set(references["differences"].values()) == {0.0}, references
    held, planned = references["bytes"]
    assert held == planned > 0
    assert references["layers filled"] == [4, 4, 4], "the second run reads only"
    if "0.3.75" not in request.node.name:
        assert references["t = 0 rows"]


def test_loras_on_modulation_layers_are_honoured(found) -> None:
    loras = found["loras"]
    assert set(loras["differences"].values()) == {0.0}, loras["differences"]
    assert loras["same keys"] and loras["modulation keys"] == 5
    for key, effect in loras["effects"].items():
        assert (effect == 0) if key.endswith("strength 0") else (effect > 0.1), key
    # Three of four layers change with the strength and with the LoRA gone; another LoRA, none.
    assert loras["layers filled"] == [3, 3, 0]


def test_the_hosts_other_ways_to_change_a_model(found) -> None:
    assert all(found["names"][key] for key in ("lora keys", "keys", "tensors", "saved"))
    assert found["names"]["merged"] == 0.0
    if found["bypass"] is not None:
        assert found["bypass"]["difference"] == found["bypass"]["none again"] == 0.0
        assert found["bypass"]["effect"] > 0.1
    assert found["hooks"]["to_q"] == found["hooks"]["after"] == 0.0
    assert found["hooks"]["effect"] > 0.01
    assert "Next step" in found["hooks"]["_mod"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layers_that_stay_off_the_device(found, dtype) -> None:
    assert found["lowvram"][dtype] == 0.0
    assert found["lowvram"][f"{dtype} LoRA"] == 0.0
    assert found["lowvram"][f"{dtype} LoRA's effect"] > 0.01


def test_clones_share_the_table_and_an_unload_empties_it(found) -> None:
    clones = found["clones"]
    assert clones["shared"] and clones["difference"] == clones["again"] == 0.0
    before, after_a_clone_died, after_unload = clones["bytes"]
    assert before == after_a_clone_died > after_unload == 0
    modulation = 4 * (6 * 64 * 64 + 6 * 64) * 4
    assert set(clones["sizes"]) == {clones["plain size"] - modulation}


def test_a_loader_gives_the_other_weights_only(found) -> None:
    assert found["loading"] == {"difference": 0.0, "warnings": []}


def test_resident_bytes_at_the_real_size(found) -> None:
    sizes = found["sizes"]
    assert sizes["float8_e4m3fn"][0] == 20_430_401_088
    assert sizes["float8_e4m3fn"][1] <= FP8_BYTES
    assert sizes["bfloat16"][1] <= BF16_BYTES
    assert 0.99 * TABLE_BYTES < sizes["table"] <= TABLE_BYTES

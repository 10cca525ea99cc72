"""TiledVAEDecode and TiledVAEEncode in a real ComfyUI: what streaming_cases.py finds in the host's
own process, and a picture there and back through the API."""

from __future__ import annotations

import comfy_hosts
import graphs
import numpy as np
import pytest
import qwen_weights
from graphs import Graph, photo, saved
from realtoon.weights_loader import qwen_image

ROUNDING = 1e-5


found = comfy_hosts.found_by("streaming_cases.py", limit_s=500)


@pytest.mark.parametrize("way", ["decode", "encode"])
def test_strips_give_what_the_host_gives_whole(found, way: str) -> None:
    case = found[f"{way}s"]
    differences = {name: value for name, value in case.items() if "," in name}
    assert len(differences) == {"decode": 20, "encode": 12}[way]
    assert max(differences.values()) <= ROUNDING < 0.01 < case["spread"], differences
    assert case["report"].startswith(f"{way}: streamed, exact")


def test_what_goes_over_the_wires(found) -> None:
    assert found["decodes"]["type"] == ["torch.float32", "cpu", True]
    assert found["encodes"]["with alpha"] <= ROUNDING
    assert found["encodes"]["grey"] <= ROUNDING


def test_precision_is_that_of_the_run_and_not_of_the_file(found) -> None:
    case = found["precisions"]
    assert case["held in"] == case["still held in"] == "torch.bfloat16"
    for suffix in ("", " encode"):
        assert 0 < case[f"fp32{suffix}"] < case[f"bf16{suffix}"] == case[f"as loaded{suffix}"]
    assert case["bf16"] < 1.5 * case["host in bf16"]
    assert "fp32" in case["fp32 report"] and "bf16" in case["as loaded report"]


def test_pictures_of_a_batch_go_one_by_one(found) -> None:
    case = found["batches"]
    assert max(case["decode"], case["four axes"], case["encode"]) <= ROUNDING
    assert "3 pictures" in case["report"] and "24 strips of at most 2 rows" in case["report"]
    assert case["tf32 as before"] is True


def test_what_cannot_be_streamed_is_the_hosts_own_and_said_to_be(found) -> None:
    case = found["by_the_host"]
    assert case["frames"] == case["other family difference"] == 0.0
    assert "whole" in case["report"] and "got 2 frames" in case["report"]
    assert "in tiles (approximate" in case["in tiles"]
    assert case["tiles' size"] == [5, 32, 32, 3]
    for name in ("other family", "other family encode"):
        assert "ComfyUI's own code, whole" in case[name] and "AutoencoderKL" in case[name]
    assert case["other family means"] == [1, 4, 8, 8]


def test_the_host_is_told_the_true_need(found) -> None:
    case = found["memory"]
    assert 0 < case["asked"] < case["host asks"] / 20
    asked, difference, strips = case["little memory"]
    assert asked < case["asked"] and difference <= ROUNDING
    assert "at most 2 rows" in strips


def test_memory_that_runs_out_makes_smaller_strips(found) -> None:
    case = found["memory"]
    assert "memory ran out 2 times" in case["ran out"]
    assert case["ran out difference"] <= ROUNDING


def test_cancel_ends_it_within_a_strip(found) -> None:
    assert found["interrupted"]["ended"] == "InterruptProcessingException"
    assert found["interrupted"]["checks"] == 5


def test_a_patched_vae_decodes_as_patched(found) -> None:
    assert found["patched"]["difference"] <= ROUNDING < 0.1 < found["patched"]["effect"]


def test_what_cannot_run_says_what_to_do(found) -> None:
    refusals = found["refusals"]
    assert "16 channels, got a tensor of shape" in refusals["channels"]
    assert "expected one of fp32, bf16, as loaded" in refusals["precision"]
    assert "sides of 8 px or more, got 64×7" in refusals["too small"]
    assert all("Next step" in text for text in refusals.values()), refusals


def put_vae(comfy) -> str:
    """Write a tiny VAE of random weights into the running host; returns its name."""
    folder = comfy.server.base / "models" / "vae"
    official = qwen_weights.write_official(folder.parent / "diffusers" / "tiny vae")
    state = qwen_image.state(qwen_image.describe_vae(official / "vae"))
    qwen_weights.write_file(folder / "tiny.safetensors", state)
    return "tiny.safetensors"


def test_there_and_back_through_the_api_as_the_hosts_own_nodes_do(comfy) -> None:
    graph = Graph()
    picture = graph.load(comfy.upload(photo(96, 64)))
    vae = [graph.add("VAELoader", vae_name=put_vae(comfy)), 0]
    values = {"vae": vae, "precision": "as loaded"}
    there = graph.add("TiledVAEEncode", pixels=picture, strip_rows=1, **values)
    back = graph.add("TiledVAEDecode", samples=[there, 0], strip_rows=3, **values)
    ours = graph.save([back, 0])
    own = graph.add("VAEEncode", pixels=picture, vae=vae)
    theirs = graph.save([graph.add("VAEDecode", samples=[own, 0], vae=vae), 0])
    result = comfy.run(graph)
    pictures = saved(comfy, result)
    one, other = (np.asarray(pictures[name][0]).astype(int) for name in (ours, theirs))
    assert one.shape == (64, 96, 3) and other.std() > 3
    # In the type that the host chose for the VAE, which may be bf16.
    assert np.abs(one - other).mean() < 2
    told = " ".join(result.texts)
    assert "encode: streamed, exact" in told
    assert "decode: streamed, exact" in told


def test_a_wrong_precision_is_refused_before_the_run(comfy) -> None:
    graph = Graph()
    vae = [graph.add("VAELoader", vae_name=put_vae(comfy)), 0]
    picture = graph.load(comfy.upload(photo(16, 16)))
    given = {"pixels": picture, "vae": vae, "precision": "fp8", "strip_rows": 0}
    there = graph.add("TiledVAEEncode", **given)
    graph.save([graph.add("VAEDecode", samples=[there, 0], vae=vae), 0])
    with pytest.raises(graphs.UserError, match="refused") as refusal:
        comfy.run(graph)
    assert "precision" in str(refusal.value)

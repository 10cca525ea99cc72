"""Our nodes against diffusers' QwenImageEditPlusPipeline on the same small weights, on each ComfyUI
at hand."""

from __future__ import annotations

import importlib.util
import json
import sys

import comfy_hosts
import pytest

sys.path.append(str(comfy_hosts.ROOT / "benchmarks"))
import _child  # noqa: E402  (what the benchmark measures is what this test holds)

HOSTS = comfy_hosts.at_hand()
BOUND = 1e-4


@pytest.mark.parametrize(
    "host", HOSTS or [None], ids=[f"comfyui-{h.version}" for h in HOSTS] or ["no-comfyui"]
)
def test_the_same_as_diffusers(host) -> None:
    if host is None:
        pytest.skip(comfy_hosts.NONE)
    if importlib.util.find_spec("diffusers") is None:
        pytest.skip("no diffusers: pip install diffusers")
    given = json.dumps({"comfy": str(host.folder), "threads": 2})
    differences = _child.measured("_realistic_twins.py", [given])["differences"]
    assert set(differences) == {"conditioning", "latents", "picture"}
    assert max(differences.values()) <= BOUND, differences

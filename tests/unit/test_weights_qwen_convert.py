"""The DiT's weights converted while they are loaded: what is rounded, by how much, and what not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import qwen_weights as qw
import torch
from realtoon.weights_loader import qwen_convert, qwen_image
from realtoon.weights_loader.errors import WeightsError

MATRIX = re.compile(r"transformer_blocks\.\d+\.(attn|img_mlp|txt_mlp)\.")
FULL = qw.transformer()
TO_Q = "transformer_blocks.0.attn.to_q"


def part(tmp_path: Path, tensors: qw.Tensors, metadata: dict[str, str] | None = None):
    # Each its own: a mapped file is not written over.
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
    qw.write_file(path, tensors, metadata)
    return qwen_image.describe_base(path).dit


def test_scaled_fp8_keeps_three_bits_of_each_matrix_and_all_else(tmp_path: Path) -> None:
    described = part(tmp_path, FULL)
    given = qwen_image.state(described)
    ticks = []
    made, layers = qwen_convert.convert(
        described, given, qwen_convert.FP8_SCALED, lambda: ticks.append(len(given))
    )
    assert layers is not None and len(layers) == 2 * 12
    assert set(layers) == {n.removesuffix(".weight") for n, t in FULL.items() if rounded(n, t)}
    assert set(made) == set(FULL) | {f"{layer}.weight_scale" for layer in layers}
    for name, tensor in FULL.items():
        if not rounded(name, tensor):
            assert made[name].dtype == torch.bfloat16 and torch.equal(made[name], tensor)
            continue
        scale = made[f"{name.removesuffix('.weight')}.weight_scale"]
        assert made[name].dtype == torch.float8_e4m3fn and scale.dtype == torch.float32
        wide = tensor.float()
        error = (made[name].float() * scale - wide).abs()
        # Half a step of three bits, or of the smallest step where numbers are small.
        assert (error <= wide.abs() / 16 + scale * 2**-10).all()
        assert error.max() > 0
    spared = sum(t.numel() for n, t in FULL.items() if rounded(n, t))
    count = sum(t.nbytes for t in made.values())
    assert count == sum(t.nbytes for t in FULL.values()) - spared + 4 * len(layers)
    assert given == {}, "what was stored is let go on the way"
    assert ticks == sorted(ticks, reverse=True) and len(ticks) == len(FULL)


def rounded(name: str, tensor: torch.Tensor) -> bool:
    return tensor.ndim == 2 and MATRIX.match(name) is not None


@pytest.mark.parametrize("scheme", ["scaled_fp8", "comfy_quant", "metadata"])
def test_scales_are_multiplied_out_to_bf16(tmp_path: Path, scheme: str) -> None:
    tensors, metadata = qw.fp8_scaled(FULL, scheme)
    described = part(tmp_path, tensors, metadata)
    made, layers = qwen_convert.convert(described, qwen_image.state(described), qwen_convert.BF16)
    assert layers == {} and set(made) == set(FULL)
    assert {tensor.dtype for tensor in made.values()} == {torch.bfloat16}
    for name, tensor in FULL.items():
        error = (made[name].float() - tensor.float()).abs().max()
        assert error <= tensor.float().abs().max() / 15
    suffix = "scale_weight" if scheme == "scaled_fp8" else "weight_scale"
    expected = tensors[f"{TO_Q}.weight"].float() * tensors[f"{TO_Q}.{suffix}"]
    assert torch.equal(made[f"{TO_Q}.weight"], expected.to(torch.bfloat16))


def test_a_scale_for_each_row_is_multiplied_out(tmp_path: Path) -> None:
    weight = torch.full((2, 3), 2.0).to(torch.float8_e4m3fn)
    state = {"a.weight": weight, "a.weight_scale": torch.tensor([0.5, 4.0])}
    made = qwen_convert.multiplied_out("a.weight", weight, state)
    assert made.tolist() == [[1.0] * 3, [8.0] * 3]


def test_what_is_as_wanted_is_not_touched(tmp_path: Path) -> None:
    tensors, metadata = qw.fp8_scaled(FULL, "metadata")
    for given, wanted in (
        (part(tmp_path, FULL), qwen_convert.AS_STORED),
        (part(tmp_path, tensors, metadata), qwen_convert.FP8_SCALED),
    ):
        qwen_convert.check(given, wanted)
        state = qwen_image.state(given)
        made, layers = qwen_convert.convert(given, state, wanted)
        assert made is state and layers is None


def test_a_matrix_of_zeros_keeps_a_scale_that_can_be_used(tmp_path: Path) -> None:
    described = part(tmp_path, FULL | {f"{TO_Q}.weight": torch.zeros(64, 64)})
    state = qwen_image.state(described)
    made, _ = qwen_convert.convert(described, state, qwen_convert.FP8_SCALED)
    assert made[f"{TO_Q}.weight"].float().abs().max() == 0
    assert made[f"{TO_Q}.weight_scale"] > 0


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(tmp_path: Path, number: float) -> None:
    broken = FULL[f"{TO_Q}.weight"].clone()
    broken[3, 5] = number
    described = part(tmp_path, FULL | {f"{TO_Q}.weight": broken})
    with pytest.raises(WeightsError, match=rf"finite numbers in {TO_Q}.weight") as refusal:
        qwen_convert.convert(described, qwen_image.state(described), qwen_convert.FP8_SCALED)
    assert "Next step" in str(refusal.value)


def test_what_makes_no_sense_is_refused_before_it_is_read(tmp_path: Path) -> None:
    plain = part(tmp_path, qw.fp8(FULL))
    qwen_convert.check(plain, qwen_convert.BF16)
    with pytest.raises(WeightsError, match="rounded to float8_e4m3fn without scales"):
        qwen_convert.check(plain, qwen_convert.FP8_SCALED)
    other = {
        **FULL,
        f"{TO_Q}.weight": torch.zeros(64, 64, dtype=torch.int8),
        f"{TO_Q}.weight_scale": torch.tensor(1.0),
        f"{TO_Q}.comfy_quant": torch.frombuffer(
            bytearray(b'{"format": "int8_tensorwise"}'), dtype=torch.uint8
        ),
    }
    int8 = part(tmp_path, other)
    for wanted in (qwen_convert.BF16, qwen_convert.FP8_SCALED):
        with pytest.raises(WeightsError, match="only ComfyUI itself can open") as refusal:
            qwen_convert.check(int8, wanted)
        assert "set weight_dtype to 'as stored'" in str(refusal.value)
    qwen_convert.check(int8, qwen_convert.AS_STORED)

"""Every layout of LoRA files comes out in one normal form, and not one key is dropped unsaid."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import lora_files as lf
import pytest
import torch
import weights_files as wf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from realtoon.weights_loader import lora, lora_families, lora_layouts, qwen_keys
from realtoon.weights_loader.errors import WeightsError
from realtoon.weights_loader.qwen_parts import DiTConfig

TINY = lf.tiny_modules()
TO_Q = "transformer_blocks.0.attn.to_q"
MLP = "transformer_blocks.0.img_mlp.net.0.proj"
DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.float8_e5m2,
)  # fmt: skip
_settings = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def read(tmp_path: Path, tensors: lf.Tensors, modules=TINY, **metadata: str) -> lora.LoraFile:  # noqa: ANN001
    return lora.read(lf.write(tmp_path / "模型 a.safetensors", tensors, metadata), modules)


def accounted(found: lora.LoraFile, keys: int) -> bool:
    c = found.coverage
    return keys == c.used_keys + c.unfit_keys + len(c.unmatched) + len(c.text_encoder)


def delta(adapter: lora.Adapter) -> torch.Tensor:
    """What an adapter adds to its weight, by the formulas of its kind, in float64."""
    t = {name: tensor.double() for name, tensor in adapter.tensors.items()}
    if adapter.kind == "diff":
        return t["diff"]
    if adapter.kind == "lora":
        down = t["mid"] @ t["down"] if "mid" in t else t["down"]
        return adapter.scale * t["up"] @ down
    if adapter.kind == "loha":
        return adapter.scale * (t["w1_a"] @ t["w1_b"]) * (t["w2_a"] @ t["w2_b"])
    w1 = t["w1"] if "w1" in t else t["w1_a"] @ t["w1_b"]
    w2 = t["w2"] if "w2" in t else t["w2_a"] @ t["w2_b"]
    return adapter.scale * torch.kron(w1, w2)


def test_the_names_of_the_tests_are_the_models() -> None:
    shapes = qwen_keys.dit_shapes(DiTConfig())
    linear = {n.removesuffix(".weight"): s for n, s in shapes.items() if len(s) == 2}
    assert linear == lf.qwen_modules()
    assert len(linear) == 846


def in_layout(layout: str, modules: lf.Modules) -> lf.Modules:
    if layout != "attention processors":
        return modules
    return {name: size for name, size in modules.items() if ".attn." in name}


@pytest.mark.parametrize("layout", lf.LAYOUTS)
def test_every_layout_gives_every_module(layout: str, tmp_path: Path) -> None:
    modules = in_layout(layout, TINY)
    tensors = lf.lora(modules, layout, rank=4, alpha=2.0)
    found = read(tmp_path, tensors)
    name, (down, up), with_alpha = lf.LAYOUTS[layout]
    assert {adapter.module for adapter in found.adapters} == set(modules)
    for adapter in found.adapters:
        stem = name(adapter.module)
        assert adapter.kind == "lora" and adapter.rank == 4
        assert adapter.scale == (0.5 if with_alpha else 1.0)
        assert torch.equal(adapter.tensors["down"], tensors[down.format(stem)])
        assert torch.equal(adapter.tensors["up"], tensors[up.format(stem)])
    assert found.coverage.complete and accounted(found, len(tensors))
    assert found.coverage.alphas == ((2.0,) if with_alpha else ())


@pytest.mark.parametrize("layout", lf.LAYOUTS)
def test_all_846_real_names_match(layout: str, tmp_path: Path) -> None:
    modules = in_layout(layout, lf.qwen_modules())
    # Narrow: the names are what is tested.
    small = lf.qwen_modules(width=8, joint=8, inside=8)
    tensors = lf.lora({name: small[name] for name in modules}, layout, rank=1)
    found = read(tmp_path, tensors, small)
    assert set(found.coverage.matched) == set(modules)
    assert found.coverage.complete and accounted(found, len(tensors))


SPELLINGS = [l for l in lf.LAYOUTS if l != "attention processors"]  # noqa: E741


@pytest.mark.parametrize("family", lf.FAMILIES)
def test_families_are_told_by_names_and_widths_in_every_layout(family: str, tmp_path: Path) -> None:
    for variant, modules in lf.FAMILIES[family].items():
        assert lora_families.of_modules(modules) == family, variant
        for layout in ("kohya, musubi", "peft of a pipeline"):
            shapes = lf.lora_shapes(modules, layout, 2)
            path = lf.write_sparse(tmp_path / "a.safetensors", shapes)
            described = lora.describe(path)
            assert described.family == family, (variant, layout)
            assert described.modules == len(modules) and described.keys == len(shapes)
            assert described.ranks == (2,) and described.kinds == ("lora",)
        index = lora_layouts.Index(modules)
        for layout in SPELLINGS:
            named = lf.LAYOUTS[layout][0]
            assert all(index.find(named(module)) == module for module in modules), layout
            told = lora_families.of_modules({named(n): s for n, s in modules.items()})
            assert told == family, (variant, layout)


@pytest.mark.parametrize("family", [f for f in lf.FAMILIES if f != "Qwen-Image"])
def test_a_file_for_another_base_is_refused_by_its_name(family: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for modules in lf.FAMILIES[family].values():
        lf.write_sparse(path, lf.lora_shapes(modules, "diffusers", 2))
        with pytest.raises(
            WeightsError, match=f"expected a LoRA for Qwen-Image, got one for {family}"
        ):
            lora.read(path, lf.qwen_modules())
        # For its own base it is right.
        assert lora.read(path, modules).coverage.complete


def test_an_unknown_family_is_judged_by_what_matches(tmp_path: Path) -> None:
    few = {name: size for name, size in TINY.items() if ".attn.to_q" in name}
    found = read(tmp_path, lf.lora(few, "bare"))
    assert found.coverage.family == "unknown" and len(found.adapters) == 2
    with pytest.raises(WeightsError, match=r"names of some of the model's 34 modules, got none"):
        read(tmp_path, lf.lora({"blocks.0.other": (4, 4)}, "bare"))


def test_a_partial_match_is_read_and_named(tmp_path: Path) -> None:
    good = {TO_Q: TINY[TO_Q]}
    tensors = lf.lora(good | {"transformer_blocks.7.attn.to_q": (16, 16)}, "kohya, musubi")
    tensors |= {
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(2, 8),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(8, 2),
        "text_encoder.layers.0.q_proj.lora_A.weight": torch.ones(2, 8),
        f"lora_unet_{MLP.replace('.', '_')}.lora_down.weight": torch.ones(2, 17),
        f"lora_unet_{MLP.replace('.', '_')}.lora_up.weight": torch.ones(64, 2),
        "lora_unet_img_in.set_weight": torch.ones(16, 8),
        "norm_q.weight": torch.ones(3),
    }
    found = read(tmp_path, tensors)
    coverage = found.coverage
    assert [adapter.module for adapter in found.adapters] == [TO_Q]
    assert len(coverage.text_encoder) == 3
    assert sorted(coverage.unmatched) == sorted(
        [k for k in tensors if "blocks_7_" in k] + ["lora_unet_img_in.set_weight", "norm_q.weight"]
    )
    assert coverage.wrong_shape == ((MLP, "(64, 16)", "(64, 17)"),)
    assert accounted(found, len(tensors)) and not coverage.complete
    told = "\n".join(coverage.told())
    for part in (
        MLP,
        "expected (64, 16), got (64, 17)",
        "blocks_7_",
        "for a text encoder",
        "1 modules matched",
    ):
        assert part in told


# --- kinds ----------------------------------------------------------------------------------------


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


KINDS = {
    "loha": (
        {"hada_w1_a": normal(64, 3), "hada_w1_b": normal(3, 16), "hada_w2_a": normal(64, 3),
         "hada_w2_b": normal(3, 16), "alpha": torch.tensor(1.5)}, "loha", 3, 0.5,
    ),
    "lokr whole": (
        {"lokr_w1": normal(4, 4), "lokr_w2": normal(16, 4), "alpha": torch.tensor(1e10)},
        "lokr", 0, 1.0,
    ),
    "lokr w2 in parts": (
        {"lokr_w1": normal(4, 4), "lokr_w2_a": normal(16, 2), "lokr_w2_b": normal(2, 4),
         "alpha": torch.tensor(1.0)}, "lokr", 2, 0.5,
    ),
    "lokr w1 in parts": (
        {"lokr_w1_a": normal(4, 2), "lokr_w1_b": normal(2, 4), "lokr_w2": normal(16, 4),
         "alpha": torch.tensor(1.0)}, "lokr", 2, 0.5,
    ),
    "lokr in parts": (
        {"lokr_w1_a": normal(4, 3), "lokr_w1_b": normal(3, 4), "lokr_w2_a": normal(16, 2),
         "lokr_w2_b": normal(2, 4), "alpha": torch.tensor(1.0)}, "lokr", 2, 0.5,
    ),
    "diff": ({"diff": normal(64, 16), "diff_b": normal(64)}, "diff", 0, 1.0),
    "norms": ({"w_norm": normal(64, 16), "b_norm": normal(64)}, "diff", 0, 1.0),
    "tucker": (
        {"lora_down.weight": normal(3, 16, 1, 1), "lora_mid.weight": normal(2, 3, 1, 1),
         "lora_up.weight": normal(64, 2, 1, 1)}, "lora", 3, 1.0,
    ),
    "1×1 convolution": (
        {"lora_down.weight": normal(3, 16, 1, 1), "lora_up.weight": normal(64, 3, 1, 1),
         "alpha": torch.ones(1)}, "lora", 3, 1 / 3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("prefix", ["lora_unet_", "diffusion_model.", "base_model.model."])
@pytest.mark.parametrize("name", KINDS)
def test_kinds(name: str, prefix: str, tmp_path: Path) -> None:
    tensors, kind, rank, scale = KINDS[name]
    stem = prefix + (MLP.replace(".", "_") if prefix.endswith("_") else MLP)
    found = read(tmp_path, {f"{stem}.{tail}": tensor for tail, tensor in tensors.items()})
    (adapter,) = found.adapters
    assert (adapter.module, adapter.kind, adapter.rank) == (MLP, kind, rank)
    assert adapter.scale == pytest.approx(scale)
    assert delta(adapter).shape == (64, 16)
    assert accounted(found, len(tensors)) and found.coverage.complete
    stored = [t for tail, t in tensors.items() if tail != "alpha"]
    given = adapter.tensors.values()
    assert all(any(torch.equal(s.flatten(), g.flatten()) for g in given) for s in stored)


@pytest.mark.parametrize(
    "tail", ["dora_scale", "lora_magnitude_vector", "lora_magnitude_vector.weight",
             "lora_magnitude_vector.default.weight", "lora_magnitude_vector.default"],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(64,), (64, 1)])
def test_magnitudes_and_biases(tail: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    magnitude, bias, change = normal(*shape), normal(64), normal(64) + 1
    tensors = lf.lora({MLP: (64, 16)}, "peft") | {
        f"base_model.model.{MLP}.{tail}": magnitude,
        f"base_model.model.{MLP}.lora_B.bias": bias,
        f"base_model.model.{MLP}.diff_b": change,
    }
    (adapter,) = read(tmp_path, tensors).adapters
    assert torch.equal(adapter.tensors["magnitude"], magnitude.flatten())
    assert torch.equal(adapter.tensors["up_bias"], bias)
    assert torch.equal(adapter.tensors["diff_b"], change)


def test_magnitudes_over_the_inputs_are_told_not_taken_for_others(tmp_path: Path) -> None:
    # A square module: the number of numbers would fit.
    tensors = lf.lora({TO_Q: (16, 16), MLP: (64, 16)}) | {
        f"diffusion_model.{TO_Q}.dora_scale": normal(1, 16)
    }
    found = read(tmp_path, tensors)
    assert [adapter.module for adapter in found.adapters] == [MLP]
    assert found.coverage.wrong_shape == ((TO_Q, "magnitude of 16 outputs", "(1, 16)"),)


def test_a_low_rank_change_and_a_difference_of_one_module_are_two_adapters(tmp_path: Path) -> None:
    tensors = lf.lora({MLP: (64, 16)}, "comfyui") | {f"diffusion_model.{MLP}.diff": normal(64, 16)}
    low, difference = read(tmp_path, tensors).adapters
    assert (low.kind, low.scale, difference.kind, difference.scale) == ("lora", 0.5, "diff", 1.0)


def test_a_bias_alone(tmp_path: Path) -> None:
    (adapter,) = read(tmp_path, {f"diffusion_model.{MLP}.diff_b": normal(64)}).adapters
    assert adapter.kind == "diff" and list(adapter.tensors) == ["diff_b"]


def test_convolutions_keep_their_kernels(tmp_path: Path) -> None:
    modules = {"patch": (8, 4, 3, 3), "core": (8, 4, 3, 3)}
    tensors = {
        "patch.lora_down.weight": normal(2, 4, 3, 3), "patch.lora_up.weight": normal(8, 2, 1, 1),
        "core.hada_w1_a": normal(2, 8), "core.hada_w1_b": normal(2, 4),
        "core.hada_t1": normal(2, 2, 3, 3), "core.hada_w2_a": normal(2, 8),
        "core.hada_w2_b": normal(2, 4), "core.hada_t2": normal(2, 2, 3, 3),
    }  # fmt: skip
    found = {a.module: a for a in read(tmp_path, tensors, modules).adapters}
    assert found["patch"].tensors["down"].shape == (2, 4, 3, 3)
    assert found["core"].tensors["t1"].shape == (2, 2, 3, 3)


# --- scales ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "scale"),
    [
        ({"transformer.r": 4, "transformer.lora_alpha": 8}, 2.0),
        ({"r": 4, "lora_alpha": 2.0}, 0.5),
        ({"transformer.lora_alpha": 8, "transformer.use_rslora": True}, 8 / math.sqrt(4)),
        ({"transformer.lora_alpha": 8, "transformer.alpha_pattern": {"attn.to_q": 1}}, 0.25),
        ({"transformer.lora_alpha": 8, "transformer.alpha_pattern": {"tn.to_q": 1}}, 2.0),
        ({"text_encoder.lora_alpha": 8}, 1.0),
    ],
)  # fmt: skip
def test_alpha_from_metadata(told: dict, scale: float, tmp_path: Path) -> None:
    metadata = {"lora_adapter_metadata": json.dumps(told), "format": "pt"}
    found = read(tmp_path, lf.lora({TO_Q: (16, 16)}, "diffusers"), **metadata)
    assert found.adapters[0].scale == pytest.approx(scale)
    assert found.metadata == metadata
    # What stands beside the module goes first.
    found = read(tmp_path, lf.lora({TO_Q: (16, 16)}, "diffusers with alpha"), **metadata)
    assert found.adapters[0].scale == 0.5


@given(data=st.data())
@_settings
def test_any_mixture_comes_back(data: st.DataObject, tmp_path: Path) -> None:
    """Random modules, each of a random kind, layout, rank and dtype, in random order."""
    chosen = data.draw(st.lists(st.sampled_from(sorted(TINY)), min_size=1, unique=True))
    tensors: lf.Tensors = {}
    expected: dict[str, torch.Tensor] = {}
    for number, module in enumerate(chosen):
        layout = data.draw(st.sampled_from(SPELLINGS))
        dtype = data.draw(st.sampled_from(DTYPES))
        rank, alpha = data.draw(st.integers(1, 9)), data.draw(st.sampled_from([0.25, 1.0, 16.0]))
        made = lf.lora({module: TINY[module]}, layout, rank, dtype, alpha, seed=number)
        name, (down, up), with_alpha = lf.LAYOUTS[layout]
        stem = name(module)
        scale = alpha / rank if with_alpha else 1.0
        product = made[up.format(stem)].double() @ made[down.format(stem)].double()
        expected[module] = scale * product
        tensors |= made
    order = list(tensors)
    random.Random(data.draw(st.integers(0, 9))).shuffle(order)
    found = read(tmp_path, {key: tensors[key] for key in order})
    assert {adapter.module for adapter in found.adapters} == set(chosen)
    assert found.coverage.complete and accounted(found, len(tensors))
    for adapter in found.adapters:
        torch.testing.assert_close(delta(adapter), expected[adapter.module])


# --- the file -------------------------------------------------------------------------------------


def test_mapped_and_read_tensors_are_equal_and_views_of_one_memory(tmp_path: Path) -> None:
    tensors = lf.lora(TINY, "kohya, musubi", rank=7) | {
        "lora_unet_x.odd": torch.ones(3, dtype=torch.uint8)
    }
    path = lf.write(tmp_path / "a.safetensors", tensors)
    by_map, by_read = (lora.read(path, TINY, mapped) for mapped in (True, False))
    for found in (by_map, by_read):
        places = sorted(t.data_ptr() for a in found.adapters for t in a.tensors.values())
        assert places[-1] - places[0] < path.stat().st_size
        assert found.total_bytes == sum(2 * 7 * (out + inner) for out, inner in TINY.values())
    for one, other in zip(by_map.adapters, by_read.adapters, strict=True):
        assert one.module == other.module
        assert all(torch.equal(one.tensors[n], other.tensors[n]) for n in one.tensors)


def test_what_was_read_outlives_its_file(tmp_path: Path) -> None:
    tensors = lf.lora(TINY)
    path = lf.write(tmp_path / "a.safetensors", tensors)
    found = lora.read(path, TINY, mapped=False)
    path.write_bytes(b"")
    adapter = found.adapters[0]
    assert torch.equal(
        adapter.tensors["down"], tensors[f"diffusion_model.{adapter.module}.lora_A.weight"]
    )


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_pytorch_files(legacy: bool, inside: bool, tmp_path: Path) -> None:
    tensors = lf.lora(TINY, "peft")
    path = tmp_path / "adapter_model.bin"
    path.write_bytes(wf.torch_bytes({"state_dict": tensors} if inside else tensors, legacy))
    found = lora.read(path, TINY)
    assert len(found.adapters) == len(TINY) and found.coverage.complete
    assert lora.describe(path).layout == "base_model.model.<module>: .lora_A/B"
    key = "base_model.model.img_in.lora_A.weight"
    (adapter,) = (a for a in found.adapters if a.module == "img_in")
    assert torch.equal(adapter.tensors["down"], tensors[key])


def test_a_whole_pytorch_file_of_846_modules_is_read(tmp_path: Path) -> None:
    modules = lf.qwen_modules(width=8, joint=8, inside=8)
    path = tmp_path / "a.pt"
    path.write_bytes(wf.torch_bytes(lf.lora(modules, "kohya, musubi", rank=1)))
    assert lora.read(path, modules).coverage.complete


def test_two_modules_of_one_flat_name_are_not_guessed(tmp_path: Path) -> None:
    modules = {"a.b_c": (4, 4), "a_b.c": (4, 4), "d": (4, 4)}
    found = read(tmp_path, lf.lora(modules, "bare"), modules)
    assert len(found.adapters) == 3
    tensors = lf.lora({"d": (4, 4), "a.b.c": (4, 4)}, "kohya, musubi")
    found = read(tmp_path, tensors, modules)
    assert found.coverage.matched == ("d",) and len(found.coverage.unmatched) == 3


def test_natural_order() -> None:
    names = ["v2511-0715", "v2511-0801", "v2511-0823", "x_9", "X_20", "x_100", "y２", "y¹0", "y٣"]
    shuffled = names[:]
    random.Random(1).shuffle(shuffled)
    assert sorted(shuffled, key=lora.natural_key)[:6] == names[:6]
    assert len(sorted(["1", "a", "", "1a", "a1", "²"], key=lora.natural_key)) == 6

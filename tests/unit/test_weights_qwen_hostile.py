"""Whatever is not exactly a Qwen-Image-Edit is refused by name and reason, before it is read."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import qwen_weights as qw
import torch
import weights_files as wf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from realtoon.weights_loader import qwen_families, qwen_image
from realtoon.weights_loader.errors import WeightsError

_settings = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
DESCRIBE: dict[str, Callable[[Path], object]] = {
    "dit": qwen_image.describe_base,
    "text": qwen_image.describe_text,
    "vae": qwen_image.describe_vae,
}
DIT = qw.marked(qw.transformer())
TEXT = qw.comfy_text(qw.text_encoder())
VAE = qw.vae()
INDEX = "transformer/diffusion_pytorch_model.safetensors.index.json"
SHARDS = [f"transformer/diffusion_pytorch_model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]


def refuse(kind: str, path: Path, message: str, name: str | None = None) -> WeightsError:
    """Checks what is said, and about which file."""
    start = time.perf_counter()
    with pytest.raises(WeightsError) as caught:
        DESCRIBE[kind](path)
    said = str(caught.value)
    assert message in said
    assert said.startswith(f"{name or path.name}: expected ")
    assert "Next step: " in said and said.isprintable()
    assert time.perf_counter() - start < 5
    return caught.value


def zeros(*names: str) -> qw.Tensors:
    return {name: torch.zeros(2, 2) for name in names}


# --- other models ---------------------------------------------------------------------------------

FLUX = zeros("double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight")
OTHERS = {
    "flux": ("dit", FLUX, "Flux or HunyuanVideo"),
    "flux in a checkpoint": (
        "dit", {f"model.diffusion_model.{n}": t for n, t in FLUX.items()}, "Flux or HunyuanVideo",
    ),
    "flux of diffusers": (
        "dit", zeros("transformer_blocks.0.attn.to_q.weight", "single_transformer_blocks.0.a"),
        "a Flux model in diffusers' names",
    ),
    "sd3": ("dit", zeros("joint_blocks.0.context_block.attn.qkv.weight"), "an SD3 model"),
    "wan": (
        "dit", zeros("blocks.0.cross_attn.norm_k.weight", "patch_embedding.weight"), "a Wan video",
    ),
    "sdxl": ("dit", zeros("model.diffusion_model.input_blocks.0.0.weight"), "Stable Diffusion"),
    "layered": (
        "dit", DIT | zeros("time_text_embed.addition_t_embedding.weight"), "Qwen-Image-Layered",
    ),
    "control net": ("dit", DIT | zeros("controlnet_blocks.0.weight"), "a Qwen-Image ControlNet"),
    "lora": (
        "dit", zeros("transformer_blocks.0.attn.to_q.lora_A.weight", "transformer_blocks.0.a"),
        "a LoRA",
    ),
    "lora of kohya": (
        "dit", zeros("lora_unet_transformer_blocks_0_attn_to_q.lora_down.weight"), "a LoRA",
    ),
    "lokr": ("dit", zeros("transformer_blocks.0.attn.to_q.lokr_w1"), "a LoRA"),
    "text encoder as base": ("dit", TEXT, "got a Qwen2.5-VL text encoder"),
    "vae as base": ("dit", VAE, "2.1 VAE"),
    "nothing known": ("dit", zeros("a", "b"), "2 tensors: a, b"),
    "base as text encoder": ("text", DIT, "got a Qwen-Image diffusion model"),
    "text only": (
        "text", {n: t for n, t in TEXT.items() if not n.startswith("visual.")},
        "without its vision part",
    ),
    "vision only": (
        "text", {n: t for n, t in TEXT.items() if n.startswith("visual.")}, "vision part alone",
    ),
    "qwen2 vl": ("text", TEXT | zeros("visual.blocks.0.mlp.fc1.weight"), "a Qwen2-VL"),
    "qwen3": ("text", zeros("model.layers.0.self_attn.q_norm.weight"), "a Qwen3 text encoder"),
    "t5": ("text", zeros("encoder.block.0.layer.0.SelfAttention.q.weight"), "a T5"),
    "clip": ("text", zeros("text_model.embeddings.token_embedding.weight"), "a CLIP"),
    "llama": ("text", zeros("model.layers.0.self_attn.q_proj.weight"), "another family"),
    "vae of flux": (
        "vae", zeros("decoder.up.0.block.0.conv1.weight"), "a VAE of Stable Diffusion or Flux",
    ),
    "vae of sd in diffusers' names": (
        "vae", zeros("decoder.up_blocks.0.resnets.0.norm1.weight"), "Stable Diffusion or Flux in",
    ),
    "vae of wan 2.2": (
        "vae", zeros("decoder.upsamples.0.upsamples.0.residual.2.weight"), "the VAE of Wan 2.2",
    ),
    "base as vae": ("vae", DIT, "got a Qwen-Image diffusion model"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_another_model_is_named(name: str, tmp_path: Path) -> None:
    kind, tensors, message = OTHERS[name]
    error = refuse(kind, qw.write_file(tmp_path / "模型.safetensors", tensors), message)
    assert error.expected.startswith(qwen_families.WANTED[kind])
    assert ("LoRAHotInject" in error.next_step) is message.startswith("a LoRA")


CONTENTS = {
    "GGUF": (b"GGUF" + bytes(600), "a GGUF file"),
    "pickle": (pickle.dumps({"a": 1}, protocol=2), "a PyTorch pickle"),
    "zip": (wf.torch_zip(pickle.dumps({}, protocol=2)), "a PyTorch pickle or another zip"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "a Git LFS pointer"),
    "web page": (b"<!DOCTYPE html><html>", "a web page"),
    "empty": (b"", "an empty file"),
    "text": (b"hello there", "a text file"),
    "nothing": (wf.with_header({}, b""), "a file with 0 tensors"),
    "a header of a terabyte": (wf.with_header(b"{}", b"", 1 << 40), "a header of at most"),
}


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("kind", DESCRIBE)
def test_another_kind_of_file_is_named(name: str, kind: str, tmp_path: Path) -> None:
    data, message = CONTENTS[name]
    path = tmp_path / "qwen_image_edit_2511_bf16.safetensors"
    path.write_bytes(data)
    refuse(kind, path, message)


# --- damaged files --------------------------------------------------------------------------------


def without(name: str) -> qw.Tensors:
    return {each: tensor for each, tensor in DIT.items() if each != name}


SCALED, _ = qw.fp8_scaled(qw.transformer(), "comfy_quant")
TO_Q = "transformer_blocks.0.attn.to_q"
DAMAGED: dict[str, tuple[str, qw.Tensors, str]] = {
    "a tensor missing": ("dit", without(f"{TO_Q}.bias"), f"1 missing: {TO_Q}.bias"),
    "the first missing": ("dit", without("img_in.weight"), "a tensor img_in.weight, got none"),
    "one shard alone": (
        "dit", dict(list(DIT.items())[:40]) | {"proj_out.weight": DIT["proj_out.weight"]},
        "choose the folder that holds all shards",
    ),
    "a tensor more": ("dit", DIT | zeros("surprise.weight"), "1 others: surprise.weight"),
    "another shape": (
        "dit", DIT | {f"{TO_Q}.bias": torch.zeros(9)}, f"{TO_Q}.bias of shape (64,), got (9,)",
    ),
    "whole numbers": (
        "dit", DIT | {f"{TO_Q}.bias": torch.zeros(64, dtype=torch.int64)}, f"{TO_Q}.bias, got I64",
    ),
    "a block missing": (
        "dit", {n.replace("blocks.1.", "blocks.7."): t for n, t in DIT.items()},
        "blocks transformer_blocks.0 to transformer_blocks.1, got transformer_blocks.7",
    ),
    "a block of millions": (
        "dit", {n.replace("blocks.1.", "blocks.99999999."): t for n, t in DIT.items()},
        "got transformer_blocks.99999999",
    ),
    "no width": ("dit", DIT | {"img_in.weight": torch.zeros(0, 64)}, "img_in.weight of 2 sizes"),
    "odd heads": (
        "dit", DIT | {"transformer_blocks.0.attn.norm_q.weight": torch.zeros(30)}, "multiple",
    ),
    "a full marker": ("dit", DIT | {qw.MARKER: torch.zeros(3)}, f"an empty {qw.MARKER}"),
    "scale without weight": (
        "dit", {n: t for n, t in SCALED.items() if n != f"{TO_Q}.weight"},
        f"1 scales without one: {TO_Q}",
    ),
    "scale beside full weight": (
        "dit", SCALED | {f"{TO_Q}.weight": DIT[f"{TO_Q}.weight"]}, f"a quantised {TO_Q}.weight",
    ),
    "scale missing": (
        "dit", {n: t for n, t in SCALED.items() if n != f"{TO_Q}.weight_scale"},
        f"1 layers without: {TO_Q}",
    ),
    "mark missing": (
        "dit", {n: t for n, t in SCALED.items() if n != f"{TO_Q}.comfy_quant"},
        f"a format for each scale, got 1 layers without: {TO_Q}",
    ),
    "two schemes": (
        "dit", SCALED | {"scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn)}, "one way of",
    ),
    "odd key heads": (
        "text", TEXT | {"model.layers.0.self_attn.k_proj.weight": torch.zeros(500, 48)}, "heads in",
    ),
    "vision of another width": (
        "text", TEXT | {"visual.merger.mlp.2.bias": torch.zeros(49)}, "visual.merger.mlp.2.bias of",
    ),
    "vision of unknown heads": (
        "text", qw.comfy_text(qw.text_encoder(qw.Sizes(vision=96))),
        "vision heads of 80, or a folder whose config.json counts them, got a vision part 96 wide",
    ),
    "both namings": ("text", TEXT | qw.text_encoder(), "two, one of them model."),
    "vae with alpha": (
        "vae", VAE | {"encoder.conv_in.weight": torch.zeros(8, 4, 3, 3, 3)},
        "encoder.conv1.weight of shape (8, 3, 3, 3, 3), got (8, 4, 3, 3, 3)",
    ),
    "vae without encoder": (
        "vae", {n: t for n, t in VAE.items() if not n.startswith("encoder.")}, "missing: encoder",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused(name: str, tmp_path: Path) -> None:
    kind, tensors, message = DAMAGED[name]
    refuse(kind, qw.write_file(tmp_path / "a.safetensors", tensors), message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "quantisation metadata in JSON"),
        ("[]", "that lists names, got a JSON list"),
        ("{}", "layers in the quantisation metadata"),
        ('{"layers": {"a": 1}}', "layers in the quantisation metadata"),
        ('{"layers": {"not.there": {}}}', "1 others in metadata: not.there"),
    ],
)
def test_metadata_that_lies_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = qw.write_file(tmp_path / "a.safetensors", DIT, {"_quantization_metadata": text})
    refuse("dit", path, message)


def header_of(data: bytes) -> tuple[dict, bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry.update(data_offsets=[0, 128]), "overlapping tensors"),
        (lambda entry: entry.update(shape=[1 << 40]), "bytes for"),
        (lambda entry: entry.update(shape=[-1]), "a shape for"),
        (lambda entry: entry.update(dtype="F4"), "a known dtype"),
        (lambda entry: entry.update(data_offsets=[9, 3]), "bytes for"),
    ],
)
def test_an_absurd_header_is_refused(change, message: str, tmp_path: Path) -> None:
    path = qw.write_file(tmp_path / "a.safetensors", DIT)
    header, data = header_of(path.read_bytes())
    change(header[f"{TO_Q}.bias"])
    path.write_bytes(wf.with_header(header, data))
    refuse("dit", path, message)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return qw.write_file(tmp_path_factory.mktemp("sound") / "a.safetensors", DIT).read_bytes()


@_settings
@given(data=st.data())
def test_a_file_cut_anywhere_is_refused(sound: bytes, tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(sound[: data.draw(st.integers(0, len(sound) - 1))])
    with pytest.raises(WeightsError):
        qwen_image.describe_base(path)


@_settings
@given(data=st.data())
def test_a_spoiled_header_is_refused_or_read(
    sound: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    """Whatever a byte is changed into, nothing but a WeightsError comes out."""
    length = int.from_bytes(sound[:8], "little")
    at = data.draw(st.integers(0, 8 + length - 1))
    spoiled = bytearray(sound)
    spoiled[at] = data.draw(st.integers(0, 255))
    path = tmp_path / "a.safetensors"
    path.write_bytes(spoiled)
    try:
        part = qwen_image.describe_base(path).dit
    except WeightsError:
        return
    assert part.total_bytes == sum(t.numel() * t.element_size() for t in DIT.values())


# --- folders --------------------------------------------------------------------------------------


def rewrite(path: Path, change: Callable[[dict], object]) -> None:
    value = json.loads(path.read_text("utf-8"))
    change(value)
    qw.write_json(path, value)


def reshard(path: Path, change: Callable[[str, torch.Tensor], torch.Tensor | None]) -> None:
    """Write a shard again with its tensors changed, those that become None left out."""
    names = header_of(path.read_bytes())[0]
    tensors = {n: t for n, t in qw.transformer().items() if n in names}
    changed = {n: change(n, t) for n, t in tensors.items()}
    qw.write_file(path, {n: t for n, t in changed.items() if t is not None})


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def config(**changes: object) -> Callable[[Path], None]:
    return lambda folder: rewrite(
        folder / "transformer/config.json", lambda value: value.update(changes)
    )


def weight_map(change: Callable[[dict], object]) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder / INDEX, lambda value: change(value["weight_map"]))


LAST = "proj_out.bias"
FOLDERS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "text to image": (
        lambda f: qw.write_json(f / "model_index.json", qw.model_index("QwenImagePipeline")),
        "model_index.json", "got 'QwenImagePipeline'",
    ),
    "flux": (
        lambda f: qw.write_json(f / "model_index.json", {"_class_name": "FluxPipeline"}),
        "model_index.json", "got 'FluxPipeline'",
    ),
    "no class": (
        lambda f: qw.write_json(f / "model_index.json", {"_class_name": ["a"]}),
        "model_index.json", "expected QwenImageEditPlusPipeline",
    ),
    "another text encoder": (
        lambda f: rewrite(
            f / "model_index.json",
            lambda v: v.update(text_encoder=["transformers", "T5EncoderModel"]),
        ),
        "model_index.json", "text_encoder of class Qwen2_5_VL",
    ),
    "index not JSON": (
        lambda f: (f / "model_index.json").write_text("{", "utf-8"), "model_index.json", "in JSON",
    ),
    "config missing": (
        lambda f: (f / "transformer/config.json").unlink(), "config.json", "no such file",
    ),
    "config of another class": (
        config(_class_name="FluxTransformer2DModel"), "config.json", "FluxTransformer2DModel",
    ),
    "shard missing": (lambda f: (f / SHARDS[1]).unlink(), Path(SHARDS[1]).name, "1 missing"),
    "shard cut": (lambda f: cut(f / SHARDS[2]), Path(SHARDS[2]).name, "a truncated file"),
    "shard that lacks a tensor": (
        lambda f: reshard(f / SHARDS[2], lambda n, t: None if n == LAST else t),
        Path(SHARDS[2]).name, f"1 missing: {LAST}",
    ),
    "shard with others": (
        weight_map(lambda m: m.pop(LAST)), Path(SHARDS[2]).name, "shards of two versions?",
    ),
    "shard of another dtype": (
        lambda f: reshard(f / SHARDS[2], lambda n, t: t.half()),
        Path(SHARDS[2]).name, "F16 (shards of two versions?)",
    ),
    "shard of another size": (
        lambda f: reshard(f / SHARDS[2], lambda n, t: torch.zeros(9) if n == LAST else t),
        Path(SHARDS[2]).name, "proj_out.bias of shape (64,), got (9,)",
    ),
    "shards without index": (
        lambda f: (f / INDEX).unlink(), "transformer", "an …index.json beside the shards",
    ),
    "index out of its folder": (
        weight_map(lambda m: m.update({LAST: "../vae/config.json"})), Path(INDEX).name,
        "the name of a file",
    ),
    "index on another drive": (
        weight_map(lambda m: m.update({LAST: "C:\\Windows\\a.safetensors"})), Path(INDEX).name,
        "the name of a file",
    ),
    "index of endless names": (
        weight_map(lambda m: m.update({LAST: "a" * 9999})), Path(INDEX).name, "the name of a file",
    ),
    "index of half a letter": (
        weight_map(lambda m: m.update({LAST: "\ud800"})), "?", "1 missing: ?",
    ),
    "index of numbers": (weight_map(lambda m: m.update({LAST: 3})), Path(INDEX).name, "got 3"),
    "index without a map": (
        lambda f: qw.write_json(f / INDEX, {}), Path(INDEX).name, "a weight_map",
    ),
    "pickles alone": (
        lambda f: [
            (f / INDEX).unlink(), *((f / s).unlink() for s in SHARDS),
            (f / "transformer/diffusion_pytorch_model.bin").write_bytes(b"1"),
        ],
        "transformer", "1 pickles: diffusion_pytorch_model.bin",
    ),
    "no weights": (
        lambda f: [(f / INDEX).unlink(), *((f / s).unlink() for s in SHARDS)],
        "transformer", "got no weights",
    ),
    "marker as text": (config(zero_cond_t="true"), "config.json", "zero_cond_t as true or false"),
    "marker as number": (config(zero_cond_t=1), "config.json", "zero_cond_t as true or false"),
    "marker as null": (config(zero_cond_t=None), "config.json", "zero_cond_t as true or false"),
    "layers disagree": (config(num_layers=3), "config.json", "num_layers 2, as the tensors have"),
    "layers as text": (config(num_layers="2"), "config.json", "num_layers 2, as the tensors have"),
    "heads disagree": (config(num_attention_heads=4), "config.json", "num_attention_heads 2"),
    "joint as float": (config(joint_attention_dim=48.0), "config.json", "got 48.0"),
    "patch of none": (config(patch_size=0), "config.json", "patch_size as a whole number"),
    "guidance": (config(guidance_embeds=True), "config.json", "guidance_embeds False"),
    "axes": (config(axes_dims_rope=[4, 14, 16]), "config.json", "whose sum is 32"),
    "axes of true": (config(axes_dims_rope=[True, 15, 16]), "config.json", "three even numbers"),
    "vae of other means": (
        lambda f: rewrite(f / "vae/config.json", lambda v: v["latents_mean"].reverse()),
        "config.json", "latents_mean of the Qwen-Image VAE",
    ),
    "vae of endless means": (
        lambda f: rewrite(f / "vae/config.json", lambda v: v["latents_mean"].append(10**400)),
        "config.json", "latents_mean of the Qwen-Image VAE",
    ),
    "vae of an endless mean": (
        lambda f: rewrite(f / "vae/config.json", lambda v: v.update(latents_std=[10**400] * 16)),
        "config.json", "latents_std of the Qwen-Image VAE",
    ),
    "vae of other blocks": (
        lambda f: rewrite(f / "vae/config.json", lambda v: v.update(dim_mult=[1, 2, 4])),
        "config.json", "dim_mult [1, 2, 4, 4]",
    ),
    "text of another size": (
        lambda f: rewrite(f / "text_encoder/config.json", lambda v: v.update(hidden_size=64)),
        "config.json", "hidden_size 48",
    ),
    "vision of another depth": (
        lambda f: rewrite(
            f / "text_encoder/config.json", lambda v: v["vision_config"].update(depth=9)
        ),
        "config.json", "vision_config.depth 2",
    ),
    "vision of heads that do not fit": (
        lambda f: rewrite(
            f / "text_encoder/config.json", lambda v: v["vision_config"].update(num_heads=3)
        ),
        "config.json", "num_heads of heads of a multiple of 4 in 160",
    ),
    "vision of other patches": (
        lambda f: rewrite(
            f / "text_encoder/config.json", lambda v: v["vision_config"].update(patch_size=16)
        ),
        "config.json", "vision_config.patch_size 14",
    ),
    "vision of odd layers": (
        lambda f: rewrite(
            f / "text_encoder/config.json",
            lambda v: v["vision_config"].update(fullatt_block_indexes=[1, "2"]),
        ),
        "config.json", "vision_config.fullatt_block_indexes as a list of whole numbers",
    ),
    "vision config as list": (
        lambda f: rewrite(f / "text_encoder/config.json", lambda v: v.update(vision_config=[])),
        "config.json", "vision_config with names and values",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_is_not_whole_is_refused(name: str, tmp_path: Path) -> None:
    change, file, message = FOLDERS[name]
    folder = qw.write_official(tmp_path / "官方")
    qwen_image.describe_base(folder)
    change(folder)
    refuse("dit", folder, message, file)


def test_parts_of_two_models_do_not_fit(tmp_path: Path) -> None:
    wide = qw.Sizes(joint=80)
    dit = qwen_image.describe_base(qw.write_file(tmp_path / "dit.safetensors", DIT)).dit
    other = qw.comfy_text(qw.text_encoder(wide))
    text = qwen_image.describe_text(qw.write_file(tmp_path / "text.safetensors", other))
    with pytest.raises(WeightsError, match="text encoder of width 48.*got one of 80"):
        qwen_image.check_fit(dit, text, None)
    vae = qwen_image.describe_vae(qw.write_file(tmp_path / "vae.safetensors", VAE))
    qwen_image.check_fit(dit, None, vae)


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    refuse("dit", tmp_path, "no such file", "config.json")


@pytest.mark.parametrize("name", ["shard missing", "shard cut", "marker as text", "text to image"])
def test_nothing_but_headers_and_json_is_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = qw.write_official(tmp_path / "a")
    FOLDERS[name][0](folder)
    read = 0
    real = qwen_image.files.read_at

    def counted(path: Path, offset: int, length: int) -> bytes:
        nonlocal read
        read += length
        assert path.suffix == ".json" or offset + length <= 8 + header_bytes(path)
        return real(path, offset, length)

    def header_bytes(path: Path) -> int:
        with path.open("rb") as file:
            return max(512, int.from_bytes(file.read(8), "little"))

    monkeypatch.setattr(qwen_image.files, "read_at", counted)
    with pytest.raises(WeightsError):
        qwen_image.describe_base(folder)
    assert 0 < read < 200_000

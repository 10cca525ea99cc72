"""Sample a tiny Qwen-Image DiT in a ComfyUI's own process, with the modulation table and without.

    python tests/host/modulation_cases.py COMFYUI BASE

BASE is an empty folder for the host. The last line of standard output is JSON: case -> what it
found; differences are the largest ones between the latents of the two.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
TINY = {
    "image_model": "qwen_image",
    "in_channels": 64,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "joint_attention_dim": 48,
    "axes_dims_rope": (8, 12, 12),
}
SAMPLERS = ("euler", "dpmpp_2m", "dpmpp_sde", "uni_pc")
STEPS = 3


def main() -> None:
    comfyui, base = map(Path, sys.argv[1:])
    sys.path[:0] = [str(comfyui), str(TESTS)]
    os.chdir(comfyui)
    sys.argv = ["main.py", "--cpu", "--base-directory", str(base)]
    importlib.import_module("comfy.options").enable_args_parsing()
    importlib.import_module("conftest")
    import torch

    torch.set_num_threads(1)
    found = {}
    # The host runs its nodes so; what other threads' hooks print stays off the last line.
    with torch.inference_mode(), contextlib.redirect_stdout(sys.stderr):
        for case in CASES:
            found[case.__name__] = case()
    sys.stdout.write(json.dumps(found) + "\n")


class Twins:
    """A plain patcher and one with a table, of the same weights."""

    def __init__(self, dtype: str) -> None:
        import torch

        self.adapter = importlib.import_module("realtoon.nodes._modulation")
        self.dtype = getattr(torch, dtype)
        weights = None
        patchers = []
        for _ in range(2):
            patcher, weights = self.build(weights)
            patchers.append(patcher)
        self.plain, self.tabled = patchers
        modulation = {n: t.clone() for n, t in weights.items() if "_mod." in n}
        self.table = self.adapter.attach(self.tabled, modulation.__getitem__)

    def build(self, weights):
        import comfy.model_patcher
        import comfy.supported_models
        import torch

        with torch.inference_mode(False):
            config = comfy.supported_models.QwenImage(dict(TINY))
            config.set_inference_dtype(self.dtype, None)
            model = config.get_model({}, "")
            if weights is None:
                chance = torch.Generator().manual_seed(1)
                weights = {
                    name: (torch.randn(t.shape, generator=chance) * 0.2).to(self.dtype)
                    for name, t in model.diffusion_model.state_dict().items()
                }
            model.diffusion_model.load_state_dict(weights)
            cpu = torch.device("cpu")
            return comfy.model_patcher.ModelPatcher(model, cpu, cpu), weights


def sample(patcher, sampler="euler", cfg=1.0, lengths=(7, 7), references=None, hooks=None):
    """Latents of a short run. lengths: tokens of the two prompts; alike, they run as one batch."""
    import comfy.sample
    import torch

    chance = torch.Generator().manual_seed(5)
    latent = torch.zeros(1, 16, 1, 8, 8)
    noise = torch.randn(latent.shape, generator=chance)
    conds = []
    for length in lengths:
        extra = {} if hooks is None else {"hooks": hooks}
        if references is not None:
            extra["reference_latents"] = [torch.randn(latent.shape, generator=chance)]
            extra["reference_latents_method"] = references
        conds.append([[torch.randn(1, length, 48, generator=chance), extra]])
    return comfy.sample.sample(
        patcher, noise, STEPS, cfg, sampler, "simple", conds[0], conds[1], latent, seed=5,
        disable_pbar=True,
    )  # fmt: skip


def difference(twins, plain=None, tabled=None, **settings) -> float:
    one = sample(plain or twins.plain, **settings)
    other = sample(tabled or twins.tabled, **settings)
    assert one.isfinite().all() and one.std() > 0.1
    return (one - other).abs().max().item()


def control() -> dict:
    """What the comparison says where one number in one modulation weight is another."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        twins = Twins(dtype)
        lent = twins.table.provider

        def altered(name: str, lent=lent):
            weight = lent(name).clone()
            if name == "transformer_blocks.1.img_mod.1.weight":
                weight[3, 5] *= 1.25
            return weight

        twins.table.provider = altered
        found[dtype] = difference(twins)
    return found


def samplers() -> dict:
    """Also how many rows an input had, and that what lies between sigmas was filled when met."""
    found, rows, fills = {}, set(), {}
    for dtype in ("float32", "bfloat16"):
        twins = Twins(dtype)
        for sampler in SAMPLERS:
            for cfg in (1.0, 4.0):
                key = f"{dtype} {sampler} cfg {cfg:g}"
                before = twins.table.fills
                found[key] = difference(twins, sampler=sampler, cfg=cfg)
                rows |= {len(each.rows) for each in layer(twins, "img_mod").known}
                fills.setdefault(sampler, []).append(twins.table.fills - before)
        found[f"{dtype} euler cfg 4 two passes"] = difference(twins, cfg=4.0, lengths=(7, 9))
    return {"differences": found, "rows": sorted(rows), "layers filled": fills}


def references() -> dict:
    """Reference tokens; where the host knows it, with rows of t = 0 for them."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        twins = Twins(dtype)
        for method in ("index", "index_timestep_zero"):
            for cfg in (1.0, 4.0):
                key = f"{dtype} {method} cfg {cfg:g}"
                found[key] = difference(twins, references=method, cfg=cfg)
    twins = Twins("bfloat16")
    sample(twins.tabled, references="index_timestep_zero")
    doubles = any(len(key.rows) == 2 for key in layer(twins, "img_mod").known)
    planned = twins.table.planned_bytes(STEPS, twins.dtype, zero_rows=doubles)
    fills = twins.table.fills
    sample(twins.tabled, references="index_timestep_zero")
    return {
        "differences": found,
        "t = 0 rows": doubles,
        "bytes": [twins.table.bytes, planned],
        "layers filled": [fills, twins.table.fills, len(twins.table.layers)],
    }


def layer(twins, stream):
    return getattr(twins.tabled.model.diffusion_model.transformer_blocks[0], stream)[1]


def lora_file(twins) -> dict:
    """A LoRA as it lies in a file, in three layouts, on modulation and on other layers."""
    import torch

    chance = torch.Generator().manual_seed(2)
    width = 64
    found = {}
    for name, ups in (
        ("transformer.transformer_blocks.0.img_mod.1", 6 * width),
        ("diffusion_model.transformer_blocks.1.img_mod.1", 6 * width),
        ("transformer_blocks.1.attn.to_q", width),
    ):
        found[f"{name}.lora_A.weight"] = torch.randn(4, width, generator=chance) * 0.3
        found[f"{name}.lora_B.weight"] = torch.randn(ups, 4, generator=chance) * 0.3
    flat = "lora_unet_transformer_blocks_1_txt_mod_1"
    found[f"{flat}.lora_down.weight"] = torch.randn(4, width, generator=chance) * 0.3
    found[f"{flat}.lora_up.weight"] = torch.randn(6 * width, 4, generator=chance) * 0.3
    found[f"{flat}.alpha"] = torch.tensor(2.0)
    found[f"{flat}.diff_b"] = torch.randn(6 * width, generator=chance) * 0.3
    return found


def with_lora(patcher, file, strength):
    import comfy.sd

    return comfy.sd.load_lora_for_models(patcher, None, dict(file), strength, 0)[0]


def loras() -> dict:
    """Strengths change between runs and the plain model comes back."""
    found, effects, matched = {}, {}, {}
    for dtype in ("float32", "bfloat16"):
        twins = Twins(dtype)
        file = lora_file(twins)
        for cfg in (1.0, 4.0):
            plain = sample(twins.tabled, cfg=cfg)
            for strength in (1.0, 0.5, 0.0, 1.0):
                one, other = (with_lora(p, file, strength) for p in (twins.plain, twins.tabled))
                key = f"{dtype} cfg {cfg:g} strength {strength:g}"
                worst = difference(twins, one, other, cfg=cfg)
                found[key] = max(found.get(key, 0.0), worst)
                effects[key] = (sample(other, cfg=cfg) - plain).abs().max().item()
                matched[key] = [sorted(p.patches) for p in (one, other)]
        twice = [
            with_lora(with_lora(p, file, 0.5), file, -0.25) for p in (twins.plain, twins.tabled)
        ]
        found[f"{dtype} two"] = difference(twins, *twice)
        found[f"{dtype} none again"] = difference(twins)
        found[f"{dtype} the same adapters"] = _same_adapters(twins, file)
    modulation_only = {name: t for name, t in file.items() if "to_q" not in name}
    other_only = {name: t for name, t in file.items() if "to_q" in name}
    sample(with_lora(twins.tabled, modulation_only, 1.0))
    filled = [twins.table.fills]
    sample(with_lora(twins.tabled, modulation_only, 0.5))
    filled.append(twins.table.fills)
    sample(twins.tabled)
    filled.append(twins.table.fills)
    sample(with_lora(twins.tabled, other_only, 1.0))
    filled.append(twins.table.fills)
    return {
        "differences": found,
        "effects": effects,
        "same keys": all(one == other for one, other in matched.values()),
        "modulation keys": sum("_mod" in k for k in next(iter(matched.values()))[1]),
        "layers filled": [b - a for a, b in zip(filled, filled[1:], strict=False)],
    }


def _same_adapters(twins, file) -> float:
    """One loaded file at two strengths: only the strength tells the patches apart."""
    import comfy.lora
    import comfy.lora_convert

    keys = comfy.lora.model_lora_keys_unet(twins.plain.model, {})
    loaded = comfy.lora.load_lora(comfy.lora_convert.convert_lora(dict(file)), keys)
    worst = 0.0
    for strength in (1.0, 0.25):
        pair = [twins.plain.clone(), twins.tabled.clone()]
        for patcher in pair:
            patcher.add_patches(loaded, strength)
        worst = max(worst, difference(twins, *pair))
    return worst


def lowvram() -> dict:
    """Weights that stay on the offload device and come layer by layer.

    A LoRA on modulation layers is compared with the plain model loaded completely: the host folds
    it into weights that it keeps there in another dtype than into those that it lends.
    """
    found = {}
    for dtype in ("float32", "bfloat16"):
        twins = Twins(dtype)
        found[dtype] = _apart(_outputs(twins.plain, 100_000), _outputs(twins.tabled, 100_000))
        file = {name: t for name, t in lora_file(twins).items() if "to_q" not in name}
        one, other = (with_lora(patcher, file, 0.5) for patcher in (twins.plain, twins.tabled))
        whole, part = _outputs(one, 1e32), _outputs(other, 100_000)
        found[f"{dtype} LoRA"] = _apart(whole, part)
        found[f"{dtype} LoRA's effect"] = _apart(part, _outputs(twins.tabled, 100_000))
    return found


def _outputs(patcher, budget: float) -> list:
    """What the model says at two timesteps, loaded within a budget of bytes."""
    import torch

    patcher.patch_model(torch.device("cpu"), lowvram_model_memory=budget)
    assert patcher.model.model_lowvram == (budget < 1e9)
    patcher.pre_run()
    chance = torch.Generator().manual_seed(5)
    x, c = (torch.randn(shape, generator=chance) for shape in ((1, 16, 1, 8, 8), (1, 7, 48)))
    steps = [torch.tensor([t]) for t in (0.9, 0.4)]
    outputs = [patcher.model.apply_model(x, step, c_crossattn=c) for step in steps]
    patcher.detach()
    return outputs


def _apart(ones: list, others: list) -> float:
    pairs = zip(ones, others, strict=True)
    return max((one - other).abs().max().item() for one, other in pairs)


def clones() -> dict:
    """Clones share the model and the table; a dead one lets nothing go, an unload all of it."""
    import comfy.model_management as management

    twins = Twins("float32")
    sample(twins.tabled)
    held = twins.table.bytes
    copy = twins.tabled.clone()
    shared = twins.adapter.table_of(copy.model) is twins.table
    size = [copy.model_size(), twins.tabled.model_size()]
    worst = difference(twins, tabled=copy)
    del copy
    after_death = twins.table.bytes
    management.unload_all_models()
    return {
        "shared": shared,
        "sizes": size,
        "plain size": twins.plain.model_size(),
        "difference": worst,
        "bytes": [held, after_death, twins.table.bytes],
        "again": difference(twins),
    }


def names() -> dict:
    """What the host's loaders and mergers ask of a model."""
    import comfy.lora
    import torch

    twins = Twins("float32")
    maps = [comfy.lora.model_lora_keys_unet(p.model, {}) for p in (twins.plain, twins.tabled)]
    kept = [p.get_key_patches("diffusion_model.") for p in (twins.plain, twins.tabled)]
    same = all(torch.equal(kept[0][key][0][0], kept[1][key][0][0]) for key in kept[0])
    merged = []
    other = Twins("float32").plain
    with torch.inference_mode(False):
        for t in other.model.parameters():
            t.data *= 1.3
    for patcher in (twins.plain, twins.tabled):
        patcher = patcher.clone()
        patches = other.get_key_patches("diffusion_model.")
        patcher.add_patches(patches, 0.5, 0.5)
        merged.append(patcher)
    file = lora_file(twins)
    saved = []
    for patcher in (twins.plain, twins.tabled):
        import comfy.model_management as management

        patched = with_lora(patcher, file, 0.5)
        management.load_models_gpu([patched], force_patch_weights=True)
        state = patched.model.diffusion_model.state_dict()
        saved.append({key: value.clone() for key, value in state.items()})
    return {
        "lora keys": maps[0] == maps[1],
        "keys": list(kept[0]) == list(kept[1]),
        "tensors": same,
        "merged": difference(twins, *merged),
        "saved": list(saved[0]) == list(saved[1])
        and all(torch.equal(saved[0][key], saved[1][key]) for key in saved[0]),
    }


def loading() -> dict:
    """As a loader does it: attached to the empty model, then the rest of the weights."""
    import logging

    import comfy.model_patcher
    import comfy.supported_models
    import torch

    twins = Twins("float32")
    config = comfy.supported_models.QwenImage(dict(TINY))
    config.set_inference_dtype(torch.float32, None)
    state = {k: v.clone() for k, v in twins.plain.model.diffusion_model.state_dict().items()}
    modulation = {name: state.pop(name) for name in list(state) if "_mod." in name}
    with torch.inference_mode(False):
        model = config.get_model({}, "")
        cpu = torch.device("cpu")
        patcher = comfy.model_patcher.ModelPatcher(model, cpu, cpu)
        twins.adapter.attach(patcher, modulation.__getitem__)
        warnings = []
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record: warnings.append(record.getMessage())
        logging.getLogger().addHandler(handler)
        model.load_model_weights(state, "")
        logging.getLogger().removeHandler(handler)
    return {"difference": difference(twins, tabled=patcher), "warnings": warnings}


def bypass() -> dict | None:
    """The host's LoRA beside the weights, which wraps the layers' forward; newer hosts have it."""
    import comfy.sd

    load = getattr(comfy.sd, "load_bypass_lora_for_models", None)
    if load is None:
        return None
    twins = Twins("float32")
    # It stacks no bias beside its adapters.
    file = {name: t for name, t in lora_file(twins).items() if "diff_b" not in name}
    plain = sample(twins.tabled)
    pair = [load(patcher, None, dict(file), 0.5, 0)[0] for patcher in (twins.plain, twins.tabled)]
    return {
        "difference": difference(twins, *pair),
        "effect": (sample(pair[1]) - plain).abs().max().item(),
        "none again": difference(twins),
    }


def hooks() -> dict:
    """LoRAs that come and go within a run: followed beside the modulation, refused on it."""
    import comfy.hooks
    import comfy.sampler_helpers
    import comfy.sd

    found = {}
    twins = Twins("float32")
    plain = sample(twins.tabled)
    file = lora_file(twins)
    for kind in ("to_q", "_mod"):
        part = {name: t for name, t in file.items() if kind in name}
        group = comfy.hooks.create_hook_lora(lora=part, strength_model=0.5, strength_clip=0.0)
        pair = []
        for patcher in (twins.plain, twins.tabled):
            pair.append(patcher.clone())
        try:
            found[kind] = difference(twins, *pair, hooks=group)
            found["effect"] = (sample(pair[1], hooks=group) - plain).abs().max().item()
        except ValueError as error:
            found[kind] = str(error)
    found["after"] = difference(twins)
    return found


def sizes() -> dict:
    """The real-size DiT on meta."""
    import comfy.ldm.qwen_image.model as qwen
    import comfy.ops
    import torch
    from realtoon.engine import modulation_table as engine

    found = {}
    for dtype in (torch.float8_e4m3fn, torch.bfloat16):
        model = qwen.QwenImageTransformer2DModel(
            dtype=dtype, device="meta", operations=comfy.ops.disable_weight_init
        )
        before = engine.resident_bytes(model)
        state = {n: t for n, t in model.state_dict().items() if engine.is_modulation(n)}
        table = engine.attach(model, state.__getitem__)
        found[str(dtype).removeprefix("torch.")] = [before, engine.resident_bytes(model)]
    found["table"] = table.planned_bytes(30, torch.bfloat16, zero_rows=True)
    return found


CASES = (
    control, samplers, references, loras, lowvram, clones, names, loading, bypass, hooks, sizes,
)  # fmt: skip

if __name__ == "__main__":
    main()

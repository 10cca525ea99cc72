"""LoRAs beside the weights of a tiny Qwen-Image DiT, sampled in a ComfyUI's own process.

    python tests/host/lora_cases.py COMFYUI BASE

BASE is an empty folder for the host. The last line of standard output is JSON: case -> what it
found; differences are the largest ones between latents.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib
import json
import os
import sys
import weakref
from pathlib import Path

from modulation_cases import STEPS, TESTS, TINY, Twins, sample

WIDTH, INNER = 64, 256
ATTENTION = "transformer_blocks.1.attn.to_q"
MLP = "transformer_blocks.0.img_mlp.net.0.proj"
MODULATION = ("transformer_blocks.0.img_mod.1", "transformer_blocks.1.txt_mod.1")
SIZES = {ATTENTION: (WIDTH, WIDTH), MLP: (INNER, WIDTH)}
SIZES |= dict.fromkeys(MODULATION, (6 * WIDTH, WIDTH))
LORAS = Path("models/loras")
KINDS = ("lora", "dora", "loha", "lokr", "diff")
BASE = Path()


def main() -> None:
    global BASE
    comfyui, BASE = (Path(each).resolve() for each in sys.argv[1:])
    sys.path[:0] = [str(comfyui), str(TESTS)]
    os.chdir(comfyui)
    sys.argv = ["main.py", "--cpu", "--base-directory", str(BASE)]
    importlib.import_module("comfy.options").enable_args_parsing()
    importlib.import_module("conftest")
    import torch

    torch.set_num_threads(1)
    write_files()
    found = {}
    # The host runs its nodes so; what other threads' hooks print stays off the last line.
    with torch.inference_mode(), contextlib.redirect_stdout(sys.stderr):
        for case in CASES:
            found[case.__name__] = case()
    sys.stdout.write(json.dumps(found) + "\n")


def write_files() -> None:
    """One file of each kind, one on modulation layers, one for another model, one that is none."""
    import torch
    from safetensors.torch import save_file

    folder = BASE / LORAS
    folder.mkdir(parents=True, exist_ok=True)
    for seed, kind in enumerate(KINDS):
        save_file(tensors(kind, (ATTENTION, MLP), seed), folder / f"{kind}.safetensors")
    save_file(tensors("lora", (ATTENTION,), 7), folder / "v_9.safetensors")
    partly = tensors("lora", (ATTENTION, MLP), 8)
    partly |= {f"transformer.nowhere.lora_{each}.weight": torch.ones(4, 4) for each in "AB"}
    save_file(partly, folder / "v_20.safetensors")
    save_file(tensors("lora", (*MODULATION, MLP), 9), folder / "modulation.safetensors")
    other = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    # SDXL's texts are 2048 wide.
    sizes = {"down": (4, 2048), "up": (640, 4)}
    sdxl = {f"{other}.lora_{each}.weight": torch.ones(shape) for each, shape in sizes.items()}
    save_file(sdxl, folder / "sdxl.safetensors")
    (folder / "broken.safetensors").write_bytes(b"no weights")


def tensors(kind: str, names: tuple[str, ...], seed: int) -> dict:
    """An adapter of a kind on each layer, as trainers write it."""
    import torch

    chance = torch.Generator().manual_seed(seed)

    def some(*shape: int):
        return torch.randn(shape, generator=chance) * 0.3

    found = {}
    for name in names:
        out, inner = SIZES[name]
        full = f"transformer.{name}"
        lycoris = f"lycoris_{name.replace('.', '_')}"
        if kind in ("lora", "dora"):
            found[f"{full}.lora_A.weight"] = some(4, inner)
            found[f"{full}.lora_B.weight"] = some(out, 4)
        if kind == "dora":
            found[f"{full}.lora_magnitude_vector"] = some(out).abs() + 1
        if kind == "loha":
            for part, shape in (("a", (out, 3)), ("b", (3, inner))):
                found |= {f"{lycoris}.hada_w{i}_{part}": some(*shape) for i in (1, 2)}
            found[f"{lycoris}.alpha"] = torch.tensor(2.0)
        if kind == "lokr":
            found[f"{lycoris}.lokr_w1"] = some(4, 4)
            found[f"{lycoris}.lokr_w2"] = some(out // 4, inner // 4)
            found[f"{lycoris}.alpha"] = torch.tensor(1.0)
        if kind == "diff":
            found[f"diffusion_model.{name}.diff"] = some(out, inner)
            found[f"diffusion_model.{name}.diff_b"] = some(out)
    return found


def node():
    return importlib.import_module("realtoon.nodes.lora_hot_inject").LoRAHotInject


def adapter():
    return importlib.import_module("realtoon.nodes._lora")


def put(model, name: str, strength: float = 1.0, mode: str = "beside the weights", keep: int = 64):
    """What the node hands out: model, name, report."""
    lora = f"{name}.safetensors" if name != "none" else name
    return (
        node()
        .execute(model=model, lora=lora, strength=strength, mode=mode, keep_in_memory_mb=keep)
        .args
    )


def fold(model, name: str, strength: float = 1.0):
    return put(model, name, strength, "folded by the host")[0]


def core(model, name: str, strength: float = 1.0):
    """The host's own loader."""
    import comfy.sd
    import comfy.utils

    file = comfy.utils.load_torch_file(str(BASE / LORAS / f"{name}.safetensors"), safe_load=True)
    return comfy.sd.load_lora_for_models(model, None, file, strength, 0)[0]


def apart(one, other) -> float:
    return ((one - other).norm() / other.norm()).item()


def digest(model) -> str:
    """Of every weight's bits."""
    import torch

    state = hashlib.sha256()
    for weight in model.model.state_dict().values():
        state.update(weight.contiguous().view(torch.uint8).numpy().data)
    return state.hexdigest()


def wrapped(model) -> list[str]:
    """Layers whose forward is not their own."""
    return [name for name, m in model.model.named_modules() if "forward" in m.__dict__]


def kinds() -> dict:
    """Beside against folded by the host, and plain LoRA against the host's own loader."""
    found = {}
    model = Twins("float32").plain
    plain = sample(model)
    for kind in KINDS:
        for strength in (1.0, -0.5):
            one = sample(put(model, kind, strength)[0])
            other = sample(fold(model, kind, strength))
            found[f"{kind} {strength:g}"] = [apart(one, other), apart(other, plain)]
    for kind in ("lora", "loha", "lokr", "diff"):
        found[f"{kind} by the host"] = [
            apart(sample(put(model, kind)[0]), sample(core(model, kind))), 1.0
        ]  # fmt: skip
    found["plain again"] = apart(sample(model), plain)
    return found


def untouched() -> dict:
    """What of the base is another one with a LoRA beside it, while it runs and after."""
    import comfy.model_management as management

    model = Twins("bfloat16").plain
    plain, before = sample(model), digest(model)
    pointers = [p.data_ptr() for p in model.model.parameters()]
    hot, *_ = put(model, "lora")
    changed = sample(hot)
    found = {
        "effect": apart(changed.float(), plain.float()),
        "uuid": hot.patches_uuid == model.patches_uuid,
        "weights": digest(model) == before,
        "memory": [p.data_ptr() for p in model.model.parameters()] == pointers,
        "backup": len(model.backup),
        "names": list(hot.model_state_dict()) == list(model.model_state_dict()),
        "wrapped": wrapped(hot),
    }
    found["plain again"] = (sample(model) - plain).abs().max().item()
    found["wrapped after"] = wrapped(model)
    sample(hot)
    management.unload_all_models()
    found["wrapped unloaded"] = wrapped(model)
    return found


def chains() -> dict:
    """Ours on ours, and the host's loaders before and after ours."""
    model = Twins("float32").plain
    plain = sample(model)
    both = sample(fold(fold(model, "lora", 0.7), "lokr", -0.4))
    ways = {
        "two beside": put(put(model, "lora", 0.7)[0], "lokr", -0.4)[0],
        "the other way round": put(put(model, "lokr", -0.4)[0], "lora", 0.7)[0],
        "folded, beside": put(fold(model, "lora", 0.7), "lokr", -0.4)[0],
        "beside, folded": fold(put(model, "lora", 0.7)[0], "lokr", -0.4),
        "core before": put(core(model, "lora", 0.7), "lokr", -0.4)[0],
        "core after": core(put(model, "lokr", -0.4)[0], "lora", 0.7),
    }
    found = {way: apart(sample(each), both) for way, each in ways.items()}
    found["effect"] = apart(both, plain)
    first = put(model, "lora", 0.7)[0]
    found["names"] = [put(first, "lokr", -0.4)[1], put(first, "none")[1], put(model, "none")[1]]
    same_layer = put(put(model, "lora")[0], "v_9")[0]
    found["on one layer"] = apart(sample(same_layer), sample(fold(fold(model, "lora"), "v_9")))
    found["plain again"] = apart(sample(model), plain)
    return found


def shared_base() -> dict:
    """Several workflows on one base, in any order, their clones living and dying."""
    import comfy.model_management as management

    model = Twins("float32").plain
    plain = sample(model)
    first, second = put(model, "lora")[0], put(model, "loha")[0]
    one, two = sample(first), sample(second)
    found = {"apart": min(apart(one, plain), apart(two, plain), apart(one, two))}
    steps = {}
    steps["A again"] = (sample(first) - one).abs().max().item()
    clone = first.clone()
    steps["A's clone"] = (sample(clone) - one).abs().max().item()
    steps["B again"] = (sample(second) - two).abs().max().item()
    steps["clone again"] = (sample(clone) - one).abs().max().item()
    bystander = clone.clone()
    del bystander
    steps["after a death"] = (sample(clone) - one).abs().max().item()
    # Nodes that add patches take a model's injections off and on, loaded or not.
    patched = core(clone, "v_9", 0.5)
    steps["plain, A patched by a node"] = (sample(model) - plain).abs().max().item()
    found["patched"] = apart(sample(patched), sample(fold(fold(model, "v_9", 0.5), "lora")))
    sample(clone)
    del clone, patched
    steps["plain, A's clone dead"] = (sample(model) - plain).abs().max().item()
    sample(first)
    management.unload_all_models()
    steps["plain after unload"] = (sample(model) - plain).abs().max().item()
    steps["A after unload"] = (sample(first) - one).abs().max().item()
    del first, second
    gc.collect()
    steps["plain, both dead"] = (sample(model) - plain).abs().max().item()
    found["steps"] = steps
    found["wrapped"] = wrapped(model)
    return found


def table() -> dict:
    """A LoRA on modulation layers: the table's answers against the weights'."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        twins = Twins(dtype)
        plain = sample(twins.tabled)
        sample(twins.tabled, cfg=4.0)
        fills = twins.table.fills
        for cfg in (1.0, 4.0):
            one, other = (
                sample(put(m, "modulation", 0.5)[0], cfg=cfg) for m in (twins.plain, twins.tabled)
            )
            found[f"{dtype} cfg {cfg:g}"] = (one - other).abs().max().item()
        found[f"{dtype} effect"] = apart(one.float(), plain.float())
        found[f"{dtype} plain again"] = (sample(twins.tabled) - plain).abs().max().item()
        found[f"{dtype} filled again"] = twins.table.fills - fills
        pair = [sample(fold(m, "modulation", 0.5)) for m in (twins.plain, twins.tabled)]
        found[f"{dtype} folded"] = (pair[0] - pair[1]).abs().max().item()
    return found


def interrupted() -> dict:
    """A run that is cancelled in the middle of a step."""
    import comfy.model_management as management

    model = Twins("float32").plain
    plain = sample(model)
    hot = put(model, "lora")[0]
    whole = sample(hot)
    met = []

    def cancel(*_args):
        met.append(1)
        if len(met) == STEPS:
            raise management.InterruptProcessingException

    block = model.model.diffusion_model.transformer_blocks[1]
    handle = block.register_forward_pre_hook(cancel)
    try:
        sample(hot)
        stopped = False
    except management.InterruptProcessingException:
        stopped = True
    handle.remove()
    return {
        "stopped": stopped,
        "plain": (sample(model) - plain).abs().max().item(),
        "wrapped": wrapped(model),
        "whole": (sample(hot) - whole).abs().max().item(),
    }


def bypass() -> dict | None:
    """The host's own LoRA beside the weights, over ours and under it; newer hosts have it."""
    import comfy.sd
    import comfy.utils

    load = getattr(comfy.sd, "load_bypass_lora_for_models", None)
    if load is None:
        return None
    model = Twins("float32").plain
    plain = sample(model)
    file = comfy.utils.load_torch_file(str(BASE / LORAS / "v_9.safetensors"), safe_load=True)
    both = sample(fold(fold(model, "lora"), "v_9", 0.5))
    found = {}
    for way in ("over", "under"):
        if way == "over":
            mixed = load(put(model, "lora")[0], None, dict(file), 0.5, 0)[0]
        else:
            mixed = put(load(model, None, dict(file), 0.5, 0)[0], "lora")[0]
        found[way] = apart(sample(mixed), both)
        found[f"plain after {way}"] = (sample(model) - plain).abs().max().item()
    return found


def fp8() -> dict:
    """The change of one layer's output on an fp8 base, beside and folded, against the exact one."""
    import comfy.model_patcher
    import comfy.supported_models
    import torch

    with torch.inference_mode(False):
        config = comfy.supported_models.QwenImage(dict(TINY))
        config.set_inference_dtype(torch.float8_e4m3fn, torch.bfloat16)
        built = config.get_model({}, "")
        state = Twins("bfloat16").plain.model.diffusion_model.state_dict()
        built.diffusion_model.load_state_dict(state)
        cpu = torch.device("cpu")
        model = comfy.model_patcher.ModelPatcher(built, cpu, cpu)
    x = torch.randn(400, WIDTH, generator=torch.Generator().manual_seed(3)).bfloat16()
    before = _layer(model, x)
    strength = 0.02
    file = tensors("lora", (ATTENTION, MLP), 0)
    down, up = (file[f"transformer.{ATTENTION}.lora_{each}.weight"].double() for each in "AB")
    exact = strength * x.double() @ down.t() @ up.t()
    found = {}
    for way, patcher in (
        ("beside", put(model, "lora", strength)[0]),
        ("folded", fold(model, "lora", strength)),
    ):
        change = _layer(patcher, x).double() - before.double()
        found[way] = ((change - exact).norm() / exact.norm()).item()
    found["dtype"] = str(built.diffusion_model.transformer_blocks[1].attn.to_q.weight.dtype)
    hot = put(model, "lora")[0]
    found["effect"] = apart(sample(hot).float(), sample(model).float())
    return found


def _layer(patcher, x):
    """One layer's output in fp32: in bf16 the output's own rounding would be all that is seen."""
    import comfy.model_management as management

    management.load_models_gpu([patcher, *patcher.get_additional_models()])
    layer = patcher.model.diffusion_model.get_submodule(ATTENTION)
    return layer(x.float())


def memory() -> dict:
    """The host loads the adapters with the model, counts them and lets them go."""
    import comfy.model_management as management

    model = Twins("float32").plain
    hot = put(model, "lora", keep=0)[0]
    sample(hot)
    entries = {e.model.model.__class__.__name__: e for e in management.current_loaded_models}
    held = hot.get_additional_models()[0].model
    numbers = 4 * (WIDTH + WIDTH) + 4 * (WIDTH + INNER)
    found = {
        "counted": entries["LoRABeside"].model_memory() == 4 * numbers,
        "base": entries["QwenImage"].model_memory() == model.model_size(),
    }
    gone = weakref.ref(held)
    del held, hot, entries
    sample(model)
    gc.collect()
    found["freed"] = gone() is None
    names = [e.model.model.__class__.__name__ for e in management.current_loaded_models]
    found["entries"] = names
    return found


def lowvram() -> dict:
    """Weights that come layer by layer."""
    import torch

    model = Twins("bfloat16").plain
    hot = put(model, "lora")[0]
    outputs = []
    for budget in (1e32, 100_000):
        hot.patch_model(torch.device("cpu"), lowvram_model_memory=budget)
        assert hot.model.model_lowvram == (budget < 1e9)
        chance = torch.Generator().manual_seed(5)
        x, c = (torch.randn(shape, generator=chance) for shape in ((1, 16, 1, 8, 8), (1, 7, 48)))
        outputs.append(hot.model.apply_model(x, torch.tensor([0.9]), c_crossattn=c))
        hot.detach()
    return {"difference": (outputs[0] - outputs[1]).abs().max().item(), "wrapped": wrapped(model)}


def kept() -> dict:
    """Files stay in memory within a limit, until they change."""
    model = Twins("float32").plain
    adapter()._kept.clear()
    said = []
    for name, keep in (("lora", 64), ("loha", 64), ("lora", 64), ("lora", 0), ("lora", 64)):
        said.append("kept" in put(model, name, keep=keep)[2].splitlines()[-1])
    first, again = put(model, "v_9")[0], put(model, "v_9", 0.5)[0]
    one = sample(first)
    between = sample(again)
    back = sample(put(model, "v_9")[0])
    path = BASE / LORAS / "v_9.safetensors"
    before = node().fingerprint_inputs(lora="v_9.safetensors")
    os.utime(path, ns=(1, 1))
    changed = "kept" in put(model, "v_9")[2].splitlines()[-1]
    # As a copy does that brings the file's size and time with it.
    other = bytearray(path.read_bytes())
    other[-4] ^= 1
    path.write_bytes(other)
    os.utime(path, ns=(1, 1))
    return {
        "said": said,
        "A, B, A": (back - one).abs().max().item(),
        "B": apart(between, one),
        "after a change": changed,
        "after a copy of its time": "kept" in put(model, "v_9")[2].splitlines()[-1],
        "fingerprint": before != node().fingerprint_inputs(lora="v_9.safetensors"),
    }


def asked() -> dict:
    """What the node offers, refuses and says."""
    cls = node()
    model = Twins("float32").plain
    found = {
        "options": next(i for i in cls.define_schema().inputs if i.id == "lora").options,
        "valid": [cls.validate_inputs(lora=each) for each in ("none", "v_9.safetensors", None)],
        "invalid": {
            name: cls.validate_inputs(lora=name)
            for name in ("gone.safetensors", "broken.safetensors", "sdxl.safetensors")
        },
        "mode": cls.validate_inputs(lora="none", mode="in the weights"),
        "report": put(model, "v_20", 0.5)[1:],
        "off": [put(model, "lora", 0.0)[0] is model, put(model, "none")[0] is model],
    }
    for name in ("sdxl", "broken"):
        try:
            put(model, name)
            found[name] = ""
        except ValueError as error:
            found[name] = str(error)
    return found


CASES = (
    kinds, untouched, chains, shared_base, table, interrupted, bypass, fp8, memory, lowvram, kept,
    asked,
)  # fmt: skip

if __name__ == "__main__":
    main()

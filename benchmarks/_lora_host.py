"""LoRAHotInject with a ComfyUI in this process, on the processor.

Argument: JSON with what (ready, against or thousand), comfy (ComfyUI's folder), threads, rounds and
quick. The last line on stdout is JSON.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import json
import operator
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import _pack  # noqa: E402
import torch  # noqa: E402
from _measure import Clock, interleaved, ratio  # noqa: E402
from torch import Tensor, nn  # noqa: E402

RANK = 32
FILE_BYTES = 320_000_000
TEXT_TOKENS, LATENT = 275, 70
"""With patches of 2 × 2 these are 1,500 tokens."""
FULL = {
    "image_model": "qwen_image",
    "in_channels": 64,
    "num_layers": 2,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "joint_attention_dim": 3584,
    "axes_dims_rope": (16, 56, 56),
}
TINY = {
    **FULL,
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "joint_attention_dim": 48,
    "axes_dims_rope": (8, 12, 12),
}


def main() -> None:
    settings = SimpleNamespace(**json.loads(sys.argv[1]))
    torch.set_num_threads(settings.threads)
    with tempfile.TemporaryDirectory() as base, redirect_stdout(sys.stderr):
        loras = start(Path(settings.comfy), Path(base))
        with torch.inference_mode():
            found = {"ready": ready, "against": against, "thousand": thousand}[settings.what](
                settings, loras
            )
        # Mapped files must be let go before their folder is.
        importlib.import_module("realtoon.nodes._lora")._kept.clear()
    sys.stdout.write(json.dumps(found) + "\n")


def start(comfy: Path, base: Path) -> Path:
    """ComfyUI's modules in this process. Returns: its folder of LoRAs."""
    _pack.load()
    sys.path.insert(0, str(comfy))
    os.chdir(comfy)
    sys.argv = ["main.py", "--cpu", "--base-directory", str(base)]
    importlib.import_module("comfy.options").enable_args_parsing()
    loras = base / "models/loras"
    loras.mkdir(parents=True)
    return loras


class Bare(nn.Module):
    """What a patcher needs of the host's model, around a DiT without memory behind it."""

    manual_cast_dtype = None

    def __init__(self, dit: nn.Module) -> None:
        super().__init__()
        self.diffusion_model = dit

    def get_dtype(self) -> torch.dtype:
        return torch.bfloat16


def real_size() -> Any:  # noqa: ANN401
    """The 60 blocks with their real names and shapes; 41 GB would not fit here."""
    import comfy.ldm.qwen_image.model as qwen
    import comfy.model_patcher
    import comfy.ops

    dit = qwen.QwenImageTransformer2DModel(
        dtype=torch.bfloat16, device="meta", operations=comfy.ops.disable_weight_init
    )
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(Bare(dit), cpu, cpu)


def full(config: dict[str, Any], dtype: torch.dtype) -> Any:  # noqa: ANN401
    """A DiT with weights from a seed."""
    import comfy.model_patcher
    import comfy.supported_models

    with torch.inference_mode(False):
        made = comfy.supported_models.QwenImage(dict(config))
        made.set_inference_dtype(dtype, None)
        model = made.get_model({}, "")
        chance = torch.Generator().manual_seed(1)
        for weight in model.diffusion_model.parameters():
            weight.data.normal_(0, 0.02, generator=chance)
        cpu = torch.device("cpu")
        return comfy.model_patcher.ModelPatcher(model, cpu, cpu)


def write(path: Path, patcher: Any, seed: int, limit_bytes: float = 1e12) -> int:  # noqa: ANN401
    """A LoRA on the blocks' linear layers, modulation left out, of at most so many bytes."""
    from safetensors.torch import save_file

    layers = importlib.import_module("realtoon.nodes._lora").layers(patcher)
    chance = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    total = 0
    for name, layer in layers.items():
        numbers = RANK * (layer.in_features + layer.out_features)
        if "transformer_blocks" not in name or "_mod" in name or total + 2 * numbers > limit_bytes:
            continue
        for part, shape in (("A", (RANK, layer.in_features)), ("B", (layer.out_features, RANK))):
            factor = torch.randn(shape, generator=chance) * 0.02
            tensors[f"transformer.{name}.lora_{part}.weight"] = factor.bfloat16()
        total += 2 * numbers
    save_file(tensors, path)
    return total


def put(patcher: Any, name: str, strength: float = 1.0, keep_mb: int = 4096) -> Any:  # noqa: ANN401
    """The model that the node hands out."""
    node = importlib.import_module("realtoon.nodes.lora_hot_inject").LoRAHotInject
    [model, *_] = node.execute(
        model=patcher,
        lora=name,
        strength=strength,
        mode="beside the weights",
        keep_in_memory_mb=keep_mb,
    ).args
    return model


def ready(settings: SimpleNamespace, loras: Path) -> dict[str, Any]:
    patcher = real_size()
    sizes = [write(loras / f"v{n}.safetensors", patcher, n, FILE_BYTES) for n in (1, 2)]
    raw = (loras / "v1.safetensors").read_bytes()
    source = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    standing: list[Any] = []

    def choose(name: str, keep_mb: int) -> None:
        # The base's own weights, which only exist in name here, are no part of a switch: they stay.
        if standing:
            standing.pop().eject_model()
        hot = put(patcher, name, keep_mb=keep_mb)
        load(hot.get_additional_models())
        hot.inject_model()
        standing.append(hot)

    calls: dict[str, Callable[[], object]] = {
        "choose": lambda: choose("v1.safetensors", 0),
        "copy": lambda: source.clone(),
    }
    seconds = interleaved(calls, settings.rounds)
    for name in ("v1.safetensors", "v2.safetensors"):
        choose(name, 4096)
    kept = []
    for turn in range(2 * settings.rounds):
        started = time.perf_counter()
        choose(f"v{turn % 2 + 1}.safetensors", 4096)
        kept.append(time.perf_counter() - started)
    layers = sum("forward" in m.__dict__ for m in patcher.model.modules())
    standing.pop().eject_model()
    return {
        "bytes": sizes[0],
        "layers": layers,
        "seconds": statistics.median(seconds["choose"]),
        "copy": statistics.median(seconds["copy"]),
        "kept": statistics.median(kept),
    }


def load(patchers: list[Any]) -> None:
    import comfy.model_management as management

    management.load_models_gpu(patchers)


def against(settings: SimpleNamespace, loras: Path) -> dict[str, Any]:
    import comfy.sd
    import comfy.utils

    patcher = full(FULL, torch.bfloat16)
    for n in (1, 2):
        write(loras / f"v{n}.safetensors", patcher, n)
    turn = [0]

    def path() -> Path:
        turn[0] += 1
        return loras / f"v{turn[0] % 2 + 1}.safetensors"

    def host() -> None:
        file = comfy.utils.load_torch_file(str(path()), safe_load=True)
        load([comfy.sd.load_lora_for_models(patcher, None, file, 1.0, 0)[0]])

    def ours() -> None:
        hot = put(patcher, path().name, keep_mb=0)
        load([hot, *hot.get_additional_models()])

    rounds = min(settings.rounds, 3)
    # Not in turns: the host's fold would be undone in our time.
    load([patcher])
    switch = {"ours": interleaved({"": ours}, 2 * rounds)[""]}
    switch["host"] = interleaved({"": host}, rounds)[""]
    models = {"plain": patcher, "ours": put(patcher, "v1.safetensors")}
    bypass = getattr(comfy.sd, "load_bypass_lora_for_models", None)
    if bypass is not None:
        file = comfy.utils.load_torch_file(str(loras / "v1.safetensors"), safe_load=True)
        models["bypass"] = bypass(patcher, None, file, 1.0, 0)[0]
    # The machine's own swings of a tenth are three times what is looked for.
    steps, beside = _steps(models, 3 * settings.rounds)
    of_plain = statistics.quantiles(map(operator.truediv, steps["ours"], steps["plain"]), n=4)
    found = {
        "parameters": sum(p.numel() for p in patcher.model.parameters()),
        "tokens": TEXT_TOKENS + (LATENT // 2) ** 2,
        "switch": {name: statistics.median(each) for name, each in switch.items()},
        "step": {name: statistics.median(each) for name, each in steps.items()},
        "beside": statistics.median(map(operator.truediv, beside, steps["ours"])),
        "of plain": of_plain,
    }
    if "bypass" in steps:
        found["of bypass"] = ratio(steps["ours"], steps["bypass"])
    return found


def _steps(models: dict[str, Any], rounds: int) -> tuple[dict[str, list[float]], list[float]]:
    """Seconds of one step of each model in turn; putting it in place is not counted.

    Returns: those, and for each of "ours" what of it the layers' LoRA took.
    """
    clock = Clock()
    low_rank = importlib.import_module("realtoon.engine.low_rank")
    low_rank.Beside.add = clock.around("beside", low_rank.Beside.add)
    chance = torch.Generator().manual_seed(3)
    x = torch.randn(1, 16, 1, LATENT, LATENT, generator=chance)
    text = torch.randn(1, TEXT_TOKENS, 3584, generator=chance).bfloat16()
    seconds: dict[str, list[float]] = {name: [] for name in models}
    beside: list[float] = []
    names = list(models)
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            model = models[name]
            load([model, *model.get_additional_models()])
            clock.seconds.clear()
            started = time.perf_counter()
            model.model.apply_model(x, torch.tensor([0.7]), c_crossattn=text)
            if turn:
                seconds[name].append(time.perf_counter() - started)
            if turn and name == "ours":
                beside.append(clock.seconds["beside"])
    return seconds, beside


def thousand(settings: SimpleNamespace, loras: Path) -> dict[str, Any]:
    patcher = full(TINY, torch.bfloat16)
    names = [f"v{n}.safetensors" for n in range(5)]
    for n, name in enumerate(names):
        write(loras / name, patcher, n)
    chance = torch.Generator().manual_seed(3)
    x = torch.randn(1, 16, 1, 8, 8, generator=chance)
    text = torch.randn(1, 7, 48, generator=chance)

    def run(name: str, strength: float) -> Tensor:
        hot = put(patcher, name, strength)
        load([hot, *hot.get_additional_models()])
        return hot.model.apply_model(x, torch.tensor([0.7]), c_crossattn=text)

    before = _digest(patcher)
    choices = [(name, strength) for name in [*names, "none"] for strength in (1.0, -0.5, 0.0, 2.5)]
    expected = {choice: run(*choice) for choice in choices}
    switches = 200 if settings.quick else 1000
    again = len({_bits(each) for each in expected.values()}) > len(names) * 3
    resident = 0
    for turn in range(switches):
        if turn == switches // 10:
            resident = _resident()
        # A step that shares no factor with the number of choices meets all of them in all orders.
        choice = choices[turn * turn * 7 % len(choices)] if turn % 2 else choices[turn % 24]
        again = again and torch.equal(run(*choice), expected[choice])
    grown = _resident() / resident - 1
    return {
        "switches": switches,
        "base": _digest(patcher) == before,
        "again": again,
        "resident": grown,
    }


def _bits(tensor: Tensor) -> bytes:
    return tensor.float().numpy().tobytes()


def _digest(patcher: Any) -> str:  # noqa: ANN401
    state = hashlib.sha256()
    for weight in patcher.model.state_dict().values():
        state.update(weight.contiguous().view(torch.uint8).numpy().data)
    return state.hexdigest()


def _resident() -> int:
    import psutil

    gc.collect()
    return psutil.Process().memory_info().rss


if __name__ == "__main__":
    main()

"""VRAMGuard on tiny weights in a ComfyUI's own process.

    python tests/host/guard_cases.py COMFYUI BASE

BASE is an empty folder for the host. The last line of standard output is JSON: case -> what it
found; differences are the largest ones between latents, texts or pictures.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import importlib
import json
import os
import statistics
import sys
import threading
import time
import types
from pathlib import Path

import qwen_loader_cases as qwen
import random_graphs
from qwen_loader_cases import TESTS, apart, decode, encode, sample
from simulated_card import BrokenError, adapter, changed, state

GB = 10**9
USUAL = {"card_gb": 0, "text_encoder_gb": 0, "dit_gb": 0, "vae_gb": 0, "reserve_gb": 0.5}
USUAL |= {"width": 0, "height": 0, "on_exceed": "adapt"}
SAID = []


def main() -> None:
    comfyui, base = map(Path, sys.argv[1:])
    sys.path[:0] = [str(comfyui), str(TESTS), str(TESTS / "unit")]
    os.chdir(comfyui)
    sys.argv = ["main.py", "--cpu", "--base-directory", str(base)]
    importlib.import_module("comfy.options").enable_args_parsing()
    importlib.import_module("conftest")
    import torch

    torch.set_num_threads(1)
    importlib.import_module("realtoon.nodes._host").register_folders()
    found: dict[str, object] = {}
    qwen.write_models(base / "models", "2511" if qwen.loading().knows_2511() else "2509")
    # The host runs its nodes so; what other threads' hooks print stays off the last line.
    with torch.inference_mode(), contextlib.redirect_stdout(sys.stderr), listening():
        for case in CASES:
            found[case.__name__] = case()
    sys.stdout.write(json.dumps(found) + "\n")


class Ear:
    """A server that keeps what is said on nodes."""

    def send_progress_text(self, text, node_id, sid=None) -> None:
        SAID.append([node_id, text])


@contextlib.contextmanager
def listening():
    module = types.ModuleType("server")
    module.PromptServer = type("PromptServer", (), {"instance": Ear()})
    sys.modules["server"] = module
    yield
    del sys.modules["server"]


def guard(model, clip=None, vae=None, **wishes):
    """What the node hands out: model, clip, vae, report, chart."""
    node = importlib.import_module("realtoon.nodes.vram_guard").VRAMGuard

    class Asked(node):
        hidden = type("Hidden", (), {"unique_id": "7"})

    return Asked.execute(model=model, clip=clip, vae=vae, **{**USUAL, **wishes}).args


def loaded():
    return qwen.load("dit.safetensors")[:3]


def same() -> dict:
    """Guarded and not, for each way to behave, and what is said."""
    model, clip, vae = loaded()
    plain = [sample(model), encode(clip), decode(vae)]
    found = {}
    for way in ("adapt", "warn", "stop"):
        held = guard(model, clip, vae, on_exceed=way)
        del SAID[:]
        results = [sample(held[0]), encode(held[1]), decode(held[2])]
        found[way] = [apart(a, b) for a, b in zip(plain, results, strict=True)]
        found[f"{way} said"] = list(SAID[-1])
    held = guard(model, clip, vae, width=64, height=64)
    found["report"] = held[3]
    found["chart"] = [list(held[4].shape), held[4].min().item(), held[4].max().item()]
    found["clones"] = [a is not b for a, b in zip((model, clip, vae), held, strict=False)]
    found["shared"] = held[0].model is model.model and held[2].patcher.model is vae.patcher.model
    only = guard(model)
    found["alone"] = [only[1], only[2], apart(plain[0], sample(only[0]))]
    preset = held[0].clone().clone()
    found["clone of clones"] = [apart(plain[0], sample(preset)), type(preset).__name__]
    twice = guard(*held[:3])
    del SAID[:]
    found["guarded twice"] = [apart(plain[0], sample(twice[0])), len(SAID)]
    return found


def nothing_loaded() -> dict:
    """The node alone, before anything runs."""
    import comfy.model_management as management

    models = loaded()
    management.unload_all_models()
    patchers = [models[0], models[1].patcher, models[2].patcher]
    before = state(*patchers)
    held = guard(*models)
    return {"same": before == state(*patchers), "entries": len(management.current_loaded_models),
            "guarded": len(held)}  # fmt: skip


def run(models) -> list:
    """Each phase of a run, with what each gives; through this pack's code and the host's own."""
    side = (64, 64)
    return [way(models, side) for way in random_graphs.WAYS.values()]


def broken() -> dict:
    """The host after a run, after an error, an interrupt and a full card, in each phase of it."""
    import comfy.model_management as management

    models = loaded()
    patchers = [models[0], models[1].patcher, models[2].patcher]
    management.unload_all_models()
    plain = run(models)
    held = guard(*models)
    guard_ = held[0].attachments[adapter("_guard_clones")._KEY].guard
    run(held)
    before = state(*patchers), random_graphs.weights(models)
    found = {}

    def left() -> list:
        now = state(*patchers), random_graphs.weights(models)
        inside = [*guard_._running, *threads(), *(["parted"] if guard_.parted else [])]
        return changed(before[0], now[0]) + ["weights"] * (before[1] != now[1]) + inside

    def note(name: str, met: bool) -> None:
        gc.collect()
        again = [apart(a, b) for a, b in zip(plain, run(held), strict=True)]
        found[name] = [met, max(again), left()]

    note("run", True)
    for name, inject in injections(held):
        for what in ("error", "interrupt", "memory"):
            call, calls = random_graphs.break_with(what), []

            def once(*args, call=call, calls=calls, **kwargs):
                calls.append(1)
                # A VAE goes on in smaller pieces after its first full card.
                return call() if len(calls) == 1 else None

            try:
                inject(once)
            except (BrokenError, management.InterruptProcessingException):
                ended = what != "memory"
            except management.OOM_EXCEPTION:
                ended = what == "memory" and not name.startswith(("encode", "decode"))
            else:
                ended = what == "memory" and name.startswith(("encode", "decode"))
            del once
            note(f"{name} {what}", ended and bool(calls))
    return found


def threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name == "VRAM Guard"]


def injections(held):
    """Where a run is broken: a name, and what runs a guarded clone with a call put there."""
    import comfy.model_management as management
    from comfy.patcher_extension import WrappersMP

    side = (64, 64)
    graphs_ = random_graphs

    def wrapped(kind):
        def inject(call):
            def wrapper(executor, *args, **kwargs):
                call()
                return executor(*args, **kwargs)

            clone = held[0].clone()
            clone.add_wrapper_with_key(kind, "injected", wrapper)
            sample(clone)

        return inject

    def loading(way):
        def inject(call):
            management.unload_all_models()
            with graphs_.on_load(held, way, call) as models:
                graphs_.WAYS[way](models, side)

        return inject

    def called(way, part):
        def inject(call):
            modules = dict(graphs_._patcher(held, way).model.named_modules())
            module = next(each for name, each in modules.items() if name.endswith(part))
            hook = module.register_forward_pre_hook(lambda *_: call())
            try:
                graphs_.WAYS[way](held, side)
            finally:
                hook.remove()

        return inject

    def processed(way, name):
        def inject(call):
            vae = copy.copy(held[2])
            usual = getattr(vae, name)
            setattr(vae, name, lambda image: (call(), usual(image))[1])
            graphs_.WAYS[way]((*held[:2], vae), side)

        return inject

    kinds = ("OUTER_SAMPLE", "PREPARE_SAMPLING", "SAMPLER_SAMPLE", "CALC_COND_BATCH",
             "DIFFUSION_MODEL")  # fmt: skip
    yield from ((f"sampling {kind}", wrapped(getattr(WrappersMP, kind))) for kind in kinds)
    yield from ((f"loading for {way}", loading(way)) for way in ("text", "sample", "encode"))
    yield "text's layers", called("text", "layers.0")
    yield "text's vision part", called("text", "visual.blocks.0")
    yield "encode, in strips", processed("encode", "process_input")
    yield "decode, in strips", processed("decode", "process_output")
    yield "decode by the host", processed("decode by the host", "process_output")


def stops() -> dict:
    """Too small a card: one message, before the model is loaded; and what the others do."""
    import comfy.model_management as management

    model, clip, vae = loaded()
    plain = sample(model)
    management.unload_all_models()
    found = {}
    for name, sizes in (("at once", {"width": 64, "height": 64}), ("at the sampler", {})):
        try:
            held = guard(model, clip, vae, card_gb=1.2, on_exceed="stop", **sizes)
            sample(held[0])
            found[name] = ["", 0]
        except ValueError as error:
            found[name] = [str(error), len(management.current_loaded_models)]
    for way in ("adapt", "warn"):
        held = guard(model, clip, vae, card_gb=1.2, on_exceed=way)
        found[way] = [apart(plain, sample(held[0])), held[3]]
    try:
        guard(type("Other", (), {"model": type("SDXL", (), {})()})())
        found["other model"] = ""
    except ValueError as error:
        found["other model"] = str(error)
    return found


def parted() -> dict:
    """Conditionings one by one, as a plan asks for where the card is small."""
    model = loaded()[0]
    plain = sample(model)
    held = guard(model)[0]
    guard_ = held.attachments[adapter("_guard_clones")._KEY].guard
    settle, calls = guard_.settle, []

    def settled(job, binding=True):
        made = settle(job, binding)
        guard_.parted = True
        calls.append(job)
        return made

    guard_.settle = settled
    result = sample(held)
    job = calls[0]
    return {
        "apart": apart(plain, result),
        "parted after": guard_.parted,
        "job": [job.width, job.height, job.references, job.text_tokens, job.conditionings],
        "at once": job.at_once,
    }


def phases() -> dict:
    """What each phase is seen to take where something large lives for a moment inside it."""
    import torch

    held = guard(*loaded())
    guard_ = held[0].attachments[adapter("_guard_clones")._KEY].guard
    size = 300 * 10**6
    found = {}
    for name, inject in injections(held):
        if name.split()[0] not in ("text's", "encode,", "decode,", "decode") and (
            name != "sampling DIFFUSION_MODEL"
        ):
            continue

        calls = []

        def briefly(*_args, calls=calls) -> None:
            calls.append(1)
            if len(calls) == 1:
                lives = torch.ones(size, dtype=torch.uint8)
                time.sleep(0.15)
                del lives

        guard_.measured.clear()
        inject(briefly)
        grown = {}
        for phase, each in guard_.measured.items():
            grown[phase] = each.used - adapter()._guard_reading.reading(guard_.device).used
        found[name] = grown
    return found


def ceiling() -> dict:
    """What torch's allocator is told on a card in each phase, here one that only keeps what it is
    told and counts as it is set; with a phase within another and an error at the end."""
    import torch

    told, peak = [], [0]
    changes = {
        "get_device_properties": lambda _device: types.SimpleNamespace(total_memory=24 * GB),
        "get_per_process_memory_fraction": lambda _device: told[-1] if told else 0.9,
        "set_per_process_memory_fraction": lambda share, _device: told.append(share),
        "mem_get_info": lambda _device: (10 * GB, 24 * GB),
        "memory_reserved": lambda _device: 8 * GB,
        "memory_allocated": lambda _device: 1 * GB,
        "max_memory_allocated": lambda _device: peak[0] * GB,
        "max_memory_reserved": lambda _device: 8 * GB,
        "reset_peak_memory_stats": lambda _device: peak.__setitem__(0, 0),
    }
    card = types.SimpleNamespace(type="cuda", index=0)
    pack, found = adapter(), {}
    about = importlib.import_module("realtoon.nodes._guard_parts").loaded(*loaded())
    before = {name: getattr(torch.cuda, name, None) for name in changes}
    for name, change in changes.items():
        setattr(torch.cuda, name, change)
    try:
        for available in (12 * GB, None, 23 * GB):
            del told[:]
            guard_ = pack.Guard(about, pack.Wishes(0, 0, {}, "adapt"), card, None)
            guard_.ceiling = available
            with contextlib.suppress(BrokenError), guard_.running("DiT"):
                peak[0] = 9
                with guard_.running("decode"), guard_.running("decode"):
                    peak[0] = 5
                peak[0] = 6
                raise BrokenError
            found[str(available)] = list(told)
        measured = {name: each.used / GB for name, each in guard_.measured.items()}
        others = guard_.measured["DiT"].others / GB
    finally:
        for name, was in before.items():
            setattr(torch.cuda, name, was)
    return {"told": found, "measured": measured, "others": others}


def paged() -> dict:
    """A patcher that brings weights page by page, as newer hosts have on a card."""
    limits = []
    pages = types.SimpleNamespace(set_watermark=limits.append)
    page = 32 << 20

    class Paged:
        attachments = {}
        asked = []
        model = types.SimpleNamespace(model_loaded_weight_memory=page // 2)

        def model_size(self) -> int:
            return 10 * page

        def is_dynamic(self) -> bool:
            return True

        def _vbar_get(self):
            return pages

        def partially_load(self, device_to, extra_memory=0, force_patch_weights=False) -> None:
            self.asked.append(extra_memory)

    clones = adapter("_guard_clones")
    patcher = clones._kind(Paged)()
    guard_ = types.SimpleNamespace(holds=True, limit=lambda *_: 3 * page + 300)
    patcher.attachments = {
        adapter("_guard_clones")._KEY: adapter("_guard_clones")._Hold(guard_, "dit")
    }
    patcher.partially_load("cuda", 5000)
    return {"pages": [each / page for each in limits], "asked": patcher.asked}


def overhead() -> dict:
    """Seconds of a run of 10 steps at 256 pixels, guarded and not, in turn: the fastest of each,
    and the median of how many times as long."""
    import comfy.sample
    import torch

    model = loaded()[0]
    held = guard(model)[0]
    latent = torch.zeros(1, 16, 1, 32, 32)
    conds = [[[torch.ones(1, 7, 48), {"reference_latents": [latent + 1]}]] for _ in range(2)]
    took = {"plain": [], "guarded": []}
    turns = [("plain", model), ("guarded", held)]
    for turn in range(30):
        # Whoever comes second runs in what the other has left.
        for name, each in turns if turn % 2 else turns[::-1]:
            started = time.perf_counter()
            comfy.sample.sample(
                each, latent + 1, 10, 4.0, "euler", "simple", *conds, latent, seed=5,
                disable_pbar=True,
            )  # fmt: skip
            took[name].append(time.perf_counter() - started)
    pairs = zip(took["guarded"], took["plain"], strict=True)
    found = {name: min(each) for name, each in took.items()}
    return found | {"median ratio": statistics.median(a / b for a, b in pairs)}


def patched_once() -> dict:
    """A folded LoRA and the host's account of weights, where a budget shrinks between two loads."""
    import torch
    from simulated_card import Device

    found = {}
    with Device(2 * GB) as device:
        plain = device.patcher(10)
        plain.add_patches({f"{i}.weight": ("diff", (torch.eye(64),)) for i in range(10)}, 1.0)
        weights = 64 * 64 * 4
        for kind in ("host", "guarded"):
            limit = [6.5 * weights]
            patcher = plain.clone()
            if kind == "guarded":
                limits = types.SimpleNamespace(holds=True, make_room=lambda *_: None)
                limits.limit = lambda *_, limit=limit: int(limit[0])
                patcher = adapter("_guard_clones")._held(plain, limits, "vae")
            for limit[0] in (6.5 * weights, 5.0 * weights, 4.2 * weights, 6.0 * weights):
                patcher.partially_load(device.device, limit[0] - patcher.loaded_size())
            there = random_graphs.on_card(patcher.model)
            most = max(part(torch.eye(64)).max().item() for part in patcher.model)
            found[kind] = [there - patcher.loaded_size(), most]
            patcher.detach()
    whole = guard(*random_graphs.onto(device.device, loaded()))[0]
    with Device(2 * GB) as device:
        device.management.load_models_gpu([whole])
        found["with room"] = whole.model_size() - whole.loaded_size()
    return found


def graphs() -> dict:
    """Whole graphs at random on a simulated card; as many as REALTOON_GRAPHS says."""
    return random_graphs.graphs(int(os.environ.get("REALTOON_GRAPHS", "40")))


CASES = (same, nothing_loaded, broken, stops, parted, patched_once, graphs, ceiling, phases, paged,
         overhead)  # fmt: skip

if __name__ == "__main__":
    main()

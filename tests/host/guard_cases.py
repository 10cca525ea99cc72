"""VRAMGuard on tiny weights in a ComfyUI's own process.

    python tests/host/guard_cases.py COMFYUI BASE

BASE is an empty folder for the host. The last line of standard output is JSON: case -> what it
found; differences are the largest ones between latents, texts or pictures.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import statistics
import sys
import time
import types
from pathlib import Path

import qwen_loader_cases as qwen
from qwen_loader_cases import TESTS, apart, decode, encode, sample
from simulated_card import BrokenError, adapter, changed, sequences, state

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
        found[f"{way} said"] = [list(each) for each in SAID]
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


def broken() -> dict:
    """The host after a run, after an error and after an interrupt, at each phase of a run."""
    import comfy.model_management as management
    from comfy.patcher_extension import CallbacksMP, WrappersMP

    def fail(*_args, **_kwargs):
        raise BrokenError

    def cancel(executor, *args, **kwargs):
        management.interrupt_current_processing(True)
        try:
            management.throw_exception_if_processing_interrupted()
        finally:
            management.interrupt_current_processing(False)
        return executor(*args, **kwargs)

    models = loaded()
    patchers = [models[0], models[1].patcher, models[2].patcher]
    management.unload_all_models()
    plain = sample(models[0])
    held = guard(*models)[0]
    sample(held)
    before = state(*patchers)
    sample(held)
    found = {"run": changed(before, state(*patchers))}
    stopped = management.InterruptProcessingException
    phases = {
        "outer": WrappersMP.OUTER_SAMPLE,
        "prepare": WrappersMP.PREPARE_SAMPLING,
        "sampler": WrappersMP.SAMPLER_SAMPLE,
        "step": WrappersMP.CALC_COND_BATCH,
        "forward": WrappersMP.DIFFUSION_MODEL,
    }
    for name, kind in phases.items():
        for what, wrapper in (("error", fail), ("interrupt", cancel)):
            clone = held.clone()
            clone.add_wrapper_with_key(kind, "injected", wrapper)
            try:
                sample(clone)
                met = False
            except (BrokenError, stopped):
                met = True
            del clone
            gc.collect()
            again = apart(plain, sample(held))
            found[f"{name} {what}"] = [met, again, changed(before, state(*patchers))]
    management.unload_all_models()
    clone = held.clone()
    clone.add_callback_with_key(CallbacksMP.ON_LOAD, "injected", fail)
    try:
        sample(clone)
        met = False
    except BrokenError:
        met = True
    del clone
    gc.collect()
    again = apart(plain, sample(held))
    found["load error"] = [met, again, changed(before, state(*patchers))]
    return found


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
    guard_ = held.attachments[adapter()._KEY].guard
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


def ceiling() -> dict:
    """What torch's allocator is told on a card, here one that only keeps what it is told."""
    import torch

    told = []
    changes = {
        "get_device_properties": lambda _device: types.SimpleNamespace(total_memory=24 * GB),
        "get_per_process_memory_fraction": lambda _device: 0.9,
        "set_per_process_memory_fraction": lambda share, _device: told.append(share),
    }
    before = {name: getattr(torch.cuda, name, None) for name in changes}
    for name, change in changes.items():
        setattr(torch.cuda, name, change)
    try:
        for available in (12 * GB, None, 23 * GB):
            with contextlib.suppress(BrokenError), adapter()._ceiling("cuda", available):
                raise BrokenError
    finally:
        for name, was in before.items():
            setattr(torch.cuda, name, was)
    return {"told": told}


def paged() -> dict:
    """A patcher that brings weights page by page, as newer hosts have on a card."""
    limits = []
    pages = types.SimpleNamespace(set_watermark=limits.append)

    class Paged:
        attachments = {}
        asked = []

        def model_size(self) -> int:
            return 1000

        def is_dynamic(self) -> bool:
            return True

        def _vbar_get(self):
            return pages

        def partially_load(self, device_to, extra_memory=0, force_patch_weights=False) -> None:
            self.asked.append(extra_memory)

    patcher = adapter()._kind(Paged)()
    guard_ = types.SimpleNamespace(holds=True, limit=lambda *_: 300)
    patcher.attachments = {adapter()._KEY: adapter()._Hold(guard_, "dit")}
    patcher.partially_load("cuda", 5000)
    return {"limits": limits, "asked": patcher.asked}


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
    for _ in range(15):
        for name, each in (("plain", model), ("guarded", held)):
            started = time.perf_counter()
            comfy.sample.sample(
                each, latent + 1, 10, 4.0, "euler", "simple", *conds, latent, seed=5,
                disable_pbar=True,
            )  # fmt: skip
            took[name].append(time.perf_counter() - started)
    pairs = zip(took["guarded"], took["plain"], strict=True)
    found = {name: min(each) for name, each in took.items()}
    return found | {"median ratio": statistics.median(a / b for a, b in pairs)}


CASES = (same, nothing_loaded, broken, stops, parted, sequences, ceiling, paged, overhead)

if __name__ == "__main__":
    main()

"""QwenEditLoader in a ComfyUI's own process, on tiny weights in every layout.

    python tests/host/qwen_loader_cases.py COMFYUI BASE

BASE is an empty folder for the host. The last line of standard output is JSON: case -> what it
found; differences are the largest ones between two results.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import logging
import os
import sys
import weakref
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
FOLDER = "from the folder"
OFFICIAL = "Qwen/tiny/"
AS_USUAL = {"weight_dtype": "as stored", "offload": "auto"}
FILES = {"text_encoder": "text.safetensors", "vae": "vae.safetensors"}
CONVERTED = {
    "fp8 e4m3 scaled": (("dit", "table"), ("dit", "weights"), ("dit metadata", "table")),
    "bf16": tuple(
        (base, "table") for base in ("dit", "dit fp8", "dit scaled_fp8", "dit comfy_quant")
    ),
}
SCHEMES = ("scaled_fp8", "comfy_quant", "metadata")


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
    found: dict[str, object] = {"knows 2511": loading().knows_2511()}
    found["nothing there"] = asked_for("qwen_image_edit_2511.safetensors")
    write_models(base / "models", "2511" if found["knows 2511"] else "2509")
    # The host runs its nodes so; what other threads' hooks print stays off the last line.
    with torch.inference_mode(), contextlib.redirect_stdout(sys.stderr):
        for case in CASES:
            found[case.__name__] = case()
    sys.stdout.write(json.dumps(found) + "\n")


def asked_for(base: str) -> bool | str:
    """What the node says of a base before a run."""
    node = importlib.import_module("realtoon.nodes.qwen_edit_loader").QwenEditLoader
    return node.validate_inputs(base=base)


def loading():
    return importlib.import_module("realtoon.nodes._qwen")


def holding():
    return importlib.import_module("realtoon.nodes._qwen_patcher")


def write_models(models: Path, edition: str) -> None:
    """Tiny models as an official folder, repacked in bf16, and in each fp8 layout."""
    qw = importlib.import_module("qwen_weights")
    qwen_image = importlib.import_module("realtoon.weights_loader.qwen_image")
    official = qw.write_official(models / "diffusers" / OFFICIAL, edition=edition)
    qw.write_official(models / "diffusers/new", edition="2511")
    qw.write_official(models / "diffusers/torn", edition=edition)
    next((models / "diffusers/torn/transformer").glob("*-00002-*")).unlink()
    mark = qw.marked if edition == "2511" else dict
    dit, text = qw.transformer(), qw.comfy_text(qw.text_encoder())
    for kind, tensors, folder in (
        ("dit", dit, "diffusion_models"),
        ("text", text, "text_encoders"),
    ):
        mark_it = mark if kind == "dit" else dict
        folder = models / folder
        qw.write_file(folder / f"{kind}.safetensors", mark_it(tensors))
        qw.write_file(folder / f"{kind} fp8.safetensors", mark_it(qw.fp8(tensors)))
        for scheme in SCHEMES:
            scaled, metadata = qw.fp8_scaled(tensors, scheme)
            qw.write_file(folder / f"{kind} {scheme}.safetensors", mark_it(scaled), metadata)
    vae = qwen_image.state(qwen_image.describe_vae(official / "vae"))
    qw.write_file(models / "vae/vae.safetensors", vae)
    (models / "diffusion_models/other.safetensors").write_bytes(b"no weights")


def load(base=OFFICIAL, modulation="table", attention="auto", more=None, **names):
    """What the node hands out: model, clip, vae, report."""
    node = importlib.import_module("realtoon.nodes.qwen_edit_loader").QwenEditLoader
    if not names:
        names = dict.fromkeys(FILES, FOLDER) if base.endswith("/") else FILES
    choices = {"modulation": modulation, "attention": attention, **AS_USUAL, **(more or {})}
    return node.execute(base=base, **choices, **names).args


def forget() -> None:
    """Have the next load start from its files."""
    patchers = holding()
    patchers._kept.clear()
    gc.collect()
    assert len(patchers._alive) == 0, list(patchers._alive)


def sample(model):
    import comfy.sample
    import torch

    chance = torch.Generator().manual_seed(5)
    latent = torch.zeros(1, 16, 1, 8, 8)
    noise = torch.randn(latent.shape, generator=chance)
    extra = {"reference_latents": [torch.randn(latent.shape, generator=chance)]}
    conds = [[[torch.randn(1, 7, 48, generator=chance), extra]] for _ in range(2)]
    result = comfy.sample.sample(
        model, noise, 3, 4.0, "euler", "simple", conds[0], conds[1], latent, seed=5,
        disable_pbar=True,
    )  # fmt: skip
    assert result.isfinite().all() and result.std() > 0.1
    return result


def encode(clip):
    """Of tokens that the tiny vocabulary has."""
    tokens = {"qwen25_7b": [[(number, 1.0) for number in (3, 9, 27, 5)]]}
    return clip.encode_from_tokens(tokens)


def decode(vae):
    """A picture there and back."""
    import torch

    picture = torch.rand((1, 32, 32, 3), generator=torch.Generator().manual_seed(4))
    return vae.decode(vae.encode(picture))


def apart(one, other) -> float:
    return (one.float() - other.float()).abs().max().item()


def layouts() -> dict:
    """Official and repacked, with the table and with the weights."""
    found, results, reports = {}, {}, {}
    for base in (OFFICIAL, "dit.safetensors"):
        for modulation in ("table", "weights"):
            model, clip, vae, report = load(base, modulation)
            results[base, modulation] = [sample(model), encode(clip), decode(vae)]
            found[f"{base} {modulation} bytes"] = model.model_size()
            reports[f"{base} {modulation}"] = report
    first, *others = results.values()
    found["differences"] = [
        apart(a, b) for each in others for a, b in zip(first, each, strict=True)
    ]
    found["reports"] = reports
    return found


def control() -> float:
    """What the comparison says of other weights: one number of one tensor."""
    import torch

    model = load("dit.safetensors", "weights")[0]
    before = sample(model)
    with torch.no_grad():
        for name, weight in model.model.diffusion_model.named_parameters():
            if name == "transformer_blocks.1.attn.to_q.weight":
                weight[3, 5] += 1
    after = sample(model)
    del model
    forget()
    return apart(before, after)


def quantised() -> dict:
    """fp8 files, each against the full model, and the table against the weights."""
    found = {}
    plain, clip, *_ = load("dit.safetensors")
    full, text = sample(plain), encode(clip)
    handler = logging.Handler(logging.WARNING)
    said = []
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    for scheme in ("fp8", *SCHEMES):
        files = {**FILES, "text_encoder": f"text {scheme}.safetensors"}
        tabled, clip, *_ = load(f"dit {scheme}.safetensors", **files)
        whole = load(f"dit {scheme}.safetensors", "weights", **files)[0]
        one, other = sample(tabled), sample(whole)
        found[scheme] = {
            "from full": apart(full, one) / full.std().item(),
            "table": apart(one, other) / full.std().item(),
            "text": apart(text, encode(clip)) / text.std().item(),
        }
    logging.getLogger().removeHandler(handler)
    found["said"] = [each for each in said if "missing" in each or "unexpected" in each]
    return found


def sharing() -> dict:
    """One model for all who ask; let go when the host unloads it and nobody else has it."""
    import comfy.model_management as management

    forget()
    one, other = load(), load()
    found = {
        "model": one[0].model is other[0].model and one[0] is not other[0],
        "clip": one[1].cond_stage_model is other[1].cond_stage_model,
        "vae": one[2].first_stage_model is other[2].first_stage_model,
    }
    sample(one[0])
    seen = weakref.ref(one[0].model)
    del one, other
    gc.collect()
    again = load()
    found["kept for the next workflow"] = again[0].model is seen()
    management.unload_all_models()
    found["shared after an unload"] = load()[0].model is again[0].model
    management.unload_all_models()
    weights = load(modulation="weights")
    found["another for weights"] = weights[0].model is not again[0].model
    del again, weights
    holding()._kept.pop("dit", None)
    gc.collect()
    found["let go"] = seen() is None
    found["runs"] = sample(load()[0]).isfinite().all().item()
    seen = weakref.ref(holding()._kept["dit"][1].model)
    management.unload_all_models()
    gc.collect()
    found["let go by an unload"] = seen() is None
    return found


def attention() -> dict:
    names = holding().attentions()
    auto = sample(load()[0])
    others = [apart(auto, sample(load(attention=name)[0])) for name in names]
    options = load()[0].model_options.get("transformer_options", {})
    return {"names": names, "differences": others, "others untouched": not options}


def again() -> dict:
    """What newer hosts call to make a model anew, on another device for instance."""
    model, clip, vae, _ = load()
    if not hasattr(model, "cached_patcher_init"):
        return {}
    before = sample(model)
    found = {}
    for name, patcher in (("model", model), ("clip", clip.patcher), ("vae", vae.patcher)):
        build, arguments = patcher.cached_patcher_init
        new = build(*arguments, disable_dynamic=True)
        found[name] = new.model is not patcher.model and new.model_size() == patcher.model_size()
        if name == "model":
            found["difference"] = apart(before, sample(new))
    return found


def dtypes() -> dict:
    """Converted while loading, beside the full model and beside what is stored in fp8."""
    import torch

    found = {}
    files = dict(FILES)
    full = sample(load("dit.safetensors", **files)[0])
    for wanted, bases in CONVERTED.items():
        for base, modulation in bases:
            more = {"weight_dtype": wanted}
            usual = full if base == "dit" else sample(load(f"{base}.safetensors", **files)[0])
            model, *_, report = load(f"{base}.safetensors", modulation, more=more, **files)
            found[f"{base} {modulation} to {wanted}"] = {
                "apart": apart(usual, sample(model)) / full.std().item(),
                "held": holding().held(model.model.diffusion_model),
                "report": report,
                "quantised": sorted(
                    name.removesuffix(".weight")
                    for name, weight in model.model.diffusion_model.named_parameters()
                    if getattr(weight, "_qdata", weight).dtype == torch.float8_e4m3fn
                ),
            }
    return found


def mapped() -> dict:
    """Weights that are views of their file: what is done to them never reaches it."""
    import hashlib

    import comfy.model_management as management
    import comfy.utils
    import folder_paths
    import torch

    forget()
    path = Path(folder_paths.get_full_path("diffusion_models", "dit.safetensors"))
    begun = hashlib.sha256(path.read_bytes()).hexdigest()
    model = load("dit.safetensors", "weights")[0]
    before = sample(model)
    name = "transformer_blocks.1.img_mlp.net.0.proj.weight"
    weight = dict(model.model.diffusion_model.named_parameters())[name]
    found = {"is mapped": is_mapped(path, weight.data_ptr())}
    patched = model.clone()
    delta = torch.full(weight.shape, 0.5)
    patched.add_patches({f"diffusion_model.{name}": ("diff", (delta,))}, 1.0)
    found["patch moves"] = apart(before, sample(patched))
    found["unpatched"] = apart(before, sample(model))
    management.unload_all_models()
    found["unloaded"] = apart(before, sample(model))
    saved = path.parent.parent / "saved.sft"
    tensors = {n: t for n, t in model.model.diffusion_model.state_dict().items() if t.numel()}
    comfy.utils.save_torch_file(tensors, str(saved))
    again = comfy.utils.load_torch_file(str(saved))
    stored = comfy.utils.load_torch_file(str(path))
    same = [torch.equal(stored[n], again[n]) for n in again]
    found["saved"] = [sum(same), len(again), sum(t.numel() > 0 for t in stored.values())]
    with torch.no_grad():
        dict(model.model.diffusion_model.named_parameters())[name].add_(1)
    found["written"] = apart(before, sample(model))
    found["file kept"] = hashlib.sha256(path.read_bytes()).hexdigest() == begun
    del model, patched, weight, stored
    forget()
    found["loaded again"] = apart(before, sample(load("dit.safetensors", "weights")[0]))
    return found


def is_mapped(path: Path, address: int) -> bool | None:
    """Whether memory at an address belongs to a file; None where the system does not tell."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    for line in maps.read_text().splitlines():
        if line.endswith(str(path)):
            begin, end = (int(number, 16) for number in line.split()[0].split("-"))
            if begin <= address < end:
                return True
    return False


def offload() -> dict:
    """The same picture however weights are held; a budget reaches only whom it should."""
    import comfy.model_management as management

    found = {}
    results = {}
    for base in ("dit", "dit metadata"):
        for name in holding().OFFLOADS:
            forget()
            management.unload_all_models()
            model = load(f"{base}.safetensors", more={"offload": name}, **FILES)[0]
            results[name] = sample(model)
            found[f"{base} {name}"] = {
                "apart": apart(results["auto"], results[name]),
                "loaded": model.loaded_size() / model.model_size(),
                "static": not getattr(model, "is_dynamic", lambda: False)(),
                "cloned": type(model.clone()) is type(model),
                **budget(model),
            }
            del model
    return found


def budget(model) -> dict:
    """What a patcher keeps loaded when the host has little room for it, and then wants more."""
    import comfy.model_management as management

    management.unload_all_models()
    tight = model.clone()
    half = tight.model_size() / 2
    tight.partially_load(tight.load_device, half)
    kept = tight.loaded_size() / tight.model_size()
    freed = tight.partially_unload(tight.offload_device, half / 2)
    tight.detach()
    return {"kept": kept, "freed": freed / tight.model_size()}


def refusals() -> dict:
    files = importlib.import_module("realtoon.nodes._qwen_files")
    tried = {
        "2511": {"base": "new/"},
        "torn": {"base": "torn/"},
        "gone": {"base": "gone.safetensors", **FILES},
        "no text": {"base": "dit.safetensors", "text_encoder": FOLDER, "vae": FILES["vae"]},
        "attention": {"base": OFFICIAL, "attention": "wishful"},
        "dtype": {"base": OFFICIAL, "more": {"weight_dtype": "int3"}},
        "offload": {"base": OFFICIAL, "more": {"offload": "away"}},
        "fp8 without scales": {
            "base": "dit fp8.safetensors", "more": {"weight_dtype": "fp8 e4m3 scaled"}, **FILES,
        },
    }  # fmt: skip
    found = {"offered": sorted(files.bases()), "texts": sorted(files.texts())}
    for name, arguments in tried.items():
        try:
            load(**arguments)
            found[name] = ""
        except ValueError as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


CASES = (
    layouts, control, quantised, sharing, attention, again, dtypes, mapped, offload, refusals,
)  # fmt: skip

if __name__ == "__main__":
    main()

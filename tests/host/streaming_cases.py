"""TiledVAEDecode and TiledVAEEncode in a ComfyUI's own process, on a tiny VAE.

    python tests/host/streaming_cases.py COMFYUI BASE

BASE is an empty folder for the host. The last line of standard output is JSON: case -> what it
found; differences are the largest ones between two results.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent


def main() -> None:
    comfyui, base = map(Path, sys.argv[1:])
    sys.path[:0] = [str(comfyui), str(TESTS), str(TESTS / "unit")]
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


def wan(dtype):
    """The host's VAE, tiny, with numbers from a seed, held in a type."""
    import comfy.sd
    import torch

    with torch.inference_mode(False):
        return comfy.sd.VAE(sd=state(), dtype=dtype)


def state() -> dict:
    """The tensors of a tiny VAE under the host's names."""
    classes = importlib.import_module("comfy.ldm.wan.vae")
    model = classes.WanVAE(dim=8, z_dim=16, temperal_downsample=[False, True, True])
    importlib.import_module("wan_vae_plain").fill(model, 0)
    return model.state_dict()


def decode(vae, latent, precision="fp32", strip_rows=0):
    node = importlib.import_module("realtoon.nodes.tiled_vae_decode").TiledVAEDecode
    return node.execute({"samples": latent}, vae, precision, strip_rows).args


def encode(vae, image, precision="fp32", strip_rows=0):
    node = importlib.import_module("realtoon.nodes.tiled_vae_encode").TiledVAEEncode
    samples, report = node.execute(image, vae, precision, strip_rows).args
    return samples["samples"], report


def latents(*shape):
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def pictures(*shape):
    import torch

    return torch.rand(shape, generator=torch.Generator().manual_seed(4))


def apart(one, other) -> float:
    assert one.shape == other.shape, (one.shape, other.shape)
    return (one.float() - other.float()).abs().max().item()


def spread(one) -> float:
    return one.float().std().item()


def decodes() -> dict:
    """Against the host's own full decode, in several strips."""
    import torch

    vae, found = wan(torch.float32), {}
    for height, width in ((16, 16), (11, 16), (8, 24), (1, 1)):
        latent = latents(1, 16, 1, height, width)
        whole = vae.decode(latent)[:, 0]
        for rows in (1, 3, 8, 64, 0):
            image, report = decode(vae, latent, strip_rows=rows)
            found[f"{width}×{height}, {rows}"] = apart(image, whole)
    found["spread"] = spread(whole)
    found["report"] = report
    image, _ = decode(vae, latent)
    found["type"] = [str(image.dtype), image.device.type, image.is_contiguous()]
    return found


def encodes() -> dict:
    """Against the host's own full encode; sides that are no multiple of 8 among them."""
    import torch

    vae, found = wan(torch.float32), {}
    for height, width in ((64, 64), (93, 41), (8, 8)):
        image = pictures(1, height, width, 3)
        whole = vae.encode(image)
        for rows in (1, 2, 64, 0):
            latent, report = encode(vae, image, strip_rows=rows)
            found[f"{width}×{height}, {rows}"] = apart(latent, whole)
    found["spread"] = spread(whole)
    found["report"] = report
    rgba = torch.cat([image, torch.zeros_like(image[..., :1])], -1)
    found["with alpha"] = apart(encode(vae, rgba)[0], whole)
    grey = image[..., :1].expand(-1, -1, -1, 3).contiguous()
    found["grey"] = apart(encode(vae, image[..., :1])[0], vae.encode(grey))
    return found


def precisions() -> dict:
    """A VAE that is held in bf16: fp32 is what its weights give in fp32."""
    import torch

    stored, full = wan(torch.bfloat16), wan(torch.float32)
    latent, image = latents(1, 16, 1, 12, 12), pictures(1, 96, 96, 3)
    whole, means = full.decode(latent)[:, 0], full.encode(image)
    found = {"held in": str(stored.vae_dtype)}
    for precision in ("fp32", "bf16", "as loaded"):
        out, report = decode(stored, latent, precision)
        found[precision] = apart(out, whole)
        found[f"{precision} encode"] = apart(encode(stored, image, precision)[0], means)
        found[f"{precision} report"] = report
    found["host in bf16"] = apart(stored.decode(latent)[:, 0], whole)
    found["still held in"] = str(next(stored.first_stage_model.parameters()).dtype)
    return found


def batches() -> dict:
    """Each picture for itself."""
    import torch

    vae = wan(torch.float32)
    latent, image = latents(3, 16, 1, 6, 8), pictures(3, 48, 64, 3)
    each = torch.cat([vae.decode(one[None])[:, 0] for one in latent])
    means = torch.cat([vae.encode(one[None]) for one in image])
    together, report = decode(vae, latent, strip_rows=2)
    found = {"decode": apart(together, each), "report": report}
    found["four axes"] = apart(decode(vae, latent[:, :, 0])[0], each)
    found["encode"] = apart(encode(vae, image)[0], means)
    found["tf32 as before"] = torch.backends.cudnn.allow_tf32
    return found


def by_the_host() -> dict:
    """What cannot be streamed goes through the host's own code, and the report says so."""
    import torch

    vae = wan(torch.float32)
    film = latents(1, 16, 2, 4, 4)
    image, report = decode(vae, film)
    whole = vae.decode(film)
    found = {"frames": apart(image, whole.reshape(-1, *whole.shape[2:])), "report": report}
    real = type(vae.first_stage_model).decode
    seen = []

    def short(model, latent, *rest, **more):
        seen.append(latent.shape)
        if len(seen) == 1:
            raise torch.cuda.OutOfMemoryError("no memory")
        return real(model, latent, *rest, **more)

    type(vae.first_stage_model).decode = short
    try:
        image, found["in tiles"] = decode(vae, film)
    finally:
        type(vae.first_stage_model).decode = real
    found["tiles' size"] = list(image.shape)
    small = stable_diffusion()
    latent, picture = latents(2, 4, 8, 8), pictures(1, 64, 64, 3)
    image, found["other family"] = decode(small, latent)
    found["other family difference"] = apart(image, small.decode(latent))
    means, found["other family encode"] = encode(small, picture)
    found["other family means"] = list(means.shape)
    return found


def stable_diffusion():
    """A tiny VAE with group norms."""
    import comfy.sd
    import torch

    with torch.inference_mode(False):
        config = {
            "double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3,
            "ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [],
            "dropout": 0.0,
        }  # fmt: skip
        models = importlib.import_module("comfy.ldm.models.autoencoder")
        model = models.AutoencoderKL(ddconfig=config, embed_dim=4)
        importlib.import_module("wan_vae_plain").fill(model, 1)
        return comfy.sd.VAE(
            sd=model.state_dict(), config={"params": {"ddconfig": config, "embed_dim": 4}}
        )


def memory() -> dict:
    """What the host is asked for, and what happens when it runs out."""
    import comfy.model_management as management
    import torch

    vae = wan(torch.float32)
    streaming = importlib.import_module("realtoon.nodes._streaming")
    latent = latents(1, 16, 1, 32, 32)
    whole = vae.decode(latent)[:, 0]
    asked, real_load = [], management.load_models_gpu

    def load(models, memory_required=0, **more):
        asked.append(memory_required)
        return real_load(models, memory_required=memory_required, **more)

    management.load_models_gpu = load
    real_free = management.get_free_memory
    try:
        decode(vae, latent)
        found = {
            "asked": asked[0],
            "host asks": vae.memory_used_decode(latent.shape, torch.float32),
        }
        plan = streaming._Job(vae, streaming.wan_vae.read_decoder, "fp32", (32, 32))._plan
        management.get_free_memory = lambda *_: int(1.15 * plan.peak_bytes((32, 32), 2)) + 1
        image, report = decode(vae, latent)
        found["little memory"] = [asked[1], apart(image, whole), report.splitlines()[1]]
    finally:
        management.load_models_gpu, management.get_free_memory = real_load, real_free
    real_conv, calls = torch.nn.functional.conv2d, []

    def conv2d(*arguments, **named):
        calls.append(1)
        if len(calls) in (40, 100):
            raise torch.cuda.OutOfMemoryError("no memory")
        return real_conv(*arguments, **named)

    torch.nn.functional.conv2d = conv2d
    try:
        image, found["ran out"] = decode(vae, latent, strip_rows=8)
    finally:
        torch.nn.functional.conv2d = real_conv
    found["ran out difference"] = apart(image, whole)
    return found


def interrupted() -> dict:
    """Cancel within a strip's time."""
    import comfy.model_management as management
    import torch

    vae, calls = wan(torch.float32), []
    real = management.throw_exception_if_processing_interrupted

    def throw() -> None:
        calls.append(1)
        if len(calls) == 5:
            management.interrupt_current_processing()
        real()

    management.throw_exception_if_processing_interrupted = throw
    try:
        decode(vae, latents(1, 16, 1, 24, 4), strip_rows=1)
        ended = "not at all"
    except BaseException as error:
        ended = type(error).__name__
    finally:
        management.throw_exception_if_processing_interrupted = real
    return {"ended": ended, "checks": len(calls)}


def patched() -> dict:
    """A patch on the VAE's weights is in what comes out, as with the host's own decode."""
    import torch

    vae, latent = wan(torch.float32), latents(1, 16, 1, 6, 6)
    before, _ = decode(vae, latent)
    name = "decoder.upsamples.0.residual.2.weight"
    weight = vae.first_stage_model.state_dict()[name]
    change = torch.randn(weight.shape, generator=torch.Generator().manual_seed(8)) * 0.1
    vae.patcher = vae.patcher.clone()
    vae.patcher.add_patches({name: ("diff", (change,))})
    after, _ = decode(vae, latent)
    return {"difference": apart(after, vae.decode(latent)[:, 0]), "effect": apart(after, before)}


def refusals() -> dict:
    import torch

    vae, found = wan(torch.float32), {}
    tried = {
        "channels": lambda: decode(vae, latents(1, 4, 8, 8)),
        "precision": lambda: decode(vae, latents(1, 16, 1, 2, 2), "fp8"),
        "too small": lambda: encode(vae, pictures(1, 7, 64, 3)),
        "no picture": lambda: encode(vae, pictures(64, 64)),
    }
    for name, action in tried.items():
        try:
            action()
            found[name] = ""
        except ValueError as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


CASES = (
    decodes, encodes, precisions, batches, by_the_host, memory, interrupted, patched, refusals,
)  # fmt: skip

if __name__ == "__main__":
    main()

"""Load tiny official Qwen-Image-Edit folders into a ComfyUI's own modules, in its own process.

    python tests/host/load_qwen_keys.py COMFYUI BASE FOLDER

BASE is an empty folder for the host, FOLDER one that qwen_weights.write_official made. The last
line of standard output is JSON: what the host makes of it.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent


def main() -> None:
    comfyui, base, folder = map(Path, sys.argv[1:])
    sys.path[:0] = [str(comfyui), str(TESTS)]
    os.chdir(comfyui)
    sys.argv = ["main.py", "--cpu", "--base-directory", str(base)]
    importlib.import_module("comfy.options").enable_args_parsing()
    importlib.import_module("conftest")
    sys.stdout.write(json.dumps(load(folder)) + "\n")


def load(folder: Path) -> dict[str, object]:
    import torch

    qwen_image = importlib.import_module("realtoon.weights_loader.qwen_image")
    keys = importlib.import_module("realtoon.weights_loader.qwen_keys")
    base = qwen_image.describe_base(folder)
    states = {kind: qwen_image.state(getattr(base, kind)) for kind in ("dit", "text", "vae")}
    found: dict[str, object] = {"detected": detect(states)}
    tiny = modules(base.config, base.text.config, base.vae.config, "cpu")
    # A host before 0.5 knows no 2511, so its module has no place for the marker.
    if qwen_image.MARKER not in tiny["dit"].state_dict():
        del states["dit"][qwen_image.MARKER]
    for kind, module in tiny.items():
        module.load_state_dict(states[kind], strict=True)
        loaded = module.state_dict()
        for name, tensor in states[kind].items():
            if not torch.equal(loaded[name], tensor.to(loaded[name].dtype)):
                raise AssertionError(f"{kind} {name} was not loaded")
        found[kind] = len(loaded)
    official = qwen_image.DiTConfig(), qwen_image.TextConfig(), qwen_image.VAEConfig()
    whole = modules(*official, "meta")
    ours = keys.dit_shapes, keys.text_shapes, keys.vae_shapes
    for (kind, module), config, shapes in zip(whole.items(), official, ours, strict=True):
        theirs = {n: tuple(t.shape) for n, t in module.state_dict().items()}
        theirs.pop(qwen_image.MARKER, None)
        found[f"official {kind}"] = theirs == shapes(config)
    return found


def detect(states: dict[str, dict]) -> list[object]:
    """What the host's own detection says of the DiT and the text encoder."""
    detection = importlib.import_module("comfy.model_detection")
    config = detection.model_config_from_unet(dict(states["dit"]), "").unet_config
    encoder = importlib.import_module("comfy.sd").detect_te_model(states["text"])
    names = ("image_model", "in_channels", "num_layers", "default_ref_method")
    return [*(config.get(name) for name in names), encoder.name]


def modules(dit, text, vae, device: str) -> dict[str, object]:
    """The host's three networks at these sizes."""
    import torch

    ops = importlib.import_module("comfy.ops").disable_weight_init
    model = importlib.import_module("comfy.ldm.qwen_image.model").QwenImageTransformer2DModel
    llama = importlib.import_module("comfy.text_encoders.llama")
    vision = importlib.import_module("comfy.text_encoders.qwen_vl").Qwen2VLVisionTransformer
    wan = importlib.import_module("comfy.ldm.wan.vae").WanVAE
    kwargs = {"dtype": torch.bfloat16, "device": device}
    method = {}
    if "default_ref_method" in model.__init__.__code__.co_varnames:
        method = {"default_ref_method": "index_timestep_zero"}
    made_dit = model(
        num_layers=dit.num_layers,
        attention_head_dim=dit.head_dim,
        num_attention_heads=dit.heads,
        joint_attention_dim=dit.joint_dim,
        axes_dims_rope=dit.axes_dims,
        operations=ops,
        **kwargs,
        **method,
    )
    sizes = {
        "vocab_size": text.vocabulary,
        "hidden_size": text.hidden,
        "intermediate_size": text.intermediate,
        "num_hidden_layers": text.num_layers,
        "num_attention_heads": text.heads,
        "num_key_value_heads": text.kv_heads,
    }
    # Its vision part has fixed sizes: made on meta, then in the sizes of this encoder.
    with torch.device("meta"):
        made_text = llama.Qwen25_7BVLI(sizes, torch.bfloat16, "meta", ops)
        made_text.model = None
    made_text.model = llama.Llama2_(llama.Qwen25_7BVLI_Config(**sizes), ops=ops, **kwargs)
    made_text.visual = vision(
        hidden_size=text.vision_hidden,
        output_hidden_size=text.hidden,
        intermediate_size=text.vision_intermediate,
        num_heads=2,
        num_layers=text.vision_layers,
        ops=ops,
        **kwargs,
    )
    with torch.device(device):
        made_vae = wan(
            dim=vae.dim,
            z_dim=vae.z_dim,
            dim_mult=[1, 2, 4, 4],
            num_res_blocks=2,
            attn_scales=[],
            temperal_downsample=[False, True, True],
        )
    return {"dit": made_dit, "text": made_text, "vae": made_vae}


if __name__ == "__main__":
    main()

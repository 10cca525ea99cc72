"""EncodeForEdit in a ComfyUI's own process, on tiny weights that the host's own classes hold.

    python tests/host/encode_cases.py COMFYUI BASE

BASE is an empty folder for the host. The last line of standard output is JSON: case -> what it
found; differences are the largest ones between two results.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
VOCABULARY = 152064
PROMPT = "Make it a photograph"
NEGATIVE = "blurry, painting"
DIT = {
    "image_model": "qwen_image",
    "in_channels": 64,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "joint_attention_dim": 48,
    "axes_dims_rope": (4, 14, 14),
}
DEFAULTS = {
    "prompt": PROMPT,
    "negative": NEGATIVE,
    "start": "noise",
    "reference_method": "auto",
    "vision_px": 112,
}


def main() -> None:
    comfyui, base = map(Path, sys.argv[1:])
    sys.path[:0] = [str(comfyui), str(TESTS), str(TESTS / "unit")]
    os.chdir(comfyui)
    sys.argv = ["main.py", "--cpu", "--base-directory", str(base)]
    importlib.import_module("comfy.options").enable_args_parsing()
    importlib.import_module("conftest")
    import torch

    torch.set_num_threads(1)
    found: dict[str, object] = {}
    # The host runs its nodes so; what other threads' hooks print stays off the last line.
    with torch.inference_mode(), contextlib.redirect_stdout(sys.stderr):
        for case in CASES:
            found[case.__name__] = case()
    sys.stdout.write(json.dumps(found) + "\n")


@functools.cache
def clip():
    """The host's text encoder, its fixed vision part made small."""
    import comfy.sd
    import qwen_weights as qw
    import torch

    sizes = replace(qw.TINY, vocabulary=VOCABULARY)
    vl = importlib.import_module("comfy.text_encoders.qwen_vl")
    real = vl.Qwen2VLVisionTransformer
    small = {
        "hidden_size": sizes.vision,
        "intermediate_size": sizes.vision_inner,
        "num_heads": sizes.vision // 80,
        "num_layers": sizes.vision_layers,
    }
    vl.Qwen2VLVisionTransformer = lambda **kwargs: real(**{**kwargs, **small})
    config = {
        "vocab_size": VOCABULARY,
        "hidden_size": sizes.joint,
        "intermediate_size": sizes.text_inner,
        "num_hidden_layers": sizes.text_layers,
        "num_attention_heads": qw.TEXT_HEADS,
        "num_key_value_heads": qw.TEXT_KV,
    }
    state = qw.comfy_text(qw.text_encoder(sizes, dtype=torch.float32))
    return comfy.sd.load_text_encoder_state_dicts(
        [state],
        clip_type=comfy.sd.CLIPType.QWEN_IMAGE,
        model_options={"qwen25_7b_model_config": config},
    )


@functools.cache
def vae():
    import comfy.sd
    import qwen_weights as qw
    import torch

    keys = importlib.import_module("realtoon.weights_loader.qwen_keys")
    official = qw.vae(dtype=torch.float32)
    made = comfy.sd.VAE(sd={keys.vae_name(name): tensor for name, tensor in official.items()})
    made.throw_exception_if_invalid()
    return made


def dit(method: str | None = None):
    """A tiny DiT; method: the one that its weights were made for, where the host can be told."""
    import comfy.model_patcher
    import comfy.supported_models
    import qwen_weights as qw
    import torch

    sizes = dict(DIT) if method is None else {**DIT, "default_ref_method": method}
    config = comfy.supported_models.QwenImage(sizes)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "")
    state = qw.transformer(dtype=torch.float32)
    model.load_model_weights(qw.marked(state) if method == "index_timestep_zero" else state, "")
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, cpu, cpu)


def node():
    return importlib.import_module("realtoon.nodes.encode_for_edit").EncodeForEdit


def methods() -> list[str]:
    return importlib.import_module("realtoon.nodes._conditioning").methods()


def encode(image, **inputs):
    """positive, negative, latent, report."""
    return (
        node().execute(**{"clip": clip(), "vae": vae(), **DEFAULTS, **inputs, "image": image}).args
    )


def photo(height: int, width: int, count: int = 1, seed: int = 3, channels: int = 3):
    import torch

    chance = torch.Generator().manual_seed(seed)
    small = torch.rand((count, channels, 5, 5), generator=chance)
    large = torch.nn.functional.interpolate(small, size=(height, width), mode="bicubic")
    return large.clamp(0, 1).permute(0, 2, 3, 1).contiguous()


def sample(model, positive, negative, latent, seed=5, steps=2):
    import comfy.sample
    import torch

    chance = torch.Generator().manual_seed(seed)
    noise = torch.randn((4, *latent.shape[1:]), generator=chance)[: len(latent)]
    result = comfy.sample.sample(
        model, noise, steps, 4.0, "euler", "simple", positive, negative, latent, seed=seed,
        disable_pbar=True,
    )  # fmt: skip
    assert result.isfinite().all() and result.std() > 0.1
    return result


def apart(one, other) -> float:
    return (one.float() - other.float()).abs().max().item()


def references() -> dict:
    """Each is what the VAE makes of exactly that picture, in both conditionings."""
    import torch

    image, other = photo(96, 64), photo(200, 130, seed=4)
    positive, negative, latent, report = encode(image, image_2=other)
    held = [each[0][1]["reference_latents"] for each in (positive, negative)]
    streaming = importlib.import_module("realtoon.nodes._streaming")
    alone = streaming.encode(vae(), image, "fp32", 0)[0]
    mid = encode(image, start="picture")[2]["samples"]
    return {
        "equal": all(torch.equal(each[0], alone) for each in held),
        "from the host's": apart(alone, vae().encode(image)),
        "same in both": torch.equal(held[0][1], held[1][1]),
        "shapes": [list(each.shape) for each in held[0]],
        "empty": [list(latent["samples"].shape), int(latent["samples"].count_nonzero())],
        "from the picture": torch.equal(mid, alone),
        "dtype": latent["samples"].dtype == alone.dtype,
        "entries": [len(positive), len(negative)],
        "report": report,
    }


class Heard:
    """A text encoder that notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, int]] = []

    def tokenize(self, text, images=(), llama_template=None):
        tokens = clip().tokenize(text, images=images, llama_template=llama_template)
        numbers = [t[0] if isinstance(t[0], int) else "picture" for t in tokens["qwen25_7b"][0]]
        self.asked.append([text, llama_template, numbers, [list(i.shape) for i in images]])
        return tokens

    def encode_from_tokens_scheduled(self, tokens):
        return clip().encode_from_tokens_scheduled(tokens)


def host_encode(heard, prompt, **images):
    """What the host's own node makes of it."""
    made = importlib.import_module("comfy_extras.nodes_qwen").TextEncodeQwenImageEditPlus
    return made.execute(clip=heard, prompt=prompt, **images).args[0]


def words() -> dict:
    """What the text encoder hears and sees, beside the host's own node."""
    import torch

    found = {}
    image, other = photo(96, 64), photo(200, 130, seed=4)
    for name, more in (("one", {}), ("two", {"image_2": other})):
        ours, theirs = Heard(), Heard()
        positive, negative, *_ = encode(image, clip=ours, vision_px=384, **more)
        named = {"image1": image, **({"image2": other} if more else {})}
        shapes = []
        for prompt, made in ((PROMPT, positive), (NEGATIVE, negative)):
            shapes.append(
                [list(each[0][0].shape) for each in (made, host_encode(theirs, prompt, **named))]
            )
        found[name] = {
            "asked the same": [
                a[:3] == b[:3] for a, b in zip(ours.asked, theirs.asked, strict=True)
            ],
            "shapes": shapes,
            "copies": ours.asked[0][3],
        }
    plain, large = torch.full((1, 96, 64, 3), 0.25), photo(688, 1024)
    ours, theirs = encode(plain, vision_px=384)[0][0], host_encode(clip(), PROMPT, image1=plain)[0]
    found["of a plain picture"] = apart(ours[0], theirs[0]) / theirs[0].std().item()
    one = encode(large, vision_px=384)[0][0][0]
    other = host_encode(clip(), PROMPT, image1=large)[0][0]
    found["of a photo"] = (one - other).pow(2).mean().sqrt().item() / other.std().item()
    found["extras"] = sorted(set(ours[1]) - set(theirs[1]))
    found["sees"] = apart(encode(image, vision_px=384)[0][0][0], ours[0])
    return found


def method() -> dict:
    """auto is what the model was made for; the others are what the host knows by that name."""
    found: dict[str, object] = {"known": methods()}
    image = photo(64, 48)
    style = photo(40, 60, seed=7)
    made = {name: encode(image, reference_method=name, image_2=style) for name in methods()}
    found["said"] = {
        name: [each[0][1].get("reference_latents_method") for each in args[:2]]
        for name, args in made.items()
    }
    new = "index_timestep_zero" in methods()
    models = {
        "index": dit(),
        **({"index_timestep_zero": dit("index_timestep_zero")} if new else {}),
    }
    for right, model in models.items():
        results = {
            name: sample(model, *args[:2], args[2]["samples"]) for name, args in made.items()
        }
        found[right] = {name: apart(results["auto"], each) for name, each in results.items()}
    found["reports"] = [args[3] for args in made.values()]
    return found


def batch() -> dict:
    """A batch is edited picture by picture: as if each had come alone."""
    import torch

    images, styles = photo(64, 48, count=2), photo(40, 90, count=2, seed=8)
    positive, negative, latent, report = encode(images, image_2=styles, image_3=styles[:1])
    model = dit()
    together = sample(model, positive, negative, latent["samples"])
    found = {"shape": list(together.shape), "entries": len(positive), "report": report}
    chance = torch.Generator().manual_seed(5)
    noise = torch.randn((4, *latent["samples"].shape[1:]), generator=chance)
    import comfy.sample

    worst = []
    for i in range(2):
        one = encode(images[i : i + 1], image_2=styles[i : i + 1], image_3=styles[:1])
        alone = comfy.sample.sample(
            model, noise[i : i + 1], 2, 4.0, "euler", "simple", one[0], one[1],
            one[2]["samples"], seed=5, disable_pbar=True,
        )  # fmt: skip
        worst.append(apart(together[i : i + 1], alone))
        held = one[0][0][1]["reference_latents"]
        both = positive[0][1]["reference_latents"]
        found[f"references {i}"] = [torch.equal(held[k][0], both[k][i]) for k in range(2)]
    found["apart"] = worst
    found["pictures apart"] = apart(together[0], together[1])
    return found


def start() -> dict:
    """The picture as the start comes back from a denoise of 0; noise does not depend on it."""
    image = photo(64, 48)
    args = encode(image, start="picture")
    import nodes as host_nodes

    [result] = host_nodes.common_ksampler(
        dit(), 1, 4, 1.0, "euler", "simple", args[0], args[1], args[2], denoise=0.0
    )
    return {"denoise 0": apart(result["samples"], args[2]["samples"])}


def odd() -> dict:
    """Pictures that are not quite what a picture should be."""
    import torch

    image = photo(64, 48)
    alpha = torch.cat([image, torch.ones(1, 64, 48, 1)], dim=-1)
    clear = torch.cat([image, torch.zeros(1, 64, 48, 1)], dim=-1)
    plain = encode(image)[0][0][1]["reference_latents"][0]
    white = encode(torch.ones_like(image))[0][0][1]["reference_latents"][0]
    found = {}
    for name, picture, expected in (
        ("opaque", alpha, plain),
        ("clear", clear, white),
        ("grey", image[..., :1].expand(-1, -1, -1, 1), None),
        (
            "beyond",
            image * 3 - 1,
            encode((image * 3 - 1).clamp(0, 1))[0][0][1]["reference_latents"][0],
        ),
        ("half", image.half(), encode(image.half().float())[0][0][1]["reference_latents"][0]),
        ("smallest", photo(16, 16), None),
        ("strip", photo(16, 1024), None),
    ):
        args = encode(picture)
        latent = args[0][0][1]["reference_latents"][0]
        found[name] = {
            "finite": bool(latent.isfinite().all() and args[0][0][0].isfinite().all()),
            "as expected": expected is None or apart(latent, expected) == 0.0,
            "report": args[3],
        }
    before = image.clone()
    encode(image, start="picture")
    found["left alone"] = torch.equal(before, image)
    return found


def sizes() -> dict:
    """Further references of any size."""
    found = {}
    for height, width in ((33, 50), (5, 5), (600, 20), (64, 48), (640, 480)):
        args = encode(photo(64, 48), image_3=photo(height, width, seed=9))
        found[f"{width}×{height}"] = [
            list(args[0][0][1]["reference_latents"][1].shape[-2:]),
            args[3].splitlines()[2],
        ]
    return found


class Other:
    """A VAE or a text encoder of another model."""

    latent_channels, latent_dim = 4, 2

    def tokenize(self, text, **more):
        return {"l": [], "g": []}


def refusals() -> dict:
    import torch

    image = photo(64, 48)
    broken = image.clone()
    broken[0, 3, 4:6, 1] = float("nan")
    tried = {
        "unaligned": {"image": photo(60, 48)},
        "nan": {"image": broken},
        "nan 2": {"image": image, "image_2": broken},
        "not a picture": {"image": torch.zeros(3)},
        "batch": {"image": image, "image_2": photo(32, 32, count=3)},
        "vae": {"image": image, "vae": Other()},
        "no vae": {"image": image, "vae": None},
        "clip": {"image": image, "clip": Other()},
        "no clip": {"image": image, "clip": None},
        "method": {"image": image, "reference_method": "wishful"},
    }
    found = {}
    for name, inputs in tried.items():
        try:
            encode(**inputs)
            found[name] = ""
        except ValueError as error:
            found[name] = f"{type(error).__name__}: {error}"
    found["validated"] = [
        node().validate_inputs(start="noise", reference_method="auto"),
        node().validate_inputs(start="else", reference_method="auto"),
        node().validate_inputs(start="noise", reference_method="wishful"),
    ]
    return found


CASES = (references, words, method, batch, start, odd, sizes, refusals)

if __name__ == "__main__":
    main()

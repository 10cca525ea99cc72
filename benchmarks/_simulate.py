"""Memory of the host's own networks at their real size, simulated.

The networks are built on torch's meta device and called there: nothing is computed, and every
storage is followed from the operation that makes it until nobody holds it (_live.py). Attention is
answered by the kernel that a card would choose, because without one torch would take the formula
with the matrix of scores. What kernels take while they run and what an allocator keeps in reserve
is not in it.

    python benchmarks/_simulate.py COMFYUI '[{"what": "dit", "width": 1024, …}, …]'

The last line of standard output is JSON: for each question, bytes of ``weights`` and, at the worst
moment, of all tensors beside them (``beside``).
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import _pack
import torch
import torch.nn.functional as F  # noqa: N812
from _live import LiveBytes
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Question = dict[str, Any]

_DTYPES = {"fp8": torch.float8_e4m3fn, "bf16": torch.bfloat16, "fp32": torch.float32}
_FLASH_HEAD = 256
"""Larger heads, masks and single precision go to the efficient kernel."""
_CHANNELS = 16
_TEXT = 3584
_WORD, _BEFORE_PICTURES = 872, 64
"""Any token, and how many the template has before the first picture."""


def simulate(comfy: Path, questions: Sequence[Question]) -> list[dict[str, int]]:
    """Answer questions in a process of its own. Each has a ``what``: dit, prompt, vision or vae,
    whose functions tell the rest."""
    from _child import measured

    return measured(Path(__file__).name, [comfy, json.dumps(list(questions))])["answers"]


class Card(TorchFunctionMode):
    """Attention as a card's kernels."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)


class Windows(TorchFunctionMode):
    """Keeps the numbers of the vision tower's windows real: it turns them back into a list."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        kwargs = dict(kwargs or {})
        if func is torch.tensor:
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


class Beside(LiveBytes):
    """Counts all tensors but the weights, and sees the steps inside an operation in inference mode
    too, where it arrives whole."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()
        # Not among those that LiveBytes looks through after each operation: they are thousands.
        self._weights = {each.untyped_storage()._cdata for each in weights}

    def _add(self, tensor: Tensor) -> None:
        on_card = tensor.device.type == "meta"
        if on_card and tensor.untyped_storage()._cdata not in self._weights:
            super()._add(tensor)

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        if torch.is_inference_mode_enabled():
            with self:
                result = func.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        return super().__torch_dispatch__(func, types, args, kwargs)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa:
        times = query.shape[1] // key.shape[1]
        key, value = (each.repeat_interleave(times, 1) for each in (key, value))
    narrow = query.dtype != torch.float32 and query.shape[-1] <= _FLASH_HEAD
    if attn_mask is None and narrow:
        return torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, False, scale=scale
        )[0]
    if attn_mask is not None:
        attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, False, dropout_p, is_causal, scale=scale
    )[0]


def dit(question: Question) -> dict[str, int]:
    """A forward pass. width, height, references [[w,h]…]: pixels. rows: of the batch. text_tokens.
    dtype: of the weights, fp8 or bf16. table: whether the modulation is tabled. blocks: 60; with 2
    the activations are the same."""
    model = _dit(question["dtype"], question["table"], question.get("blocks", 60))
    rows = question["rows"]
    sizes = [(question["width"], question["height"]), *question["references"]]
    with torch.no_grad():
        latents = [_empty(rows, _CHANNELS, 1, h // 8, w // 8) for w, h in sizes]
        text = _empty(rows, question["text_tokens"], _TEXT)
        more = {"ref_latents": latents[1:]} if latents[1:] else {}
        step = _empty(rows)
        return _measured(model, lambda: model(latents[0], step, text, None, **more))


@lru_cache(maxsize=1)
def _dit(dtype: str, table: bool, blocks: int) -> nn.Module:
    host = importlib.import_module("comfy.ldm.qwen_image.model")
    kind = host.QwenImageTransformer2DModel
    with_2511 = "default_ref_method" in kind.__init__.__code__.co_varnames
    more = {"default_ref_method": "index_timestep_zero"} if with_2511 else {}
    model = kind(
        num_layers=blocks, dtype=_DTYPES[dtype], device="meta", operations=_operations(), **more
    )
    if table:
        engine = _pack_module("engine.modulation_table")
        lent = {name: value for name, value in model.named_parameters() if "_mod." in name}
        engine.attach(model, lent.__getitem__)
    return model


def prompt(question: Question) -> dict[str, int]:
    """The whole way of a prompt about pictures through the host's text encoder. words: tokens of
    the template and the text. pictures [[w,h]…]: of the copies that it sees. dtype: of the weights.
    table: dtype of the table of tokens among them.

    Of the 28 layers there are two, because each takes the same; of the vision part's 32 there are
    eight, the last of which looks at a picture as a whole."""
    clip = _clip(question["dtype"], question["table"])
    words = [_WORD] * question["words"]
    pictures = [
        {"type": "image", "data": torch.empty(1, high, wide, 3)}
        for wide, high in question["pictures"]
    ]
    begun = words[:_BEFORE_PICTURES]
    with torch.no_grad():
        return _measured(clip, lambda: clip.encode([begun + pictures + words[len(begun) :]]))


@lru_cache(maxsize=1)
def _clip(dtype: str, table: str) -> nn.Module:
    host = importlib.import_module("comfy.text_encoders.qwen_image")
    options = {
        "custom_operations": _operations(),
        "model_name": "qwen",
        "qwen_model_config": {"num_hidden_layers": 2},
    }
    clip = host.Qwen25_7BVLIModel(device="meta", dtype=_DTYPES[dtype], model_options=options)
    clip.transformer.model.embed_tokens.to(_DTYPES[table])
    tower = clip.transformer.visual
    tower.blocks = tower.blocks[:8]
    look = tower.forward

    def looked(*args: object) -> Tensor:
        with Windows():
            return look(*args)

    tower.forward = looked
    return clip


def text_weights(question: Question) -> dict[str, int]:
    """The text encoder's weights alone, and its table of tokens among them. dtype."""
    model = _text(question["dtype"], 28)
    return {
        "weights": sum(each.nbytes for each in model.parameters()),
        "tokens": model.model.embed_tokens.weight.nbytes,
        "beside": 0,
    }


def vae_weights(question: Question) -> dict[str, int]:
    """The VAE's weights alone. dtype: fp32 or bf16."""
    model = _vae(question["dtype"])
    return {"weights": sum(each.nbytes for each in model.parameters()), "beside": 0}


def vision(question: Question) -> dict[str, int]:
    """The text encoder's vision part. width, height: of the copy that it sees. dtype."""
    tower = _text(question["dtype"], 1).visual
    high, wide = (2 * max(1, round(question[side] / 28)) for side in ("height", "width"))
    grid = torch.tensor([[1, high, wide]])
    with torch.no_grad(), Windows():
        return _measured(
            tower, lambda: tower(torch.empty(high * wide, 3 * 2 * 14 * 14, device="meta"), grid)
        )


@lru_cache(maxsize=1)
def _text(dtype: str, blocks: int) -> nn.Module:
    host = importlib.import_module("comfy.text_encoders.llama")
    sizes = {"num_hidden_layers": blocks}
    return host.Qwen25_7BVLI(sizes, _DTYPES[dtype], "meta", _operations())


def vae(question: Question) -> dict[str, int]:
    """A picture's way through the VAE. direction: encode or decode. width, height. dtype: fp32 or
    bf16. strip_rows: rows of the latent at once, 0 for the host's own way. The streams' copies of
    weights count as beside."""
    dtype = _DTYPES[question["dtype"]]
    model = _vae(question["dtype"])
    if question["strip_rows"]:
        weights = sum(each.nbytes for each in model.parameters())
        return {"weights": weights, "beside": _streamed(model, question)}
    width, height = question["width"], question["height"]
    pixels = torch.empty(1, 3, 1, height, width, device="meta", dtype=dtype)
    latent = torch.empty(1, _CHANNELS, 1, height // 8, width // 8, device="meta", dtype=dtype)
    with torch.no_grad():
        if question["direction"] == "decode":
            return _measured(model, lambda: model.decode(latent))
        return _measured(model, lambda: model.encode(pixels))


def _streamed(model: nn.Module, question: Question) -> int:
    from _decode_peak import streamed_peak

    networks = _pack_module("engine.wan_vae")
    way = question["direction"]
    read = networks.read_decoder if way == "decode" else networks.read_encoder
    network = read(model, _DTYPES[question["dtype"]], torch.device("meta"), _copies)
    copies = {each.untyped_storage()._cdata: each for each in network.weights}
    peak = streamed_peak(network, way, (question["height"] // 8, question["width"] // 8),
                         question["strip_rows"])  # fmt: skip
    return peak + sum(each.untyped_storage().nbytes() for each in copies.values())


def _copies(
    module: nn.Module, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    bias = module.bias
    return module.weight.to(dtype), None if bias is None else bias.to(dtype)


@lru_cache(maxsize=1)
def _vae(dtype: str) -> nn.Module:
    host = importlib.import_module("comfy.ldm.wan.vae")
    sizes = {"dim": 96, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2}
    times = {"attn_scales": [], "temperal_downsample": [False, True, True], "dropout": 0.0}
    with torch.device("meta"):
        return host.WanVAE(**sizes, **times).to(_DTYPES[dtype])


def _measured(model: nn.Module, call: Callable[[], object]) -> dict[str, int]:
    weights = (*model.parameters(), *model.buffers())
    with Card(), Beside(weights) as live:
        call()
    return {"weights": sum(each.nbytes for each in weights), "beside": live.peak}


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


def _operations() -> type:
    """Layers that widen their weights to the type of what comes in."""
    return importlib.import_module("comfy.ops").manual_cast


def _pack_module(name: str) -> ModuleType:
    return importlib.import_module(f"realtoon.{name}")


def main(argv: Sequence[str]) -> None:
    """Answer the questions of the command line in this process."""
    comfy, questions = Path(argv[0]), json.loads(argv[1])
    # While there is no ComfyUI: with one, the pack brings its nodes in.
    _pack.load()
    sys.path.insert(0, str(comfy))
    os.chdir(comfy)
    sys.argv = ["main.py", "--cpu", "--use-pytorch-cross-attention"]
    importlib.import_module("comfy.options").enable_args_parsing()
    torch.set_num_threads(1)
    kinds = (dit, prompt, text_weights, vision, vae, vae_weights)
    named = {kind.__name__: kind for kind in kinds}
    answers = [named[question["what"]](question) for question in questions]
    sys.stdout.write(json.dumps({"answers": answers}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])

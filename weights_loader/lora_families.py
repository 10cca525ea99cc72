"""Which base model a LoRA was made for, told by its modules' names and widths.

The same function names a model by its own modules, so that the two can be compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from .lora_layouts import one_of_each, stripped

UNKNOWN = "unknown"
QWEN = "Qwen-Image"

_NUMBER = re.compile(r"_\d+(?=_|$)")
_BLOCK = re.compile(r"(?:^|[._])transformer_blocks[._](\d{1,4})(?=[._])")

Names = Mapping[str, int]
"""Name of a kind of module with "N" for its numbers -> numbers that go into it, 0 if not known."""


def of_modules(modules: Mapping[str, tuple[int, ...]]) -> str:
    """The family of a model. modules: name -> shape of its weight (O,I)."""
    return family(modules, {name: modules[name] for name in one_of_each(modules)})


def family(modules: Iterable[str], one_each: Mapping[str, tuple[int, ...]]) -> str:
    """The family, "" where names tell none.

    modules: names, with prefixes and flat or not. one_each: `one_of_each` of them -> shape of what
    takes the module's inputs (any,I), shorter where not known.
    """
    kinds: dict[str, int] = {}
    for name, shape in one_each.items():
        kind = _NUMBER.sub("_N", stripped(name).replace(".", "_"))
        kinds[kind] = max(shape[1] if len(shape) > 1 else 0, kinds.get(kind, 0))
    for sign, judge in _SIGNS:
        found = {kind: width for kind, width in kinds.items() if sign.search(kind)}
        if found:
            return judge if isinstance(judge, str) else judge(found, modules)
    return ""


def _z_image(found: Names, _: Iterable[str]) -> str:
    return "Lumina 2" if 2304 in found.values() else "Z-Image"


def _stable_diffusion(found: Names, modules: Iterable[str]) -> str:
    context = {width for kind, width in found.items() if re.search(r"attn2_to_[kv]$", kind)}
    for width, name in ((2048, "SDXL"), (1024, "SD 2"), (768, "SD 1.5")):
        if width in context:
            return name
    second = any(re.match(r"lora_te2_|te2_|text_encoder_2\.", name) for name in modules)
    deep = any(int(n) for name in modules for n in _BLOCK.findall(name))
    return "SDXL" if second or deep else "SD 1.5"


def _joint_attention(found: Names, modules: Iterable[str]) -> str:
    """Flux and SD3 in diffusers' names, or Qwen-Image where attention alone was trained."""
    widths = set(found.values())
    if widths & {1536, 2432}:
        return "SD3"
    if any(re.search(r"_N_(ff|ff_context|norm1|norm1_context)_", kind) for kind in found):
        return "Flux"
    # Flux has 19 of these blocks and SD3 at most 38; with fewer, names alone fit all three.
    last = max((int(n) for name in modules for n in _BLOCK.findall(name)), default=0)
    return QWEN if last > 37 or (last > 18 and 3072 in widths) else ""


_SIGNS: tuple[tuple[re.Pattern[str], str | Callable[[Names, Iterable[str]], str]], ...] = tuple(
    (re.compile(pattern), judge)
    for pattern, judge in (
        (r"^transformer_blocks_N_(img|txt)_(mod|mlp)_", QWEN),
        (r"^(double|single)_stream_blocks_N_", "HiDream"),
        (
            r"^(layers|context_refiner|noise_refiner)_N_(attention_|feed_forward_|adaLN_)",
            _z_image,
        ),
        (
            r"^double_blocks_N_(img|txt)_(mlp_fc|mod_linear)|^single_blocks_N_modulation_linear"
            r"|^(txt_in_individual|context_embedder)_token_refiner_",
            "HunyuanVideo",
        ),
        (r"^(double_blocks|single_blocks|single_transformer_blocks)_N_", "Flux"),
        (r"^joint_blocks_N_", "SD3"),
        (r"^transformer_blocks_N_attn[12]_", "LTX-Video"),
        (r"^transformer_blocks_N_(attn|ff|ff_context|norm1|norm1_context)_", _joint_attention),
        (r"^(input|output|down|up)_blocks_N_|^middle_block_|^mid_block_", _stable_diffusion),
        (r"^blocks_N_(self_attn|cross_attn|ffn|attn[12])_", "Wan"),
    )
)

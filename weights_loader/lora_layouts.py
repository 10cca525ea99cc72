"""How LoRA files spell a tensor's name, and which module of a model it is for.

A name is <prefixes><module><tail>. Tails are a closed list. What stands before one is looked up in
a dictionary of the model's own modules, as it is and with "_" for ".": a flat name is never split,
since "to_out_0" and "add_q_proj" cannot be told apart that way.

Source: names as kohya's trainers, musubi-tuner, ai-toolkit, diffusers, PEFT, LyCORIS, SimpleTuner,
DiffSynth-Studio and ComfyUI write them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

_ROLES = {
    "A": "down", "down": "down", "B": "up", "up": "up", "mid": "mid",
    "dora_scale": "magnitude", "lora_magnitude_vector": "magnitude", "w_norm": "diff",
    "b_norm": "diff_b",
}  # fmt: skip
_STYLES = {"A": "A/B", "B": "A/B", "down": "down/up", "up": "down/up", "mid": "down/up"}
_TAIL = re.compile(
    r"(?P<lead>\.lora_|[._]lora\.|\.lora_linear_layer\.)(?P<pair>A|B|up|down|mid)"
    r"(?:\.(?!(?:weight|bias)$)(?P<adapter>[^.]+))?(?P<leaf>\.weight|\.bias)?$"
    r"|\.(?P<one>alpha|diff|diff_b|dora_scale|lora_magnitude_vector|hada_w[12]_[ab]|hada_t[12]"
    r"|lokr_w[12](?:_[ab])?|lokr_t2|w_norm|b_norm|reshape_weight)"
    r"(?:\.(?!weight$)(?P<of>[^.]+))?(?:\.weight)?$"
)
_USUAL = {
    "A.weight": ("down", ".lora_A/B"), "B.weight": ("up", ".lora_A/B"),
    "down.weight": ("down", ".lora_down/up"), "up.weight": ("up", ".lora_down/up"),
}  # fmt: skip
_DIGITS = b"0123456789"
# What a tool's wrapper puts before a module's own name, in any order and number.
_PREFIXES = (
    "model.", "diffusion_model.", "base_model.", "transformer.", "unet.", "pipe.", "dit.",
    "module.", "_orig_mod.", "lora_unet_", "lora_transformer_", "lycoris_",
)  # fmt: skip
_TEXT = ("lora_te", "te_", "te1_", "te2_", "text_encoder", "text_model.", "cond_stage_model.")
_SCALES = re.compile(r"(scale_weight|weight_scale(_\d)?|scale_input|input_scale|comfy_quant)$")


@dataclass(frozen=True)
class Sorted:
    """All keys of a file. twice: pairs of keys that say the same thing of one module.

    groups: name without its tail -> role ("down", "hada_w1_a", "alpha" …) -> key. adapters: the
    same name -> what its tensors call their adapter. others: keys without a known tail. scaled:
    those of them that are scales of quantised matrices. styles: how matrices are named, such as
    ".lora_A/B".
    """

    groups: Mapping[str, Mapping[str, str]]
    adapters: Mapping[str, set[str]]
    others: tuple[str, ...]
    twice: tuple[tuple[str, str], ...]
    styles: tuple[str, ...]

    @cached_property
    def kinds(self) -> list[str]:
        """One name of each kind of module."""
        return one_of_each(self.groups)

    @property
    def scaled(self) -> list[str]:
        return [key for key in self.others if _SCALES.search(key)]


def sort_out(keys: Iterable[str]) -> Sorted:
    """Group a file's keys by the name before their tail."""
    groups: dict[str, dict[str, str]] = {}
    adapters: dict[str, set[str]] = {}
    others: list[str] = []
    twice: list[tuple[str, str]] = []
    styles: dict[str, None] = {}
    for key in keys:
        # Nearly all keys of a file end like this; the expression would take most of the time.
        stem, _, tail = key.partition(".lora_")
        usual = _USUAL.get(tail)
        if usual and stem:
            role, style = usual
            styles[style] = None
        elif key.endswith(".alpha") and len(key) > 6:
            stem, role = key[:-6], "alpha"
        else:
            found = None if _SCALES.search(key) else _TAIL.search(key)
            if found is None or not found.start():
                others.append(key)
                continue
            lead, pair, adapter, leaf, one, of = found.groups()
            if leaf == ".bias" and pair not in ("B", "up"):
                others.append(key)
                continue
            stem = key[: found.start()]
            role = "up_bias" if leaf == ".bias" else _ROLES.get(pair or one, one)
            if adapter or of:
                adapters.setdefault(stem, set()).add(adapter or of)
            if pair:
                styles[f"{lead}{_STYLES[pair]}" + (".<adapter>" if adapter else "")] = None
            elif one.startswith(("hada", "lokr", "diff")):
                styles["." + one[:4]] = None
        group = groups.get(stem)
        if group is None:
            groups[stem] = {role: key}
        elif group.setdefault(role, key) != key:
            twice.append((group[role], key))
    return Sorted(groups, adapters, tuple(others), tuple(twice), tuple(styles))


def one_of_each(names: Iterable[str]) -> list[str]:
    """Names that differ in more than their numbers: a few dozen out of thousands."""
    names = list(names)
    # All at once, apart by a byte that no text has. Of a name's numbers only that of a U-Net's
    # second attention says what a module is.
    text = b"\xff".join(name.encode("utf-8", "surrogatepass") for name in names)
    bare = text.replace(b"attn2", b"attn\xfe").translate(None, _DIGITS).split(b"\xff")
    return list(dict(zip(bare, names, strict=bool(names))).values())


def stripped(stem: str) -> str:
    """A name without the prefixes that tools put before it."""
    while stem.startswith(_PREFIXES):
        stem = next(stem[len(p) :] for p in _PREFIXES if stem.startswith(p))
    return stem


def for_text(stem: str) -> bool:
    """Whether a name that is no module of the model belongs to a text encoder."""
    return stem.startswith(_TEXT) or stripped(stem).startswith(_TEXT)


class Index:
    """A model's modules, found by any spelling of their names."""

    def __init__(self, modules: Iterable[str]) -> None:
        self._exact = frozenset(modules)
        flat: dict[str, str | None] = {}
        for name in self._exact:
            key = name.replace(".", "_")
            # Two modules of one flat name: a file that uses it is told "unmatched", not guessed.
            flat[key] = None if key in flat else name
        self._flat = flat

    def find(self, stem: str) -> str | None:
        """The module, or None where there is none or more than one of this name."""
        rest = stem
        while True:
            found = self._here(rest)
            if found is not None:
                return found
            if not rest.startswith(_PREFIXES):
                break
            rest = next(rest[len(p) :] for p in _PREFIXES if rest.startswith(p))
        # Attention processors of old diffusers: attn.processor.to_q_lora stands for attn.to_q.
        rest = rest.replace(".processor.", ".")
        return self._here(rest) or self._here(f"{rest}.0" if rest.endswith("to_out") else rest)

    def _here(self, name: str) -> str | None:
        return name if name in self._exact else self._flat.get(name)

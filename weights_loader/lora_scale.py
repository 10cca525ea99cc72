"""The scale of an adapter whose file tells alpha in its metadata and not beside each module.

diffusers writes PEFT's configuration into the metadata of its files. Without it and without an
`.alpha` tensor the scale is 1.

Source: diffusers loaders/lora_base.py (LORA_ADAPTER_METADATA_KEY), PEFT tuners/lora/config.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import WeightsError
from .safetensors_file import json_object

KEY = "lora_adapter_metadata"
_PARTS = ("transformer.", "unet.", "")
_NEXT = "ask its author for a file whose metadata are sound, or remove them with a converter"


@dataclass(frozen=True)
class Config:
    """What metadata tell. alpha: None for nothing. patterns: a module's name or its end -> alpha.

    root: alpha is divided by the root of the rank, not by the rank (rank-stabilised LoRA).
    """

    alpha: float | None = None
    patterns: Mapping[str, float] = field(default_factory=dict)
    root: bool = False

    def of(self, module: str) -> float | None:
        """The alpha that metadata give a module."""
        for name, alpha in self.patterns.items():
            if module == name or module.endswith(f".{name}"):
                return alpha
        return self.alpha

    def scale(self, alpha: float | None, rank: int) -> float:
        """What the product of the matrices is multiplied by."""
        if alpha is None or not rank:
            return 1.0
        return alpha / (math.sqrt(rank) if self.root else rank)


def from_metadata(path: Path, metadata: Mapping[str, str]) -> Config:
    """Read what diffusers wrote. Raises: WeightsError for what is no such configuration."""
    text = metadata.get(KEY)
    if not text:
        return Config()
    found = json_object(path, text.encode("utf-8", "surrogatepass"), KEY)
    part = next((p for p in _PARTS if f"{p}lora_alpha" in found or f"{p}r" in found), None)
    if part is None:
        return Config()
    alpha = found.get(f"{part}lora_alpha")
    patterns = found.get(f"{part}alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise WeightsError(path, f"names in {part}alpha_pattern", repr(patterns)[:80], _NEXT)
    return Config(
        None if alpha is None else _number(path, f"{part}lora_alpha", alpha),
        {_name(path, name): _number(path, name, value) for name, value in patterns.items()},
        found.get(f"{part}use_rslora") is True,
    )


def _number(path: Path, name: str, value: Any) -> float:  # noqa: ANN401
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e12:
        raise WeightsError(path, f"a number for {name} in {KEY}", repr(value)[:80], _NEXT)
    return float(value)


def _name(path: Path, name: str) -> str:
    # A pattern out of a file is compared as text: run as an expression it could take for ever.
    plain = name.removeprefix("^").removesuffix("$").replace("\\.", ".")
    if not re.fullmatch(r"[\w.]+", plain):
        raise WeightsError(path, f"names of modules in alpha_pattern of {KEY}", name[:80], _NEXT)
    return plain

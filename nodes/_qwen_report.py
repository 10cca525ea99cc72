"""What QwenEditLoader says of the models that it hands out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..engine import vram_plan
from ..weights_loader.qwen_image import Base, DiTConfig, Part, TextConfig, VAEConfig
from . import _modulation, _qwen_patcher

_GB = 1e9
# Single numbers, such as scales, are in float32 everywhere.
_TOLD = 10_000


def told(base: Base, text: Part, vae: Part, patchers: Sequence[Any], attention: str) -> str:
    """The report. patchers: of the DiT, the text encoder and the VAE."""
    model = patchers[0]
    used = _qwen_patcher.usual_attention() if attention == "auto" else attention
    lines = [
        f"base: {base.release}, {_found(base.dit)}",
        f"modulation: {_modulation_told(model, base.dit)}",
        f"text encoder: {_found(text)}",
        f"VAE: {_found(vae)}",
    ]
    for name, patcher in zip(("model", "text encoder", "VAE"), patchers, strict=True):
        lines.append(f"resident {name}: {_resident(patcher)}")
    lines += [f"attention: {used}", _peak(base, text, vae, patchers)]
    return "\n".join([*lines, *filter(None, [_qwen_patcher.too_large(model)])])


def _peak(base: Base, text: Part, vae: Part, patchers: Sequence[Any]) -> str:
    """What a card is to have at 1024², with one reference and decoding in strips."""
    dit, words, pictures = base.config, text.config, vae.config
    assert isinstance(words, TextConfig) and isinstance(pictures, VAEConfig)
    held = [_qwen_patcher.held(patcher.model) for patcher in patchers]
    tabled = _modulation.table_of(patchers[0].model) is not None
    loaded = vram_plan.Loaded(
        *held,
        table=_table_bytes(dit) if tabled else 0,
        dit_shape=vram_plan.DiTShape(dit.width, dit.head_dim, dit.in_channels),
        text_shape=vram_plan.TextShape(
            words.hidden, words.intermediate, words.vocabulary, words.vision_hidden
        ),
        vae_shape=vram_plan.VAEShape(pictures.dim),
    )
    job = vram_plan.Job(precision="fp32" if "float32" in held[2] else "bf16")
    streams = _qwen_patcher.is_sequential(patchers[0])
    there = {**loaded.bytes, **({"dit": 0} if streams else {})}
    made = vram_plan.predict(loaded, job, dict.fromkeys(vram_plan.PHASES, there))
    worst = made.worst
    held_told = "all but the streamed model" if streams else "all three"
    return (
        f"predicted peak at 1024² with one reference: {_size(made.peak)} in its {worst.name} phase"
        f" with {held_told} on the card, {_size(made.phase(vram_plan.DIT).bytes)} while sampling"
        " (simulated, with margins)"
    )


def _table_bytes(config: DiTConfig) -> int:
    """Of a run of 30 steps and the time 0 of references, in bf16."""
    return config.num_layers * 2 * 6 * config.width * 31 * 2


def _found(part: Part) -> str:
    """What a part is on disk."""
    formats = part.quantisation.formats
    kind = part.quantisation.kind
    stored = part.dtype if kind == "none" else f"{kind} ({', '.join(formats)})"
    files = f"{len(part.files)} files" if len(part.files) > 1 else part.files[0].name
    return f"{part.layout}, {stored}, {_size(part.total_bytes)} in {files}"


def _modulation_told(model: Any, part: Part) -> str:  # noqa: ANN401
    size = _size(part.bytes_by.get("modulation", 0))
    if _modulation.table_of(model.model) is None:
        return f"weights, {size} of the model's file"
    return f"table; {size} of weights stay on disk"


def _resident(patcher: Any) -> str:  # noqa: ANN401
    """What a model takes where it is loaded whole, by dtype."""
    sums = _qwen_patcher.held(patcher.model)
    parts = ", ".join(f"{name} {_size(size)}" for name, size in sums.items() if size >= _TOLD)
    return f"{_size(patcher.model_size())} ({parts})"


def _size(count: int) -> str:
    return f"{count / _GB:.2f} GB" if count >= _GB / 100 else f"{count / 1e6:.2f} MB"

"""What a memory plan needs to know of models and of a run, read from them. Names no host module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ..engine.vram_plan import DiTShape, Job, Loaded, TextShape, VAEShape
from . import _modulation, _qwen_patcher
from ._tensors import InputError

_PLANNED_STEPS = 30
_FACTOR = 8
_KIND = "QwenImageTransformer2DModel"


def loaded(model: Any, clip: Any, vae: Any) -> Loaded:  # noqa: ANN401
    """What a run has on its device. clip, vae: None where the run's are not known.

    Raises: InputError for a model that is no Qwen-Image: how much others take is not known here.
    """
    dit = getattr(model.model, "diffusion_model", None)
    if type(dit).__name__ != _KIND:
        raise InputError(
            "model",
            "Qwen-Image-Edit from QwenEditLoader",
            f"{type(model.model).__name__}, whose memory is not known here",
            "leave VRAM Guard out of this workflow",
        )
    more = sum(each.model_size() for each in model.get_nested_additional_models())
    tabled = _modulation.table_of(model.model) is not None
    return Loaded(
        dit=_qwen_patcher.held(model.model),
        text_encoder={} if clip is None else _qwen_patcher.held(clip.patcher.model),
        vae={} if vae is None else _qwen_patcher.held(vae.patcher.model),
        lora={"bfloat16": more} if more else {},
        table=_table_bytes(dit) if tabled else 0,
        dit_shape=DiTShape(dit.inner_dim, _head_dim(dit), dit.in_channels),
        text_shape=TextShape() if clip is None else _text_shape(clip.patcher.model),
        vae_shape=VAEShape(getattr(getattr(vae, "first_stage_model", None), "dim", VAEShape.base)),
    )


def _table_bytes(dit: Any) -> int:  # noqa: ANN401
    """Of a usual run's steps and the time 0 of references, for two streams, in bf16."""
    return len(dit.transformer_blocks) * 6 * dit.inner_dim * (2 * _PLANNED_STEPS + 1) * 2


def _head_dim(dit: Any) -> int:  # noqa: ANN401
    return dit.transformer_blocks[0].attn.dim_head


def _text_shape(model: nn.Module) -> TextShape:
    usual, found = TextShape(), {}
    for name, weight in model.named_parameters():
        if name.endswith("embed_tokens.weight"):
            found["vocabulary"], found["hidden"] = weight.shape[0], weight.shape[-1]
            found["narrow_embedding"] = weight.element_size() == 1
        elif name.endswith("layers.0.mlp.gate_proj.weight"):
            found["intermediate"] = weight.shape[0]
        elif name.endswith("visual.blocks.0.norm1.weight"):
            found["vision_hidden"] = weight.shape[0]
    return TextShape(**{**vars(usual), **found})


def job(width: int, height: int, precision: str = "fp32") -> Job:
    """A run that is not known yet but for its size: one reference, CFG."""
    usual = Job(precision=precision, conditionings=2)
    return usual.scaled(width, height)


def job_of(noise: Tensor, conds: Mapping[str, Iterable[Mapping[str, Any]]], cfg: float) -> Job:
    """The run that a sampler is about to make.

    noise: (B,16,h,w) or (B,16,1,h,w). conds: name -> the guider's conditionings. cfg: at 1 only the
    positive one runs.
    """
    height, width = (_FACTOR * side for side in noise.shape[-2:])
    known = {name: list(each) for name, each in conds.items()}
    running = [
        cond for name, each in known.items() if cfg != 1 or name == "positive" for cond in each
    ]
    texts = [_tokens(cond) for cond in running] or [0]
    references = max((_references(cond) for cond in running), key=len, default=())
    return Job(
        width=max(16, width),
        height=max(16, height),
        references=references,
        text_tokens=max(texts),
        batch=noise.shape[0],
        conditionings=max(1, len(running)),
        # The host joins them where their token counts match.
        at_once=max(map(texts.count, texts)),
    )


def _tokens(cond: Mapping[str, Any]) -> int:
    text = cond.get("cross_attn")
    return text.shape[1] if isinstance(text, Tensor) and text.ndim > 1 else 0


def _references(cond: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    latents = cond.get("reference_latents") or ()
    sides = ([max(16, _FACTOR * side) for side in each.shape[-2:]] for each in latents)
    return tuple((width, height) for height, width in sides)

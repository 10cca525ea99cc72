"""Qwen-Image-Edit's three networks made into the host's own objects.

What the host's loaders do with a file, done with tensors that the pack has read. Holds on ComfyUI
0.3.75 and 0.33.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
from collections.abc import Callable
from typing import Any

import comfy.ldm.qwen_image.model as host_qwen
import comfy.model_detection as detection
import comfy.model_management as management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.text_encoders.qwen_image as host_text
import comfy.text_encoders.qwen_vl as host_vision
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ..engine.modulation_table import is_modulation
from ..weights_loader import qwen_convert, qwen_image
from ..weights_loader.errors import WeightsError, listed
from ..weights_loader.qwen_image import DiTConfig, Part, TextConfig
from . import _modulation
from ._host import Progress
from ._qwen_patcher import AUTO, held, kind_of

TEXT_HEAD_DIM, TEXT_KEY_ROWS = 128, 512
"""Of the text encoder: the first is built into the host, by the second it knows the model."""

_SCALES = ("weight_scale", "scale_weight")
_SETTINGS = "_quantization_metadata"
_NEW_QUANTS = hasattr(comfy.utils, "convert_old_quants")


def knows_2511() -> bool:
    """Whether this host has 2511's reference method (ComfyUI 0.5.0 brought it)."""
    return (
        "default_ref_method" in inspect.signature(host_qwen.QwenImageTransformer2DModel).parameters
    )


def check(part: Part) -> None:
    """Refuse what this host cannot run, before it is loaded. Raises: WeightsError."""
    step = "update ComfyUI to 0.5.0 or newer, or choose another file"
    config = part.config
    if isinstance(config, DiTConfig) and config.zero_cond_t and not knows_2511():
        got = "Qwen-Image-Edit-2511, whose reference method came with ComfyUI 0.5.0"
        expected = "a model that this ComfyUI can run (Qwen-Image-Edit-2509 or before)"
        raise WeightsError(part.path, expected, got, step)
    formats = set(part.quantisation.formats) - {"float8_e4m3fn"}
    if part.quantisation.scheme and formats and not _NEW_QUANTS:
        expected = "quantisation that this ComfyUI knows (float8_e4m3fn)"
        raise WeightsError(part.path, expected, ", ".join(sorted(formats)), step)
    if isinstance(config, TextConfig):
        keys = config.kv_heads * config.head_dim
        if (config.head_dim, keys) != (TEXT_HEAD_DIM, TEXT_KEY_ROWS):
            expected = f"heads of {TEXT_HEAD_DIM} and keys of {TEXT_KEY_ROWS} numbers"
            step = "use the official text encoder, or ComfyUI's file of it"
            raise WeightsError(part.path, expected, f"{config.head_dim} and {keys}", step)


def load_dit(
    part: Part,
    tabled: bool,
    weight_dtype: str = qwen_convert.AS_STORED,
    offload: str = AUTO,
    disable_dynamic: bool = False,
) -> comfy.model_patcher.ModelPatcher:
    """The DiT under the host's memory management, its modulation answered from a table if asked.

    Weights that need not be converted stay views of their file: they are read when they are used.
    weight_dtype: one of qwen_convert.WEIGHT_DTYPES. offload: one of _qwen_patcher.OFFLOADS.
    Raises: WeightsError where this host cannot run it.
    """
    config = part.config
    assert isinstance(config, DiTConfig)
    check(part)
    qwen_convert.check(part, weight_dtype)
    state = qwen_image.state(part)
    modulation = _take_modulation(part, state) if tabled else {}
    state, settings = _settings(part, *_converted(part, state, weight_dtype))
    made = _detect(state, settings, config)
    load_device, offload_device = management.get_torch_device(), management.unet_offload_device()
    dtype = _set_dtype(made, state, load_device)
    model = _empty_model(made, state)
    kind = kind_of(offload, disable_dynamic)
    patcher = kind(model, load_device=load_device, offload_device=offload_device)
    if tabled:
        # What a file has in fp8 alone is not made finer by holding it in more bytes.
        narrow = weight_dtype == qwen_convert.AS_STORED and part.quantisation.kind != "none"
        provider = _provider(modulation)
        _modulation.attach(patcher, provider, None if narrow else dtype)
    _fill(part, patcher, state)
    if tabled:
        # Quantised layers had no weights to be counted before.
        patcher.size = sum(held(model).values()) + sum(each.nbytes for each in model.buffers())
    if hasattr(patcher, "cached_patcher_init"):
        patcher.cached_patcher_init = (load_dit, (part, tabled, weight_dtype, offload))
    return patcher


def load_text(part: Part, disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """The text encoder with its vision part, and ComfyUI's own tokenizer.

    Raises: WeightsError where this host cannot run it.
    """
    config = part.config
    assert isinstance(config, TextConfig)
    check(part)
    state, settings = _settings(part, qwen_image.state(part))
    options: dict[str, Any] = {
        "qwen25_7b_model_config": _text_sizes(config),
        "qwen25_7b_class": _text_class(config),
    }
    if not _NEW_QUANTS and _SETTINGS in settings:
        options["quantization_metadata"] = settings[_SETTINGS]
    more = {"disable_dynamic": True} if disable_dynamic else {}
    clip = comfy.sd.load_text_encoder_state_dicts(
        [state],
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        clip_type=comfy.sd.CLIPType.QWEN_IMAGE,
        model_options=options,
        **more,
    )
    if hasattr(clip.patcher, "cached_patcher_init"):
        clip.patcher.cached_patcher_init = (_text_patcher, (part,))
    return clip


def load_vae(part: Part) -> comfy.sd.VAE:
    """The VAE. Raises: what the host raises where it does not take it."""
    vae = comfy.sd.VAE(sd=qwen_image.state(part), metadata=dict(part.metadata))
    vae.throw_exception_if_invalid()
    if hasattr(vae.patcher, "cached_patcher_init"):
        vae.patcher.cached_patcher_init = (_vae_patcher, (part,))
    return vae


def _text_patcher(part: Part, **more: Any) -> comfy.model_patcher.ModelPatcher:
    return load_text(part, **more).patcher


def _vae_patcher(part: Part, **_more: Any) -> comfy.model_patcher.ModelPatcher:
    return load_vae(part).patcher


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _take_modulation(part: Part, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Modulation weights and what tells of their quantisation, out of a state dict."""
    packed = [n for n in part.quantisation.layers if is_modulation(f"{n}.weight")]
    if packed and part.quantisation.kind == "other":
        raise WeightsError(
            part.path,
            "modulation layers in full or in fp8, as the modulation table takes them",
            ", ".join(part.quantisation.formats),
            "set modulation to weights",
        )
    return {n: state.pop(n) for n in list(state) if is_modulation(f"{_layer(n)}.weight")}


def _provider(modulation: dict[str, Tensor]) -> Callable[[str], Tensor]:
    """Gives modulation weights in full; scaled fp8 is multiplied out in bf16 for the moment."""

    def lend(name: str) -> Tensor:
        weight = modulation[name]
        scaled = any(f"{_layer(name)}.{suffix}" in modulation for suffix in _SCALES)
        if scaled and weight.itemsize == 1:
            return qwen_convert.multiplied_out(name, weight, modulation)
        return weight

    return lend


def _converted(
    part: Part, state: dict[str, Tensor], weight_dtype: str
) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    if weight_dtype == qwen_convert.AS_STORED:
        return state, None
    progress = Progress(len(state))
    return qwen_convert.convert(part, state, weight_dtype, progress.step)


def _empty_model(made: Any, state: dict[str, Tensor]) -> torch.nn.Module:  # noqa: ANN401
    """The host's model, without memory for its weights where its layers can wait for them."""
    # Layers of quantised files move what they are given to where they were made.
    waits = not _is_quantised(made) and not _aimdo()
    model = made.get_model(state, "", **({"device": torch.device("meta")} if waits else {}))
    if waits:
        model.device = None
    return model


def _fill(part: Part, patcher: comfy.model_patcher.ModelPatcher, state: dict[str, Tensor]) -> None:
    """Give a model its weights: those of its own dtype as they are, without a copy."""
    model, offload_device = patcher.model, patcher.offload_device
    dynamic = getattr(patcher, "is_dynamic", lambda: False)()
    # A dynamic patcher casts what it is given, and wants its model in place before.
    if dynamic and offload_device.type != "cpu":
        model.to(offload_device)
    if not dynamic:
        wanted = dict(model.diffusion_model.named_parameters())
        state = {name: _as_held(each, wanted.get(name)) for name, each in state.items()}
    model.diffusion_model.requires_grad_(False)
    if "assign" in inspect.signature(model.load_model_weights).parameters:
        model.load_model_weights(state, "", assign=True)
    else:
        _assign(model, state)
    lost = [name for name, each in model.named_parameters() if each.is_meta]
    if lost:
        step = "use a file that ComfyUI's page for this model offers"
        raise WeightsError(part.path, "all tensors of the model", listed(lost, "missing"), step)
    if not dynamic and offload_device.type != "cpu":
        model.to(offload_device)


def _as_held(tensor: Tensor, parameter: Tensor | None) -> Tensor:
    if parameter is not None and parameter.dtype != tensor.dtype:
        return tensor.to(parameter.dtype)
    # Some writers leave tensors off their boundaries, where not all kernels take them.
    return tensor.clone() if tensor.data_ptr() % tensor.element_size() else tensor


def _assign(model: torch.nn.Module, state: dict[str, Tensor]) -> None:
    """What load_model_weights does, without the copy that it makes on older hosts."""
    state = model.model_config.process_unet_state_dict(state)
    missing, unexpected = model.diffusion_model.load_state_dict(state, strict=False, assign=True)
    # Scales of layers that a file leaves unquantised stay at one.
    missing = [name for name in missing if not name.endswith(("scale_weight", "scale_input"))]
    for names, what in ((missing, "missing"), (unexpected, "unexpected")):
        if names:
            logging.warning("Qwen-Image-Edit, %s: %s", what, names)


def _is_quantised(made: Any) -> bool:  # noqa: ANN401
    names = ("quant_config",) if _NEW_QUANTS else ("layer_quant_config", "scaled_fp8")
    return any(getattr(made, name) is not None for name in names)


def _aimdo() -> bool:
    return bool(getattr(getattr(comfy, "memory_management", None), "aimdo_enabled", False))


def _settings(
    part: Part, state: dict[str, Tensor], layers: dict[str, Any] | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Quantisation told in this host's own way. Returns: the state dict and the metadata.

    layers: settings by layer, None: those of the file.
    """
    settings = dict(part.metadata)
    own = settings.pop(_SETTINGS, None)
    if layers is None:
        layers = json.loads(own)["layers"] if own is not None else {}
        if not _NEW_QUANTS:
            layers = layers or qwen_image.layer_settings(part)
            state = {n: t for n, t in state.items() if not n.endswith(".comfy_quant")}
    layers = {name: each for name, each in layers.items() if f"{name}.weight" in state}
    if layers:
        settings[_SETTINGS] = json.dumps({"format_version": "1.0", "layers": layers})
    if _NEW_QUANTS:
        state, _ = comfy.utils.convert_old_quants(state, "", metadata=settings)
    return state, settings


def _detect(state: dict[str, Tensor], settings: dict[str, str], config: DiTConfig) -> Any:  # noqa: ANN401
    """The host's own description of the model, with the sizes that it does not look at."""
    made = detection.model_config_from_unet(state, "", metadata=dict(settings))
    made.unet_config.update(
        num_attention_heads=config.heads,
        attention_head_dim=config.head_dim,
        joint_attention_dim=config.joint_dim,
        axes_dims_rope=config.axes_dims,
    )
    return made


def _set_dtype(made: Any, state: dict[str, Tensor], device: torch.device) -> torch.dtype:  # noqa: ANN401
    """Hold weights in the dtype they have, and let the host choose what it computes in.

    Returns: what weights are held in that are not quantised.
    """
    known = list(made.supported_inference_dtypes)
    mixed = _is_quantised(made)
    count = comfy.utils.calculate_parameters(state)
    stored = None if mixed else comfy.utils.weight_dtype(state)
    dtype = stored or management.unet_dtype(model_params=count, supported_dtypes=known)
    cast = management.unet_manual_cast(None if mixed else dtype, device, known)
    takes_device = "device" in inspect.signature(made.set_inference_dtype).parameters
    made.set_inference_dtype(dtype, cast, **({"device": device} if takes_device else {}))
    return dtype


def _text_class(config: TextConfig) -> Callable[..., Any]:
    """The host's text encoder; its vision part in the sizes of these weights, and in order.

    The host lets one name this class, but builds one size of the vision part.
    """
    usual = host_text.Qwen25_7BVLIModel
    other_sizes = config.vision != TextConfig().vision
    if not other_sizes and _tokens_in_order():
        return usual

    def make(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        made = usual(*args, **kwargs)
        if other_sizes:
            old = made.transformer.visual.merger.ln_q.weight
            made.transformer.visual = _vision(config, old.dtype, old.device, made.operations)
        if not _tokens_in_order():
            made.transformer.visual.register_forward_hook(_put_in_order)
        return made

    return make


@functools.cache
def _tokens_in_order() -> bool:
    """Whether this host's vision part hands tokens out row by row, as the model learned them.

    Older ones leave them in the order of its windows, 4 × 4 tokens each: told by where a change of
    one token comes out.
    """
    side = 8
    config = TextConfig(
        vision_layers=0, vision_hidden=4, vision_intermediate=4, vision_heads=1, hidden=4
    )
    small = _vision(config, torch.float32, torch.device("cpu"), comfy.ops.disable_weight_init)
    for weight in small.parameters():
        weight.fill_(0.1)
    pixels = torch.zeros(side * side * 4, 3 * 2 * 14 * 14)
    pixels[4 * 4 : 4 * 5] = 1.0
    out = small(pixels, torch.tensor([[1, 2 * side, 2 * side]]))
    return bool((out[4] != out[0]).any())


def _put_in_order(vision: torch.nn.Module, given: tuple[Any, ...], tokens: Tensor) -> Tensor:
    windows, _ = vision.get_window_index(given[1])
    return tokens[torch.argsort(windows)]


def _vision(
    config: TextConfig, dtype: torch.dtype, device: torch.device, operations: object
) -> torch.nn.Module:
    made = host_vision.Qwen2VLVisionTransformer(
        hidden_size=config.vision_hidden,
        output_hidden_size=config.hidden,
        intermediate_size=config.vision_intermediate,
        num_heads=config.vision_heads,
        num_layers=config.vision_layers,
        device=device,
        dtype=dtype,
        ops=operations,
    )
    made.fullatt_block_indexes = list(config.vision_whole)
    return made.eval().requires_grad_(False)


def _text_sizes(config: TextConfig) -> dict[str, int]:
    return {
        "vocab_size": config.vocabulary,
        "hidden_size": config.hidden,
        "intermediate_size": config.intermediate,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
    }

"""Qwen-Image-Edit's three networks made into the host's own objects, each once for all workflows.

Beside _host.py and _modulation.py the only file here that names the host's modules: what the host's
loaders do with a file, done with tensors that the pack has read. Holds on ComfyUI 0.3.75 and 0.33.
"""

from __future__ import annotations

import inspect
import json
import weakref
from collections.abc import Callable
from typing import Any

import comfy.ldm.modules.attention as host_attention
import comfy.ldm.qwen_image.model as host_qwen
import comfy.model_detection as detection
import comfy.model_management as management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy.patcher_extension import CallbacksMP
from torch import Tensor

from ..engine.modulation_table import is_modulation
from ..weights_loader import qwen_image
from ..weights_loader.errors import WeightsError
from ..weights_loader.qwen_image import DiTConfig, Part, TextConfig
from . import _modulation
from ._host import outlive_entry

ATTENTIONS = ("pytorch", "xformers", "flash", "sage")
VISION = (32, 1280, 3420)
"""Layers, width and inner width of the vision part, which the host does not let one choose."""

_SETTINGS = "_quantization_metadata"
_KEY = "realtoon_qwen"
_SCALES = ("weight_scale", "scale_weight")
_NEW_QUANTS = hasattr(comfy.utils, "convert_old_quants")

_kept: dict[str, tuple[tuple[Any, ...], Any]] = {}
_alive: weakref.WeakValueDictionary[tuple[Any, ...], Any] = weakref.WeakValueDictionary()


def shared(key: tuple[Any, ...], build: Callable[[], Any]) -> Any:  # noqa: ANN401
    """What ``build`` gives (a patcher, CLIP or VAE), made once as long as anybody has it.

    key: its kind, then what it is made of. One of a kind is held here, until the host unloads it or
    another one is asked for; beside that it lives as long as the workflows that use it.
    """
    made = _alive.get(key)
    kind = key[0]
    if made is None:
        # Two bases are not to be in memory at once because the old one was kept for nobody.
        _kept.pop(kind, None)
        made = _alive[key] = build()
        _patcher(made).add_callback_with_key(
            CallbacksMP.ON_DETACH,
            _KEY,
            lambda gone, unload=True: _let_go(key, gone) if unload else None,
        )
    _kept[kind] = (key, made)
    return made


def _patcher(made: Any) -> comfy.model_patcher.ModelPatcher:  # noqa: ANN401
    return getattr(made, "patcher", made)


def _let_go(key: tuple[Any, ...], patcher: comfy.model_patcher.ModelPatcher) -> None:
    held = _kept.get(key[0])
    if held is None or held[0] != key:
        return
    outlive_entry(patcher.model, held[1])
    del _kept[key[0]]


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
        sizes = (config.vision_layers, config.vision_hidden, config.vision_intermediate)
        if sizes != VISION:
            expected = "a vision part of {} layers, {} and {} wide".format(*VISION)
            step = "use the official text encoder, or ComfyUI's file of it"
            raise WeightsError(part.path, expected, "one of {}, {} and {}".format(*sizes), step)


def load_dit(
    part: Part, tabled: bool, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """The DiT under the host's memory management, its modulation answered from a table if asked.

    Raises: WeightsError where this host cannot run it.
    """
    config = part.config
    assert isinstance(config, DiTConfig)
    check(part)
    state = qwen_image.state(part)
    modulation = _take_modulation(part, state) if tabled else {}
    state, settings = _settings(part, state)
    made = _detect(state, settings, config)
    load_device, offload_device = management.get_torch_device(), management.unet_offload_device()
    dtype = _set_dtype(made, state, load_device)
    model = made.get_model(state, "")
    core = comfy.model_patcher.ModelPatcher
    kind = core if disable_dynamic else getattr(comfy.model_patcher, "CoreModelPatcher", core)
    patcher = kind(model, load_device=load_device, offload_device=offload_device)
    if tabled:
        narrow = dtype.itemsize == 1 or part.quantisation.kind != "none"
        provider = _provider(modulation)
        _modulation.attach(patcher, provider, None if narrow else dtype)
    if offload_device.type != "cpu":
        model.to(offload_device)
    is_dynamic = getattr(patcher, "is_dynamic", None)
    more = {"assign": is_dynamic()} if is_dynamic else {}
    model.load_model_weights(state, "", **more)
    if hasattr(patcher, "cached_patcher_init"):
        patcher.cached_patcher_init = (load_dit, (part, tabled))
    return patcher


def load_text(part: Part, disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """The text encoder with its vision part, and ComfyUI's own tokenizer.

    Raises: WeightsError where this host cannot run it.
    """
    config = part.config
    assert isinstance(config, TextConfig)
    check(part)
    state, settings = _settings(part, qwen_image.state(part))
    options: dict[str, Any] = {"qwen25_7b_model_config": _text_sizes(config)}
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


def attentions() -> list[str]:
    """Those of ATTENTIONS that this host can run."""
    registered = getattr(host_attention, "REGISTERED_ATTENTION_FUNCTIONS", {})
    return [name for name in ATTENTIONS if name in registered]


def set_attention(patcher: comfy.model_patcher.ModelPatcher, name: str) -> None:
    """Let a model compute attention one way, whatever the host was started with."""
    function = host_attention.REGISTERED_ATTENTION_FUNCTIONS[name]

    def override(_usual: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        return function(*args, **kwargs)

    options = patcher.model_options.setdefault("transformer_options", {})
    options["optimized_attention_override"] = override


def usual_attention() -> str:
    """The name of what the host uses where nothing else is asked for."""
    name = getattr(host_attention.optimized_attention, "__name__", "unknown")
    return name.removeprefix("attention_")


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
        scales = [modulation.get(f"{_layer(name)}.{suffix}") for suffix in _SCALES]
        scale = next((each for each in scales if each is not None), None)
        if scale is None or not name.endswith(".weight") or weight.itemsize > 1:
            return weight
        factor = scale.float() if scale.numel() == 1 else scale.float().reshape(-1, 1)
        return (weight.float() * factor).to(torch.bfloat16)

    return lend


def _settings(part: Part, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Quantisation told in this host's own way. Returns: the state dict and the metadata."""
    settings = dict(part.metadata)
    layers = json.loads(settings[_SETTINGS])["layers"] if _SETTINGS in settings else {}
    if not _NEW_QUANTS:
        layers = layers or qwen_image.layer_settings(part)
        state = {n: t for n, t in state.items() if not n.endswith(".comfy_quant")}
    layers = {name: each for name, each in layers.items() if f"{name}.weight" in state}
    settings.pop(_SETTINGS, None)
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
    """Choose dtypes as the host does. Returns: what weights are held in."""
    names = ("quant_config",) if _NEW_QUANTS else ("layer_quant_config",)
    mixed = any(getattr(made, name) for name in names)
    scaled = not _NEW_QUANTS and made.scaled_fp8 is not None
    known = list(made.supported_inference_dtypes)
    stored = None if mixed or scaled else comfy.utils.weight_dtype(state)
    count = comfy.utils.calculate_parameters(state)
    dtype = management.unet_dtype(model_params=count, supported_dtypes=known, weight_dtype=stored)
    cast = management.unet_manual_cast(None if mixed else dtype, device, known)
    takes_device = "device" in inspect.signature(made.set_inference_dtype).parameters
    made.set_inference_dtype(dtype, cast, **({"device": device} if takes_device else {}))
    return dtype


def _text_sizes(config: TextConfig) -> dict[str, int]:
    return {
        "vocab_size": config.vocabulary,
        "hidden_size": config.hidden,
        "intermediate_size": config.intermediate,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
    }

"""The host's VAEs decoded and encoded in strips where that gives the full result, else by the host.

Names the host's modules for this subject; holds on ComfyUI 0.3.75 and 0.33. Weights come through
the host's own cast, so that what it keeps off the device, or patches as it lends, is right here.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from typing import Any

import comfy.model_management as management
import comfy.ops
import comfy.sd
import torch
from torch import Tensor, nn

from ..engine import streamed_decode as engine
from ..engine import wan_vae
from ..engine.row_network import Hooks, RowNetwork
from ..engine.vram_plan import DECODE, ENCODE
from ..engine.wan_vae import FACTOR, UnknownNetworkError
from . import _guard_clones, _host
from ._tensors import InputError

PRECISIONS = ("fp32", "bf16", "as loaded")

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_SLACK = 1.15
"""What kernels and the allocator take beside what is counted."""
_GB = 1e9

Read = Callable[..., RowNetwork]


def decode(
    vae: comfy.sd.VAE, latent: Tensor, precision: str, strip_rows: int
) -> tuple[Tensor, str]:
    """Latents to pictures.

    latent: (B,C,h,w) or (B,C,frames,h,w), as the VAE's own decode takes it. precision: one of
    PRECISIONS. strip_rows: rows of the latent at once; 0 takes what suits free memory.
    Returns: (B,H,W,C) in [0,1] and a report in lines. Raises: InputError.
    """
    started = time.perf_counter()
    vae.throw_exception_if_invalid()
    latent = latent.unbind()[0] if getattr(latent, "is_nested", False) else latent
    if latent.ndim == 4 and vae.latent_dim == 3:
        latent = latent[:, :, None]
    _check_latent(vae, latent)
    many = latent.ndim == 5 and latent.shape[2] != 1
    try:
        if many:
            raise UnknownNetworkError("samples", "one frame", f"{latent.shape[2]} frames")
        job = _Job(vae, wan_vae.read_decoder, precision, latent.shape[-2:])
    except UnknownNetworkError as error:
        image, told = _by_host(vae, "decode", latent)
        image = image.reshape(-1, *image.shape[-3:])
        return image, _host_report(vae, "decoded", told, error, started)
    step = _host.Progress(len(latent)).step
    measured = _guard_clones.measuring(vae.patcher, DECODE)
    with measured, job.running(strip_rows, step) as (network, rows, hooks):
        sides = (FACTOR * latent.shape[-2], FACTOR * latent.shape[-1])
        channels = network.back[-1].weights[0].shape[0]
        image = _room(vae, (len(latent), *sides, channels))
        told = engine.decode(network, latent[:, :, 0], image, rows, vae.process_output, hooks)
    return image, job.report("decode", image.shape[1:3], told, len(latent), started)


def encode(
    vae: comfy.sd.VAE,
    image: Tensor,
    precision: str,
    strip_rows: int,
    step: Callable[[float], None] | None = None,
) -> tuple[Tensor, str]:
    """Pictures to latents, each picture for itself.

    image: (B,H,W,C) in [0,1]; what exceeds a multiple of 8 is cut off evenly, as the host does.
    step: told of each part of a picture that is done; None draws a bar on the node.
    The other arguments and errors as in decode.
    Returns: latents in the VAE's own shape, (B,16,1,h,w), and a report in lines.
    """
    started = time.perf_counter()
    vae.throw_exception_if_invalid()
    pixels = vae.vae_encode_crop_pixels(_with_channels(image, vae.output_channels))
    height, width = pixels.shape[1:3]
    if not height or not width:
        got = f"{image.shape[2]}×{image.shape[1]}"
        raise InputError("pixels", f"sides of {FACTOR} px or more", got, "take a larger picture")
    hw = (height // FACTOR, width // FACTOR)
    try:
        job = _Job(vae, wan_vae.read_encoder, precision, hw)
    except UnknownNetworkError as error:
        latent, told = _by_host(vae, "encode", pixels)
        if step is not None:
            step(len(pixels))
        return latent, _host_report(vae, "encoded", told, error, started)
    step = step or _host.Progress(len(pixels)).step
    measured = _guard_clones.measuring(vae.patcher, ENCODE)
    with measured, job.running(strip_rows, step) as (network, rows, hooks):
        latent = _room(vae, (len(pixels), vae.latent_channels, 1, *hw))
        told = engine.encode(network, pixels, latent[:, :, 0], rows, vae.process_input, hooks)
    return latent, job.report("encode", (height, width), told, len(pixels), started)


class _Job:
    """One network of a VAE, planned on shapes alone before anything is loaded.

    hw: of the latent. Raises: UnknownNetworkError.
    """

    def __init__(self, vae: comfy.sd.VAE, read: Read, precision: str, hw: tuple[int, int]) -> None:
        if precision not in PRECISIONS:
            options = ", ".join(PRECISIONS)
            raise InputError("precision", f"one of {options}", repr(precision), "pick one of them")
        self._vae, self._read, self._hw = vae, read, hw
        self._dtype = _TYPES.get(precision, vae.vae_dtype)
        self._plan = read(vae.first_stage_model, self._dtype, torch.device("meta"), _shapes)
        self._peak = 0

    @contextlib.contextmanager
    def running(
        self, strip_rows: int, step: Callable[[float], None]
    ) -> Iterator[tuple[RowNetwork, int, Hooks]]:
        """The network on its device, the strips' height, and the host's progress and interrupt."""
        vae, device = self._vae, self._vae.device
        rows = strip_rows or self._best_rows()
        self._load(rows)
        # Asked again: what the host has put away for this is free by now.
        rows = min(strip_rows or self._best_rows(), self._hw[0])
        self._peak = self._plan.peak_bytes(self._hw, rows)
        hooks = Hooks(step, _host.is_out_of_memory, _host.give_memory_back)
        here = getattr(management, "cuda_device_context", contextlib.nullcontext)
        with here(device), _true_fp32(self._dtype), torch.inference_mode():
            yield self._read(vae.first_stage_model, self._dtype, device, _lent), rows, hooks

    def _best_rows(self) -> int:
        free = management.get_free_memory(self._vae.device)
        return self._plan.best_rows(self._hw, int(free / _SLACK))

    def _load(self, rows: int) -> None:
        need = int(_SLACK * self._plan.peak_bytes(self._hw, rows))
        full = self._vae.disable_offload
        management.load_models_gpu([self._vae.patcher], memory_required=need, force_full_load=full)

    def report(
        self, what: str, sides: Any, told: engine.Told, pictures: int, started: float
    ) -> str:
        """What was done, in lines."""
        name = _NAMES.get(self._dtype, str(self._dtype))
        lines = [
            f"{what}: streamed, exact (the full {what} in {name} but for rounding)",
            f"{sides[1]}×{sides[0]}, {name}, {told.strips} strips of at most {told.rows} rows",
            f"peak beyond latent, weights and picture: {self._peak / _GB:.2f} GB (predicted)",
            f"seconds: {time.perf_counter() - started:.2f}",
        ]
        if pictures > 1:
            lines.insert(1, f"{pictures} pictures, one after the other")
        if told.halvings:
            lines.append(f"memory ran out {told.halvings} times: smaller strips went on from there")
        return "\n".join(lines)


def _shapes(
    module: nn.Module, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    weight, bias = module.weight, module.bias
    empty = torch.empty(weight.shape, dtype=dtype, device=device)
    return empty, None if bias is None else torch.empty(bias.shape, dtype=dtype, device=device)


def _lent(
    module: nn.Module, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """As the host's own layers ask for their weights."""
    weight, bias, stream = comfy.ops.cast_bias_weight(
        module, None, dtype, device, dtype, offloadable=True
    )
    # Copied before it goes back: the host uses the place for the next layer.
    weight, bias = weight.to(copy=True), None if bias is None else bias.to(dtype, copy=True)
    comfy.ops.uncast_bias_weight(module, weight, bias, stream)
    return weight, bias


@contextlib.contextmanager
def _true_fp32(dtype: torch.dtype) -> Iterator[None]:
    """cuDNN rounds fp32 to 10 bits for its convolutions unless it is told not to."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = before and dtype != torch.float32
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _room(vae: comfy.sd.VAE, shape: tuple[int, ...]) -> Tensor:
    """An empty tensor as the host's VAE hands it out."""
    own = getattr(vae, "vae_output_dtype", None)
    return torch.empty(shape, device=vae.output_device, dtype=own() if own else torch.float32)


def _check_latent(vae: comfy.sd.VAE, latent: Tensor) -> None:
    channels = vae.latent_channels
    if latent.ndim >= 4 and latent.shape[1] == channels and 0 not in latent.shape:
        return
    raise InputError(
        "samples",
        f"a latent of this VAE, {channels} channels",
        f"a tensor of shape {tuple(latent.shape)}",
        "take the VAE of the model that made the latent",
    )


def _with_channels(image: Tensor, count: int) -> Tensor:
    """(B,H,W,count): grey is repeated, alpha is left out, or added as opaque where it is wanted."""
    if image.shape[-1] < 3:
        image = image[..., :1].expand(*image.shape[:-1], 3)
    if count > image.shape[-1]:
        return nn.functional.pad(image, (0, count - image.shape[-1]), value=1.0)
    return image[..., :count]


def _by_host(vae: comfy.sd.VAE, way: str, given: Tensor) -> tuple[Tensor, str]:
    """What the host's own decode or encode gives; whole, or in tiles where memory ran out."""
    seen: list[str] = []

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            seen.append("tiles")
            return call(*args, **kwargs)

        return run

    # A copy, so that the VAE itself is left as it is.
    watched = copy.copy(vae)
    for name in dir(vae):
        if name.lstrip("_").startswith(f"{way}_tiled"):
            setattr(watched, name, counted(getattr(watched, name)))
    result = getattr(watched, way)(given)
    return result, "in tiles (approximate: seams and shifts of colour)" if seen else "whole"


def _host_report(
    vae: comfy.sd.VAE, done: str, told: str, error: UnknownNetworkError, started: float
) -> str:
    name = _NAMES.get(vae.vae_dtype, str(vae.vae_dtype))
    return "\n".join(
        [
            f"{done} by ComfyUI's own code, {told}, in {name} as the VAE is loaded",
            f"not streamed: {error}",
            f"seconds: {time.perf_counter() - started:.2f}",
        ]
    )

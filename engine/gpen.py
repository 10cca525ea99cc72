"""GPEN's generator: a blurred face goes in, a sharp one comes out.

Source: yangxy/GPEN @2c73670, ``face_model/gpen_model.py`` (FullGenerator, concatenating). It
differs in how the same numbers are computed:

- Constant factors (equalised learning rates, the activation's root of two) are in the weights.
- Style and demodulation never make a stack of kernels to be run as groups. On small levels, where
  a kernel outweighs the pixels, all faces share one pass over it: the input is scaled by the style
  and the output by the demodulation. On large ones a face has a scaled kernel of its own, and bias
  and activation run inside the convolution.
- Large levels are computed face by face, so that memory grows with a batch only by what the
  encoder hands to the decoder.
- Blurs are depthwise convolutions; zero-insertion and blur are one transposed convolution.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor, nn

from .convolution import SLOPE, convolve

STYLE_DIM = 512
MLP_LAYERS = 8
DEMODULATION_EPS = 1e-8

_SHARED_PX = 32
"""Up to this size a level's kernel outweighs its pixels by far."""
_GAIN = math.sqrt(2.0)
_TAPS = (0.125, 0.375, 0.375, 0.125)
_ROWS_BYTES = 8 << 20
_CL = torch.channels_last


class Config(Protocol):
    """What the network needs to know; ``weights_loader.gpen.GPENConfig`` is one."""

    @property
    def size(self) -> int:
        """Side of a face in pixels, a power of two from 256."""
        ...

    @property
    def channels(self) -> tuple[int, ...]:
        """Features of the levels of 4, 8, ... ``size`` px, before encoder features join them."""
        ...


def working_bytes(config: Config, faces: int, dtype: torch.dtype) -> int:
    """Memory that a forward pass takes beside the weights, an upper bound.

    What the encoder keeps grows with ``faces``; the largest level is one face's at a time.
    """
    levels = enumerate(config.channels)
    kept = sum(channels << (2 * n + 4) for n, channels in levels)
    largest = 6 * config.channels[-1] * config.size**2
    item = torch.finfo(dtype).bits // 8
    return item * (faces * kept + largest) + faces * 12 * config.size**2 + _ROWS_BYTES


def mixed_dtype(device: torch.device) -> torch.dtype:
    """What "mixed" runs large levels in: float16, whose steps are finer, where it is fast."""
    return torch.bfloat16 if device.type == "cpu" else torch.float16


def gains_by_mixed(device: torch.device) -> bool:
    """Whether mixed precision is known to be faster as well as smaller."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (7, 0)
    if device.type != "cpu":
        return False
    # Without matrix tiles, a processor's bfloat16 convolutions gain little or lose.
    has_tiles = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return has_tiles is not None and bool(has_tiles())


def _nothing() -> None:
    """The check of a caller who cannot be interrupted."""


# Every parameter lies in a module without children: memory managers move such modules whole.
class _Kernel(nn.Module):
    """A modulated 3x3 convolution's weight, and (O,I) the sum of its taps' squares.

    weight: (O,I,3,3), or (I,O,3,3) of one that doubles the size: as the convolution reads it.
    """

    squares: Tensor

    def __init__(self, out_channels: int, in_channels: int, up: bool) -> None:
        super().__init__()
        ends = (in_channels, out_channels) if up else (out_channels, in_channels)
        self.weight = nn.Parameter(torch.empty(*ends, 3, 3))
        self.register_buffer("squares", torch.empty(out_channels, in_channels), persistent=False)


class _Joint(nn.Module):
    """How encoder features join: their gain, and the bias of both halves."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.empty(1))
        self.bias = nn.Parameter(torch.empty(2 * channels))


class _Styled(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, up: bool = False) -> None:
        super().__init__()
        self.up = up
        self.modulation = nn.Linear(STYLE_DIM, in_channels)
        self.kernel = _Kernel(out_channels, in_channels, up)
        self.joint = _Joint(out_channels)


class _ToRGB(nn.Module):
    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(STYLE_DIM, in_channels)
        self.projection = nn.Conv2d(in_channels, 3, 1)


class _Constant(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, channels, 4, 4))


class GPEN(nn.Module):
    """The generator. Build it with ``with_weights``: its own names and numbers are folded ones."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.size = config.size
        c = config.channels
        last = len(c) - 1
        self.encoder = nn.ModuleList([nn.Conv2d(3, c[last], 1)])
        self.encoder.extend(nn.Conv2d(c[n], c[n - 1], 3) for n in range(last, 0, -1))
        self.squeeze = nn.Linear(c[0] * 16, STYLE_DIM)
        self.style = nn.ModuleList(nn.Linear(STYLE_DIM, STYLE_DIM) for _ in range(MLP_LAYERS))
        self.constant = _Constant(c[0])
        self.styled = nn.ModuleList([_Styled(c[0], c[0])])
        self.rgbs = nn.ModuleList([_ToRGB(2 * c[0])])
        for n in range(1, len(c)):
            self.styled.extend([_Styled(2 * c[n - 1], c[n], up=True), _Styled(2 * c[n], c[n])])
            self.rgbs.append(_ToRGB(2 * c[n]))

    @classmethod
    def with_weights(
        cls, config: Config, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
    ) -> "GPEN":
        """The network with these tensors, ready to run.

        tensors: by the published names, without the fixed blur kernels, float32.
        dtype: of large kernels and of what flows between them. In half precision the style path,
            the demodulation and the sum of pictures stay float32.
        Raises: RuntimeError where a name or a shape is missing or too many.
        """
        with torch.device("meta"):
            net = cls(config)
        folded = {}
        for name, tensor in tensors.items():
            own, value = _fold(name, tensor)
            folded[own] = value
        net.load_state_dict(folded, strict=True, assign=True)
        for layer in net.styled:
            assert isinstance(layer, _Styled)
            kernel = layer.kernel
            squares = kernel.weight.detach().square().sum((2, 3))
            kernel.squares = squares.T.contiguous() if layer.up else squares
            kernel.to(memory_format=_CL)
            kernel.weight.data = kernel.weight.data.to(dtype)
        net.encoder.to(dtype).to(memory_format=_CL)
        return net.requires_grad_(False).eval()

    @property
    def dtype(self) -> torch.dtype:
        """Of large kernels and of what flows between them."""
        return self.encoder[0].weight.dtype  # type: ignore[return-value]

    @property
    def steps(self) -> int:
        """How often a batch of one calls ``check``; each further face adds ``face_steps``."""
        return 2 * len(self.rgbs)

    @property
    def face_steps(self) -> int:
        """How often each face of a batch after the first calls ``check``."""
        return 2 * (len(self.rgbs) - self._shared_levels)

    @property
    def _shared_levels(self) -> int:
        return int(math.log2(min(self.size, _SHARED_PX))) - 1

    def forward(self, faces_bchw: Tensor, check: Callable[[], None] = _nothing) -> Tensor:
        """Restore aligned faces.

        faces_bchw: (B,3,S,S) float RGB in [-1,1], S the network's ``size``. check: called between
        steps; it stops the run by raising. Returns: the same shape, float32, not clamped.
        Raises: ValueError for another shape.
        """
        if faces_bchw.ndim != 4 or faces_bchw.shape[1:] != (3, self.size, self.size):
            raise ValueError(
                f"faces_bchw: expected (B,3,{self.size},{self.size}), got {tuple(faces_bchw.shape)}"
            )
        features = self._encode(faces_bchw.to(self.encoder[0].weight), check)  # type: ignore[arg-type]
        return self._decode(self._latent(features[0][0]), features, check)

    def _encode(self, faces: Tensor, check: Callable[[], None]) -> list[list[Tensor]]:
        """Features of each level, 4 px first: one tensor for the batch, or one for each face."""
        levels: list[list[Tensor]] = []
        for n, layer in enumerate(self.encoder):
            shared = self.size >> n <= _SHARED_PX
            if n == 0:
                parts = list(faces.split(1))
            else:
                parts = [torch.cat(levels[-1])] if shared else levels[-1]
            made = []
            for part in parts:
                made.append(_encoded(part, layer, blurred=n > 0))
                check()
            levels.append(made)
        return levels[::-1]

    def _latent(self, deepest: Tensor) -> Tensor:
        """(B,C,4,4) -> the style w, (B,512) float32."""
        x = deepest.float().contiguous().flatten(1)
        x = F.leaky_relu(self.squeeze(x), SLOPE)
        x = x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        for layer in self.style:
            x = F.leaky_relu(layer(x), SLOPE)
        return x

    def _decode(
        self, style: Tensor, features: list[list[Tensor]], check: Callable[[], None]
    ) -> Tensor:
        constant = self.constant.weight.to(features[0][0].dtype)
        x = constant.expand(len(style), -1, -1, -1).contiguous(memory_format=_CL)
        x = self._join(0, x, style, features[0][0])
        picture = self._picture(0, x, style, None)
        check()
        shared = self._shared_levels
        for n in range(1, shared):
            x, picture = self._level(n, x, picture, style, features[n][0])
            features[n].clear()
            check()
        made = []
        for face in range(len(style)):
            one = slice(face, face + 1)
            y, drawn, w = x[one], picture[one], style[one]
            for n in range(shared, len(self.rgbs)):
                # Taken out of the list, so that a level's memory is free after it.
                y, drawn = self._level(n, y, drawn, w, features[n].pop(0))
                check()
            made.append(drawn)
        return torch.cat(made) if len(made) > 1 else made[0]

    def _level(
        self, n: int, x: Tensor, picture: Tensor, style: Tensor, feature: Tensor
    ) -> tuple[Tensor, Tensor]:
        x = self._join(2 * n - 1, x, style, feature)
        x = self._join(2 * n, x, style, feature)
        return x, self._picture(n, x, style, picture)

    def _join(self, index: int, x: Tensor, style: Tensor, feature: Tensor) -> Tensor:
        """A modulated convolution, then the encoder's features beside it, both activated."""
        layer = self.styled[index]
        assert isinstance(layer, _Styled)
        batch, channels, height, width = feature.shape
        bias = layer.joint.bias.to(feature.dtype)
        run = _modulated_up if layer.up else _modulated
        drawn = run(x, layer, style, bias[:channels])
        room = feature.new_empty(batch, height, width, 2 * channels).permute(0, 3, 1, 2)
        room[:, :channels] = drawn
        del drawn
        joined = room[:, channels:]
        gain = layer.joint.gain.to(feature.dtype)
        torch.addcmul(bias[channels:, None, None], feature, gain, out=joined)
        F.leaky_relu(joined, SLOPE, inplace=True)
        return room

    def _picture(self, n: int, x: Tensor, style: Tensor, skip: Tensor | None) -> Tensor:
        """(B,3,H,W) float32: this level's colours on top of the smaller picture, doubled."""
        layer = self.rgbs[n]
        assert isinstance(layer, _ToRGB)
        scale = layer.modulation(style)
        weight = layer.projection.weight * scale[:, None, :, None, None]
        picture = x.new_empty(len(x), 3, *x.shape[2:], dtype=torch.float32)
        rows = max(1, _ROWS_BYTES // (4 * x.shape[1] * x.shape[3]))
        for face, kernel in enumerate(weight):
            for top in range(0, x.shape[2], rows):
                # Float32 from here on, a few rows at a time: halves of a sum would show.
                part = x[face : face + 1, :, top : top + rows].float()
                drawn = F.conv2d(part, kernel, layer.projection.bias)
                picture[face, :, top : top + rows] = drawn[0]
        if skip is None:
            return picture
        kernel = _blur_kernel(3, picture, gain=4.0)
        return picture.add_(F.conv_transpose2d(skip, kernel, stride=2, padding=1, groups=3))


def _encoded(x: Tensor, layer: nn.Module, *, blurred: bool) -> Tensor:
    assert isinstance(layer, nn.Conv2d) and layer.bias is not None
    x = x.contiguous(memory_format=_CL)
    if not blurred:
        return convolve(x, layer.weight, layer.bias, (0, 0))
    x = F.conv2d(x, _blur_kernel(x.shape[1], x), padding=2, groups=x.shape[1])
    return convolve(x, layer.weight, layer.bias, (0, 0), stride=2)


def _gains(layer: _Styled, style: Tensor) -> tuple[Tensor, Tensor]:
    """Scale of each input (B,I), at most 1 in size, and of each output (B,O), both float32."""
    scale = layer.modulation(style)
    demodulation = (scale.square() @ layer.kernel.squares.T + DEMODULATION_EPS).rsqrt()
    # A common factor cancels out. Without it half precision could overflow in the product.
    most = scale.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return scale / most, demodulation * most * _GAIN


def _shares(x: Tensor, kernel: Tensor) -> bool:
    """Whether scaling the input is cheaper than scaling the kernel."""
    return len(x) > 1 or x.numel() < kernel.numel()


def _own_kernel(layer: _Styled, scale: Tensor, gain: Tensor) -> Tensor:
    """The kernel of a single face, laid out as the shared one."""
    factors = gain[0][:, None] * scale[0][None]
    factors = (factors.T if layer.up else factors)[:, :, None, None]
    return (layer.kernel.weight * factors).to(layer.kernel.weight.dtype)


def _finish(y: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    y = torch.addcmul(bias[:, None, None], y, gain.to(y.dtype)[:, :, None, None])
    return F.leaky_relu(y, SLOPE, inplace=not torch.is_grad_enabled())


def _modulated(x: Tensor, layer: _Styled, style: Tensor, bias: Tensor) -> Tensor:
    """3x3 at the same size, activated."""
    kernel = layer.kernel.weight
    scale, gain = _gains(layer, style)
    if not _shares(x, kernel):
        return convolve(x, _own_kernel(layer, scale, gain), bias)
    y = F.conv2d(x * scale.to(x.dtype)[:, :, None, None], kernel, padding=1)
    return _finish(y, gain, bias)


def _modulated_up(x: Tensor, layer: _Styled, style: Tensor, bias: Tensor) -> Tensor:
    """3x3 at twice the size, blurred and activated."""
    kernel = layer.kernel.weight
    channels = kernel.shape[1]
    scale, gain = _gains(layer, style)
    blur = _blur_kernel(channels, x, gain=4.0)
    if not _shares(x, kernel):
        y = F.conv_transpose2d(x, _own_kernel(layer, scale, gain), stride=2)
        return convolve(y, blur, bias, groups=channels)
    x = x * scale.to(x.dtype)[:, :, None, None]
    y = F.conv_transpose2d(x, kernel, stride=2)
    return _finish(F.conv2d(y, blur, padding=1, groups=channels), gain, bias)


def _blur_kernel(channels: int, like: Tensor, gain: float = 1.0) -> Tensor:
    """The binomial blur of 4x4 taps for each of ``channels``: (C,1,4,4)."""
    taps = like.new_tensor(_TAPS, dtype=torch.float32)
    kernel = (gain * taps[:, None] * taps[None]).to(like.dtype)
    return kernel.expand(channels, 1, 4, 4).contiguous(memory_format=_CL)


_RULES: Sequence[tuple[str, Callable[[re.Match[str]], str]]] = [
    (r"generator\.style\.(\d+)\.(weight|bias)", lambda m: f"style.{int(m[1]) - 1}.{m[2]}"),
    (r"generator\.input\.input", lambda m: "constant.weight"),
    (r"generator\.conv1\.(.+)", lambda m: f"styled.0.{_PARTS.get(m[1], m[1])}"),
    (
        r"generator\.convs\.(\d+)\.(.+)",
        lambda m: f"styled.{int(m[1]) + 1}.{_PARTS.get(m[2], m[2])}",
    ),
    (r"generator\.to_rgb1\.(.+)", lambda m: f"rgbs.0.{_RGB_PARTS.get(m[1], m[1])}"),
    (
        r"generator\.to_rgbs\.(\d+)\.(.+)",
        lambda m: f"rgbs.{int(m[1]) + 1}.{_RGB_PARTS.get(m[2], m[2])}",
    ),
    (r"ecd0\.0\.0\.weight", lambda m: "encoder.0.weight"),
    (r"ecd0\.0\.1\.bias", lambda m: "encoder.0.bias"),
    (r"ecd(\d+)\.0\.1\.weight", lambda m: f"encoder.{m[1]}.weight"),
    (r"ecd(\d+)\.0\.2\.bias", lambda m: f"encoder.{m[1]}.bias"),
    (r"final_linear\.0\.(weight|bias)", lambda m: f"squeeze.{m[1]}"),
]
_PARTS = {
    "conv.weight": "kernel.weight",
    "conv.modulation.weight": "modulation.weight",
    "conv.modulation.bias": "modulation.bias",
    "noise.weight": "joint.gain",
    "activate.bias": "joint.bias",
}
_RGB_PARTS = {
    "conv.weight": "projection.weight",
    "bias": "projection.bias",
    "conv.modulation.weight": "modulation.weight",
    "conv.modulation.bias": "modulation.bias",
}
_MLP_RATE = 0.01
"""The style layers were trained at a hundredth of the learning rate, which scales them."""


def _fold(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    """A published tensor under its name here, with the constant factors in it."""
    own = name
    for pattern, rename in _RULES:
        found = re.fullmatch(pattern, name)
        if found:
            own = rename(found)
            break
    tensor = tensor.detach().float()
    part = own.rpartition(".")[0]
    if own.startswith(("styled.", "rgbs.")) and tensor.ndim == 5:
        tensor = tensor.squeeze(0)
    if own.endswith("projection.bias"):
        tensor = tensor.flatten()
    # Weights are scaled by their fan-in; what an activation follows, by the root of two as well.
    factor = 1.0
    if own.endswith(".weight") and part != "constant":
        factor /= math.sqrt(max(1, tensor[0].numel()))
    if part.startswith("style."):
        factor *= _MLP_RATE
    activated = part.startswith(("style.", "encoder.")) or part == "squeeze"
    if activated or part.endswith(".joint"):
        factor *= _GAIN
    tensor = tensor * factor if factor != 1.0 else tensor.clone()
    doubling = re.fullmatch(r"styled\.\d*[13579]\.kernel\.weight", own)
    return own, tensor.transpose(0, 1) if doubling else tensor

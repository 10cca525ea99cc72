"""The Wan and Qwen-Image VAE as its host built it, read module by module for one picture.

Of a single frame a causal convolution over time sees zeros and, through the last of its taps, the
frame: with that tap alone it is a convolution over the picture. Nothing is imported from the host:
modules are known by their class's name, their parts and their numbers, and what is not known is
refused, so that a changed network is never run as if it were the old one.

Source: the network of github.com/Wan-Video/Wan2.1 as ComfyUI 0.3.75 to 0.33 carries it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .row_network import RowNetwork
from .row_stream import Attention, Conv, Layer, Norm, Point, Residual, Upsample

Weights = Callable[[nn.Module, torch.dtype, torch.device], tuple[Tensor, Tensor | None]]
"""A convolution's weight and bias in a type, on a device. What comes is only read, and may be
overwritten once the next one is asked for."""

_Module = Any
"""One of the host's, of which no more is known than is looked at."""

FACTOR = 8
"""Pixels of the picture for one of the latent, each way."""


class UnknownNetworkError(ValueError):
    """The VAE is not one that can be streamed; the text says what was met and what was expected."""

    def __init__(self, where: str, expected: str, got: str) -> None:
        super().__init__(f"{where}: expected {expected}, got {got}")


def as_they_lie(
    module: _Module, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """A convolution's own weight and bias."""
    weight, bias = module.weight, module.bias
    return weight.to(device, dtype), None if bias is None else bias.to(device, dtype)


def read_decoder(
    vae: nn.Module, dtype: torch.dtype, device: torch.device, weights: Weights = as_they_lie
) -> RowNetwork:
    """Latents (16 channels) to pictures in [-1,1].

    vae: the host's WanVAE. The taps that are used are copied one by one: of the real decoder 25 of
    73 million numbers, 101 MB in float32.
    Raises: UnknownNetworkError.
    """
    read = _Reader(weights, dtype, device)
    _is(vae, "WanVAE", "vae")
    decoder = _is(_part(vae, "decoder", "vae"), "Decoder3d", "decoder")
    middle = _middle(decoder, "decoder")
    front = [
        read.point(_part(vae, "conv2", "vae"), "conv2"),
        read.conv(_part(decoder, "conv1", "decoder"), "decoder.conv1"),
        read.residual(middle[0], "decoder.middle.0"),
    ]
    back = [read.residual(middle[2], "decoder.middle.2")]
    back += read.layers(_part(decoder, "upsamples", "decoder"), "decoder.upsamples", "up")
    back.append(read.head(_part(decoder, "head", "decoder"), "decoder.head"))
    attention = read.attention(middle[1], "decoder.middle.1")
    _holds(read.scale == FACTOR, "decoder.upsamples", f"{FACTOR} times", f"{read.scale:g} times")
    return RowNetwork(front, attention, back, _channels(attention), 1, FACTOR)


def read_encoder(
    vae: nn.Module, dtype: torch.dtype, device: torch.device, weights: Weights = as_they_lie
) -> RowNetwork:
    """Pictures in [-1,1] to twice 16 channels, of which the first half are the latents.

    Arguments and errors as in read_decoder.
    """
    read = _Reader(weights, dtype, device)
    _is(vae, "WanVAE", "vae")
    encoder = _is(_part(vae, "encoder", "vae"), "Encoder3d", "encoder")
    middle = _middle(encoder, "encoder")
    front: list[Layer] = [read.conv(_part(encoder, "conv1", "encoder"), "encoder.conv1")]
    front += read.layers(_part(encoder, "downsamples", "encoder"), "encoder.downsamples", "down")
    front.append(read.residual(middle[0], "encoder.middle.0"))
    back = [
        read.residual(middle[2], "encoder.middle.2"),
        read.head(_part(encoder, "head", "encoder"), "encoder.head"),
        read.point(_part(vae, "conv1", "vae"), "conv1"),
    ]
    attention = read.attention(middle[1], "encoder.middle.1")
    factor = 1 / read.scale
    _holds(factor == FACTOR, "encoder.downsamples", f"{FACTOR} times", f"{factor:g} times")
    return RowNetwork(front, attention, back, _channels(attention), FACTOR, 1)


class _Reader:
    """Modules to layers. scale: of the picture's sides so far."""

    def __init__(self, weights: Weights, dtype: torch.dtype, device: torch.device) -> None:
        self._weights, self._dtype, self._device = weights, dtype, device
        self.scale = 1.0

    def layers(self, modules: _Module, where: str, way: str) -> list[Layer]:
        """A sequence of residual blocks and changes of size. way: up or down."""
        _is(modules, "Sequential", where)
        read = {"ResidualBlock": self.residual, "Resample": getattr(self, way)}
        found = []
        for name, module in modules.named_children():
            kind = type(module).__name__
            _holds(kind in read, f"{where}.{name}", " or ".join(read), kind)
            found.append(read[kind](module, f"{where}.{name}"))
        return found

    def residual(self, module: _Module, where: str) -> Residual:
        _is(module, "ResidualBlock", where)
        inner = _part(module, "residual", where)
        _kinds(inner, "RMS_norm SiLU CausalConv3d RMS_norm SiLU Dropout CausalConv3d", where)
        shortcut = _part(module, "shortcut", where)
        point = None
        if type(shortcut).__name__ != "Identity":
            point = self.point(shortcut, f"{where}.shortcut")
        return Residual(
            self.conv(inner[2], f"{where}.residual.2", self.norm(inner[0], where)),
            self.conv(inner[6], f"{where}.residual.6", self.norm(inner[3], where)),
            point,
        )

    def head(self, module: _Module, where: str) -> Conv:
        _kinds(module, "RMS_norm SiLU CausalConv3d", where)
        return self.conv(module[2], f"{where}.2", self.norm(module[0], where))

    def up(self, module: _Module, where: str) -> Upsample:
        inner = self._resample(module, where, "upsample")
        _kinds(inner, "Upsample Conv2d", where)
        factor, mode = inner[0].scale_factor, inner[0].mode
        doubles = factor in (2.0, (2.0, 2.0)) and str(mode).startswith("nearest")
        _holds(doubles, where, "nearest pixels, doubled", f"{mode}, {factor}")
        self.scale *= 2
        return Upsample(*self._plain(inner[1], f"{where}.resample.1", 3, (1, 1), (1, 1)))

    def down(self, module: _Module, where: str) -> Conv:
        inner = self._resample(module, where, "downsample")
        _kinds(inner, "ZeroPad2d Conv2d", where)
        sides = tuple(inner[0].padding)
        _holds(sides == (0, 1, 0, 1), where, "zeros to the right and below", f"padding {sides}")
        self.scale /= 2
        weight, bias = self._plain(inner[1], f"{where}.resample.1", 3, (0, 0), (2, 2))
        return Conv(weight, bias, stride=2)

    def _resample(self, module: _Module, where: str, way: str) -> _Module:
        mode = getattr(module, "mode", None)
        # What "3d" does beyond "2d" begins with the second frame.
        _holds(mode in (f"{way}2d", f"{way}3d"), where, f"{way}2d or {way}3d", str(mode))
        return _part(module, "resample", where)

    def attention(self, module: _Module, where: str) -> Attention:
        _is(module, "AttentionBlock", where)
        qkv, proj = _part(module, "to_qkv", where), _part(module, "proj", where)
        return Attention(
            self.norm(_part(module, "norm", where), where, silu=False),
            _point(*self._plain(qkv, f"{where}.to_qkv", 1, (0, 0), (1, 1))),
            _point(*self._plain(proj, f"{where}.proj", 1, (0, 0), (1, 1))),
        )

    def conv(self, module: _Module, where: str, norm: Norm | None = None) -> Conv:
        """A causal convolution of 3 taps in time and 3×3 in the picture."""
        return Conv(*self._causal(module, where, 3), norm)

    def point(self, module: _Module, where: str) -> Point:
        """A causal convolution of one tap."""
        return _point(*self._causal(module, where, 1))

    def norm(self, module: _Module, where: str, silu: bool = True) -> Norm:
        _is(module, "RMS_norm", where)
        _holds(module.channel_first is True, where, "channels first", "channels last")
        _holds(module.bias is None, where, "a norm without bias", "one with bias")
        gain = module.gamma.detach().to(self._device, self._dtype).flatten() * module.scale
        return Norm(gain, silu)

    def _causal(self, module: _Module, where: str, size: int) -> tuple[Tensor, Tensor | None]:
        _is(module, "CausalConv3d", where)
        # Older hosts put the zeros around the picture themselves, newer ones leave it to torch.
        padding = module._padding
        before, sides = (
            (padding, tuple(module.padding[1:]))
            if isinstance(padding, int)
            else (padding[4], (padding[2], padding[0]))
        )
        _holds(before == size - 1, where, f"{size - 1} frames before", f"{before}")
        _sizes(module, where, (size,) * 3, (1, 1, 1))
        _holds(sides == (size // 2,) * 2, where, f"{size // 2} zeros around", f"{sides}")
        return self._copied(module, slice(-1, None))

    def _plain(
        self,
        module: _Module,
        where: str,
        size: int,
        padding: tuple[int, int],
        stride: tuple[int, int],
    ) -> tuple[Tensor, Tensor | None]:
        _is(module, "Conv2d", where)
        _sizes(module, where, (size, size), stride)
        given = tuple(module.padding)
        _holds(given == padding, where, f"padding {padding}", f"{given}")
        return self._copied(module)

    def _copied(self, module: _Module, taps: slice | None = None) -> tuple[Tensor, Tensor | None]:
        """(O,I,h,w) and (O,). A copy, so that what the host lent can go back at once."""
        weight, bias = self._weights(module, self._dtype, self._device)
        if taps is not None:
            weight = weight[:, :, taps].squeeze(2)
        return weight.detach().clone(), None if bias is None else bias.detach().clone()


def _point(weight: Tensor, bias: Tensor | None) -> Point:
    return Point(weight.flatten(1), bias)


def _channels(attention: Attention) -> int:
    return attention.weights[0].shape[0]


def _middle(module: _Module, where: str) -> _Module:
    middle = _part(module, "middle", where)
    _kinds(middle, "ResidualBlock AttentionBlock ResidualBlock", f"{where}.middle")
    return middle


def _part(module: _Module, name: str, where: str) -> _Module:
    part = getattr(module, name, None)
    _holds(isinstance(part, nn.Module), where, f"a part {name}", "none")
    return part


def _is(module: _Module, kind: str, where: str) -> _Module:
    got = type(module).__name__
    _holds(got == kind, where, kind, got)
    return module


def _kinds(modules: _Module, expected: str, where: str) -> None:
    _is(modules, "Sequential", where)
    got = " ".join(type(each).__name__ for each in modules)
    _holds(got == expected, where, expected, got)


def _sizes(module: _Module, where: str, kernel: tuple[int, ...], stride: tuple[int, ...]) -> None:
    expected = f"a kernel of {kernel}, stride {stride}"
    got = f"{tuple(module.kernel_size)}, {tuple(module.stride)}"
    fits = tuple(module.kernel_size) == kernel and tuple(module.stride) == stride
    _holds(fits, where, expected, got)
    plain = module.groups == 1 and set(module.dilation) == {1} and module.padding_mode == "zeros"
    _holds(plain, where, "a plain convolution", "one with groups, dilation or other padding")


def _holds(holds: bool, where: str, expected: str, got: str) -> None:
    if not holds:
        raise UnknownNetworkError(where, expected, got)

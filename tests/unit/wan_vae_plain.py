"""The Wan VAE for one picture in the plainest form, for tests: whole pictures, kernels over three
frames of which two are zeros, upsampled pictures made in full. Classes and parts bear the names
that hosts give them, since the pack knows them by their names; the weights come from a seed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

NEW, OLD = "new", "old"
"""How ComfyUI 0.33 and how 0.3.75 hold a causal convolution's padding."""


class CausalConv3d(nn.Conv3d):
    def __init__(self, inner: int, out: int, size: int, padding: int = 0, form: str = NEW) -> None:
        super().__init__(inner, out, size, padding=padding)
        self._sides = (padding, padding, padding, padding, 2 * padding, 0)
        if form == NEW:
            self._padding = 2 * padding
            self.padding = (0, padding, padding)
        else:
            self._padding = self._sides
            self.padding = (0, 0, 0)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv3d(F.pad(x, self._sides), self.weight, self.bias)


class RMS_norm(nn.Module):  # noqa: N801  (the host's name)
    def __init__(self, dim: int, images: bool = True) -> None:
        super().__init__()
        self.channel_first, self.bias, self.scale = True, None, dim**0.5
        self.gamma = nn.Parameter(torch.ones(dim, 1, 1, *(() if images else (1,))))

    def forward(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=1, keepdim=True).clamp_min(1e-12) * self.scale * self.gamma


class ResidualBlock(nn.Module):
    def __init__(self, inner: int, out: int, form: str) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            RMS_norm(inner, images=False), nn.SiLU(), CausalConv3d(inner, out, 3, 1, form),
            RMS_norm(out, images=False), nn.SiLU(), nn.Dropout(0.0),
            CausalConv3d(out, out, 3, 1, form),
        )  # fmt: skip
        same = inner == out
        self.shortcut = nn.Identity() if same else CausalConv3d(inner, out, 1, 0, form)

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(x) + self.shortcut(x)


class AttentionBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = RMS_norm(dim)
        self.to_qkv, self.proj = nn.Conv2d(dim, 3 * dim, 1), nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(self.norm(x[:, :, 0])).flatten(2).chunk(3, 1)
        seen = torch.softmax(q.transpose(1, 2) @ k / q.shape[1] ** 0.5, -1) @ v.transpose(1, 2)
        y = seen.transpose(1, 2).reshape(x[:, :, 0].shape)
        return x + self.proj(y)[:, :, None]


class Resample(nn.Module):
    def __init__(self, dim: int, mode: str, form: str) -> None:
        super().__init__()
        self.mode = mode
        if mode.startswith("up"):
            up = nn.Upsample(scale_factor=(2.0, 2.0), mode="nearest-exact")
            self.resample = nn.Sequential(up, nn.Conv2d(dim, dim // 2, 3, padding=1))
        else:
            down = nn.Conv2d(dim, dim, 3, stride=2)
            self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), down)

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(x[:, :, 0])[:, :, None]


class Encoder3d(nn.Module):
    def __init__(self, dim: int, form: str) -> None:
        super().__init__()
        self.conv1 = CausalConv3d(3, dim, 3, 1, form)
        self.downsamples = nn.Sequential(
            ResidualBlock(dim, dim, form), Resample(dim, "downsample2d", form),
            ResidualBlock(dim, 2 * dim, form), Resample(2 * dim, "downsample3d", form),
            ResidualBlock(2 * dim, 4 * dim, form), Resample(4 * dim, "downsample3d", form),
            ResidualBlock(4 * dim, 4 * dim, form),
        )  # fmt: skip
        self.middle = _middle(4 * dim, form)
        self.head = _head(4 * dim, 32, form)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.downsamples(self.conv1(x))))


class Decoder3d(nn.Module):
    def __init__(self, dim: int, form: str) -> None:
        super().__init__()
        self.conv1 = CausalConv3d(16, 4 * dim, 3, 1, form)
        self.middle = _middle(4 * dim, form)
        self.upsamples = nn.Sequential(
            ResidualBlock(4 * dim, 4 * dim, form), Resample(4 * dim, "upsample3d", form),
            ResidualBlock(2 * dim, 4 * dim, form), Resample(4 * dim, "upsample3d", form),
            ResidualBlock(2 * dim, 2 * dim, form), Resample(2 * dim, "upsample2d", form),
            ResidualBlock(dim, dim, form), ResidualBlock(dim, dim, form),
        )  # fmt: skip
        self.head = _head(dim, 3, form)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.upsamples(self.middle(self.conv1(x))))


class WanVAE(nn.Module):
    """dim: width of the finest layers. form: NEW or OLD."""

    def __init__(self, dim: int = 8, form: str = NEW, seed: int = 0) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder3d(dim, form), Decoder3d(dim, form)
        self.conv1, self.conv2 = CausalConv3d(32, 32, 1, 0, form), CausalConv3d(16, 16, 1, 0, form)
        fill(self, seed)

    def encode(self, x: Tensor) -> Tensor:
        return self.conv1(self.encoder(x)).chunk(2, dim=1)[0]

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.conv2(z))


def _middle(dim: int, form: str) -> nn.Sequential:
    return nn.Sequential(
        ResidualBlock(dim, dim, form), AttentionBlock(dim), ResidualBlock(dim, dim, form)
    )


def _head(dim: int, out: int, form: str) -> nn.Sequential:
    return nn.Sequential(RMS_norm(dim, images=False), nn.SiLU(), CausalConv3d(dim, out, 3, 1, form))


@torch.no_grad()
def fill(module: nn.Module, seed: int) -> None:
    """Numbers from a seed, so large that nothing dies away on the way through."""
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        numbers = torch.randn(parameter.shape, generator=draw)
        if name.endswith("gamma"):
            numbers = 1 + 0.1 * numbers
        elif name.endswith("bias"):
            numbers = 0.05 * numbers
        else:
            numbers = 1.4 * numbers / parameter[0].numel() ** 0.5
        parameter.copy_(numbers)

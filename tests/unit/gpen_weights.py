"""GPEN generators and face parsers for tests: random numbers under the published names.

Names and shapes are spelled out here a second time, in the order in which the published modules
are built, so that a mistake in the loader's own list shows.
"""

from __future__ import annotations

import math

import torch
from realtoon.weights_loader.gpen import GPENConfig

SMALL = GPENConfig(256, (256, 256, 256, 256, 128, 64, 32))
"""The published 256: channel multiplier 1, narrow 0.5."""
TINY = GPENConfig(256, (16, 16, 16, 16, 8, 8, 8))
"""For speed. The style layers keep their 512 numbers, so it still takes 9 MB."""

Tensors = dict[str, torch.Tensor]
Shape = tuple[int, ...]
BLUR = torch.tensor([[a * b / 64 for b in (1.0, 3.0, 3.0, 1.0)] for a in (1.0, 3.0, 3.0, 1.0)])


def published(size: int, multiplier: float = 2, narrow: float = 1) -> GPENConfig:
    """The config of a published size."""
    bases = {2**i: 512.0 for i in range(2, 6)} | {
        2**i: 2 ** (14 - i) * multiplier for i in range(6, 12)
    }
    return GPENConfig(size, tuple(int(bases[s] * narrow) for s in bases if s <= size))


def layout(config: GPENConfig) -> list[tuple[str, str, Shape]]:
    """(name, kind, shape) of the published state, constants included, in its order."""
    rows: list[tuple[str, str, Shape]] = []

    def add(kind: str, name: str, *shape: int) -> None:
        rows.append((name, kind, shape))

    def modulated(name: str, inner: int, out: int, kernel: int, blur: bool = False) -> None:
        add("weight", f"{name}.weight", 1, out, inner, kernel, kernel)
        if blur:
            add("blur4", f"{name}.blur.kernel", 4, 4)
        add("weight", f"{name}.modulation.weight", inner, 512)
        add("one", f"{name}.modulation.bias", inner)

    def styled(name: str, inner: int, out: int, up: bool = False) -> None:
        modulated(f"{name}.conv", inner, out, 3, up)
        add("small", f"{name}.noise.weight", 1)
        add("small", f"{name}.activate.bias", 2 * out)

    def to_rgb(name: str, inner: int, up: bool = True) -> None:
        add("small", f"{name}.bias", 1, 3, 1, 1)
        if up:
            add("blur4", f"{name}.upsample.kernel", 4, 4)
        modulated(f"{name}.conv", inner, 3, 1)

    width = dict(zip((2**i for i in range(2, 12)), config.channels, strict=False))
    for layer in range(1, 9):
        add("style", f"generator.style.{layer}.weight", 512, 512)
        add("small", f"generator.style.{layer}.bias", 512)
    add("weight", "generator.input.input", 1, width[4], 4, 4)
    styled("generator.conv1", width[4], width[4])
    to_rgb("generator.to_rgb1", 2 * width[4], up=False)
    larger = [size for size in width if size > 4]
    for i, size in enumerate(larger):
        styled(f"generator.convs.{2 * i}", 2 * width[size // 2], width[size], up=True)
        styled(f"generator.convs.{2 * i + 1}", 2 * width[size], width[size])
    for i, size in enumerate(larger):
        to_rgb(f"generator.to_rgbs.{i}", 2 * width[size])
    add("weight", "ecd0.0.0.weight", width[config.size], 3, 1, 1)
    add("small", "ecd0.0.1.bias", width[config.size])
    for i, size in enumerate(reversed(larger), start=1):
        add("blur1", f"ecd{i}.0.0.kernel", 4, 4)
        add("weight", f"ecd{i}.0.1.weight", width[size // 2], width[size], 3, 3)
        add("small", f"ecd{i}.0.2.bias", width[size // 2])
    add("weight", "final_linear.0.weight", 512, 16 * width[4])
    add("small", "final_linear.0.bias", 512)
    return rows


def state(config: GPENConfig, seed: int = 0, kernels: bool = False) -> Tensors:
    """Published name -> float32 tensor, as the published initialisation draws them.

    Weights N(0,1), those of the style layers N(0,100²) (their learning rate is 0.01), modulation
    biases about 1. What starts at zero is drawn small instead, so that a layer that forgets it is
    caught. kernels: with the blur constants.
    """
    draw = torch.Generator().manual_seed(seed)
    scale = {"weight": 1.0, "style": 100.0, "one": 0.1, "small": 0.1}
    tensors: Tensors = {}
    for name, kind, shape in layout(config):
        if kind.startswith("blur"):
            if kernels:
                tensors[name] = BLUR * float(kind.removeprefix("blur"))
            continue
        tensors[name] = torch.randn(shape, generator=draw).mul_(scale[kind])
        if kind == "one":
            tensors[name] += 1
    return tensors


def without_kernels(tensors: Tensors) -> Tensors:
    """What the loader hands on."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("kernel")}


def discriminator(size: int = 256, width: int = 8) -> Tensors:
    """A state with the published discriminator's names (a -D file); every width alike."""
    shapes: dict[str, Shape] = {"convs.0.0.weight": (width, 3, 1, 1), "convs.0.1.bias": (width,)}
    for i in range(1, int(math.log2(size)) - 1):
        shapes |= {
            f"convs.{i}.conv1.0.weight": (width, width, 3, 3),
            f"convs.{i}.conv1.1.bias": (width,),
            f"convs.{i}.conv2.0.kernel": (4, 4),
            f"convs.{i}.conv2.1.weight": (width, width, 3, 3),
            f"convs.{i}.conv2.2.bias": (width,),
            f"convs.{i}.skip.0.kernel": (4, 4),
            f"convs.{i}.skip.1.weight": (width, width, 1, 1),
        }
    shapes |= {
        "final_conv.0.weight": (width, width + 1, 3, 3),
        "final_conv.1.bias": (width,),
        "final_linear.0.weight": (width, 16 * width),
        "final_linear.0.bias": (width,),
        "final_linear.1.weight": (1, width),
        "final_linear.1.bias": (1,),
    }
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def scoped(tensors: Tensors, scope: str) -> Tensors:
    """The same tensors, each name behind `scope`."""
    return {f"{scope}{name}": tensor for name, tensor in tensors.items()}


def training(tensors: Tensors, average: str = "g_ema") -> dict[str, object]:
    """What the published trainer saves; its own generator differs from the averaged one."""
    own = {name: tensor * 1.5 for name, tensor in tensors.items()}
    moments = {
        number: {"step": torch.tensor(7.0), "exp_avg": tensor[:1], "exp_avg_sq": tensor[:1] ** 2}
        for number, tensor in enumerate(tensors.values())
    }
    optimiser = {
        "state": moments,
        "param_groups": [{"lr": 0.002, "betas": (0.0, 0.99), "foreach": None, "params": [0, 1]}],
    }
    return {
        "g": own,
        "d": discriminator(),
        average: tensors,
        "g_optim": optimiser,
        "d_optim": optimiser,
    }


def parsenet(seed: int = 0, counters: bool = True) -> Tensors:
    """The face parser's published state; convolutions as torch draws them.

    counters: with `num_batches_tracked`, as the published files have it.
    """
    draw = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}

    def conv(name: str, inner: int, out: int, bias: bool) -> None:
        bound = 1 / math.sqrt(9 * inner)
        weight = torch.rand(out, inner, 3, 3, generator=draw)
        tensors[f"{name}.conv2d.weight"] = weight.mul_(2 * bound).sub_(bound)
        if bias:
            tensors[f"{name}.conv2d.bias"] = (torch.rand(out, generator=draw) * 2 - 1) * bound

    def norm(name: str, out: int) -> None:
        stem = f"{name}.norm.norm"
        tensors[f"{stem}.weight"] = 1 + 0.1 * torch.randn(out, generator=draw)
        tensors[f"{stem}.bias"] = 0.1 * torch.randn(out, generator=draw)
        tensors[f"{stem}.running_mean"] = 0.1 * torch.randn(out, generator=draw)
        tensors[f"{stem}.running_var"] = 0.5 + torch.rand(out, generator=draw)
        if counters:
            tensors[f"{stem}.num_batches_tracked"] = torch.tensor(7)

    def block(name: str, inner: int, out: int, shortcut: bool = True) -> None:
        if shortcut:
            conv(f"{name}.shortcut_func", inner, out, True)
        for part, width in (("conv1", inner), ("conv2", out)):
            conv(f"{name}.{part}", width, out, False)
            norm(f"{name}.{part}", out)

    conv("encoder.0", 3, 64, True)
    widths = (64, 128, 256, 256, 256)
    for i, (inner, out) in enumerate(zip(widths, widths[1:], strict=False), start=1):
        block(f"encoder.{i}", inner, out)
    for i in range(10):
        block(f"body.{i}", 256, 256, shortcut=False)
    widths = (256, 256, 256, 128, 64)
    for i, (inner, out) in enumerate(zip(widths, widths[1:], strict=False)):
        block(f"decoder.{i}", inner, out)
    conv("out_img_conv", 64, 3, True)
    conv("out_mask_conv", 64, 19, True)
    return tensors

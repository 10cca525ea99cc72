"""The tensors of a DCT-Net generator: their canonical names and shapes, and how others name them.

Sources: modelscope `models/cv/cartoon/network.py` (TensorFlow-slim, order of creation gives
Conv, Conv_1 … Conv_9), LeslieZhoa/DCT-NET.Pytorch `model/Pix2PixModule/model.py` @b303f41.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

# (out, in, kernel) of convs.0 … convs.9; convs.1 and convs.3 have stride 2.
_CONVS = (
    (32, 3, 7), (32, 32, 3), (64, 32, 3), (64, 64, 3), (128, 64, 3),
    (64, 128, 3), (64, 64, 3), (32, 64, 3), (32, 32, 3), (3, 32, 7),
)  # fmt: skip
_BLOCKS = 4
# Position in the list is the number of the convolution.
_PORT_CONVS = (
    "initial_down.0", "down1.0", "down1.2", "down2.0", "down2.2",
    "up1.0", "up2.0", "up2.2", "last.0", "last.2",
)  # fmt: skip

Shape = tuple[int, ...]


def _layers() -> dict[str, tuple[int, int, int]]:
    layers = {f"convs.{i}": shape for i, shape in enumerate(_CONVS)}
    for block in range(_BLOCKS):
        for conv in ("conv1", "conv2"):
            layers[f"blocks.{block}.{conv}"] = (128, 128, 3)
    return layers


def _shapes() -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for layer, (out, inner, kernel) in _layers().items():
        shapes[f"{layer}.weight"] = (out, inner, kernel, kernel)
        shapes[f"{layer}.bias"] = (out,)
    return shapes


SHAPES: dict[str, Shape] = _shapes()
"""Canonical name -> shape; weights OIHW. 36 tensors, 1,467,075 numbers."""

FROZEN = re.compile(r"(?:^|/)generator/(?:Conv(?:_\d)?|block_\d/conv[12])/(?:weights|biases)$")
"""Names of a frozen graph's constants, under whatever outer scope."""


@dataclass(frozen=True)
class Layout:
    """One way to name the tensors.

    pattern: finds a tensor of this layout; group "scope" is what stands before the network's own
        names and must be the same for all of them.
    names: this layout's own name (without scope, separators as ".") -> canonical name.
    hwio: convolutions are stored height, width, in, out.
    port: the PyTorch port's network, which computes differently.
    """

    title: str
    pattern: re.Pattern[str]
    names: dict[str, str]
    hwio: bool = False
    port: bool = False
    example: str = field(default="")


def _tensorflow_name(canonical: str) -> str:
    layer, leaf = canonical.rsplit(".", 1)
    parts = layer.split(".")
    if parts[0] == "convs":
        own = "Conv" if parts[1] == "0" else f"Conv_{parts[1]}"
    else:
        own = f"block_{parts[1]}.{parts[2]}"
    return f"{own}.{'weights' if leaf == 'weight' else 'biases'}"


def _port_name(canonical: str) -> str:
    layer, leaf = canonical.rsplit(".", 1)
    parts = layer.split(".")
    if parts[0] == "convs":
        return f"{_PORT_CONVS[int(parts[1])]}.{leaf}"
    return f"res_blocks.{parts[1]}.block.{0 if parts[2] == 'conv1' else 2}.{leaf}"


CANONICAL = Layout(
    "RealToon",
    re.compile(
        r"^(?P<scope>(?:.*\.)?)(?P<own>(?:convs\.\d+|blocks\.\d+\.conv\d)\.(?:weight|bias))$"
    ),
    {name: name for name in SHAPES},
    example="convs.0.weight",
)
TENSORFLOW = Layout(
    "TensorFlow",
    re.compile(
        r"^(?P<scope>(?:.*[/.])?generator[/.])"
        r"(?P<own>(?:Conv(?:_\d+)?|block_\d+[/.]conv\d)[/.](?:weights|biases))(?::0)?$"
    ),
    {_tensorflow_name(name): name for name in SHAPES},
    hwio=True,
    example="generator/Conv/weights",
)
PORT = Layout(
    "PyTorch port",
    re.compile(
        r"^(?P<scope>(?:.*\.)?)(?P<own>(?:initial_down\.\d+|down[12]\.\d+|up[12]\.\d+|last\.\d+"
        r"|res_blocks\.\d+\.block\.\d+)\.(?:weight|bias))$"
    ),
    {_port_name(name): name for name in SHAPES},
    port=True,
    example="initial_down.0.weight",
)
LAYOUTS = (CANONICAL, TENSORFLOW, PORT)


def recognise(names: Iterable[str]) -> Layout | None:
    """The layout that most of the names belong to, or None where not one does."""
    listed = list(names)
    counts = [sum(layout.pattern.match(name) is not None for name in listed) for layout in LAYOUTS]
    best = max(range(len(LAYOUTS)), key=counts.__getitem__)
    return LAYOUTS[best] if counts[best] else None


def stored_shape(layout: Layout, canonical: str) -> Shape:
    """The shape that a tensor has in a file of this layout."""
    shape = SHAPES[canonical]
    if layout.hwio and len(shape) == 4:
        return (shape[2], shape[3], shape[1], shape[0])
    return shape

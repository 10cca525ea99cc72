"""The face parser (ParseNet) that GPEN and facexlib publish: 512 pixels in, 19 classes out.

Sources: yangxy/GPEN `face_parse/parse_model.py`, `face_parse/blocks.py` @2c73670 (512, 512, 32, 64,
19, batch normalisation, widths 32 to 256); xinntao/facexlib `facexlib/parsing/parsenet.py`, whose
parsing_parsenet.pth has the same names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NoReturn

import torch

from . import conversion, files, safetensors_file, torch_file
from .errors import WeightsError, listed
from .loading import is_finite, to_float32

LIMIT_BYTES = 256 * files.MIB
_STORAGE_BYTES = 16 * files.MIB
_FLOATS = ("F32", "F16", "BF16", "F64")
_COUNTER = ".num_batches_tracked"
_FETCH = "run `python run.py weights download parsenet`"

CLASSES = 19
_BODY_BLOCKS = 10
# In and out of each block that halves, then of each that doubles the picture's sides.
_DOWN = ((64, 128), (128, 256), (256, 256), (256, 256))
_UP = ((256, 256), (256, 256), (256, 128), (128, 64))

Shape = tuple[int, ...]


def _conv(name: str, inner: int, out: int) -> dict[str, Shape]:
    return {f"{name}.conv2d.weight": (out, inner, 3, 3), f"{name}.conv2d.bias": (out,)}


def _normed(name: str, inner: int, out: int) -> dict[str, Shape]:
    leaves = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.conv2d.weight": (out, inner, 3, 3)} | {
        f"{name}.norm.norm.{leaf}": (out,) for leaf in leaves
    }


def _block(name: str, inner: int, out: int, shortcut: bool) -> dict[str, Shape]:
    head = _conv(f"{name}.shortcut_func", inner, out) if shortcut else {}
    return head | _normed(f"{name}.conv1", inner, out) | _normed(f"{name}.conv2", out, out)


def _shapes() -> dict[str, Shape]:
    shapes = _conv("encoder.0", 3, 64)
    for number, (inner, out) in enumerate(_DOWN, start=1):
        shapes |= _block(f"encoder.{number}", inner, out, shortcut=True)
    for number in range(_BODY_BLOCKS):
        shapes |= _block(f"body.{number}", 256, 256, shortcut=False)
    for number, (inner, out) in enumerate(_UP):
        shapes |= _block(f"decoder.{number}", inner, out, shortcut=True)
    return shapes | _conv("out_img_conv", 64, 3) | _conv("out_mask_conv", 64, CLASSES)


SHAPES: dict[str, Shape] = _shapes()
"""Published name -> shape, in the published order, without the counters `num_batches_tracked`."""


def read(path: Path) -> dict[str, torch.Tensor]:
    """Read the parser.

    path: ParseNet-latest.pth, parsing_parsenet.pth or safetensors.
    Returns: published name -> float32 tensor on the CPU. The counters of batch normalisation, which
        only training needs, are left out whether the file has them or not.
    Raises: WeightsError unless names, shapes and numbers are exactly the parser's; no code of the
        file is run.
    """
    path = Path(path)
    contents = _contents(path)
    found = {name.removeprefix("module."): stored for name, stored in contents.tensors.items()}
    found = {name: stored for name, stored in found.items() if not name.endswith(_COUNTER)}
    missing = [name for name in SHAPES if name not in found]
    extra = [name for name in found if name not in SHAPES]
    count = f"the {len(SHAPES)} tensors of ParseNet"
    if len(missing) == len(SHAPES):
        _refuse(path, f"{count}, such as out_mask_conv.conv2d.weight",
                f"another network ({listed(extra, 'tensors')})")  # fmt: skip
    if missing:
        _refuse(path, count, listed(missing, "missing"))
    if extra:
        _refuse(path, f"{count} and no others", listed(extra, "more"))
    for name, shape in SHAPES.items():
        if found[name].shape != shape:
            _refuse(path, f"{name} of shape {shape}", str(found[name].shape))
        if found[name].dtype not in _FLOATS:
            _refuse(path, f"floating-point numbers in {name}", found[name].dtype)
    tensors = {name: to_float32(path, name, found[name], next_step=_FETCH) for name in SHAPES}
    for name, tensor in tensors.items():
        if name.endswith("running_var") and tensor.min() < 0:
            _refuse(path, f"variances in {name}", "a number below 0")
    return tensors


def write(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write the parser as safetensors with the published names, whole or not at all.

    tensors: names of SHAPES -> floating-point tensor, any device.
    Raises: WeightsError for wrong names, shapes, or numbers that are not finite in `dtype`.
    """
    path = Path(path)
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != SHAPES:
        _refuse(path, f"the {len(SHAPES)} tensors of ParseNet", "others")
    stored = {name: tensor.detach().to(dtype) for name, tensor in tensors.items()}
    for name, tensor in stored.items():
        if not is_finite(tensor):
            _refuse(path, f"numbers of {name} finite in {dtype}", "NaN or infinity")
    safetensors_file.write(path, stored, metadata or {})


def convert(source: Path, target: Path, *, overwrite: bool = False, half: bool = False) -> str:
    """Rewrite the parser as safetensors, and read it back to be sure.

    target: ends in .safetensors; refused where it exists unless `overwrite`.
    half: store float16.
    Returns: one line that says what was made.
    Raises: WeightsError.
    """
    source, target = Path(source), Path(target)
    conversion.check_target(target, overwrite)
    tensors = read(source)
    dtype = conversion.dtype_of(half)
    write(target, tensors, {"source": source.name}, dtype)
    conversion.check_copy(target, True, tensors, read(target), dtype)
    return conversion.summary(source, target, "face parser (ParseNet)", len(tensors), half)


def looks_like(names: Collection[str]) -> bool:
    """Whether these are names of the parser, whole or not."""
    marks = ("encoder.", "body.", "decoder.", "out_mask_conv.")
    own = [name.removeprefix("module.") for name in names]
    return all(any(name.startswith(mark) for name in own) for mark in marks)


def _contents(path: Path) -> files.Contents:
    kind = files.sniff(path, files.check(path, LIMIT_BYTES))
    if kind == "safetensors":
        return safetensors_file.scan(path, LIMIT_BYTES)
    if kind == "graph":
        _refuse(path, "a face parser (.pth, .safetensors)", "a frozen graph or a protobuf")
    return torch_file.scan(path, kind, LIMIT_BYTES, storage_bytes=_STORAGE_BYTES)


def _refuse(path: Path, expected: str, got: str) -> NoReturn:
    raise WeightsError(path, expected, got, _FETCH)

"""DCT-Net styles: any of the files they come in becomes a config and 36 checked tensors.

What a file is, and which of the two networks it belongs to, is told by its content, never by its
name. Names, shapes and dtypes are judged before a tensor is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NoReturn

import torch

from . import conversion, dctnet_layouts, files, frozen_graph, safetensors_file, torch_file
from .dctnet_layouts import SHAPES, Layout
from .errors import WeightsError, listed
from .loading import to_float32
from .style_files import StyleFiles, list_styles

__all__ = ["SHAPES", "DCTNetConfig", "StyleFiles", "convert", "list_styles", "read", "write"]

LIMIT_BYTES = 64 * files.MIB
METADATA_KEY = "realtoon.dctnet"
_FLOATS = ("F32", "F16", "BF16", "F64")
_USE_A_STYLE = "use a DCT-Net style; `python run.py weights` lists the official ones"


@dataclass(frozen=True)
class DCTNetConfig:
    """How the network computes. The defaults are the official TensorFlow network.

    bgr: the network's colour order is blue, green, red.
    same_padding: stride-2 convolutions pad as TensorFlow's SAME (nothing before, 1 after).
    tf1_upsample: bilinear up-sampling as TensorFlow 1 (no half-pixel centres).
    guided_filter: the output is smoothed along the input by a guided filter (r=1, eps 0.01).
    tanh: the output goes through tanh.
    edge_padding: a picture whose sides are no multiple of 16 is padded by its own edge. The
        published pipeline pads with white, and a style that inks edges draws the step to it.
    """

    bgr: bool = True
    same_padding: bool = True
    tf1_upsample: bool = True
    guided_filter: bool = True
    tanh: bool = False
    edge_padding: bool = False


PORT_CONFIG = DCTNetConfig(False, False, False, False, True)
"""The PyTorch port (LeslieZhoa/DCT-NET.Pytorch)."""


def read(path: Path) -> tuple[DCTNetConfig, dict[str, torch.Tensor]]:
    """Read a style.

    path: a frozen TensorFlow graph, safetensors, a PyTorch checkpoint or a TorchScript archive.
    Returns: the config, and canonical name -> float32 tensor on the CPU, convolutions OIHW. The
        config is what the file's metadata says under METADATA_KEY, else PORT_CONFIG for the port's
        names and the official network for all others.
    Raises: WeightsError for anything that is not exactly this network; no code of the file is run.
    """
    path = Path(path)
    contents = _contents(path)
    layout = dctnet_layouts.recognise(contents.tensors)
    if layout is None:
        _refuse_other_network(path, contents)
    chosen = _match(path, layout, contents.tensors)
    config = _config(path, layout, contents.metadata)
    tensors: dict[str, torch.Tensor] = {}
    for canonical in SHAPES:
        name = chosen[canonical]
        axes = (3, 2, 0, 1) if layout.hwio and len(SHAPES[canonical]) == 4 else ()
        tensors[canonical] = to_float32(path, name, contents.tensors[name], axes)
    return config, tensors


def write(
    path: Path,
    config: DCTNetConfig,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a style as safetensors with canonical names, whole or not at all.

    tensors: canonical name -> floating-point tensor, OIHW, any device.
    metadata: more texts for the header, such as a licence or a source.
    dtype: float32, or float16 / bfloat16 for half the size.
    Raises: WeightsError for wrong names, shapes, or numbers that are not finite in `dtype`.
    """
    path = Path(path)
    next_step = "pass the state of a whole DCT-Net generator"
    stored = conversion.checked_state(path, tensors, SHAPES, dtype, "canonical", next_step)
    flags = json.dumps(asdict(config), sort_keys=True)
    safetensors_file.write(path, stored, {**(metadata or {}), METADATA_KEY: flags})


def convert(source: Path, target: Path, *, overwrite: bool = False, half: bool = False) -> str:
    """Rewrite any style file as safetensors with canonical names, and read it back to be sure.

    target: ends in .safetensors; refused where it exists unless `overwrite`.
    half: store float16. Tensors that were float16 before lose nothing by it.
    Returns: one line that says what was made.
    Raises: WeightsError.
    """
    source, target = Path(source), Path(target)
    conversion.check_target(target, overwrite)
    config, tensors = read(source)
    dtype = conversion.dtype_of(half)
    write(target, config, tensors, {"source": source.name}, dtype)
    again_config, again = read(target)
    conversion.check_copy(target, config == again_config, tensors, again, dtype)
    kind = "the PyTorch port" if config == PORT_CONFIG else "DCT-Net"
    return conversion.summary(source, target, kind, len(SHAPES), half)


def _contents(path: Path) -> files.Contents:
    kind = files.sniff(path, files.check(path, LIMIT_BYTES))
    if kind == "safetensors":
        return safetensors_file.scan(path, LIMIT_BYTES)
    if kind == "graph":
        return frozen_graph.scan(path, dctnet_layouts.FROZEN)
    return torch_file.scan(path, kind, LIMIT_BYTES, (METADATA_KEY,))


def _match(path: Path, layout: Layout, tensors: Mapping[str, files.Stored]) -> dict[str, str]:
    """Canonical name -> the file's own name; exactly the network's tensors, or an error."""
    chosen: dict[str, str] = {}
    extra: list[str] = []
    scopes: set[str] = set()
    for name in tensors:
        found = layout.pattern.match(name)
        own = found["own"].replace("/", ".") if found else ""
        if found is None or own not in layout.names:
            extra.append(name)
            continue
        scopes.add(found["scope"])
        chosen[layout.names[own]] = name
    if len(scopes) > 1:
        _refuse(path, "one network", listed(sorted(scopes), "networks"),
                "save the generator of one style alone")  # fmt: skip
    count = f"the {len(SHAPES)} tensors of DCT-Net ({layout.title} names)"
    missing = [own for own, canonical in layout.names.items() if canonical not in chosen]
    if missing:
        _refuse(path, count, listed(missing, "missing"), _USE_A_STYLE)
    if extra:
        _refuse(path, f"{count} and no others", listed(extra, "more"), _USE_A_STYLE)
    for canonical, name in chosen.items():
        expected = dctnet_layouts.stored_shape(layout, canonical)
        if tensors[name].shape != expected:
            _refuse(path, f"{name} of shape {expected}", str(tensors[name].shape), _USE_A_STYLE)
        if tensors[name].dtype not in _FLOATS:
            _refuse(path, f"floating-point numbers in {name}", tensors[name].dtype, _USE_A_STYLE)
    return chosen


def _config(path: Path, layout: Layout, metadata: Mapping[str, str]) -> DCTNetConfig:
    if METADATA_KEY not in metadata:
        return PORT_CONFIG if layout.port else DCTNetConfig()
    known = {entry.name for entry in fields(DCTNetConfig)}
    text = metadata[METADATA_KEY]
    try:
        flags = json.loads(text)
    except (ValueError, RecursionError):
        flags = None
    if (
        not isinstance(flags, dict)
        or set(flags) != known
        or not all(isinstance(value, bool) for value in flags.values())
    ):
        _refuse(
            path,
            f"the flags {', '.join(sorted(known))} in its metadata ({METADATA_KEY})",
            repr(text[:120]),
            "convert the style again, or update RealToon if a newer one wrote it",
        )
    return DCTNetConfig(**flags)


def _refuse_other_network(path: Path, contents: files.Contents) -> NoReturn:
    names = list(contents.tensors)
    what = listed(names, "tensors") if names else "none of its tensors"
    _refuse(
        path,
        f"the {len(SHAPES)} tensors of DCT-Net, such as "
        + ", ".join(layout.example for layout in dctnet_layouts.LAYOUTS),
        f"{contents.kind} of another network ({what})",
        _USE_A_STYLE,
    )


def _refuse(path: Path, expected: str, got: str, next_step: str) -> NoReturn:
    raise WeightsError(path, expected, got, next_step)

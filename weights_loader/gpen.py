"""GPEN generators: any of the files they come in becomes a config and checked tensors.

Which network and which size a file holds is told by names and shapes, never by its own name, and
judged before a tensor is read. ONNX files are not taken apart: `open_onnx` runs them as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import torch

from . import conversion, files, gpen_layout, safetensors_file, torch_file
from .errors import WeightsError
from .gpen_layout import KERNEL, GPENConfig, kernels, shapes
from .gpen_onnx import OnnxGPEN, is_onnx, open_onnx
from .loading import to_float32

__all__ = [
    "GPENConfig",
    "OnnxGPEN",
    "config_of",
    "convert",
    "is_onnx",
    "kernels",
    "open_onnx",
    "read",
    "shapes",
    "write",
]

LIMIT_BYTES = 640 * files.MIB
"""The largest generator takes 544 MiB in float64."""
LIMIT_CHECKPOINT_BYTES = 2048 * files.MIB
"""With both generators, the discriminator and the optimisers' state, 1.5 GB at 1024."""
# A convolution of 512 by 1024 channels takes 36 MiB in float64.
_STORAGE_BYTES = 64 * files.MIB
# Training keeps an averaged generator beside the one it trains: the averaged one is published.
INSIDE = ("g_ema", "params_ema", *torch_file.INSIDE, "g")
_FLOATS = ("F32", "F16", "BF16", "F64")


def read(path: Path) -> tuple[GPENConfig, dict[str, torch.Tensor]]:
    """Read a generator.

    path: a PyTorch checkpoint (flat, or nested as in training), a TorchScript archive, or
        safetensors.
    Returns: the config, and published name -> float32 tensor on the CPU. The blur constants are
        compared with the published ones and left out.
    Raises: WeightsError for anything that is not exactly this network; no code of the file is run.
    """
    path = Path(path)
    config, found = _scan(path)
    for name, gain in kernels(config).items():
        if name in found:
            _check_kernel(path, name, found[name], gain)
    return config, {name: to_float32(path, name, found[name]) for name in shapes(config)}


def config_of(path: Path) -> GPENConfig:
    """The config alone, without reading a number. Raises: WeightsError as `read` does."""
    return _scan(Path(path))[0]


def write(
    path: Path,
    config: GPENConfig,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a generator as safetensors, whole or not at all.

    The names are the published ones, and the blur constants are among them, so that the published
    network loads the file strictly.

    tensors: names of `shapes` -> floating-point tensor, any device.
    metadata: more texts for the header, such as a licence or a source.
    dtype: float32, or float16 / bfloat16 for half the size.
    Raises: WeightsError for wrong names, shapes, or numbers that are not finite in `dtype`.
    """
    path = Path(path)
    next_step = "pass the state of a whole GPEN generator"
    stored = conversion.checked_state(path, tensors, shapes(config), dtype, "published", next_step)
    for name, gain in kernels(config).items():
        stored[name] = (torch.tensor(KERNEL) * gain).to(dtype)
    safetensors_file.write(path, stored, metadata or {})


def convert(source: Path, target: Path, *, overwrite: bool = False, half: bool = False) -> str:
    """Rewrite a generator as safetensors, and read it back to be sure.

    target: ends in .safetensors; refused where it exists unless `overwrite`.
    half: store float16.
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
    return conversion.summary(source, target, f"GPEN {config.size}", len(tensors), half)


def _scan(path: Path) -> tuple[GPENConfig, dict[str, files.Stored]]:
    found = gpen_layout.own_names(path, _contents(path))
    config = gpen_layout.recognise(path, found)
    for name in (*shapes(config), *kernels(config)):
        if name in found and found[name].dtype not in _FLOATS:
            _refuse(path, f"floating-point numbers in {name}", found[name].dtype)
    return config, found


def _contents(path: Path) -> files.Contents:
    size = files.check(path, LIMIT_CHECKPOINT_BYTES)
    if is_onnx(path):
        _refuse(
            path,
            "tensors with names (.pth, .pt, .safetensors)",
            "an ONNX model",
            "choose it in GPENRestore, which runs it through onnxruntime, or use the .pth of the "
            "same name",
        )
    kind = files.sniff(path, size)
    if kind == "safetensors":
        return safetensors_file.scan(path, LIMIT_BYTES)
    if kind == "graph":
        _refuse(path, "a GPEN generator (.pth, .pt, .safetensors)", "a frozen graph or a protobuf")
    return torch_file.scan(
        path, kind, LIMIT_CHECKPOINT_BYTES, inside=INSIDE, storage_bytes=_STORAGE_BYTES
    )


def _check_kernel(path: Path, name: str, stored: files.Stored, gain: float) -> None:
    """Another blur is another network, though nothing else in the file would tell."""
    if stored.shape != (4, 4):
        _refuse(path, f"{name} of shape (4, 4)", str(stored.shape))
    expected = torch.tensor(KERNEL) * gain
    got = to_float32(path, name, stored)
    if not torch.allclose(got, expected, rtol=1e-5, atol=0.0):
        _refuse(
            path,
            f"the published blur [1, 3, 3, 1] in {name}",
            f"numbers from {got.min().item():.4g} to {got.max().item():.4g} that sum to "
            f"{got.sum().item():.4g}",
        )


def _refuse(path: Path, expected: str, got: str, next_step: str = gpen_layout.USE_GPEN) -> NoReturn:
    raise WeightsError(path, expected, got, next_step)

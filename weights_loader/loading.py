"""From a described tensor to float32 numbers that are known to be finite."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from . import files
from .errors import WeightsError

# Below the size at which torch wakes its thread pool: on a busy machine, waking it for each tensor
# of a small network costs a hundred times what the copies do.
_ONE_THREAD = 1 << 14


def to_float32(
    path: Path,
    name: str,
    stored: files.Stored,
    axes: tuple[int, ...] = (),
    next_step: str = files.AGAIN,
) -> torch.Tensor:
    """Load one tensor.

    stored: of any floating-point dtype. axes: how to permute it, none to leave it as it is.
    Returns: a contiguous float32 tensor on the CPU with memory of its own.
    Raises: WeightsError where a number is not finite in float32, naming `name` in `path`.
    """
    source = stored.load()
    if axes:
        source = source.permute(axes)
    target = torch.empty(source.shape, dtype=torch.float32)
    step = max(1, _ONE_THREAD * len(target) // max(1, target.numel()))
    for start in range(0, len(target), step):
        piece = target[start : start + step].copy_(source[start : start + step])
        if not is_finite(piece):
            raise WeightsError(path, f"finite numbers in {name}", "NaN or infinity", next_step)
    return target


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no number of a non-empty tensor is NaN or infinite."""
    low, high = torch.aminmax(tensor)
    return math.isfinite(low.item()) and math.isfinite(high.item())

"""What every `write` and `convert` does: judge a state, refuse a target, compare, say it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from .errors import WeightsError, listed
from .loading import is_finite


def checked_state(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    kind: str,
    next_step: str,
) -> dict[str, torch.Tensor]:
    """A network's tensors as they will be stored in `dtype`, in the order of `shapes`.

    kind: how its names are called, for messages.
    Raises: WeightsError for wrong names, shapes, or numbers that are not finite in `dtype`.
    """
    if set(tensors) != set(shapes):
        odd = sorted(set(tensors) ^ set(shapes))
        expected = f"the {len(shapes)} {kind} tensors"
        raise WeightsError(path, expected, listed(odd, "wrong"), next_step)
    stored: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        got = tuple(tensors[name].shape)
        if got != shape:
            raise WeightsError(path, f"{name} of shape {shape}", str(got), next_step)
        stored[name] = tensors[name].detach().to(dtype)
        if not is_finite(stored[name]):
            expected = f"numbers of {name} finite in {dtype}"
            raise WeightsError(path, expected, "NaN or infinity", next_step)
    return stored


def check_target(target: Path, overwrite: bool) -> None:
    """Refuse a target before the source is read.

    Raises: WeightsError unless it ends in .safetensors and does not exist, or may be overwritten.
    """
    if target.suffix.lower() != ".safetensors":
        raise WeightsError(
            target,
            "a target that ends in .safetensors",
            target.suffix or "no ending",
            "name the target like style.safetensors",
        )
    if target.exists() and not overwrite:
        raise WeightsError(
            target,
            "a new file",
            "one that exists already",
            "name another target, or ask for it to be overwritten",
        )


def dtype_of(half: bool) -> torch.dtype:
    """What `half` on the command line means."""
    return torch.float16 if half else torch.float32


def check_copy(
    target: Path,
    same_config: bool,
    tensors: Mapping[str, torch.Tensor],
    again: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
) -> None:
    """Compare what was read back with what was written as `dtype`; a bad copy is removed.

    Raises: WeightsError.
    """
    same = all(torch.equal(again[name], tensors[name].to(dtype).float()) for name in tensors)
    if not same_config or not same:
        target.unlink(missing_ok=True)
        raise WeightsError(
            target,
            "the file to read back as it was written",
            "other numbers",
            "check the disk, then convert again",
        )


def summary(source: Path, target: Path, kind: str, count: int, half: bool) -> str:
    """The one line that says what was made."""
    return (
        f"{source.name} -> {target.name}: {kind}, {count} tensors, "
        f"{'float16' if half else 'float32'}, {target.stat().st_size:,} bytes"
    )

"""What golden/gpen_*.npz and golden/parsenet.npz hold: seeds, the pictures given, what is kept.

Of a picture every 13th pixel of both axes is kept (13 shares no factor with the networks' strides,
so each of their phases is there) and four whole rows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).resolve().parent / "golden"
SIZES = (256, 512)
BATCHES = (1, 3)
SEED = 20210506
STEP = 13
# The parser's scores are small where its weights are random.
MAX_DIFFERENCE = {"gpen_256": 1e-4, "gpen_512": 1e-4, "parsenet": 1e-5}


def path(size: int) -> Path:
    """The generator's golden of a size."""
    return FOLDER / f"gpen_{size}.npz"


PARSER = FOLDER / "parsenet.npz"


def faces(size: int, batch: int, seed: int = SEED) -> Tensor:
    """(B,3,S,S) float32 in [-1,1]: blocks of several sizes and grain, so that no level is idle.

    Only uniform numbers, copies and sums: the same bits on every machine.
    """
    draw = torch.Generator().manual_seed(seed + batch)
    picture = 0.25 * torch.rand(batch, 3, size, size, generator=draw)
    for cells in (8, 32, 128):
        blocks = 0.25 * torch.rand(batch, 3, cells, cells, generator=draw)
        for axis in (2, 3):
            blocks = blocks.repeat_interleave(size // cells, axis)
        picture += blocks
    return picture * 2 - 1


def sample(picture: Tensor) -> dict[str, np.ndarray]:
    """What is kept of (B,C,S,S)."""
    size = picture.shape[-1]
    rows = [0, size // 2 - 1, size // 2, size - 1]
    return {
        "lattice": picture[..., ::STEP, ::STEP].float().numpy().copy(),
        "rows": picture[..., rows, :].float().numpy().copy(),
    }


def fingerprint(tensors: dict[str, Tensor]) -> np.ndarray:
    """Tells weights of another seed or order of drawing, whatever the machine's rounding."""
    return np.array([float(value.double().abs().mean()) for value in tensors.values()])


def difference(picture: Tensor, golden: np.lib.npyio.NpzFile, prefix: str) -> float:
    """The largest difference of a picture from what was kept."""
    kept = sample(picture)
    return max(float(np.abs(kept[part] - golden[prefix + part]).max()) for part in kept)

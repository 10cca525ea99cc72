"""The pictures that are measured on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SOLVAY = ("REALTOON_SOLVAY", "the Solvay conference of 1927, 29 faces")
"""The option that names the photo: its environment variable and its help."""
DETECTOR = ("REALTOON_FACES", "face detector weights; else what run.py has fetched")
SOLVAY_FACES = 29


def astronaut(height: int, width: int) -> np.ndarray:
    """scikit-image's portrait, uint8 RGB [H,W,3]."""
    from PIL import Image
    from skimage import data

    return np.asarray(Image.fromarray(data.astronaut()).resize((width, height)))


def photo(height: int, width: int) -> Tensor:
    """(1,3,H,W) float32 RGB in [0,1], laid out as a picture from ComfyUI's wires."""
    return torch.from_numpy(astronaut(height, width).astype(np.float32) / 255)[None].movedim(-1, 1)

"""The face detector for tests: random weights from a seed, or the real ones where they are."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from realtoon.engine.faces import MTCNN
from realtoon.host import paths
from realtoon.weights_loader import mtcnn


def noise(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """(H,W,3) float32 in [0,1], blotches and grain."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, -(-height // 9) + 1, -(-width // 9) + 1, generator=draw)
    blotches = coarse.repeat_interleave(9, 2).repeat_interleave(9, 3)[0, :, :height, :width]
    grain = torch.rand(height, width, 3, generator=draw)
    return 0.8 * blotches.permute(1, 2, 0) + 0.2 * grain


@lru_cache
def random_model(reduction: int = 2, share: float = 0.1) -> MTCNN:
    """Random weights that let things through where ``noise`` is looked at.

    share: of the windows in noise reduced by ``reduction``; of the crops, half pass each network.
    """
    model = MTCNN().eval().requires_grad_(False)
    draw = torch.Generator().manual_seed(0)
    for value in model.parameters():
        value.copy_(torch.randn(value.shape, generator=draw) * 0.1)
    for head in (model.pnet.conv4_2, model.rnet.dense5_2, model.onet.dense6_2):
        head.weight.mul_(0.05)
        head.bias.mul_(0.05)
    picture = noise(100 * reduction, 100 * reduction).permute(2, 0, 1)[None] * 2 - 1
    patches = picture.unfold(2, 12 * reduction, 12 * reduction).unfold(3, 12 * reduction, 9)
    patches = patches[0].flatten(1, 2).transpose(0, 1)
    windows = model.pnet(F.avg_pool2d(picture, reduction))[0].logit()
    model.pnet.conv4_1.bias[1] += 0.41 - windows.quantile(1 - share)
    small, large = (F.interpolate(patches, size=(size, size), mode="area") for size in (24, 48))
    model.rnet.dense5_1.bias[1] += 0.85 - model.rnet(small)[0].logit().median()
    model.onet.dense6_1.bias[1] += 0.41 - model.onet(large)[0].median()
    return model


def real_model() -> MTCNN:
    """The published weights, from REALTOON_FACES or the command line's cache; else skips."""
    given = os.environ.get("REALTOON_FACES")
    path = Path(given) if given else mtcnn.find([paths.cache_folder() / "models/facedetection"])
    if path is None or not path.exists():
        pytest.skip("no face detector weights (REALTOON_FACES, `python run.py weights faces`)")
    model = MTCNN().eval().requires_grad_(False)
    nets = mtcnn.read(path)
    model.load_state_dict({f"{n}.{k}": v for n, part in nets.items() for k, v in part.items()})
    return model


def astronaut() -> torch.Tensor:
    """(512,512,3) float32 RGB in [0,1]; skips without scikit-image."""
    data = pytest.importorskip("skimage.data", reason="scikit-image is not installed")
    return torch.from_numpy(data.astronaut()).float() / 255

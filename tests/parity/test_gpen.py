"""Our GPEN and ParseNet against the published ones.

Golden arrays hold what the published code made of seeded weights and pictures; where REALTOON_GPEN
names a clone of it (github.com/yangxy/GPEN, @2c73670) the two are also run side by side. The
official weights are offered for academic and non-commercial use and take no part.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import gpen_golden
import gpen_published
import gpen_weights
import numpy as np
import pytest
import torch
from gpen_golden import BATCHES, SIZES
from gpen_plain import plain
from realtoon.engine.faces.parse import ParseNet
from realtoon.engine.gpen import GPEN
from realtoon.weights_loader import gpen as loader
from realtoon.weights_loader import parsenet as parser_loader
from torch import Tensor

MAX_DIFFERENCE, MAX_PARSER_DIFFERENCE = 1e-4, 1e-5


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def clone() -> Path:
    folder = os.environ.get("REALTOON_GPEN")
    if not folder:
        pytest.skip("REALTOON_GPEN names no clone of github.com/yangxy/GPEN")
    return Path(folder)


@lru_cache(maxsize=1)
def weights(size: int, seed: int) -> dict[str, Tensor]:
    """With the blur kernels, as the published code wants them."""
    config = gpen_weights.published(size, *gpen_published.WIDTHS[size])
    return gpen_weights.state(config, seed, kernels=True)


@lru_cache(maxsize=1)
def ours(size: int, seed: int) -> GPEN:
    config = gpen_weights.published(size, *gpen_published.WIDTHS[size])
    return GPEN.with_weights(config, gpen_weights.without_kernels(weights(size, seed)))


def largest(difference: Tensor) -> float:
    return float(difference.abs().max())


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("size", SIZES)
def test_golden_of_the_published_generator(size: int, batch: int) -> None:
    """Needs no clone: the numbers come from the published code, see make_golden_gpen.py."""
    with np.load(gpen_golden.path(size)) as golden:
        seed = int(golden["seed"])
        own = gpen_golden.fingerprint(gpen_weights.without_kernels(weights(size, seed)))
        np.testing.assert_allclose(own, golden["weights"], rtol=1e-5, err_msg="other weights")
        assert golden[f"batch{batch}_rows"].std() > 0.1, "a flat picture would prove nothing"
        drawn = ours(size, seed)(gpen_golden.faces(size, batch, seed))
        difference = gpen_golden.difference(drawn, golden, f"batch{batch}_")
        assert difference <= float(golden["max_difference"]) <= MAX_DIFFERENCE


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("size", "seed"), [(256, 1), (256, 2), (512, 1)])
def test_equals_the_published_code(size: int, seed: int, batch: int, clone: Path) -> None:
    net = gpen_published.generator(clone, size, weights(size, seed))
    faces = gpen_golden.faces(size, batch, seed)
    expected = net(faces)[0]
    assert expected.std() > 0.1
    assert largest(ours(size, seed)(faces) - expected) <= MAX_DIFFERENCE


def test_the_plain_network_of_the_tests_equals_the_published_code(clone: Path) -> None:
    net = gpen_published.generator(clone, 256, weights(256, 3))
    faces = gpen_golden.faces(256, 2, 3)
    assert largest(plain(weights(256, 3), faces) - net(faces)[0]) <= 2e-5


def test_a_file_goes_from_the_published_code_through_our_reader(
    tmp_path: Path, clone: Path
) -> None:
    """Saved there, read here, written here, and loaded strictly there again."""
    net = gpen_published.generator(clone, 256, weights(256, 4))
    torch.save(net.state_dict(), tmp_path / "net.pth")
    config, tensors = loader.read(tmp_path / "net.pth")
    faces = gpen_golden.faces(256, 1, 4)
    assert largest(GPEN.with_weights(config, tensors)(faces) - net(faces)[0]) <= MAX_DIFFERENCE
    loader.write(tmp_path / "net.safetensors", config, tensors)
    from safetensors.torch import load_file

    again = gpen_published.generator(clone, 256, load_file(tmp_path / "net.safetensors"))
    assert torch.equal(again(faces)[0], net(faces)[0])


# --- the face parser ------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def our_parser(seed: int) -> ParseNet:
    return ParseNet.with_weights(gpen_weights.parsenet(seed, counters=False))


def test_golden_of_the_published_parser() -> None:
    with np.load(gpen_golden.PARSER) as golden:
        seed = int(golden["seed"])
        own = gpen_golden.fingerprint(gpen_weights.parsenet(seed, counters=False))
        np.testing.assert_allclose(own, golden["weights"], rtol=1e-5, err_msg="other weights")
        scores = our_parser(seed)(gpen_golden.faces(512, 1, seed))
        assert scores.shape == (1, 19, 512, 512)
        spread = float(golden["lattice"].std((2, 3)).mean())
        most = float(golden["max_difference"])
        assert spread > 100 * most, "flat scores would prove nothing"
        assert gpen_golden.difference(scores, golden, "") <= most <= MAX_PARSER_DIFFERENCE


def test_the_parsers_classes_equal_the_published_code(tmp_path: Path, clone: Path) -> None:
    net = gpen_published.parser(clone, gpen_weights.parsenet(7))
    faces = gpen_golden.faces(512, 2, 7)
    expected = net(faces)[0]
    torch.save(net.state_dict(), tmp_path / "ParseNet-latest.pth")
    found = ParseNet.with_weights(parser_loader.read(tmp_path / "ParseNet-latest.pth"))(faces)
    assert largest(found - expected) <= MAX_PARSER_DIFFERENCE
    # Where two classes are as good as equal, rounding may decide.
    assert (found.argmax(1) != expected.argmax(1)).float().mean() <= 1e-4

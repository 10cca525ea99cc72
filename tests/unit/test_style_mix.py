"""What strength, crispness and mask promise, bit for bit where they do."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from realtoon.engine.style_mix import LINE_RADIUS_PX, mix
from torch import Tensor

few = settings(max_examples=25, deadline=None)
shapes = st.tuples(st.integers(1, 3), st.just(3), st.integers(1, 40), st.integers(1, 40))
levels = st.floats(0, 1)


def pair(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32):  # noqa: ANN201
    draw = torch.Generator().manual_seed(seed)
    source, drawn = (torch.rand(shape, generator=draw, dtype=dtype) for _ in range(2))
    # The ends of the range are where rounding would leave it.
    source[..., 0, 0], drawn[..., -1, -1] = 1.0, 0.0
    return source, drawn


def waves(height: int, width: int, period_px: float) -> Tensor:
    x = torch.arange(width, dtype=torch.float64) * (2 * torch.pi / period_px)
    return (0.2 * torch.sin(x)).expand(1, 3, height, width)


@few
@given(shape=shapes, crispness=st.floats(0, 2), seed=st.integers(0, 99))
def test_strength_0_is_the_source_bit_for_bit(shape, crispness, seed) -> None:
    source, drawn = pair(shape, seed)
    assert torch.equal(mix(source, drawn, strength=0.0, crispness=crispness), source)


@few
@given(shape=shapes, seed=st.integers(0, 99))
def test_strength_1_is_the_network_bit_for_bit(shape, seed) -> None:
    source, drawn = pair(shape, seed)
    assert torch.equal(mix(source, drawn, strength=1.0), drawn)
    everywhere = torch.ones(1, 1, *shape[2:])
    assert torch.equal(mix(source, drawn, strength=1.0, mask=everywhere), drawn)


@few
@given(shape=shapes, strength=levels, crispness=st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_between_them_it_is_linear(shape, strength, crispness) -> None:
    source, drawn = pair(shape, dtype=torch.float64)
    full = mix(source, drawn, strength=1.0, crispness=crispness)
    expected = source + strength * (full - source)
    got = mix(source, drawn, strength=strength, crispness=crispness)
    assert (got - expected).abs().max() < 1e-12


@few
@given(shape=shapes, strength=levels, crispness=st.floats(0, 2), masked=st.booleans())
def test_the_result_stays_in_range_and_its_inputs_as_they_are(
    shape, strength, crispness, masked
) -> None:
    source, drawn = pair(shape)
    kept = source.clone(), drawn.clone()
    mask = torch.rand(1, 1, *shape[2:]) if masked else None
    out = mix(source, drawn, strength=strength, crispness=crispness, mask=mask)
    assert out.shape == source.shape and out.dtype == source.dtype
    assert out.min() >= 0 and out.max() <= 1
    assert torch.equal(source, kept[0]) and torch.equal(drawn, kept[1])


def test_crispness_leaves_tone_and_scales_lines() -> None:
    """R's slow part stays, its fast part is multiplied: measured on waves of one length each."""
    source = torch.full((1, 3, 64, 192), 0.5, dtype=torch.float64)
    inside = (..., slice(None), slice(48, -48))
    for period, kept in ((96.0, True), (4.0, False)):
        r = waves(64, 192, period)
        for crispness in (0.0, 0.5, 2.0):
            out = mix(source, source + r, strength=1.0, crispness=crispness) - source
            gain = (out[inside] * r[inside]).sum() / (r[inside] ** 2).sum()
            assert abs(gain - (1.0 if kept else crispness)) < 0.05


def test_crispness_1_is_the_limit_of_its_neighbours() -> None:
    source, drawn = pair((1, 3, 30, 41), dtype=torch.float64)
    near = mix(source, drawn, strength=1.0, crispness=1.0 + 1e-9)
    assert (near - drawn).abs().max() < 1e-8


def test_a_flat_difference_is_all_tone() -> None:
    source = torch.rand(1, 3, 20, 20, dtype=torch.float64) * 0.5
    for crispness in (0.0, 2.0):
        out = mix(source, source + 0.25, strength=1.0, crispness=crispness)
        # The blur's weights are float32 numbers: their sum is 1 to that.
        assert (out - source - 0.25).abs().max() < 1e-6


def test_crispness_looks_no_further_than_it_says() -> None:
    source, drawn = pair((1, 3, 8, 64))
    changed = drawn.clone()
    changed[..., 30] = 1 - changed[..., 30]
    first, second = (mix(source, x, strength=1.0, crispness=2.0) for x in (drawn, changed))
    touched = (first != second).flatten(0, 2).any(0).nonzero()[:, 0]
    assert (touched - 30).abs().max() <= LINE_RADIUS_PX
    assert len(touched) > 1


@few
@given(shape=shapes, strength=levels, crispness=st.sampled_from([0.5, 1.0, 1.7]))
def test_a_mask_of_all_or_nothing_is_bit_exact(shape, strength, crispness) -> None:
    source, drawn = pair(shape)
    mask = (torch.rand(shape[0], 1, *shape[2:]) > 0.5).float()
    free = mix(source, drawn, strength=strength, crispness=crispness)
    out = mix(source, drawn, strength=strength, crispness=crispness, mask=mask)
    assert torch.equal(out, torch.where(mask > 0, free, source))


@pytest.mark.parametrize("level", [0.25, 0.5, 0.75])
def test_a_grey_mask_mixes(level: float) -> None:
    source, drawn = pair((2, 3, 9, 7))
    mask = torch.full((1, 1, 9, 7), level)
    out = mix(source, drawn, strength=1.0, mask=mask)
    assert (out - (source + level * (drawn - source))).abs().max() < 1e-6


def test_a_pictures_result_does_not_depend_on_its_batch() -> None:
    source, drawn = pair((4, 3, 33, 29))
    mask = torch.rand(4, 1, 33, 29)
    together = mix(source, drawn, strength=0.7, crispness=1.4, mask=mask)
    for i in range(4):
        one = slice(i, i + 1)
        alone = mix(source[one], drawn[one], strength=0.7, crispness=1.4, mask=mask[one])
        assert torch.equal(alone[0], together[i])

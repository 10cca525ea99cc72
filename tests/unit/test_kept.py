"""What is kept between runs: found by content, within a limit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from realtoon.engine.kept import Kept, content_key


def test_a_result_is_found_again_and_nothing_else_is() -> None:
    kept = Kept(100)
    kept.keep(("a", 1), "one", 10)
    assert kept.find(("a", 1)) == "one"
    assert kept.find(("a", 2)) is None
    kept.clear()
    assert kept.find(("a", 1)) is None
    assert kept.bytes == 0


def test_the_one_not_used_for_longest_makes_room() -> None:
    kept = Kept(100)
    for name in "abc":
        kept.keep(name, name, 33)
    kept.find("a")
    kept.keep("d", "d", 33)
    assert [kept.find(name) for name in "abcd"] == ["a", None, "c", "d"]


def test_what_is_larger_than_the_limit_is_not_kept_and_costs_nothing() -> None:
    kept = Kept(100)
    kept.keep("a", "a", 60)
    kept.keep("b", "b", 101)
    assert kept.find("b") is None
    assert kept.find("a") == "a"


def test_a_key_that_comes_again_counts_once() -> None:
    kept = Kept(100)
    for _ in range(5):
        kept.keep("a", "a", 60)
    assert kept.bytes == 60


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 150)), max_size=40))
def test_the_limit_holds(entries: list[tuple[int, int]]) -> None:
    kept = Kept(100)
    for name, size in entries:
        kept.keep(name, name, size)
        assert kept.bytes <= 100


@pytest.mark.parametrize("order", ["bhwc", "bchw"])
def test_pictures_of_the_same_numbers_have_the_same_key(order: str) -> None:
    image = torch.rand(1, 3, 70, 41)
    again = image.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) if order == "bhwc" else image
    assert content_key(image) == content_key(again.clone())


def test_one_pixel_or_another_shape_is_another_key() -> None:
    image = torch.rand(1, 3, 8, 6)
    changed = image.clone()
    changed[0, 1, 7, 5] += 1e-6
    keys = {content_key(image), content_key(changed), content_key(image.reshape(1, 3, 6, 8))}
    assert len(keys) == 3

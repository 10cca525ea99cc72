"""Random and damaged bytes: a reader answers with weights or a WeightsError, never otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import weights_files as wf
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from realtoon.weights_loader import dctnet, frozen_graph
from realtoon.weights_loader.errors import WeightsError

# Fields of the schema, right and wrong, so that random messages get somewhere.
_names = st.sampled_from(
    [b"generator/Conv/weights", b"generator/Conv_1/biases", b"a/generator/block_0/conv1/weights"]
)
_leaf = st.one_of(st.binary(max_size=40), _names, st.sampled_from([b"Const", b"value", b"dtype"]))


def _field(payload: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    number = st.integers(0, 14)
    return st.one_of(
        st.builds(wf.message, number, payload),
        st.builds(wf.integer, number, st.integers(0, (1 << 64) - 1)),
        st.builds(
            lambda n, b: wf.varint(n << 3 | 5) + b, number, st.binary(min_size=4, max_size=4)
        ),
        st.builds(
            lambda n, b: wf.varint(n << 3 | 1) + b, number, st.binary(min_size=8, max_size=8)
        ),
        st.builds(lambda n, w: wf.varint(n << 3 | w), number, st.sampled_from([3, 4, 6, 7])),
    )


_messages = st.recursive(
    _leaf, lambda inner: st.lists(_field(inner), max_size=5).map(b"".join), max_leaves=24
)
_const = st.builds(
    lambda name, proto: wf.constant(name.decode(), proto),
    _names,
    st.one_of(
        _messages,
        st.builds(
            wf.tensor_proto,
            st.lists(st.integers(0, 1 << 62), max_size=5),
            _messages,
            st.integers(0, 30),
        ),
    ),
)
_fuzz = settings(
    max_examples=300,
    deadline=2000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def refused_or_read(read: Callable[[], object]) -> None:
    """Nothing but a WeightsError may leave a reader."""
    try:
        read()
    except WeightsError as error:
        assert str(error).isprintable()


@_fuzz
@given(
    data=st.one_of(st.binary(min_size=1, max_size=400), _messages, st.lists(_const).map(b"".join))
)
@example(data=b"\x0a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01")
@example(data=b"\x0a\x00")
def test_random_graphs_never_hang_or_break(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "fuzz.pb"
    path.write_bytes(data or b"\0")
    refused_or_read(lambda: frozen_graph.read_constants(path))
    refused_or_read(lambda: dctnet.read(path))


@_fuzz
@given(
    position=st.integers(0, 10**9),
    change=st.binary(min_size=1, max_size=8),
    which=st.integers(0, 4),
)
def test_damaged_files_never_break(
    position: int, change: bytes, which: int, tmp_path: Path, damaged: list[bytes]
) -> None:
    """Damage where the structure is: names, lengths, headers, indexes."""
    data = bytearray(damaged[which])
    at = position % len(data)
    data[at : at + len(change)] = change
    path = tmp_path / "fuzz"
    path.write_bytes(data)
    refused_or_read(lambda: dctnet.read(path))


@pytest.fixture(scope="module")
def damaged() -> list[bytes]:
    """Small files of each format, mostly structure."""
    small = {name: torch.zeros(1) for name in list(wf.random_style())[:6]}
    named = {f"generator/Conv_{i}/biases": torch.zeros(1) for i in range(1, 6)}
    return [
        wf.graph_bytes(named),
        wf.safetensors_bytes(small),
        wf.torch_bytes(small),
        wf.torch_bytes(small, legacy=True),
        wf.evil_pickle(Path("never")),
    ]


@_fuzz
@given(
    ops=st.lists(
        st.one_of(
            st.sampled_from([bytes([code]) for code in range(256)]),
            st.sampled_from(
                [b"}", b"]", b")", b"(", b"t", b"u", b"s", b"a", b"e", b"R", b"Q", b"b"]
            ),
            st.sampled_from([b"q\0", b"h\0", b"K\1", b"X\1\0\0\0a", b"\x8a\1\5"]),
            st.just(b"ccollections\nOrderedDict\n"),
            st.just(b"ctorch._utils\n_rebuild_tensor_v2\n"),
            st.just(b"ctorch\nFloatStorage\n"),
        ),
        max_size=60,
    )
)
def test_random_pickles_never_break(ops: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "fuzz.pt"
    path.write_bytes(wf.torch_zip(b"\x80\x02" + b"".join(ops) + b"."))
    refused_or_read(lambda: dctnet.read(path))

"""A safetensors header is read at once or one by one: both ways take and tell the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import weights_files as wf
from realtoon.weights_loader import safetensors_file
from realtoon.weights_loader.errors import WeightsError

Pairs = list[tuple[str, str]]
"""Names and values of a JSON object, as they are written."""

VALUES = (
    ["0", "true", "null", "NaN", "9" * 30, '""', '"F32"', '"I32"', '["F32"]', "[]", "[0]", "[1]"]
    + ["[true]", "[1.0]", "[1,1.0]", "[-1]", "[-1,-1]", "[0,0]", "[0,4]", "[4,8]", "[4,4]"]
    + ["[-4,0]", "[8,4]", "[0,2,4]", "[[]]", "[" + "1," * 7 + "1]", "[" + "1," * 8 + "1]", "{}"]
    + ['{"a":"b"}', '{"a":"1","a":"2"}', '{"a":{}}', '[["a","b"]]', "[281474976710656]"]
)
FIELDS = ['"dtype"', '"shape"', '"data_offsets"', '"x"', '"sh\\u0061pe"']
NAMES = ['"a"', '"b"', '"\\u0061"', '"a:b"', '""', '"__metadata__"']


def as_object(pairs: Pairs) -> str:
    return "{" + ",".join(f"{name}:{value}" for name, value in pairs) + "}"


def as_list(pairs: Pairs) -> str:
    return "[" + ",".join(f"[{name},{value}]" for name, value in pairs) + "]"


def right(index: int) -> Pairs:
    """Fields of four bytes."""
    offsets = f"[{4 * index},{4 * index + 4}]"
    return [('"dtype"', '"F32"'), ('"shape"', "[1]"), ('"data_offsets"', offsets)]


def faulty(good: Pairs) -> Iterator[Pairs]:
    """Every single fault of an entry: a value, a name, one more, one less, another order."""
    for at, (name, value) in enumerate(good):
        before, after = good[:at], good[at + 1 :]
        yield [*before, *after]
        yield [*after, (name, value), *before]
        yield from ([*before, (name, other), *after] for other in VALUES)
        yield from ([*before, (other, value), *after] for other in FIELDS)
        for other in FIELDS:
            yield from ([*before, (other, put), *good[at:]] for put in ('"F32"', "[1]", "0"))


def headers() -> Iterator[str]:
    """Headers of one or two tensors, right ones and all with one fault."""
    tensor = ('"a"', as_object(right(0)))
    second = ('"b"', as_object(right(1)))
    for joined in (as_object, as_list):
        yield joined([])
        yield joined([tensor, second])
        yield joined([second, tensor])
        for name in NAMES:
            yield joined([tensor, (name, second[1])])
            for value in VALUES:
                yield joined([(name, value), tensor])
                yield joined([tensor, (name, value)])
    yield as_object([('"a"', as_list(right(0)))])
    # What would go on with a number, a text or an object in place of the tensors.
    for tail in (".0}", "e5}", "0}", ',"":0}', ',"":{}}', '"}', "}}", "]}", "} 0", "}\n", " } "):
        yield as_object([tensor])[:-1] + tail
        yield as_object([tensor, second])[:-1] + tail
    for head in ("{{", '{"', '{"x', '{"x",', '{"x":', '{"":{},', '{"":0,', "[", "", " {", "{ "):
        yield head + as_object([tensor])[1:]
    far, wide = f"[{1 << 48},{(1 << 48) + 4}]", f"[0,{1 << 48}]"
    yield as_object([tensor, ('"b"', as_object([*right(1)[:2], ('"data_offsets"', far)]))])
    empty = [right(0)[0], ('"shape"', wide), ('"data_offsets"', "[0,0]")]
    yield as_object([('"b"', as_object(empty)), tensor])
    for entry in faulty(right(0)):
        yield as_object([('"a"', as_object(entry))])
        yield as_object([('"a"', as_object(entry)), second])
    for entry in faulty(right(1)):
        yield as_object([tensor, ('"b"', as_object(entry))])


def misspelled() -> Iterator[str]:
    """Right headers, and all that one character makes of them."""
    whole = {"__metadata__": {"k": "v"}, "a": json.loads(as_object(right(0)))}
    whole["b"] = json.loads(as_object(right(1)))
    for text in (json.dumps(whole), json.dumps(whole, separators=(",", ":"))):
        yield text
        for at in range(1, len(text)):
            yield text[:at] + text[at + 1 :]
            for other in '"{}[],:0-\\ a\n':
                yield text[:at] + other + text[at:]
                yield text[:at] + other + text[at + 1 :]


def told(path: Path) -> safetensors_file.Header | str:
    try:
        return safetensors_file.read_header(path, 1 << 20)
    except WeightsError as error:
        return str(error)


@pytest.mark.parametrize("made", [headers, misspelled])
def test_both_ways_to_read_a_header_take_and_tell_the_same(
    made: Callable[[], Iterator[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "header.safetensors"
    seen = dict.fromkeys(made())
    taken = quick = 0
    for text in seen:
        # Of the second tensor's four bytes some headers know nothing.
        for size in (8,) if made is misspelled else (4, 8):
            path.write_bytes(wf.with_header(text.encode(), bytes(size)))
            at_once = told(path)
            quick += safetensors_file._at_once(text.encode()) is not None
            with monkeypatch.context() as patch:
                patch.setattr(safetensors_file, "_at_once", lambda raw: None)
                assert told(path) == at_once, text
            taken += isinstance(at_once, safetensors_file.Header)
    # Neither way is idle, and most of these headers are refused.
    assert len(seen) > 900 and quick > 20 and 20 < taken < len(seen) / 3

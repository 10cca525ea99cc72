"""The tensors of one module become an adapter of one kind, or the reason why they are none.

A file whose tensors contradict each other is refused; one whose tensors are sound but of another
size than the module is told apart (Misfit), since the rest of such a file may still be used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from . import files
from .errors import WeightsError

Shape = tuple[int, ...]
Stored = Mapping[str, tuple[str, Shape]]
"""Role -> (key in the file, shape)."""

_LOW_RANK = {
    "lora": ("down", "up", "mid"),
    "loha": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    "lokr": ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
}
_EXTRAS = ("diff_b", "up_bias", "magnitude")


@dataclass(frozen=True)
class Part:
    """One adapter. tensors: its name in the normal form -> (key in the file, shape to give it)."""

    kind: str
    tensors: Mapping[str, tuple[str, Shape]]
    rank: int


@dataclass(frozen=True)
class Misfit:
    """Tensors that are sound but do not fit their module."""

    expected: str
    got: str


def arrange(path: Path, module: str, weight: Shape, stored: Stored) -> list[Part] | Misfit:
    """The adapters of one module, its low-rank one first.

    weight: the shape of the module's weight, (out, in, *kernel), or (size,) of a norm.
    stored: what the file has for it; "alpha" may be in it.
    Raises: WeightsError where they contradict each other.
    """
    kinds = [kind for kind, roles in _LOW_RANK.items() if any(role in stored for role in roles)]
    if len(kinds) > 1:
        _refuse(path, f"one kind of adapter for {module}", " and ".join(kinds))
    extras, misfit = _extras(weight, stored)
    parts: list[Part] = []
    if kinds:
        for role, (key, shape) in stored.items():
            if role in _LOW_RANK[kinds[0]] and (len(shape) < 2 or 0 in shape):
                _refuse(path, f"a matrix of rank 1 or more in {key}", str(shape))
        made = _MAKERS[kinds[0]](path, module, weight, stored)
        if isinstance(made, Misfit):
            return made
        parts.append(Part(kinds[0], {**made.tensors, **extras}, made.rank))
        extras = {}
    if "diff" in stored:
        key, shape = stored["diff"]
        if math.prod(shape) != math.prod(weight) or shape[:1] != weight[:1]:
            return Misfit(f"diff {weight}", str(shape))
        parts.append(Part("diff", {"diff": (key, weight), **extras}, 0))
        extras = {}
    reshape = stored.get("reshape_weight")
    if not parts and ("diff_b" not in stored or "up_bias" in stored or "magnitude" in stored):
        keys = sorted(key for key, _ in stored.values())
        _refuse(path, f"matrices beside {keys[0]}", "none for this module")
    if not parts:
        parts.append(Part("diff", extras, 0))
    if reshape is not None:
        return Misfit(f"a weight of {weight}", "reshape_weight: one that is to be enlarged first")
    return misfit or parts


def _extras(weight: Shape, stored: Stored) -> tuple[dict[str, tuple[str, Shape]], Misfit | None]:
    """Vectors over the outputs: bias differences, biases of up matrices, DoRA's magnitudes."""
    extras: dict[str, tuple[str, Shape]] = {}
    for role in _EXTRAS:
        if role not in stored:
            continue
        key, shape = stored[role]
        # Magnitudes over the inputs (1, in), as early LyCORIS wrote them, are another formula.
        across = role == "magnitude" and len(shape) == 2 and shape[0] == 1 != weight[0]
        if math.prod(shape) != weight[0] or across:
            return {}, Misfit(f"{role} of {weight[0]} outputs", str(shape))
        extras[role] = (key, weight[:1])
    return extras, None


def _lora(path: Path, module: str, weight: Shape, stored: Stored) -> Part | Misfit:
    (down_key, down), (up_key, up) = _pair(path, module, stored, "down", "up")
    rank, up_rank = down[0], math.prod(up[1:])
    kernel = weight[2:]
    tensors = {"down": (down_key, down), "up": (up_key, up)}
    if "mid" in stored:
        mid_key, mid = stored["mid"]
        if mid[:2] != (up_rank, rank):
            _refuse(path, f"{mid_key} of ({up_rank}, {rank})", str(mid))
        fits = _is(down, rank, *weight[1:2]) and _is(mid, up_rank, rank, *kernel)
        tensors["mid"] = (mid_key, (up_rank, rank, *kernel))
    else:
        if up_rank != rank:
            _refuse(path, f"one rank in {down_key} and {up_key}", f"{rank} and {up_rank}")
        fits = math.prod(down[1:]) == math.prod(weight[1:])
    if not fits or up[0] != weight[0] or len(weight) < 2:
        return Misfit(f"{weight}", f"({up[0]}, {', '.join(map(str, down[1:]))})")
    if not kernel:
        tensors["down"] = (down_key, (rank, weight[1]))
        tensors["up"] = (up_key, (weight[0], up_rank))
    return Part("lora", tensors, rank)


def _loha(path: Path, module: str, weight: Shape, stored: Stored) -> Part | Misfit:
    tensors: dict[str, tuple[str, Shape]] = {}
    rank = 0
    for half in ("1", "2"):
        a_role, b_role, t_role = f"hada_w{half}_a", f"hada_w{half}_b", f"hada_t{half}"
        (a_key, a), (b_key, b) = _pair(path, module, stored, a_role, b_role)
        rank = b[0]
        core = stored.get(t_role)
        if core is None and "hada_t1" in stored or core is not None and "hada_t1" not in stored:
            _refuse(path, f"hada_t1 and hada_t2 of {module}", "one of the two")
        inner = a[0] if core else a[-1]
        if inner != rank or (core and core[1][:2] != (rank, rank)):
            _refuse(path, f"one rank in {a_key} and {b_key}", f"{inner} and {rank}")
        if core:
            fits = a[1:] == weight[:1] and b[1:] == weight[1:2]
            fits = fits and _is(core[1], rank, rank, *weight[2:])
            tensors[f"t{half}"] = (core[0], (rank, rank, *weight[2:]))
        else:
            fits = a[0] == weight[0] and math.prod(b[1:]) == math.prod(weight[1:])
            b = (rank, math.prod(b[1:]))
        if not fits or len(weight) < 2:
            return Misfit(f"{weight}", f"hada_w{half}_a {a}, hada_w{half}_b {b}")
        tensors[f"w{half}_a"], tensors[f"w{half}_b"] = (a_key, a), (b_key, b)
    return Part("loha", tensors, rank)


def _lokr(path: Path, module: str, weight: Shape, stored: Stored) -> Part | Misfit:
    tensors: dict[str, tuple[str, Shape]] = {}
    sizes: list[tuple[int, int]] = []
    rank = 0
    for half in ("1", "2"):
        whole = stored.get(f"lokr_w{half}")
        if whole is not None:
            if f"lokr_w{half}_a" in stored or f"lokr_w{half}_b" in stored:
                _refuse(path, f"lokr_w{half} of {module} whole or in parts", "both")
            tensors[f"w{half}"] = whole
            sizes.append((whole[1][0], math.prod(whole[1][1:])))
            continue
        (a_key, a), (b_key, b) = _pair(path, module, stored, f"lokr_w{half}_a", f"lokr_w{half}_b")
        core = stored.get("lokr_t2") if half == "2" else None
        inner = a[0] if core else a[-1]
        if inner != b[0] or (core and core[1][:2] != (b[0], b[0])):
            _refuse(path, f"one rank in {a_key} and {b_key}", f"{inner} and {b[0]}")
        rank = b[0]
        if core:
            tensors["t2"] = core
        sizes.append(
            (a[1] if core else a[0], math.prod(b[1:]) * (math.prod(core[1][2:]) if core else 1))
        )
        tensors[f"w{half}_a"], tensors[f"w{half}_b"] = (a_key, a), (b_key, b)
    if "lokr_t2" in stored and "t2" not in tensors:
        _refuse(path, f"lokr_w2_a and lokr_w2_b beside lokr_t2 of {module}", "a whole lokr_w2")
    (out1, in1), (out2, in2) = sizes
    if len(weight) < 2 or (out1 * out2, in1 * in2) != (weight[0], math.prod(weight[1:])):
        return Misfit(f"{weight}", f"({out1}·{out2}, {in1}·{in2})")
    return Part("lokr", tensors, rank)


_MAKERS = {"lora": _lora, "loha": _loha, "lokr": _lokr}


def _pair(
    path: Path, module: str, stored: Stored, first: str, second: str
) -> tuple[tuple[str, Shape], tuple[str, Shape]]:
    found, other = stored.get(first), stored.get(second)
    if found is None or other is None:
        have = found or other
        missing = first if found is None else second
        got = f"{have[0]} alone" if have else f"neither, for {module}"
        _refuse(path, f"{first} and {second} of {module}", f"{got} ({missing} is missing)")
    return found, other


def _is(shape: Shape, *sizes: int) -> bool:
    """Whether a shape is this one, ones at its end left out."""
    return shape[: len(sizes)] == sizes and math.prod(shape[len(sizes) :]) == 1


def _refuse(path: Path, expected: str, got: str) -> NoReturn:
    raise WeightsError(path, expected, got, files.AGAIN)

"""LoRA files of every layout become adapters in one normal form, with a report of what matched.

`describe` tells from the header alone what a file is; `read` lends its numbers for the modules of a
model. What cannot be right is refused by name before a number is read: a file for another base, one
of which nothing matches, matrices that contradict each other. What does not match in part is read,
and its Coverage names the rest: no key is left out without being told.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from . import (
    lora_families,
    lora_kinds,
    lora_layouts,
    lora_match,
    lora_scale,
    lora_source,
    qwen_families,
)
from .errors import WeightsError, listed
from .style_files import natural_key

__all__ = ["Adapter", "Coverage", "Description", "LoraFile", "describe", "natural_key", "read"]

Kind = Literal["lora", "loha", "lokr", "diff"]
Shape = tuple[int, ...]
_OF_RANK = {"down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b"}
"""Roles of matrices with as many rows as their adapter has ranks."""


@dataclass(frozen=True)
class Adapter:
    """What one module is changed by; several of one module add up.

    module: the model's own name. tensors, in their stored dtypes (fp8 to fp64), on the CPU:
      lora: down (r, in), up (out, r), with `mid` up @ mid @ down, mid (r, r)
      loha: w1_a (out, r), w1_b (r, in), w2_a, w2_b; with t1, t2 (r, r, *kernel) w1_a and w2_a are
        (r, out)
      lokr: w1 (a, b) or w1_a (a, r), w1_b (r, b); w2 (c, d) or w2_a, w2_b, t2; a·c = out, b·d = in
      diff: diff, of the weight's shape; it may be absent where diff_b is there
      each: diff_b (out,) is added to the bias whatever the scale; up_bias (out,) is added with the
        up matrix's result; magnitude (out,) makes it DoRA, over each output's inputs
    Modules with a kernel keep their stored shapes. scale: alpha / rank (or its root), 1.0 without
    alpha. rank: 0 for diff and for lokr of two whole factors.
    """

    module: str
    kind: Kind
    tensors: Mapping[str, Tensor]
    scale: float
    rank: int


@dataclass(frozen=True)
class Description:
    """What a file is by its header. family: the base it was made for, or "unknown".

    layout: how its names are spelled, such as "diffusion_model.<module>: .lora_A/B". keys: their
    number. total_bytes: of the file.
    """

    path: Path
    family: str
    layout: str
    keys: int
    modules: int
    kinds: tuple[str, ...]
    ranks: tuple[int, ...]
    dtypes: tuple[str, ...]
    total_bytes: int


@dataclass(frozen=True)
class Coverage:
    """What of a file is used.

    matched: modules. unmatched: keys that are no module's of this model. text_encoder: keys that
    are a text encoder's, which is left as it is. wrong_shape: (module, expected, got).
    used_keys + unfit_keys (of wrong_shape) + unmatched + text_encoder are all keys of the file.
    alphas: as stored or told by metadata; empty where there is none and the scale is 1.
    """

    matched: tuple[str, ...]
    unmatched: tuple[str, ...]
    text_encoder: tuple[str, ...]
    wrong_shape: tuple[tuple[str, str, str], ...]
    used_keys: int
    unfit_keys: int
    layout: str
    family: str
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]

    @property
    def complete(self) -> bool:
        """Whether every key was used."""
        return not (self.unmatched or self.text_encoder or self.wrong_shape)

    def told(self) -> list[str]:
        """Lines for a node: what it is, what matched, and what did not, by name."""
        ranks = f"rank {_few(self.ranks)}" if self.ranks else "no rank"
        alphas = f"alpha {_few(self.alphas)}" if self.alphas else "no alpha (scale 1)"
        lines = [
            f"LoRA of {self.family} ({self.layout}), {ranks}, {alphas}",
            f"{len(self.matched):,} modules matched, {self.used_keys:,} keys used",
        ]
        if self.unmatched:
            lines.append(f"no module of this model: {listed(list(self.unmatched), 'keys')}")
        if self.text_encoder:
            lines.append(f"for a text encoder, left out: {len(self.text_encoder):,} keys")
        if self.wrong_shape:
            lines.append(f"{len(self.wrong_shape):,} modules of another shape, left out:")
            lines += [f"{name}: expected {e}, got {g}" for name, e, g in self.wrong_shape[:5]]
            if len(self.wrong_shape) > 5:
                lines.append("…")
        return lines


@dataclass(frozen=True)
class LoraFile:
    """A read file. total_bytes: of the tensors lent."""

    path: Path
    adapters: tuple[Adapter, ...]
    coverage: Coverage
    metadata: Mapping[str, str]
    total_bytes: int


@contextmanager
def _without_collection() -> Iterator[None]:
    """A header becomes thousands of small containers, all of them kept: a collection that they set
    off walks the whole process (0.15 s with torch loaded) and finds nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_without_collection()
def describe(path: Path) -> Description:
    """Tell what a file is from its header alone: milliseconds, whatever its size.

    Raises: WeightsError for a broken file and for one that is no LoRA.
    """
    source, names = _open(Path(path))
    roles = {role for group in names.groups.values() for role in group}
    ranks = {
        shape[0]
        for role in roles & _OF_RANK
        for group in names.groups.values()
        if role in group and (shape := source.entries[group[role]][1])
    }
    dtypes = sorted({entry[0] for entry in source.entries.values()})
    return Description(
        source.path,
        _family(source, names) or lora_families.UNKNOWN,
        _layout(names),
        len(source.entries),
        len(names.groups),
        tuple(sorted({_kind(role) for role in roles} - {""})),
        tuple(sorted(ranks)),
        tuple(dtypes),
        source.size,
    )


def read(path: Path, modules: Mapping[str, Shape], mapped: bool | None = None) -> LoraFile:
    """Read a file for a model.

    modules: the model's own names -> shapes of their weights, (out, in) of a Linear.
    mapped: whether tensors are views of the file on disk rather than of a buffer; None lets the
        system decide (see lora_source). They must not be written to.
    Raises: WeightsError with file, expected, got and next step: for another base, no match, tensors
    that contradict each other, NaN.
    """
    with _without_collection():
        source, names = _open(Path(path))
        family = _family(source, names)
        _check_family(source, family, modules, len(names.groups))
        taken = lora_match.match(source, names, modules)
        lora_match.check_dtypes(source, taken.modules)
        config = lora_scale.from_metadata(source.path, source.metadata)
        parts, wrong = lora_match.arrange(source, taken.modules, modules)
        lora_match.check_any(source, taken, parts, wrong, len(modules))
    wanted = _wanted(taken.modules, parts)
    tensors = source.load(wanted, mapped)
    adapters, alphas = _adapters(source, taken.modules, parts, tensors, config)
    unfit = sum(len(taken.modules[name]) for name, _, _ in wrong)
    used = sum(len(taken.modules[name]) for name in parts)
    coverage = Coverage(
        tuple(parts),
        taken.unmatched,
        taken.text,
        tuple(wrong),
        used,
        unfit,
        _layout(names),
        family or lora_families.UNKNOWN,
        tuple(sorted({adapter.rank for adapter in adapters} - {0})),
        alphas,
    )
    total = sum(tensor.nbytes for adapter in adapters for tensor in adapter.tensors.values())
    return LoraFile(source.path, tuple(adapters), coverage, source.metadata, total)


def _open(path: Path) -> tuple[lora_source.Source, lora_layouts.Sorted]:
    source = lora_source.open_source(path)
    names = lora_layouts.sort_out(source.entries)
    if not any(_kind(role) for group in names.groups.values() for role in group):
        what = qwen_families.family(source.entries)
        what = what or f"a file with {listed(list(source.entries), 'tensors')}"
        step = "choose a LoRA here; a whole model belongs into the loader of its kind"
        raise WeightsError(path, "a LoRA (matrices such as lora_A and lora_B)", what, step)
    if names.twice:
        first, second = names.twice[0]
        got = f"two: {first} and {second}"
        step = "save one adapter a file; several are chained as several nodes"
        raise WeightsError(path, "one tensor of a kind for each module", got, step)
    if names.scaled:
        step = "use the LoRA in bf16 or fp16"
        raise WeightsError(path, "plain matrices", f"quantised ones ({names.scaled[0]})", step)
    return source, names


def _kind(role: str) -> str:
    if role in ("down", "up"):
        return "lora"
    if role.startswith(("hada", "lokr")):
        return "loha" if role.startswith("hada") else "lokr"
    return "diff" if role in ("diff", "diff_b") else ""


def _layout(names: lora_layouts.Sorted) -> str:
    """How names are spelled: prefixes, dots or underlines, and how matrices are named."""
    prefixes: dict[str, None] = {}
    stems = [s for s in names.kinds if not lora_layouts.for_text(s)]
    # Names of one level, such as img_in, look flat in every layout.
    flat = not any("." in lora_layouts.stripped(stem) for stem in stems)
    for stem in stems:
        prefix = stem.removesuffix(lora_layouts.stripped(stem))
        prefixes[prefix + ("<flat>" if flat else "<module>")] = None
    ends = ", ".join(sorted(names.styles)[:3]) or "no matrices"
    return f"{', '.join(sorted(prefixes)[:3]) or 'a text encoder alone'}: {ends}"


def _family(source: lora_source.Source, names: lora_layouts.Sorted) -> str:
    shapes: dict[str, Shape] = {}
    for stem in names.kinds:
        group = names.groups[stem]
        key = group.get("down") or group.get("hada_w1_b")
        shapes[stem] = source.entries[key][1] if key else ()
    return lora_families.family(names.groups, shapes)


def _check_family(
    source: lora_source.Source, family: str, modules: Mapping[str, Shape], count: int
) -> None:
    wanted = lora_families.of_modules(modules)
    if family and wanted and family != wanted:
        got = f"one for {family} ({count:,} modules)"
        raise WeightsError(source.path, f"a LoRA for {wanted}", got, lora_match.OTHER)


def _wanted(
    found: Mapping[str, Mapping[str, str]], parts: Mapping[str, list[lora_kinds.Part]]
) -> list[str]:
    keys = [key for made in parts.values() for part in made for key, _ in part.tensors.values()]
    return keys + [found[module]["alpha"] for module in parts if "alpha" in found[module]]


def _adapters(
    source: lora_source.Source,
    found: Mapping[str, Mapping[str, str]],
    parts: Mapping[str, list[lora_kinds.Part]],
    tensors: Mapping[str, Tensor],
    config: lora_scale.Config,
) -> tuple[list[Adapter], tuple[float, ...]]:
    adapters: list[Adapter] = []
    alphas: set[float] = set()
    # A file that tells any alpha beside its modules means 1 where it tells none.
    beside = any("alpha" in keys for keys in found.values())
    for module, made in parts.items():
        key = found[module].get("alpha")
        alpha = float(tensors[key]) if key else None if beside else config.of(module)
        for part in made:
            shaped = {}
            for name, (stored, shape) in part.tensors.items():
                tensor = tensors[stored]
                shaped[name] = tensor if tensor.shape == shape else tensor.reshape(shape)
            if alpha is not None and part.kind != "diff":
                alphas.add(alpha)
            scale = (lora_scale.Config() if key else config).scale(alpha, part.rank)
            adapters.append(Adapter(module, part.kind, shaped, scale, part.rank))  # type: ignore[arg-type]
    return adapters, tuple(sorted(alphas))


def _few(numbers: tuple[float, ...]) -> str:
    shown = ", ".join(f"{number:g}" for number in numbers[:4])
    return shown + ("…" if len(numbers) > 4 else "")

"""A file's tensors meet the modules of a model: which are for which, and what is left over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from . import files, lora_kinds, lora_layouts, lora_source
from .errors import WeightsError, listed

Shape = tuple[int, ...]
OTHER = "choose a LoRA for the loaded model, or load the model that this LoRA was made for"
_INTEGERS = ("I64", "I32", "I16", "I8", "U8")


@dataclass(frozen=True)
class Taken:
    """modules: module -> role -> key. unmatched, text: keys of no module, and of a text encoder."""

    modules: dict[str, dict[str, str]]
    unmatched: tuple[str, ...]
    text: tuple[str, ...]


def match(
    source: lora_source.Source, names: lora_layouts.Sorted, modules: Mapping[str, Shape]
) -> Taken:
    """Find each group of tensors its module.

    names: the file's keys by stem and role. modules: name -> weight shape (O,I).
    Raises: WeightsError for two tensors of a kind, or two adapters, on one module.
    """
    index = lora_layouts.Index(modules)
    found: dict[str, dict[str, str]] = {}
    text: list[str] = []
    unmatched: list[str] = []
    for stem, group in names.groups.items():
        module = index.find(stem)
        if module is None:
            (text if lora_layouts.for_text(stem) else unmatched).extend(group.values())
            continue
        keys = found.setdefault(module, {})
        for role, key in group.items():
            if role in keys:
                step = "remove one of the two with the tool that made the file"
                got = f"two: {keys[role]} and {key}"
                raise WeightsError(source.path, f"one tensor of a kind for {module}", got, step)
            keys[role] = key
        adapters = names.adapters.get(stem, ())
        if len(adapters) > 1:
            got = f"several: {', '.join(sorted(adapters))}"
            raise WeightsError(source.path, f"one adapter for {module}", got, "save one a file")
    for key in names.others:
        (text if lora_layouts.for_text(key) else unmatched).append(key)
    return Taken(found, tuple(unmatched), tuple(text))


def check_dtypes(source: lora_source.Source, found: Mapping[str, Mapping[str, str]]) -> None:
    """Raises: WeightsError for numbers that no adapter is made of, or an alpha that is not one."""
    for keys in found.values():
        for role, key in keys.items():
            dtype = source.entries[key][0]
            whole = dtype in _INTEGERS and role in ("alpha", "reshape_weight")
            if dtype not in lora_source.FLOATS and not whole:
                expected = f"numbers of {', '.join(lora_source.FLOATS)} in {key}"
                raise WeightsError(source.path, expected, dtype, files.AGAIN)
            shape = source.entries[key][1]
            if role == "alpha" and shape not in ((), (1,), (1, 1)):
                raise WeightsError(source.path, f"one number in {key}", str(shape), files.AGAIN)


def arrange(
    source: lora_source.Source,
    found: Mapping[str, Mapping[str, str]],
    modules: Mapping[str, Shape],
) -> tuple[dict[str, list[lora_kinds.Part]], list[tuple[str, str, str]]]:
    """Tell what each module's tensors are together.

    found: module -> role -> key. modules: name -> weight shape (O,I).
    Returns: module -> its parts, and (module, expected, got) where shapes do not fit.
    Raises: WeightsError for half an adapter.
    """
    parts: dict[str, list[lora_kinds.Part]] = {}
    wrong: list[tuple[str, str, str]] = []
    for module, keys in found.items():
        stored = {role: (key, source.entries[key][1]) for role, key in keys.items()}
        made = lora_kinds.arrange(source.path, module, tuple(modules[module]), stored)
        if isinstance(made, lora_kinds.Misfit):
            wrong.append((module, made.expected, made.got))
        else:
            parts[module] = made
    return parts, wrong


def check_any(
    source: lora_source.Source,
    taken: Taken,
    parts: Mapping[str, object],
    wrong: list[tuple[str, str, str]],
    count: int,
) -> None:
    """Refuse a file of which nothing fits. count: the model's modules. Raises: WeightsError."""
    if parts:
        return
    expected = f"names of some of the model's {count:,} modules"
    if wrong:
        module, expected, got = wrong[0]
        expected = f"matrices for {module} of {expected}"
        got = f"{got}, and no other of {len(wrong):,} modules fits"
    elif taken.text and not taken.unmatched:
        got = f"those of a text encoder alone ({listed(list(taken.text), 'keys')})"
    else:
        got = f"none of them: {listed(list(taken.unmatched), 'keys')}"
    raise WeightsError(source.path, expected, got, OTHER)

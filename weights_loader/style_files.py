"""Which styles lie in the model folders. Names only: no file is opened, so listing stays instant.

A style is a pair for the whole picture and for the aligned head, or one file for both:
`<style>_cartoon_bg` + `<style>_cartoon_h`, `cartoon_<style>_bg` + `…_h`, `<style>_bg` + `…_h`, or a
folder named after the style with `cartoon_bg` + `cartoon_h` (or any pair, or one file) inside.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ENDINGS = (".safetensors", ".pb", ".pt", ".pth", ".ckpt", ".jit", ".torchscript")
"""Endings of weights, the preferred one first where a style exists in several formats."""

_ROLE = re.compile(r"^(?:(?P<style>.*)[_-])?(?P<role>bg|h)$", re.IGNORECASE | re.DOTALL)
_CARTOON = re.compile(
    r"^(?:cartoon[_-])?(?P<style>.*?)(?:[_-]cartoon)?$", re.IGNORECASE | re.DOTALL
)
# Other networks that the official folders hold beside their styles.
_NOT_STYLES = ("detector", "keypoints", "saved_model")


@dataclass(frozen=True)
class StyleFiles:
    """Where a style's weights lie.

    whole: the network for whole pictures; for heads too where `head` is None.
    """

    name: str
    whole: Path
    head: Path | None


def list_styles(folders: Iterable[Path]) -> dict[str, StyleFiles]:
    """Styles by name, in natural order (style2 before style10, capitals alike).

    folders: searched in order; where two hold a style of one name, the first wins. Folders that do
    not exist or cannot be read count as empty.
    """
    found: dict[str, StyleFiles] = {}
    seen: set[str] = set()
    for folder in folders:
        here = _styles_of(Path(folder), "")
        for child in _folders(Path(folder)):
            for style in _styles_of(child, child.name).values():
                here.setdefault(style.name.casefold(), style)
        for key, style in here.items():
            # casefold: on Windows and macOS two such names are one file.
            if key not in seen:
                seen.add(key)
                found[style.name] = style
    return dict(sorted(found.items(), key=lambda item: natural_key(item[0])))


def natural_key(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key: runs of digits compare as numbers, letters without case."""
    parts = re.split(r"([0-9]+)", name.casefold())
    key = [(1, int(part)) if part.isdecimal() else (2, part) for part in parts if part]
    # The end of a name sorts before any more of it; the name itself makes the order total.
    return (*key, (0, name))


def _styles_of(folder: Path, folder_name: str) -> dict[str, StyleFiles]:
    """Styles of the files directly in one folder, by casefolded name.

    folder_name: the style's name where the folder itself is the style.
    """
    whole: dict[str, Path] = {}
    heads: dict[str, Path] = {}
    single: dict[str, Path] = {}
    for path in _files(folder):
        match = _ROLE.match(path.stem)
        if match is None or not (match["style"] or folder_name):
            single.setdefault(path.stem, path)
            continue
        role = whole if match["role"].lower() == "bg" else heads
        role.setdefault(_style_name(match["style"] or "", folder_name), path)
    return _joined(whole, heads, single, folder_name)


def _joined(
    whole: dict[str, Path], heads: dict[str, Path], single: dict[str, Path], folder_name: str
) -> dict[str, StyleFiles]:
    lone = [*heads.values(), *single.values()]
    if folder_name and not whole and len(lone) == 1:
        # One file in a folder of its own is a style, whatever the file is called.
        return {folder_name.casefold(): StyleFiles(folder_name, lone[0], None)}
    head_of = {name.casefold(): path for name, path in heads.items()}
    styles: dict[str, StyleFiles] = {}
    for name, path in whole.items():
        styles.setdefault(name.casefold(), StyleFiles(name, path, head_of.get(name.casefold())))
    for name, path in single.items():
        own = f"{folder_name}/{name}" if folder_name else name
        styles.setdefault(own.casefold(), StyleFiles(own, path, None))
    return styles


def _style_name(stem: str, folder_name: str) -> str:
    """`anime_cartoon` and `cartoon_anime` -> anime; a bare `cartoon` -> the folder, or cartoon."""
    bare = stem.casefold() in ("", "cartoon")
    if folder_name:
        inner = "" if bare else _CARTOON.sub(lambda match: match["style"], stem, count=1)
        same = not inner or inner.casefold() == folder_name.casefold()
        return folder_name if same else f"{folder_name}/{inner}"
    return stem if bare else _CARTOON.sub(lambda match: match["style"], stem, count=1) or stem


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            listed = [entry for entry in entries if not entry.name.startswith((".", "__"))]
    except OSError:
        return []
    return sorted(listed, key=lambda entry: natural_key(entry.name))


def _files(folder: Path) -> list[Path]:
    paths = [
        folder / entry.name
        for entry in _entries(folder)
        if Path(entry.name).suffix.lower() in ENDINGS
        and Path(entry.name).stem.casefold() not in _NOT_STYLES
        and _is(entry, "file")
    ]
    return sorted(paths, key=lambda path: ENDINGS.index(path.suffix.lower()))


def _folders(folder: Path) -> list[Path]:
    return [folder / entry.name for entry in _entries(folder) if _is(entry, "dir")]


def _is(entry: os.DirEntry[str], kind: str) -> bool:
    """False as well for a link that leads nowhere or round in circles."""
    try:
        return entry.is_file() if kind == "file" else entry.is_dir()
    except OSError:
        return False

"""Which styles a folder holds, told by names alone."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from realtoon.weights_loader import style_files
from realtoon.weights_loader.style_files import list_styles, natural_key


def make(folder: Path, names: Iterable[str]) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not read")
    return folder


def listed(folder: Path) -> dict[str, tuple[str, str | None]]:
    return {
        name: (
            style.whole.relative_to(folder).as_posix(),
            style.head.relative_to(folder).as_posix() if style.head else None,
        )
        for name, style in list_styles([folder]).items()
    }


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cartoon_bg.pb", "cartoon_h.pb"], {"cartoon": ("cartoon_bg.pb", "cartoon_h.pb")}),
        (
            ["cartoon_anime_bg.pb", "cartoon_anime_h.pb"],
            {"anime": ("cartoon_anime_bg.pb", "cartoon_anime_h.pb")},
        ),
        (
            ["3d_cartoon_bg.pb", "3d_cartoon_h.pb"],
            {"3d": ("3d_cartoon_bg.pb", "3d_cartoon_h.pb")},
        ),
        (
            ["my style_bg.safetensors", "my style_h.pt"],
            {"my style": ("my style_bg.safetensors", "my style_h.pt")},
        ),
        (
            ["手绘_cartoon_bg.pb", "手绘_cartoon_h.pb", "水彩.safetensors"],
            {
                "手绘": ("手绘_cartoon_bg.pb", "手绘_cartoon_h.pb"),
                "水彩": ("水彩.safetensors", None),
            },
        ),
        (["INK-BG.PB", "ink-h.pb"], {"INK": ("INK-BG.PB", "ink-h.pb")}),
        (["solo.pth"], {"solo": ("solo.pth", None)}),
        (["only_bg.pb"], {"only": ("only_bg.pb", None)}),
        (["only_h.pb"], {}),
        (
            ["sketch/cartoon_bg.pb", "sketch/cartoon_h.pb", "sketch/detector.pb"],
            {"sketch": ("sketch/cartoon_bg.pb", "sketch/cartoon_h.pb")},
        ),
        (["sketch/bg.pt", "sketch/h.pt"], {"sketch": ("sketch/bg.pt", "sketch/h.pt")}),
        (
            [f"anime/{n}.pb" for n in
             ("cartoon_anime_bg", "cartoon_anime_h", "cartoon_bg", "cartoon_h", "keypoints")],
            {"anime": ("anime/cartoon_anime_bg.pb", "anime/cartoon_anime_h.pb")},
        ),
        (
            ["pack/a_bg.pb", "pack/a_h.pb", "pack/b.pt"],
            {"pack/a": ("pack/a_bg.pb", "pack/a_h.pb"), "pack/b": ("pack/b.pt", None)},
        ),
        (["lone/whatever.safetensors"], {"lone": ("lone/whatever.safetensors", None)}),
        (["lone/cartoon_h.pb"], {"lone": ("lone/cartoon_h.pb", None)}),
        (
            ["x_bg.pb", "x_h.pb", "x_bg.safetensors", "x_h.safetensors"],
            {"x": ("x_bg.safetensors", "x_h.safetensors")},
        ),
        (["put_styles_here", "a.txt", "b.jpg", "c.zip", "d.onnx", ".hidden.pb", "README.md"], {}),
        (["_bg.pb"], {"_bg": ("_bg.pb", None)}),
    ],
)  # fmt: skip
def test_naming_schemes(
    names: list[str], expected: dict[str, tuple[str, str | None]], tmp_path: Path
) -> None:
    assert listed(make(tmp_path, names)) == expected


def test_order_is_natural_and_without_capitals(tmp_path: Path) -> None:
    names = ("style10", "Style2", "style1", "style", "b", "A", "10", "9", "中文")
    make(tmp_path, [f"{name}.pt" for name in names])
    assert list(list_styles([tmp_path])) == [
        "9", "10", "A", "b", "style", "style1", "Style2", "style10", "中文",
    ]  # fmt: skip


def test_the_first_folder_wins_and_missing_ones_are_empty(tmp_path: Path) -> None:
    first, second = make(tmp_path / "1", ["a.pt"]), make(tmp_path / "2", ["A.pt", "b.pt"])
    styles = list_styles([tmp_path / "none", first, second, first / "a.pt"])
    assert list(styles) == ["a", "b"]
    assert styles["a"].whole == first / "a.pt"


def test_no_file_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, ["a_bg.pb", "a_h.pb", "b/cartoon_bg.pb"])

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a file was opened")

    monkeypatch.setattr(Path, "open", never)
    monkeypatch.setattr("builtins.open", never)
    assert list(list_styles([tmp_path])) == ["a", "b"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes or loops of links")
def test_odd_entries_are_passed_over(tmp_path: Path) -> None:
    make(tmp_path, ["good.pt", "folder.pb/inside.txt"])
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "loop.pt").symlink_to(tmp_path / "loop.pt")
    (tmp_path / "nowhere.pt").symlink_to(tmp_path / "missing.pt")
    (tmp_path / "round").symlink_to(tmp_path, target_is_directory=True)
    assert "good" in list_styles([tmp_path])
    assert not {"pipe", "loop", "nowhere"} & set(list_styles([tmp_path]))


_lists = st.lists(st.text(max_size=12), max_size=8)


@given(_lists.flatmap(lambda names: st.tuples(st.just(names), st.permutations(names))))
def test_the_order_does_not_depend_on_the_folder(orders: tuple[list[str], list[str]]) -> None:
    first, second = orders
    assert sorted(first, key=natural_key) == sorted(second, key=natural_key)


def test_listing_needs_no_torch() -> None:
    source = Path(style_files.__file__).read_text(encoding="utf-8")
    assert "import torch" not in source

"""What can be downloaded, as the command line lists it, and the converter that it calls."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import weights_files as wf
from realtoon.weights_loader import __main__ as entry_point
from realtoon.weights_loader import catalog, dctnet, style_files

ROOT = Path(catalog.__file__).resolve().parent.parent
OFFICIAL = ["anime", "3d", "handdrawn", "sketch", "artstyle", "design", "illustration"]


def test_the_seven_official_styles_and_the_faces() -> None:
    assert catalog.ids("style") == OFFICIAL
    assert catalog.ids() == [*OFFICIAL, "faces"]
    assert catalog.find("ANIME") is catalog.ENTRIES[0]
    assert catalog.find("nothing") is None


@pytest.mark.parametrize("entry", catalog.ENTRIES, ids=lambda entry: entry.id)
def test_every_entry_is_whole(entry: catalog.Entry) -> None:
    assert entry.files
    assert entry.licence
    assert urlsplit(entry.page).scheme == "https"
    assert entry.folder in ("dctnet", "facedetection")
    assert 0 < entry.size_bytes < catalog.LIMIT_STYLE_BYTES
    for file in entry.files:
        assert Path(file.save_as).name == file.save_as
        assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
        assert all(urlsplit(url).scheme == "https" for url in file.urls)
        assert file.urls or entry.requirement
    assert entry.verified or "unverified" in entry.note


def test_downloaded_styles_are_listed_under_their_ids(tmp_path: Path) -> None:
    for entry in catalog.ENTRIES:
        if entry.kind == "style":
            for file in entry.files:
                (tmp_path / file.save_as).write_bytes(b"x")
    styles = style_files.list_styles([tmp_path])
    assert set(styles) == set(OFFICIAL)
    assert all(style.head is not None for style in styles.values())


def test_addresses() -> None:
    anime, design = catalog.find("anime"), catalog.find("design")
    assert anime is not None and design is not None
    model = "damo/cv_unet_person-image-cartoon_compound-models"
    assert anime.files[0].urls == (
        f"https://modelscope.cn/models/{model}/resolve/master/cartoon_anime_bg.pb",
        f"https://modelscope.cn/api/v1/models/{model}/repo"
        "?Revision=master&FilePath=cartoon_anime_bg.pb",
    )
    # The newer two are published under a tag (upstream's download.py).
    assert "-sd-design_compound-models/resolve/v1.0.0/cartoon_h.pb" in design.files[1].urls[0]
    assert catalog.modelscope_urls("a/b", "x y/风.pb", "v 1")[0].endswith(
        "/a/b/resolve/v%201/x%20y/%E9%A3%8E.pb"
    )


def test_the_catalogue_needs_no_torch() -> None:
    program = (
        "import sys; from weights_loader import catalog, errors, style_files; "
        "sys.exit('torch' in sys.modules or 'safetensors' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)


def test_the_converter_runs_as_a_module(tmp_path: Path) -> None:
    style = wf.random_style(half=True)
    source, target = tmp_path / "风格.pb", tmp_path / "风格.safetensors"
    source.write_bytes(wf.graph_bytes(wf.tensorflow(style)))
    done = subprocess.run(
        [sys.executable, "-m", "weights_loader", "convert", str(source), str(target), "--half"],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("风格.pb -> 风格.safetensors: ")
    assert done.stdout.count("\n") == 1
    assert dctnet.read(target)[0] == dctnet.DCTNetConfig()


def test_the_converter_says_in_one_line_why_it_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "a.pb", tmp_path / "b.safetensors"
    source.write_bytes(b"<html>404</html>")
    for arguments, reason in (
        (["convert", str(source), str(target)], "a web page"),
        (["faces", str(source), str(tmp_path / "out")], "SHA-256"),
    ):
        monkeypatch.setattr(sys, "argv", ["weights_loader", *arguments])
        assert entry_point.main() == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("a.pb: expected ")
        assert said.err.count("\n") == 1
        assert reason in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["a.pb"]

"""What can be downloaded, as the command line lists it, and the converter that it calls."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import gpen_weights as gw
import pytest
import weights_files as wf
from realtoon.host import weights
from realtoon.host.errors import UserError
from realtoon.weights_loader import __main__ as entry_point
from realtoon.weights_loader import catalog, dctnet, gpen, parsenet, style_files

ROOT = Path(catalog.__file__).resolve().parent.parent
OFFICIAL = ["anime", "3d", "handdrawn", "sketch", "artstyle", "design", "illustration"]


GPENS = ["gpen-256", "gpen-512", "gpen-1024", "gpen-2048"]
FOLDERS = {
    "style": "dctnet",
    "faces": "facedetection",
    "gpen": "gpen",
    "parsenet": "facedetection",
    "diffusion": "diffusion_models",
    "text": "text_encoders",
    "vae": "vae",
    "lora": "loras",
}
QWENS = ["qwen-edit-2511", "qwen-edit-bf16", "qwen-edit-2509", "qwen-text", "qwen-vae"]
LORAS = ["lightning-4", "lightning-8", "realcharacters"]


def test_the_seven_official_styles_and_all_that_faces_need() -> None:
    assert catalog.ids("style") == OFFICIAL
    assert catalog.ids("gpen") == GPENS
    assert catalog.ids() == [*OFFICIAL, "faces", *GPENS, "parsenet", *QWENS, *LORAS]
    assert len(set(catalog.ids())) == len(catalog.ENTRIES)
    assert catalog.find("ANIME") is catalog.ENTRIES[0]
    assert catalog.find("nothing") is None


@pytest.mark.parametrize("entry", catalog.ENTRIES, ids=lambda entry: entry.id)
def test_every_entry_is_whole(entry: catalog.Entry) -> None:
    assert entry.files
    assert entry.licence
    assert urlsplit(entry.page).scheme == "https"
    assert entry.folder == FOLDERS[entry.kind]
    assert entry.kind in catalog.LIMITS_BYTES
    for file in entry.files:
        # Room for a header and for a file that was published anew, not for another kind.
        assert 0 < file.size_bytes < 0.9 * entry.limit_bytes
        assert Path(file.save_as).name == file.save_as
        assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
        assert all(urlsplit(url).scheme == "https" for url in file.urls)
        assert file.urls or entry.requirement
    assert entry.verified or "unverified" in entry.note


@pytest.mark.parametrize("name", [*GPENS, "parsenet"])
def test_the_licence_of_gpens_weights_is_said(name: str) -> None:
    entry = catalog.find(name)
    assert entry is not None
    assert entry.licence == "academic and non-commercial use only"
    assert not entry.verified
    assert "unverified" in entry.note


def test_sets_are_whole_models_of_checked_files() -> None:
    for name, ids in catalog.SETS.items():
        assert catalog.find(name) is None
        entries = [catalog.find(one) for one in ids]
        kinds = [entry.kind for entry in entries if entry is not None]
        assert kinds == ["diffusion", "text", "vae", "lora"][: len(ids)]
        assert all(entry is not None and entry.verified for entry in entries)


def test_sizes_of_the_realistic_models_follow_from_their_parameters() -> None:
    bf16, fp8 = catalog.find("qwen-edit-bf16"), catalog.find("qwen-edit-2511")
    assert bf16 is not None and fp8 is not None
    # reference: 20,430,401,088 parameters; what is not in fp8 takes the rest.
    assert bf16.size_bytes == 2 * 20_430_401_088
    assert 20_430_401_088 < fp8.size_bytes < 1.01 * 20_430_401_088


def test_addresses_on_hugging_face() -> None:
    edit, lora = catalog.find("qwen-edit-2511"), catalog.find("lightning-4")
    assert edit is not None and lora is not None
    assert edit.files[0].urls == (
        "https://huggingface.co/Comfy-Org/Qwen-Image-Edit_ComfyUI/resolve/main/split_files"
        "/diffusion_models/qwen_image_edit_2511_fp8mixed.safetensors",
    )
    assert edit.files[0].save_as == "qwen_image_edit_2511_fp8mixed.safetensors"
    assert lora.page == "https://huggingface.co/lightx2v/Qwen-Image-Edit-2511-Lightning"
    assert catalog.huggingface_url("a/b", "x y/风.bin").endswith(
        "/a/b/resolve/main/x%20y/%E9%A3%8E.bin"
    )


def test_a_set_is_fetched_file_by_file_into_its_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Path, object]] = []

    def fetch(urls: object, target: Path, **given: object) -> str:
        asked.append((target, given["sha256"]))
        return "0" * 64

    monkeypatch.setattr(weights.download, "fetch", fetch)
    usage = type("Usage", (), {"free": 1 << 40})
    monkeypatch.setattr(weights.shutil, "disk_usage", lambda folder: usage)
    assert weights.fetch("Realistic", tmp_path) == 0
    assert [target.parent.name for target, _ in asked] == [
        "diffusion_models",
        "text_encoders",
        "vae",
    ]
    assert all(sha256 for _, sha256 in asked)


def test_a_full_disk_is_told_before_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(*unused: object, **given: object) -> str:
        raise AssertionError("went on past the check")

    monkeypatch.setattr(weights.download, "fetch", fetch)
    usage = type("Usage", (), {"free": 10**9})
    monkeypatch.setattr(weights.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match=r"fp8mixed.*needs 20\.53 GB and .* has 1\.00 GB left"):
        weights.fetch("qwen-edit-2511", tmp_path / "models")
    # What has arrived already needs no more room.
    part = tmp_path / "models" / "vae" / "qwen_image_vae.safetensors.part"
    part.parent.mkdir(parents=True)
    with part.open("wb") as file:
        file.truncate(253_806_000)
    usage.free = 1000
    with pytest.raises(AssertionError, match="went on"):
        weights.fetch("qwen-vae", tmp_path / "models")


def test_gpens_sizes_and_addresses() -> None:
    entries = {name: catalog.find(name) for name in [*GPENS, "parsenet"]}
    found = {name: entry.files[0] for name, entry in entries.items() if entry is not None}
    sizes = {name: sum(map(math.prod, gpen.shapes(gw.published(int(name[5:]))).values()))
             for name in GPENS[1:]}  # fmt: skip
    sizes["gpen-256"] = sum(map(math.prod, gpen.shapes(gw.SMALL).values()))
    sizes["parsenet"] = sum(map(math.prod, parsenet.SHAPES.values()))
    assert {name: file.size_bytes for name, file in found.items()} == {
        name: 4 * numbers for name, numbers in sizes.items()
    }
    assert [found[name].save_as for name in GPENS] == [
        f"GPEN-BFR-{size}.pth" for size in (256, 512, 1024, 2048)
    ]
    official = "https://public-vigen-video.oss-cn-shanghai.aliyuncs.com/robin/models/"
    for name, file in (("gpen-256", "GPEN-BFR-256"), ("gpen-512", "GPEN-BFR-512"),
                       ("parsenet", "ParseNet-latest")):  # fmt: skip
        assert found[name].urls[0] == f"{official}{file}.pth"
    model = "https://modelscope.cn/models/damo/cv_gpen_image-portrait-enhancement"
    assert found["gpen-512"].urls[1] == f"{model}/resolve/master/pytorch_model.pt"
    assert found["gpen-1024"].urls[0] == f"{model}-hires/resolve/master/pytorch_model.pt"
    assert found["gpen-2048"].urls[0] == f"{model}-hires/resolve/master/pytorch_model-2048.pt"


def test_the_list_shows_every_entry_and_what_is_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = tmp_path / "gpen" / "GPEN-BFR-512.pth"
    here.parent.mkdir()
    here.write_bytes(b"x")
    assert weights.show(tmp_path) == 0
    said = capsys.readouterr().out
    for entry in catalog.ENTRIES:
        (line,) = [line for line in said.splitlines() if line.split()[:1] == [entry.id]]
        assert entry.title in line
        assert ("here" in line.split()) == (entry.id == "gpen-512")
        assert entry.licence in said and entry.page in said
        assert all(f"{entry.folder}/: " in said and file.save_as in said for file in entry.files)
    assert said.count("academic and non-commercial use only, unverified") == 5


@pytest.mark.parametrize(
    ("name", "limit_mib"),
    [("gpen-512", 400), ("parsenet", 150), ("3d", 64), ("realcharacters", 4096)],
)
def test_a_download_stops_where_its_kind_ends(
    name: str, limit_mib: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, object]] = []

    def fetch(urls: object, target: Path, **given: object) -> str:
        asked.append(given)
        return "0" * 64

    monkeypatch.setattr(weights.download, "fetch", fetch)
    assert weights.fetch(name, tmp_path) == 0
    assert asked
    assert all(given["max_bytes"] == limit_mib << 20 for given in asked)
    assert all(given["size_bytes"] is None and given["sha256"] is None for given in asked)


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

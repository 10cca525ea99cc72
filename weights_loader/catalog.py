"""Which weights exist, where they come from, under which licence. Pure data: no torch, no network.

The command line lists these entries and downloads them; nothing here downloads anything. Entries of
other networks join `ENTRIES` as their nodes arrive.

Sources: menyifang/DCT-Net `download.py` and `multi-style/download.py` (model ids and revisions),
modelscope `hub/file_download.py` (address of a file), the card of the anime model (licence);
yangxy/GPEN `README.md` @2c73670 (addresses); docs.comfy.org `tutorials/image/qwen/
qwen-image-edit-2511` and ComfyUI's own templates (addresses of Qwen-Image-Edit's repacks).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

LIMITS_BYTES: Mapping[str, int] = {
    "style": 64 << 20,
    "faces": 8 << 20,
    "gpen": 400 << 20,
    "parsenet": 150 << 20,
    "diffusion": 50 << 30,
    "text": 20 << 30,
    "vae": 1 << 30,
    "lora": 4 << 30,
}
"""By kind: no file of it is larger. A download that grows beyond this is something else."""


@dataclass(frozen=True)
class RemoteFile:
    """One file to fetch.

    save_as: its name under the entry's model folder.
    urls: tried in order. Empty where `Entry.requirement` says where it comes from instead.
    size_bytes: exact where `sha256` is known, else the size that files of this kind have.
    sha256: None means that nobody published it: say "unverified" wherever the file is named.
    """

    save_as: str
    urls: tuple[str, ...]
    size_bytes: int
    sha256: str | None = None

    @property
    def verified(self) -> bool:
        """Whether a download can be checked against a known SHA-256."""
        return self.sha256 is not None


@dataclass(frozen=True)
class Entry:
    """Something to download.

    id: what the person types.
    kind: "style", "faces" (detector), "gpen" (restorer), "parsenet" (face parser), or of
    Qwen-Image-Edit "diffusion", "text" (its encoder), "vae" or "lora".
    folder: under ComfyUI's models/.
    requirement: a pip requirement whose wheel holds `members`, where there is no plain address.
    members: path in that wheel -> SHA-256.
    """

    id: str
    kind: str
    title: str
    folder: str
    files: tuple[RemoteFile, ...]
    licence: str
    page: str
    note: str = ""
    requirement: str = ""
    members: Mapping[str, str] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(file.size_bytes for file in self.files)

    @property
    def limit_bytes(self) -> int:
        """What one of its files may have at most."""
        return LIMITS_BYTES[self.kind]

    @property
    def verified(self) -> bool:
        """Whether every file has a known SHA-256."""
        return all(file.verified for file in self.files)


_UNVERIFIED = "no SHA-256 is published: unverified"
_GRAPH_BYTES = 5_894_895
_ANIME_CARD = "Apache-2.0 on the model's card"
_SERIES_CARD = "Apache-2.0 as the code and the series' main card say; this model's card has no more"


def modelscope_urls(model: str, file: str, revision: str = "master") -> tuple[str, ...]:
    """Public addresses of a file on ModelScope: the plain one, then the one its own client uses.

    model: "owner/name". file: path inside the model's repository.
    """
    path, version = quote(file), quote(revision, safe="")
    return (
        f"https://modelscope.cn/models/{model}/resolve/{version}/{path}",
        f"https://modelscope.cn/api/v1/models/{model}/repo?Revision={version}"
        f"&FilePath={quote(file, safe='')}",
    )


def _style(
    style: str,
    title: str,
    infix: str,
    revision: str = "master",
    names: tuple[str, str] = ("cartoon_bg.pb", "cartoon_h.pb"),
    hashes: tuple[str | None, str | None] = (None, None),
) -> Entry:
    model = f"damo/cv_unet_person-image-cartoon{infix}_compound-models"
    targets = (f"{style}_cartoon_bg.pb", f"{style}_cartoon_h.pb")
    rows = tuple(
        RemoteFile(target, modelscope_urls(model, name, revision), _GRAPH_BYTES, sha256)
        for target, name, sha256 in zip(targets, names, hashes, strict=True)
    )
    return Entry(
        id=style,
        kind="style",
        title=title,
        folder="dctnet",
        files=rows,
        licence=_ANIME_CARD if not infix else _SERIES_CARD,
        page=f"https://modelscope.cn/models/{model}/summary",
        note="" if all(hashes) else _UNVERIFIED,
    )


_STYLES = (
    _style(
        "anime",
        "Japanese animation",
        "",
        names=("cartoon_anime_bg.pb", "cartoon_anime_h.pb"),
        hashes=(
            "71efec51b4566cce3a3123822fb4e17794ad062c3e324b33f2a65df850c037ad",
            "338e7bf7ab4014ba9da864c2dda104f26d8af6c7f468038782d92ccc8e2dedda",
        ),
    ),
    _style("3d", "3D animation film", "-3d"),
    _style("handdrawn", "drawn by hand", "-handdrawn"),
    _style("sketch", "pencil sketch", "-sketch"),
    _style("artstyle", "painting", "-artstyle"),
    _style("design", "flat illustration", "-sd-design", "v1.0.0"),
    _style("illustration", "comic book", "-sd-illustration", "v1.0.0"),
)

FACES_WHEEL = "facenet_pytorch-2.6.0-py3-none-any.whl"
FACES_WHEEL_SHA256 = "ecb82b27beb226d106f2219efe8f829b01b87a8595badd01545679bdb9f19cca"
FACES_WHEEL_BYTES = 1_881_930
FACES_MEMBERS = {
    "facenet_pytorch/data/pnet.pt": (
        "a2a71925e0b9996a42f63e47efc1ca19043e69558b5c523b978d611dfae49c8f"
    ),
    "facenet_pytorch/data/rnet.pt": (
        "bbb937de72efc9ef83b186c49f5f558467a1d7e3453a8ece0d71a886633f6a86"
    ),
    "facenet_pytorch/data/onet.pt": (
        "165bfbe42940416ccfb977545cf0e976d5bf321f67083ae2aaaa5c764280118d"
    ),
}

_FACES = Entry(
    id="faces",
    kind="faces",
    title="face detector (MTCNN: P-Net, R-Net, O-Net)",
    folder="facedetection",
    files=(RemoteFile("mtcnn.safetensors", (), FACES_WHEEL_BYTES, FACES_WHEEL_SHA256),),
    licence="MIT",
    page="https://github.com/timesler/facenet-pytorch",
    note="the wheel is downloaded, never installed: it would replace torch and numpy",
    # --no-deps: the wheel pins torch<2.3 and numpy<2.
    requirement="facenet-pytorch==2.6.0",
    members=FACES_MEMBERS,
)

_OSS = "https://public-vigen-video.oss-cn-shanghai.aliyuncs.com/robin/models/"
_ENHANCEMENT = "damo/cv_gpen_image-portrait-enhancement"
_HIRES = f"{_ENHANCEMENT}-hires"
_GPEN_PAGE = "https://github.com/yangxy/GPEN"
_GPEN_LICENCE = "academic and non-commercial use only"


def _gpen(size: int, title: str, urls: tuple[str, ...], parameters: int, page: str) -> Entry:
    file = RemoteFile(f"GPEN-BFR-{size}.pth", urls, 4 * parameters)
    return Entry(
        id=f"gpen-{size}",
        kind="gpen",
        title=f"face restorer, {size} pixels: {title}",
        folder="gpen",
        files=(file,),
        licence=_GPEN_LICENCE,
        page=page,
        note=_UNVERIFIED,
    )


_GPENS = (
    _gpen(256, "small and quick", (f"{_OSS}GPEN-BFR-256.pth",), 18_879_010, _GPEN_PAGE),
    _gpen(
        512, "the usual one",
        (
            f"{_OSS}GPEN-BFR-512.pth",
            *modelscope_urls(_ENHANCEMENT, "pytorch_model.pt"),
        ),
        71_005_223, _GPEN_PAGE,
    ),
    _gpen(
        1024, "portraits", modelscope_urls(_HIRES, "pytorch_model.pt"),
        71_210_540, f"https://modelscope.cn/models/{_HIRES}/summary",
    ),
    _gpen(
        2048, "selfies", modelscope_urls(_HIRES, "pytorch_model-2048.pt"),
        71_294_769, f"https://modelscope.cn/models/{_HIRES}/summary",
    ),
)  # fmt: skip

_PARSENET = Entry(
    id="parsenet",
    kind="parsenet",
    title="face parser for GPEN's masks (ParseNet)",
    folder="facedetection",
    files=(
        RemoteFile(
            "ParseNet-latest.pth",
            (f"{_OSS}ParseNet-latest.pth",),
            4 * 21_319_894,
        ),
    ),
    licence=_GPEN_LICENCE,
    page=_GPEN_PAGE,
    note=_UNVERIFIED,
)

_APACHE = "Apache-2.0"
_COMFY_EDIT = "Comfy-Org/Qwen-Image-Edit_ComfyUI"
_COMFY_IMAGE = "Comfy-Org/Qwen-Image_ComfyUI"
_LIGHTNING = "lightx2v/Qwen-Image-Edit-2511-Lightning"
_REAL = "WarmBloodAban/Anything_to_Real_Characters_2511"
_FOLDERS = {"diffusion": "diffusion_models", "text": "text_encoders", "vae": "vae", "lora": "loras"}


def huggingface_url(repository: str, file: str) -> str:
    """Public address of a file on Hugging Face. file: path inside the repository."""
    return f"https://huggingface.co/{repository}/resolve/main/{quote(file)}"


def _qwen(
    name: str,
    kind: str,
    title: str,
    repository: str,
    file: str,
    size_bytes: int,
    sha256: str | None = None,
    licence: str = _APACHE,
) -> Entry:
    url = huggingface_url(repository, file)
    return Entry(
        id=name,
        kind=kind,
        title=title,
        folder=_FOLDERS[kind],
        files=(RemoteFile(file.rpartition("/")[2], (url,), size_bytes, sha256),),
        licence=licence,
        page=f"https://huggingface.co/{repository}",
        note="" if sha256 else _UNVERIFIED,
    )


_QWENS = (
    _qwen(
        "qwen-edit-2511", "diffusion", "Qwen-Image-Edit 2511, fp8: for cards of 24 GB",
        _COMFY_EDIT, "split_files/diffusion_models/qwen_image_edit_2511_fp8mixed.safetensors",
        20_533_762_817, "c9fdc158e46d3b61ef75f21ae866ca2fe808bf4a53643120d1c1e87c19280a4e",
    ),
    _qwen(
        "qwen-edit-bf16", "diffusion", "Qwen-Image-Edit 2511, bf16: as published",
        _COMFY_EDIT, "split_files/diffusion_models/qwen_image_edit_2511_bf16.safetensors",
        2 * 20_430_401_088,
    ),
    _qwen(
        "qwen-edit-2509", "diffusion", "Qwen-Image-Edit 2509, fp8: for ComfyUI before 0.5",
        _COMFY_EDIT, "split_files/diffusion_models/qwen_image_edit_2509_fp8_e4m3fn.safetensors",
        20_430_401_088,
    ),
    _qwen(
        "qwen-text", "text", "Qwen2.5-VL 7B, the text encoder of all of them, fp8",
        _COMFY_IMAGE, "split_files/text_encoders/qwen_2.5_vl_7b_fp8_scaled.safetensors",
        9_384_670_680, "cb5636d852a0ea6a9075ab1bef496c0db7aef13c02350571e388aea959c5c0b4",
    ),
    _qwen(
        "qwen-vae", "vae", "the VAE of all of them",
        _COMFY_IMAGE, "split_files/vae/qwen_image_vae.safetensors",
        253_806_246, "a70580f0213e67967ee9c95f05bb400e8fb08307e017a924bf3441223e023d1f",
    ),
    _qwen(
        "lightning-4", "lora", "LoRA for 2511: 4 steps instead of 40",
        _LIGHTNING, "Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16.safetensors",
        849_608_296, "22226e8d05d354bb356627d428809f5afd7819399b077238a2b70a82883a904f",
    ),
    _qwen(
        "lightning-8", "lora", "LoRA for 2511: 8 steps instead of 40",
        _LIGHTNING, "Qwen-Image-Edit-2511-Lightning-8steps-V1.0-bf16.safetensors", 849_608_296,
    ),
    _qwen(
        "realcharacters", "lora", "LoRA for 2511: anything to real characters",
        _REAL, "AnythingtoRealCharacters2511_20.safetensors", 300_000_000,
        licence="said on its page only",
    ),
)  # fmt: skip

ENTRIES: tuple[Entry, ...] = (*_STYLES, _FACES, *_GPENS, _PARSENET, *_QWENS)
"""Everything that can be downloaded."""

SETS: Mapping[str, tuple[str, ...]] = {
    "realistic": ("qwen-edit-2511", "qwen-text", "qwen-vae"),
    "lightning": ("qwen-edit-2511", "qwen-text", "qwen-vae", "lightning-4"),
}
"""What the shipped workflows of these names need, as ids of entries."""


def find(name: str) -> Entry | None:
    """The entry of this id, capitals alike, or None."""
    return next((entry for entry in ENTRIES if entry.id == name.casefold()), None)


def ids(kind: str = "") -> list[str]:
    """Ids of all entries, or of those of one kind."""
    return [entry.id for entry in ENTRIES if kind in ("", entry.kind)]

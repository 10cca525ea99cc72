"""What a file is, found out before any of its content is taken into memory.

Every reader of this package goes through `check` first, then `sniff`, and describes the tensors it
found as `Stored` entries: names, shapes and dtypes are judged on those, and only what passed is
loaded.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from .errors import WeightsError

if TYPE_CHECKING:
    import torch

MIB = 1 << 20
AGAIN = "download the file again and compare its size with the one on its page"

_SNIFF_BYTES = 512
_MAGIC = (
    (b"PK\x03\x04", "zip"),
    (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", "torch legacy"),
    (b"version https://git-lfs.github.com/spec", "git lfs"),
    (b"\x89HDF\r\n\x1a\n", "a Keras HDF5 file"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"GGUF", "a GGUF file"),
    (b"MZ", "a Windows program"),
    (b"\x7fELF", "a Linux program"),
)
# Protocol 2 and up, or the text protocol that starts with a name, a text or a container.
_PICKLE = re.compile(rb"\x80[\x00-\x05]|[(\]})]*[ci][\w.]+\r?\n[\w.]+\r?\n|\((S['\"]|[dl]p\d)")
# A GraphDef starts with a node; or with its library, version or versions (fields 2 to 4).
_GRAPH_STARTS = (b"\x0a", b"\x12", b"\x18", b"\x22")


@dataclass(frozen=True)
class Stored:
    """One tensor of a file that has not been read yet.

    dtype: safetensors' name of it (F32, F16, BF16, F64, I64 …).
    load: reads it, in its stored dtype and shape, on the CPU; raises WeightsError.
    """

    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Contents:
    """All tensors of a file by their stored names, and its text metadata."""

    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str] = field(default_factory=dict)
    kind: str = ""


def check(path: Path, limit_bytes: int) -> int:
    """Size of a regular file in bytes.

    Raises: WeightsError for what is missing, unreadable, a folder, a link that leads nowhere or
    round in circles, a pipe or device (opening one could block for ever), empty, or larger than
    `limit_bytes`.
    """
    try:
        status = path.stat()
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsError(
            path,
            "a readable file",
            _reason(error),
            "check the file's name and place, and that a link leads to a file",
        ) from None
    if stat.S_ISDIR(status.st_mode):
        raise WeightsError(path, "a weights file", "a folder", "name a file inside it")
    if not stat.S_ISREG(status.st_mode):
        raise WeightsError(
            path, "a weights file", "a pipe or a device", "name a file that lies on a disk"
        )
    if status.st_size == 0:
        raise WeightsError(path, "a weights file", "an empty file (0 bytes)", AGAIN)
    if status.st_size > limit_bytes:
        raise WeightsError(
            path,
            f"at most {limit_bytes / MIB:.0f} MiB",
            f"{status.st_size / MIB:.1f} MiB",
            "use the weights of this network; a training checkpoint can be made smaller by "
            "saving its generator alone",
        )
    return status.st_size


def read_at(path: Path, offset: int, length: int) -> bytes:
    """`length` bytes from `offset`. Raises WeightsError where the file ends sooner."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(length)
    except OSError as error:
        raise WeightsError(
            path, "a readable file", _reason(error), "check its permissions and the disk"
        ) from None
    if len(data) != length:
        raise WeightsError(
            path, f"{length:,} bytes at {offset:,}", f"{len(data):,} (a truncated file)", AGAIN
        )
    return data


def sniff(path: Path, size: int) -> str:
    """What a file is by its first bytes, never by its name.

    Returns "zip", "torch legacy", "pickle", "safetensors", "graph", or raises WeightsError naming
    what it is instead. "graph" only means that it could be a frozen graph.
    """
    head = read_at(path, 0, min(size, _SNIFF_BYTES))
    # First, because the length that such a file starts with may spell the start of another kind.
    if head[4:9] == b"\0\0\0\0{":
        return "safetensors"
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            if kind in ("zip", "torch legacy"):
                return kind
            _refuse_kind(path, kind)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text[:1] == b"<":
        _refuse_kind(path, "web page")
    # An impossible length, which the reader will name: some of its bytes are no letters.
    if head[8:9] == b"{" and any(byte < 9 for byte in head[:8]):
        return "safetensors"
    if _PICKLE.match(head):
        return "pickle"
    if head[:1] in _GRAPH_STARTS:
        return "graph"
    _refuse_kind(path, _other(head, text))


def _other(head: bytes, text: bytes) -> str:
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite model"
    if head.startswith(b"\x08\x01\x12"):
        return "a TensorFlow SavedModel (a frozen graph is needed)"
    if head[:1] == b"\x08" and (b"onnx" in head.lower() or b"pytorch" in head.lower()):
        return "an ONNX model"
    if text[:1] in (b"{", b"["):
        return "a JSON text"
    printable = all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head)
    return "a text file" if printable else "bytes of an unknown format"


def _refuse_kind(path: Path, kind: str) -> NoReturn:
    if kind == "git lfs":
        raise WeightsError(
            path,
            "weights",
            "a Git LFS pointer (the text that stands for a file which was not fetched)",
            "run `git lfs pull` where it came from, or download the file itself",
        )
    if kind == "web page":
        raise WeightsError(
            path,
            "weights",
            "a web page (an error page saved under this name)",
            "open the link in a browser, see what it says, then download the file itself",
        )
    raise WeightsError(
        path,
        "weights (.pb, .safetensors, .pt, .pth)",
        kind,
        "use the file that the model's page offers",
    )


def _reason(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if isinstance(error, OSError) and error.strerror:
        return f"an error of the system ({error.strerror})"
    return f"an error of the system ({error})"

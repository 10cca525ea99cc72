"""Where faces are in a picture, and which part of them is face: the models that nodes share."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ..engine.faces import MTCNN, Face, detect, select
from ..engine.faces.parse import ParseNet
from ..weights_loader import mtcnn, parsenet
from . import _host

PARSER_FILES = ("parsenet.safetensors", "ParseNet-latest.pth", "parsing_parsenet.pth")

_DETECTOR_BYTES = 160 << 20
_PARSER_BYTES = 512 << 20


def fingerprint() -> str:
    """Changes when the detector does, or comes or goes."""
    path = detector_path()
    return "" if path is None else str(_host.file_state(path))


def detector_path() -> Path | None:
    """The detector's file or folder, or None where there is none."""
    return mtcnn.find(_host.model_folders(_host.FACES_FOLDER))


def parser_path() -> Path | None:
    """ParseNet's file, or None where there is none."""
    for folder in _host.model_folders(_host.FACES_FOLDER):
        for name in PARSER_FILES:
            if (folder / name).is_file():
                return folder / name
    return None


def missing_detector() -> str:
    """What to do where there is no detector."""
    where = _host.first_model_folder(_host.FACES_FOLDER) / mtcnn.FILE_NAME
    return f"python run.py weights faces, which puts {where.name} into {where.parent}"


def _build_detector(path: Path) -> MTCNN:
    nets = mtcnn.read(path)
    model = MTCNN()
    model.load_state_dict(
        {
            f"{net}.{name}": tensor
            for net, tensors in nets.items()
            for name, tensor in tensors.items()
        }
    )
    return model


def detect_all(path: Path, image_bchw: Tensor, min_face_px: int) -> list[list[Face]]:
    """All faces of each picture. path: from ``detector_path``."""
    patcher = _host.kept_model(path, "mtcnn", lambda: _build_detector(path))
    _host.load([patcher], _DETECTOR_BYTES)
    return [
        detect(
            patcher.model,
            picture.permute(1, 2, 0),
            min_face_px=min_face_px,
            check=_host.check_interrupted,
        )
        for picture in image_bchw
    ]


def find(image_bchw: Tensor, max_faces: int, min_face_px: int) -> tuple[list[list[Face]], str]:
    """The largest faces of each picture, and what to say about them."""
    path = detector_path()
    if path is None:
        return [[] for _ in image_bchw], (
            f"no detector, so the whole picture only. Next step: {missing_detector()}"
        )
    found = detect_all(path, image_bchw, min_face_px)
    picked = [select(faces, max_faces, min_face_px) for faces in found]
    return picked, counted(sum(map(len, picked)), sum(map(len, found)))


def counted(used: int, seen: int) -> str:
    """How many faces were used, of how many."""
    return f"{used}" if used == seen else f"{used} of {seen} found"


def load_parser(path: Path) -> ParseNet:
    """The parser on its device. path: from ``parser_path``."""
    patcher = _host.kept_model(path, "parsenet", lambda: ParseNet.with_weights(parsenet.read(path)))
    _host.load([patcher], _PARSER_BYTES)
    return patcher.model

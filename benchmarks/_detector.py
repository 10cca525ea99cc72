"""The face detector, from wherever its weights are."""

from __future__ import annotations

import os
from pathlib import Path

import _pack

_pack.load()

from realtoon.engine.faces import MTCNN  # noqa: E402
from realtoon.host import face_weights, paths  # noqa: E402
from realtoon.weights_loader import mtcnn as face_reader  # noqa: E402


def detector_path(chosen: Path | None) -> Path | None:
    """The file that was chosen, or where run.py puts it; None where it is nowhere."""
    places = [paths.cache_folder() / "models"]
    if os.environ.get("COMFYUI_PATH"):
        places.append(Path(os.environ["COMFYUI_PATH"]) / "models")
    return chosen or face_weights.present(places)


def detector(chosen: Path | None) -> MTCNN | None:
    """The face detector, ready to run; None where its weights are nowhere."""
    path = detector_path(chosen)
    if path is None:
        return None
    model = MTCNN().eval()
    nets = face_reader.read(path)
    model.load_state_dict(
        {f"{net}.{name}": value for net, part in nets.items() for name, value in part.items()}
    )
    return model

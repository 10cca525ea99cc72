"""Which of the known networks a file holds, by its content, and its conversion to safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from . import (
    dctnet,
    dctnet_layouts,
    files,
    gpen,
    gpen_layout,
    parsenet,
    safetensors_file,
    torch_file,
)
from .errors import WeightsError, listed

_EXPECTED = "a DCT-Net style, a GPEN generator or a ParseNet"


def convert(source: Path, target: Path, *, overwrite: bool = False, half: bool = False) -> str:
    """Rewrite a file of any known network as safetensors.

    target: ends in .safetensors; refused where it exists unless `overwrite`.
    half: store float16.
    Returns: one line that says what was made.
    Raises: WeightsError.
    """
    network = {"dctnet": dctnet, "gpen": gpen, "parsenet": parsenet}[which(Path(source))]
    return network.convert(source, target, overwrite=overwrite, half=half)


def which(path: Path) -> str:
    """What a file seems to hold: "dctnet", "gpen" or "parsenet". Its reader judges the rest.

    Raises: WeightsError where it is none of them.
    """
    size = files.check(path, gpen.LIMIT_CHECKPOINT_BYTES)
    if gpen.is_onnx(path):
        return "gpen"
    kind = files.sniff(path, size)
    if kind == "graph":
        return "dctnet"
    if kind == "safetensors":
        contents = safetensors_file.scan(path, gpen.LIMIT_BYTES)
    else:
        contents = torch_file.scan(path, kind, gpen.LIMIT_CHECKPOINT_BYTES, inside=gpen.INSIDE)
    names = contents.tensors
    if gpen_layout.looks_like(names):
        return "gpen"
    if parsenet.looks_like(names):
        return "parsenet"
    if dctnet_layouts.recognise(names) is not None:
        return "dctnet"
    _refuse_other(path, contents)


def _refuse_other(path: Path, contents: files.Contents) -> NoReturn:
    try:
        gpen_layout.own_names(path, contents)
    except WeightsError as refused:
        # It knows other networks by name.
        raise WeightsError(path, _EXPECTED, refused.got, refused.next_step) from None
    what = listed(list(contents.tensors), "tensors")
    raise WeightsError(path, _EXPECTED, f"{contents.kind} with {what}", gpen_layout.USE_GPEN)

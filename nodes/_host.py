"""The only place that asks ComfyUI for anything: folders, memory, progress, what its schema knows.

Everything here holds on ComfyUI 0.3.75 and on 0.33.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import comfy.model_management as management
import comfy.model_patcher
import comfy.utils
import folder_paths
import torch
from comfy.patcher_extension import CallbacksMP
from comfy_api.latest import io
from torch import nn

from ..weights_loader.style_files import ENDINGS

log = logging.getLogger("realtoon")

PACK = Path(__file__).resolve().parent.parent
STYLES_FOLDER = "dctnet"
FACES_FOLDER = "facedetection"
GPEN_FOLDER = "gpen"
RESTORERS_FOLDER = "facerestore_models"
_RESTORERS = {".safetensors", ".pt", ".pth", ".onnx"}
_EXTENSIONS = {
    STYLES_FOLDER: set(ENDINGS),
    FACES_FOLDER: {".safetensors", ".pt", ".pth"},
    GPEN_FOLDER: _RESTORERS,
    RESTORERS_FOLDER: _RESTORERS,
}
_KEPT_MODELS = 6
_LEAST_TICKS = 100
_ON_DETACH_KEY = "realtoon"

_kept: dict[tuple[Any, ...], comfy.model_patcher.ModelPatcher] = {}
_on_unload: dict[tuple[Any, ...], Callable[[], None]] = {}


def schema(**kwargs: Any) -> io.Schema:
    """``io.Schema`` with only those fields that this host knows; an older one raises on others."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return io.Schema(**{name: value for name, value in kwargs.items() if name in known})


def one_of(name: str, value: object, options: Iterable[object]) -> bool | str:
    """The answer of ``validate_inputs`` for a combo: True, or why not.

    ComfyUI 0.3.75 does not hold a V3 combo to its options. None stands for a linked input.
    """
    known = list(options)
    if value is None or value in known:
        return True
    return f"{name}: expected one of {', '.join(map(str, known))}, got {value!r}"


def register_folders() -> None:
    """Add the pack's model folders to those of the host; what others registered stays."""
    table = folder_paths.folder_names_and_paths
    for name, extensions in _EXTENSIONS.items():
        default = str(Path(folder_paths.models_dir) / name)
        paths, known = table.get(name, ([], set()))
        table[name] = (paths if default in paths else [*paths, default], set(known) | extensions)


def model_folders(name: str) -> list[Path]:
    """The folders registered under ``name`` that exist, in the host's order."""
    return [path for path in map(Path, folder_paths.get_folder_paths(name)) if path.is_dir()]


def model_files(name: str) -> dict[str, Path]:
    """Files with the endings of a folder, by their names below it, in the host's order."""
    found = {}
    for file in folder_paths.get_filename_list(name):
        path = folder_paths.get_full_path(name, file)
        if path is not None:
            found[Path(file).as_posix()] = Path(path)
    return found


def first_model_folder(name: str) -> Path:
    """Where a file for ``name`` belongs, whether the folder exists or not."""
    return Path(folder_paths.get_folder_paths(name)[0])


def warn_about_taken_ids(nodes: Sequence[type[io.ComfyNode]]) -> None:
    """Say in the log when another pack holds one of our ids: now, and once all packs are in.

    Ids are global and the last pack that loads wins without a word.
    """
    ours = {node.GET_SCHEMA().node_id: node for node in nodes}
    _warn(ours, "it is replaced by RealToon's")

    async def when_all_are_loaded(_app: Any) -> None:
        _warn(ours, "it replaces RealToon's")

    from server import PromptServer

    if getattr(PromptServer, "instance", None) is not None:
        PromptServer.instance.app.on_startup.append(when_all_are_loaded)


def _warn(ours: dict[str, type[io.ComfyNode]], outcome: str) -> None:
    import nodes as host_nodes

    for node_id, ours_node in ours.items():
        holder = host_nodes.NODE_CLASS_MAPPINGS.get(node_id)
        if holder is None or holder is ours_node:
            continue
        pack = getattr(holder, "RELATIVE_PYTHON_MODULE", None) or holder.__module__
        log.warning(
            "RealToon: the node id %s is also registered by %s; %s. Workflows that use it may not"
            " run as meant. Next step: disable one of the two packs and restart ComfyUI.",
            node_id,
            pack,
            outcome,
        )


def file_state(source: Path) -> tuple[Any, ...]:
    """Changes when a file does, also where a copy has brought its time with it: that of the last
    change of the file's own record cannot be set (on Windows it is that of its creation)."""
    stat = source.stat()
    return (os.fspath(source), stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size)


def kept_model(
    source: Path,
    part: str,
    build: Callable[[], nn.Module],
    on_unload: Callable[[], None] | None = None,
) -> comfy.model_patcher.ModelPatcher:
    """A model under the host's memory management, built once per state of its file.

    source: the file or folder that it is made of. part: tells several models of one source apart.
    The model is let go when the host unloads it (for ``/free``, or for want of memory), and then
    ``on_unload`` is called.
    """
    key = (part, *file_state(source))
    patcher = _kept.pop(key, None)
    if patcher is None:
        patcher = comfy.model_patcher.ModelPatcher(
            build().eval(),
            load_device=management.get_torch_device(),
            offload_device=management.unet_offload_device(),
        )
        patcher.add_callback_with_key(
            CallbacksMP.ON_DETACH,
            _ON_DETACH_KEY,
            lambda gone, unload=True: _let_go(key, gone) if unload else None,
        )
        while len(_kept) >= _KEPT_MODELS:
            _drop(next(iter(_kept)))
        if on_unload is not None:
            _on_unload[key] = on_unload
    _kept[key] = patcher
    return patcher


def _let_go(key: tuple[Any, ...], patcher: comfy.model_patcher.ModelPatcher) -> None:
    """Forget a model that the host is unloading. It also detaches what it loads anew: not that."""
    if _kept.get(key) is not patcher:
        return
    outlive_entry(patcher.model, patcher)
    _drop(key)


def outlive_entry(model: nn.Module, holder: object) -> None:
    """Let what holds a model live as long as the model's entry in the host's list.

    The host walks through that list while it unloads and takes entries of dead models out of it at
    once: a model that died meanwhile would shorten the list under it.
    """
    for entry in management.current_loaded_models:
        if entry.model is not None and entry.model.model is model:
            entry.realtoon_keeps = holder


def _drop(key: tuple[Any, ...]) -> None:
    del _kept[key]
    _on_unload.pop(key, _nothing)()


def _nothing() -> None:
    """For a model that nobody waits for."""


def load(patchers: Iterable[comfy.model_patcher.ModelPatcher], working_bytes: int) -> None:
    """Bring models to their device, with ``working_bytes`` free beside them."""
    management.load_models_gpu(list(patchers), memory_required=working_bytes)


def device() -> torch.device:
    """Where models run."""
    return management.get_torch_device()


def free_bytes() -> int:
    """Bytes that a run may still take on the models' device, the host's own reserve left alone."""
    free = management.get_free_memory(management.get_torch_device())
    return max(0, int(free) - int(management.minimum_inference_memory()))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the host counts ``error`` as memory running out."""
    # Newer hosts know more kinds than the one exception.
    is_oom = getattr(management, "is_oom", None)
    return is_oom(error) if is_oom else isinstance(error, management.OOM_EXCEPTION)


def give_memory_back() -> None:
    """Return cached blocks to the device."""
    gc.collect()
    management.soft_empty_cache()


def check_interrupted() -> None:
    """Raise the host's own exception when the user has pressed Cancel."""
    management.throw_exception_if_processing_interrupted()


class Progress:
    """The bar on a node. ``step`` moves it and stops the run when the user has pressed Cancel.

    total: how many steps there are; a step may be done in parts.
    """

    def __init__(self, total: float) -> None:
        self._total = max(1.0, total)
        self._ticks = max(_LEAST_TICKS, math.ceil(self._total))
        self._bar = comfy.utils.ProgressBar(self._ticks)
        self._done = 0.0

    def step(self, count: float = 1.0) -> None:
        check_interrupted()
        self._done += count
        # Parts add up to a hair less than the whole.
        ticks = int(self._done / self._total * self._ticks + 1e-6)
        self._bar.update_absolute(min(self._ticks, ticks))

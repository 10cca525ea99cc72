"""A component's tensors, from one file or from shards, and the JSON files beside them.

Nothing but headers and JSON is read here, and a name out of a JSON file never leaves its folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from . import files, safetensors_file
from .errors import WeightsError, listed
from .qwen_families import NEXT, WANTED

LIMIT_BYTES = 100 << 30
"""The DiT in float32 takes 82 GB."""
LIMIT_HEADER_BYTES = 16 * files.MIB
"""1,933 tensors take 250 kB; a scale and a mark for each, and the same in metadata, 1 MB."""
_LIMIT_JSON_BYTES = 4 * files.MIB
_STEMS = ("diffusion_pytorch_model", "model")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")
_PIPELINES = ("QwenImageEditPlusPipeline", "QwenImageEditPipeline")
_CLASSES = {
    "transformer": "QwenImageTransformer2DModel",
    "text_encoder": "Qwen2_5_VLForConditionalGeneration",
    "vae": "AutoencoderKLQwenImage",
}
_FOLDERS = {"dit": "transformer", "text": "text_encoder", "vae": "vae"}
_OFFICIAL = "choose the folder of the official Qwen-Image-Edit-2511 repository"
_ALL = "download the folder again: every file of it, with the names it has there"


@dataclass(frozen=True)
class Source:
    """Where a component's tensors lie. origin: the file of each. config: config.json, where the
    component is a folder."""

    path: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, files.Stored]
    origin: Mapping[str, Path]
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None

    @property
    def config_path(self) -> Path:
        return self.path / "config.json"


def open_source(path: Path, kind: str) -> Source:
    """Describe a component: a safetensors file, or a folder with config.json and weights.

    path: the folder of the whole model stands for its component's.
    kind: "dit", "text" or "vae". Raises: WeightsError.
    """
    if path.is_dir():
        whole = (path / "model_index.json").exists()
        return _open_folder(path / _FOLDERS[kind] if whole else path, kind)
    contents = scan(path, kind)
    origin = dict.fromkeys(contents.tensors, path)
    return Source(path, (path,), contents.tensors, origin, contents.metadata)


def scan(path: Path, kind: str) -> files.Contents:
    """Describe one safetensors file whose tensors will be mapped. Raises: WeightsError."""
    size = files.check(path, LIMIT_BYTES)
    try:
        found = files.sniff(path, size)
    except WeightsError as refused:
        if "GGUF" not in refused.got and "unknown format" not in refused.got:
            raise WeightsError(path, WANTED[kind], refused.got, refused.next_step) from None
        found = refused.got
    if found != "safetensors":
        names = {"zip": "a PyTorch pickle or another zip archive", "graph": "a protobuf"}
        got = names.get(found, "a PyTorch pickle" if found in ("torch legacy", "pickle") else found)
        raise WeightsError(path, f"{WANTED[kind]} in safetensors", got, NEXT[kind])
    return safetensors_file.scan(path, LIMIT_BYTES, header_bytes=LIMIT_HEADER_BYTES, mapped=True)


def read_pipeline(folder: Path) -> str:
    """The class in a folder's model_index.json, known to be one that edits.

    Qwen-Image's own text-to-image pipeline has the same DiT and is refused here: it was not trained
    to keep a reference picture, and this file is the one place where that is said.
    Raises: WeightsError for another pipeline or another class of a component.
    """
    path = folder / "model_index.json"
    index = read_json(path, "the parts of a model")
    name = index.get("_class_name")
    if name not in _PIPELINES:
        raise WeightsError(path, " or ".join(_PIPELINES), repr(name)[:80], _OFFICIAL)
    for part, expected in _CLASSES.items():
        entry = index.get(part)
        got = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
        if got != expected:
            raise WeightsError(path, f"{part} of class {expected}", repr(got)[:80], _OFFICIAL)
    return name


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON file that must be an object, 4 MiB at most. Raises: WeightsError."""
    size = files.check(path, _LIMIT_JSON_BYTES)
    return safetensors_file.json_object(path, files.read_at(path, 0, size), what)


def _open_folder(folder: Path, kind: str) -> Source:
    config = read_json(folder / "config.json", "a config")
    part = _FOLDERS[kind]
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    name = config.get("_class_name", first)
    if name != _CLASSES[part]:
        _refuse(folder / "config.json", f"class {_CLASSES[part]}", repr(name)[:80], NEXT[kind])
    for stem in _STEMS:
        index = folder / f"{stem}.safetensors.index.json"
        if index.exists():
            return _open_shards(folder, index, config, kind)
    single = _single(folder, kind)
    contents = scan(single, kind)
    origin = dict.fromkeys(contents.tensors, single)
    return Source(folder, (single,), contents.tensors, origin, contents.metadata, config)


def _single(folder: Path, kind: str) -> Path:
    for stem in _STEMS:
        path = folder / f"{stem}.safetensors"
        if path.exists():
            return path
    there = sorted(folder.glob("*.safetensors"))
    if any(_SHARD.search(path.name) for path in there):
        _refuse(folder, "an …index.json beside the shards", "none", _ALL)
    if len(there) == 1:
        return there[0]
    if there:
        got = listed([path.name for path in there], "weights files")
        _refuse(folder, f"{_STEMS[0]}.safetensors or one weights file", got, _ALL)
    pickles = [
        p.name for ending in ("bin", "pth", "pt") for p in sorted(folder.glob(f"*.{ending}"))
    ]
    got = listed(pickles, "pickles") if pickles else "no weights"
    _refuse(folder, f"{WANTED[kind]} in safetensors", got, _ALL)


def _open_shards(folder: Path, index: Path, config: Mapping[str, Any], kind: str) -> Source:
    weight_map = read_json(index, "an index of shards").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        _refuse(index, "a weight_map of names and files", type(weight_map).__name__, _ALL)
    shards: dict[str, set[str]] = {}
    for name, file in weight_map.items():
        # A name with a separator could lead out of the folder; one too long is an OSError.
        sound = isinstance(file, str) and len(file) <= 200 and not set("/\\:\0") & set(file)
        if not sound:
            _refuse(index, f"the name of a file for {name}", repr(file)[:80], _ALL)
        shards.setdefault(file, set()).add(name)
    missing = sorted(file for file in shards if not (folder / file).exists())
    if missing:
        expected = f"the {len(shards)} shards that {index.name} names"
        _refuse(folder / missing[0], expected, listed(missing, "missing"), _ALL)
    tensors: dict[str, files.Stored] = {}
    origin: dict[str, Path] = {}
    for file, names in sorted(shards.items()):
        contents = scan(folder / file, kind)
        _check_shard(folder / file, index, names, contents)
        tensors |= contents.tensors
        origin |= dict.fromkeys(contents.tensors, folder / file)
    _check_dtypes(tensors, origin)
    paths = tuple(folder / file for file in sorted(shards))
    return Source(folder, paths, tensors, origin, {}, config)


def _check_shard(path: Path, index: Path, names: set[str], contents: files.Contents) -> None:
    lacks = sorted(names.difference(contents.tensors))
    if lacks:
        expected = f"the {len(names)} tensors that {index.name} places in it"
        _refuse(path, expected, listed(lacks, "missing"), _ALL)
    more = sorted(set(contents.tensors).difference(names))
    if more:
        got = f"{listed(more, 'others')} (shards of two versions?)"
        _refuse(path, f"only tensors that {index.name} places in it", got, _ALL)


def _check_dtypes(tensors: Mapping[str, files.Stored], origin: Mapping[str, Path]) -> None:
    """Shards of one version store the same layer of every block in one dtype."""
    first: dict[str, str] = {}
    for name, stored in tensors.items():
        role = re.sub(r"\.\d+\.", ".N.", name, count=1)
        other = first.setdefault(role, name)
        if tensors[other].dtype != stored.dtype and origin[other] != origin[name]:
            expected = f"{name} in {tensors[other].dtype}, as in {origin[other].name}"
            _refuse(origin[name], expected, f"{stored.dtype} (shards of two versions?)", _ALL)


def _refuse(path: Path, expected: str, got: str, next_step: str) -> NoReturn:
    raise WeightsError(path, expected, got, next_step)

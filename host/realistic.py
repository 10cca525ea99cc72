"""`run.py realistic`: art becomes a realistic person."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from . import arguments, picture_job, pictures, qwen_weights, weights, workflow
from .client import ComfyClient
from .console import say
from .errors import UserError
from .inside import Run
from .picture_job import Changes
from .sources import Host
from .workflow import Workflow

LOADER, PRESET, SAMPLER = "QwenEditLoader", "EditPreset", "KSampler"
CAPTION, LORA = "ResultCaption", "LoRAHotInject"
FROM_FOLDER, NO_LORA = "from the folder", "none"
USUAL, LIGHTNING = "realistic_1024", "realistic_1024_lightning"
TINY = "realtoon-tiny"
# A small model has nothing to say at 1024 pixels, and a processor takes minutes there.
TINY_SIDE = 256
# Raised where other small weights are made: those that lie in the cache are not made again.
_TINY_EDITION = 1
_MORE = "`python run.py weights list`"

Known = Callable[[str, str], list[str]]
"""(node class, input) -> the choices that this ComfyUI offers."""


def run(run: Run) -> int:
    """Returns: the exit code. Raises: UserError."""
    args = run.args
    upload = picture_job.photo(run)
    with run.stages.time("weights"):
        if not args.tiny:
            qwen_weights.require(run.host, run.cache)
        folders = [make_tiny(run.host, run.cache)] if args.tiny else []
    if args.tiny and args.size is None:
        args.size = TINY_SIDE
    file = picture_job.file_of(LIGHTNING if is_lightning(args.preset) else USUAL)

    async def fill(client: ComfyClient, graph: Workflow) -> Changes:
        kinds = (LOADER, PRESET, LORA)
        info = {kind: await client.object_info(kind) for kind in kinds}

        def known(kind: str, given: str) -> list[str]:
            return workflow.options(info[kind], given)

        changes = models(run, graph, known)
        return {**changes, **loras(run, graph, known), **wishes(run, graph, known)}

    def tell(graph: Workflow, data: bytes) -> str:
        # A PNG keeps the caption that the node wrote into it.
        is_png = arguments.picture_target(args).suffix.lower() == ".png"
        return "" if is_png else pictures.texts_of(data).get(pictures.CAPTION, "")

    with lora_folder(args.lora, run.cache) as more:
        code = picture_job.carry_out(run, file, upload, fill, tell, (*folders, *more))
    if args.tiny:
        say("The whole workflow ran, on small random weights: the picture is noise.")
    return code


def is_lightning(preset: str | None) -> bool:
    """Whether a preset needs the workflow with the Lightning LoRA in it."""
    return preset is not None and preset.casefold().startswith("light")


def make_tiny(host: Host, cache: Path) -> Path:
    """A models folder with small random weights that this ComfyUI can run. Raises: UserError."""
    edition = "2511" if qwen_weights.runs_2511(host) else "2509"
    models = cache / f"tiny-{_TINY_EDITION}-{edition}"
    folder, lora = models / "diffusers" / TINY, models / "loras" / f"{TINY}.safetensors"
    if not (folder / "model_index.json").is_file():
        line = ["tiny-qwen", str(folder), "--edition", edition, "--lora", str(lora)]
        say(weights.call_loader(Path(sys.executable), line))
    return models


def models(run: Run, graph: Workflow, known: Known) -> Changes:
    """Base, text encoder and VAE: what was asked for, the workflow's, or the only ones; the base's
    name in the caption.

    Raises: UserError.
    """
    [caption] = workflow.of_class(graph, CAPTION)
    [loader] = workflow.of_class(graph, LOADER)
    given = graph[loader]["inputs"]
    bases = known(LOADER, "base")
    if run.args.tiny:
        chosen = dict.fromkeys(("text_encoder", "vae"), FROM_FOLDER) | {"base": f"{TINY}/"}
        changes: Changes = {(loader, name): value for name, value in chosen.items()}
        return {**changes, (caption, "note"): "small random weights: noise"}
    if not bases:
        # There were files, but none of Qwen-Image-Edit's.
        raise qwen_weights.missing(run.host, run.cache)
    base = choose_model(run.args.model, bases, given["base"])
    changes = {(loader, "base"): base, (caption, "note"): base.removesuffix("/")}
    for name, entry in (("text_encoder", "qwen-text"), ("vae", "qwen-vae")):
        files = known(LOADER, name)
        part = FROM_FOLDER if base.endswith("/") else choose_part(files, given[name])
        if part is None:
            raise qwen_weights.part_missing(entry, run.host, run.cache)
        changes[loader, name] = part
    return changes


def choose_model(wanted: str | None, known: list[str], usual: str) -> str:
    """The base: what was asked for, else the workflow's, else the only one. Raises: UserError."""
    if wanted is not None:
        return picture_job.named("model", wanted, known, _MORE)
    if usual in known or len(known) == 1:
        return usual if usual in known else known[0]
    raise UserError(
        f"there are several models, and no {usual}", f"name one with --model: {', '.join(known)}"
    )


def choose_part(known: list[str], usual: str) -> str | None:
    """The file that the workflow names, else the first; None where there is none."""
    files = [name for name in known if name != FROM_FOLDER]
    return usual if usual in files else next(iter(files), None)


def choose_preset(wanted: str, known: list[str]) -> str:
    """The one preset that has all of the words: 'lightning 4'. Raises: UserError."""
    words = wanted.casefold().replace(",", " ").split()
    found = [
        name
        for name in known
        if all(any(own.startswith(word) for own in name.casefold().split()) for word in words)
    ]
    if len(found) == 1:
        return found[0]
    raise UserError(
        f"{wanted!r} means several presets" if found else f"there is no preset {wanted!r}",
        f"take one of {'; '.join(found or known)}",
    )


def loras(run: Run, graph: Workflow, known: Known) -> Changes:
    """The workflow's own LoRA, and --lora in the place that it leaves for one. Raises: UserError.

    With --tiny every place gets the small one.
    """
    there = known(LORA, "lora")
    changes: Changes = {}
    for node in workflow.of_class(graph, LORA):
        own = graph[node]["inputs"]["lora"]
        if run.args.tiny:
            changes[node, "lora"] = f"{TINY}.safetensors"
        elif own != NO_LORA:
            changes[node, "lora"] = lightning(run, own, there)
        elif run.args.lora is not None:
            wanted = Path(run.args.lora).name
            changes[node, "lora"] = picture_job.named("LoRA", wanted, there, "models/loras")
    return changes


def lightning(run: Run, usual: str, known: list[str]) -> str:
    """The Lightning LoRA for the steps of the preset. Raises: UserError."""
    eight = "8" in (run.args.preset or "")
    name = usual.replace("-4steps-", "-8steps-") if eight else usual
    if name not in known:
        entry = "lightning-8" if eight else "lightning-4"
        raise qwen_weights.part_missing(entry, run.host, run.cache)
    return name


def wishes(run: Run, graph: Workflow, known: Known) -> Changes:
    """--preset, --prompt, --seed and --size, those that were given. Raises: UserError."""
    args = run.args
    [preset], [sampler] = workflow.of_class(graph, PRESET), workflow.of_class(graph, SAMPLER)
    changes = picture_job.size_of(run, graph)
    if args.preset is not None:
        changes[preset, "preset"] = choose_preset(args.preset, known(PRESET, "preset"))
    if args.prompt is not None:
        changes[preset, "prompt"] = args.prompt
    if args.seed is not None:
        changes[sampler, "seed"] = args.seed
    return changes


@contextmanager
def lora_folder(lora: str | None, cache: Path) -> Iterator[list[Path]]:
    """Models folders in which a LoRA's file stands, wherever it lies; gone afterwards."""
    source = Path(lora).expanduser() if lora else None
    if source is None or not source.is_file():
        yield []
        return
    with tempfile.TemporaryDirectory(prefix="lora-", dir=cache) as folder:
        target = Path(folder) / "loras" / source.name
        target.parent.mkdir()
        try:
            os.link(source.resolve(), target)
        except OSError:
            # Another disk, or one that knows no links.
            shutil.copyfile(source, target)
        yield [Path(folder)]

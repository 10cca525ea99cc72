"""`run.py queue`: any API workflow on any running ComfyUI, one job for each picture and value."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from . import pictures, server, torch_choice, workflow
from .client import ComfyClient, JobResult, OutputFile, server_address
from .console import say, warn
from .errors import UserError
from .inside import Run
from .progress import JobBar
from .workflow import Workflow

_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_TOLD_LENGTH = 60

Choices = dict[tuple[str, str], list[tuple[Any, str]]]
"""(node id, input) -> its values, each with what a file's name tells of it."""


def run(run: Run) -> int:
    """Returns: the exit code. Raises: UserError."""
    args = run.args
    graph = workflow.load(Path(args.workflow).expanduser())
    sets = [workflow.parse_set(graph, text) for text in args.set]
    loader = _loader(graph, args.input_node) if args.input else ""
    uploads = [pictures.load(Path(name).expanduser()) for name in args.input]
    if args.server:
        return asyncio.run(_queue(run, server_address(args.server), graph, sets, loader, uploads))
    with ExitStack() as stack:
        with run.stages.time("start"):
            cpu = torch_choice.needs_cpu_flag(Path(sys.executable))
            comfy = stack.enter_context(
                server.running(run.host, Path(sys.executable), run.cache, cpu=cpu, port=args.port)
            )
        return asyncio.run(_queue(run, comfy.url, graph, sets, loader, uploads, comfy))


def _loader(graph: Workflow, name: str | None) -> str:
    """The node that --input's pictures go into."""
    if name:
        return workflow.find(graph, name)
    found = workflow.of_class(graph, "LoadImage")
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(
            "the workflow has no LoadImage, so --input has no place to go",
            "name the node with --input-node, or leave --input out",
        )
    ids = ", ".join(f"{i} ({workflow.title(graph, i)})" for i in found)
    raise UserError(f"the workflow has {len(found)} LoadImage nodes", f"--input-node: {ids}")


async def _queue(
    run: Run,
    url: str,
    graph: Workflow,
    sets: list[tuple[str, str, Any]],
    loader: str,
    uploads: list[pictures.Upload],
    comfy: server.ComfyServer | None = None,
) -> int:
    args, stages = run.args, run.stages
    check = comfy.raise_if_dead if comfy else (lambda: None)
    async with ComfyClient(url, timeout_s=args.timeout, check_server=check) as client:
        await client.system_stats()
        with stages.time("upload"):
            choices = await _settings(client, graph, sets)
            if loader:
                names = [await client.upload(item.name, item.data) for item in uploads]
                stems = [Path(name).stem for name in args.input]
                given: Choices = {(loader, "image"): list(zip(names, stems, strict=True))}
                # First, so that jobs about one picture follow one another and share its encoding.
                choices = given | choices | given
        jobs = _jobs(choices)
        graphs = [workflow.with_inputs(graph, changes) for _, changes in jobs]
        with stages.time("run"), JobBar(len(jobs)) as bar:
            results = await client.run(graphs, bar.update)
        with stages.time("save"):
            for (stem, _), result in zip(jobs, results, strict=True):
                await _save(client, result, stem, Path(args.out).expanduser(), args.format)
    say(f"Seconds: {stages.line()}")
    return 0


def _jobs(choices: Choices) -> list[tuple[str, dict[tuple[str, str], Any]]]:
    """Every combination of values: (what its files' names begin with, inputs to set)."""
    jobs = []
    for values in itertools.product(*choices.values()):
        changes = dict(zip(choices, (value for value, _ in values), strict=True))
        jobs.append(("_".join(filter(None, (told for _, told in values))), changes))
    return jobs


async def _settings(
    client: ComfyClient, graph: Workflow, sets: list[tuple[str, str, Any]]
) -> Choices:
    """--set's values; names that the server does not know are refused, @FILE is uploaded."""
    choices: Choices = {}
    for node_id, name, value in sets:
        kind = graph[node_id]["class_type"]
        known = workflow.input_names(await client.object_info(kind))
        # A dynamic input's children ('policy.gb') are described inside their parent.
        if known and name not in known and name.split(".")[0] not in known:
            raise UserError(
                f"node {node_id} ({kind}) has no input {name!r}", f"name one of {', '.join(known)}"
            )
        told = _told(value)
        if isinstance(value, str) and value.startswith("@"):
            path = Path(value[1:]).expanduser()
            if not path.is_file():
                raise UserError(f"{value[1:]} does not exist", "give the path of a picture")
            picture = pictures.load(path)
            value = await client.upload(picture.name, picture.data)
        choices.setdefault((node_id, name), []).append((value, told))
    # Only what differs from job to job belongs into a file's name.
    return {
        key: values if len(values) > 1 else [(value, "") for value, _ in values]
        for key, values in choices.items()
    }


def _told(value: object) -> str:
    """A value as part of a file's name, short, without its folder and the ending of weights."""
    text = str(value).replace("\\", "/").rpartition("/")[2]
    text = re.sub(r"\.(safetensors|ckpt|pt|png|jpe?g|webp)$", "", text, flags=re.IGNORECASE)
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.")[:_TOLD_LENGTH]


async def _save(
    client: ComfyClient, result: JobResult, stem: str, folder: Path, wanted: str | None
) -> None:
    for text in result.texts:
        say(f"  {text}")
    if not result.files:
        warn("The job made no file." if not result.outputs else json.dumps(result.outputs)[:500])
    for file in result.files:
        data = await client.download(file)
        target = free_name(folder, _name(file, stem, wanted))
        if target.suffix.lower() in _PICTURES:
            dropped = pictures.save(data, target)
            if dropped:
                warn(f"{target.name} has no room for its {' and '.join(dropped)}.")
        else:
            pictures.write_whole(target, data)
        say(f"Saved {target}")


def _name(file: OutputFile, stem: str, wanted: str | None) -> str:
    # Only the last part: a server elsewhere does not choose our folders.
    name = Path(Path(file.filename.replace("\\", "/")).name)
    if wanted and name.suffix.lower() in _PICTURES:
        name = name.with_suffix(f".{wanted}")
    return f"{stem}_{name}" if stem else str(name)


def free_name(folder: Path, name: str) -> Path:
    """folder/name, numbered where that is taken: nothing is overwritten."""
    target = folder / name
    number = 2
    while target.exists():
        target = folder / f"{Path(name).stem}-{number}{Path(name).suffix}"
        number += 1
    return target

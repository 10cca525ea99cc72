"""One photo in, one picture out, through a real ComfyUI and back: what verbs like cartoon share."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import arguments, paths, pictures, server, torch_choice, workflow
from .client import ComfyClient, JobResult
from .console import human_size, say, warn
from .errors import UserError
from .inside import Run
from .progress import JobBar
from .workflow import Workflow

PREPARE = "PrepareImage"
Changes = dict[tuple[str, str], Any]


@dataclass(frozen=True)
class PictureJob:
    """A workflow of ours that turns a photo into a picture.

    name: of the file in workflows/api. node: class of the one node that does the work. choice: its
    input that names a style or a model. choose: (the names that the host has, the workflow's own)
    -> the name to take. wishes: values for its other inputs, None leaves the workflow's. shown:
    its inputs that the caption tells.
    """

    name: str
    node: str
    choice: str
    choose: Callable[[list[str], str], str]
    wishes: dict[str, Any]
    shown: tuple[str, ...]

    @property
    def file(self) -> Path:
        return file_of(self.name)


def file_of(name: str) -> Path:
    """The API workflow of this name."""
    return paths.PACK_ROOT / "workflows" / "api" / f"{name}.json"


def photo(run: Run) -> pictures.Upload:
    """PHOTO, or the portrait that is free. Raises: UserError."""
    name = run.args.photo
    return pictures.load(Path(name).expanduser()) if name else pictures.astronaut()


def draw(run: Run, job: PictureJob, upload: pictures.Upload) -> int:
    """Start the host, run the job, save what it made. Returns: the exit code. Raises: UserError."""

    async def fill(client: ComfyClient, graph: Workflow) -> Changes:
        known = workflow.options(await client.object_info(job.node), job.choice)
        return _changes(run, job, graph, known)

    def tell(graph: Workflow, data: bytes) -> str:
        return caption(graph, job, pictures.size_of(data))

    return carry_out(run, job.file, upload, fill, tell)


def carry_out(
    run: Run,
    file: Path,
    upload: pictures.Upload,
    fill: Callable[[ComfyClient, Workflow], Awaitable[Changes]],
    tell: Callable[[Workflow, bytes], str],
    model_folders: tuple[Path, ...] = (),
) -> int:
    """Start the host, run a workflow of ours, save what it made.

    fill: (the running host, the workflow) -> what to set in it. tell: (the workflow as it ran,
    the picture's file) -> the caption; "" keeps the file's own. model_folders: see
    server.running. Returns: the exit code. Raises: UserError.
    """
    args, stages = run.args, run.stages
    target = arguments.picture_target(args)
    with ExitStack() as stack:
        with stages.time("start"):
            cpu = torch_choice.needs_cpu_flag(Path(sys.executable))
            comfy = stack.enter_context(
                server.running(
                    run.host,
                    Path(sys.executable),
                    run.cache,
                    cpu=cpu,
                    port=args.port,
                    model_folders=model_folders,
                )
            )
        data, result, graph = asyncio.run(_draw(run, file, comfy, upload, fill))
    with stages.time("save"):
        dropped = pictures.save(data, target, tell(graph, data))
    _report(run, target, data, result, dropped)
    return 0


async def _draw(
    run: Run,
    file: Path,
    comfy: server.ComfyServer,
    upload: pictures.Upload,
    fill: Callable[[ComfyClient, Workflow], Awaitable[Changes]],
) -> tuple[bytes, JobResult, Workflow]:
    stages = run.stages
    async with ComfyClient(
        comfy.url, timeout_s=run.args.timeout, check_server=comfy.raise_if_dead
    ) as client:
        graph = workflow.load(file)
        changes = await fill(client, graph)
        with stages.time("upload"):
            [loader] = workflow.of_class(graph, "LoadImage")
            changes[loader, "image"] = await client.upload(upload.name, upload.data)
        graph = workflow.with_inputs(graph, changes)
        with stages.time("run"), JobBar(1) as bar:
            [result] = await client.run([graph], bar.update)
        if not result.files:
            raise UserError("the workflow saved no picture", f"look into {file}")
        with stages.time("save"):
            return await client.download(result.files[0]), result, graph


def _changes(run: Run, job: PictureJob, graph: Workflow, known: list[str]) -> Changes:
    [node] = workflow.of_class(graph, job.node)
    wishes = {**job.wishes, job.choice: job.choose(known, graph[node]["inputs"][job.choice])}
    changes = {(node, name): value for name, value in wishes.items() if value is not None}
    return {**changes, **size_of(run, graph)}


def size_of(run: Run, graph: Workflow) -> Changes:
    """--size, where it was given."""
    if run.args.size is None:
        return {}
    [prepare] = workflow.of_class(graph, PREPARE)
    return {(prepare, "max_side"): run.args.size}


def named(kind: str, wanted: str, known: list[str], more: str) -> str:
    """The one name that is meant: exact, capitals alike, else the only one that begins like it.

    kind: what is named, for the message. more: what has others.
    Raises: UserError that lists the known names.
    """
    folded = wanted.casefold()
    for name in known:
        if name.casefold() == folded:
            return name
    found = [name for name in known if name.casefold().startswith(folded)]
    if len(found) == 1:
        return found[0]
    raise UserError(
        f"there is no {kind} {wanted!r}" if not found else f"{wanted!r} means several {kind}s",
        f"take one of {', '.join(found or known)}; {more} has more",
    )


def caption(graph: Workflow, job: PictureJob, size: tuple[int, int]) -> str:
    """'Style: cel, Style strength: 0.75, …, Size: 1024x683': what made the picture."""
    [node] = workflow.of_class(graph, job.node)
    inputs = graph[node]["inputs"]
    parts = [
        f"{name.replace('_', ' ').capitalize()}: {inputs[name]}"
        for name in job.shown
        if name in inputs
    ]
    return ", ".join([*parts, f"Size: {size[0]}x{size[1]}", "Made with: RealToon in ComfyUI"])


def _report(run: Run, target: Path, data: bytes, result: JobResult, dropped: list[str]) -> None:
    for line in result.texts:
        say(f"  {line}")
    width, height = pictures.size_of(data)
    say(f"Saved {target} ({width}×{height}, {human_size(target.stat().st_size)})")
    if dropped:
        warn(f"{target.name} has no room for its {' and '.join(dropped)}; a .png keeps all.")
    say(f"Seconds: {run.stages.line()}")

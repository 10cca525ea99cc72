"""`run.py cartoon`: a photo in, a cartoon out, through a real ComfyUI and back."""

from __future__ import annotations

import asyncio
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from . import arguments, face_weights, paths, pictures, server, torch_choice, workflow
from .client import ComfyClient, JobResult
from .console import human_size, say, warn
from .errors import UserError
from .inside import Run
from .progress import JobBar
from .workflow import Workflow

WORKFLOW = Path("workflows") / "api" / "cartoon_1024.json"
NODE = "DCTNetCartoon"
PREPARE = "PrepareImage"


def run(run: Run) -> int:
    """Returns: the exit code. Raises: UserError."""
    args, stages = run.args, run.stages
    target = arguments.cartoon_target(args)
    # A wrong file is known before the seconds that the host takes.
    upload = pictures.load(Path(args.photo).expanduser()) if args.photo else pictures.astronaut()
    with stages.time("weights"):
        if not args.no_faces:
            face_weights.ensure(run.host, run.cache)
    with ExitStack() as stack:
        with stages.time("start"):
            cpu = torch_choice.needs_cpu_flag(Path(sys.executable))
            comfy = stack.enter_context(
                server.running(run.host, Path(sys.executable), run.cache, cpu=cpu, port=args.port)
            )
        data, result, graph = asyncio.run(_draw(run, comfy, upload))
    with stages.time("save"):
        dropped = pictures.save(data, target, caption(graph, pictures.size_of(data)))
    _report(run, target, data, result, dropped)
    return 0


async def _draw(
    run: Run, comfy: server.ComfyServer, upload: pictures.Upload
) -> tuple[bytes, JobResult, Workflow]:
    stages = run.stages
    async with ComfyClient(
        comfy.url, timeout_s=run.args.timeout, check_server=comfy.raise_if_dead
    ) as client:
        graph = workflow.load(paths.PACK_ROOT / WORKFLOW)
        style = await _style(client, run.args.style)
        with stages.time("upload"):
            name = await client.upload(upload.name, upload.data)
        graph = workflow.with_inputs(graph, _changes(run, graph, name, style))
        with stages.time("run"), JobBar(1) as bar:
            [result] = await client.run([graph], bar.update)
        if not result.files:
            raise UserError("the workflow saved no picture", f"look into {WORKFLOW}")
        with stages.time("save"):
            return await client.download(result.files[0]), result, graph


async def _style(client: ComfyClient, wanted: str | None) -> str | None:
    """The host's name for a style: exact, else the one name that begins like it."""
    if wanted is None:
        return None
    known = workflow.options(await client.object_info(NODE), "style")
    return choose_style(wanted, known)


def choose_style(wanted: str, known: list[str]) -> str:
    """Raises: UserError that lists the known styles."""
    folded = wanted.casefold()
    for name in known:
        if name.casefold() == folded:
            return name
    found = [name for name in known if name.casefold().startswith(folded)]
    if len(found) == 1:
        return found[0]
    raise UserError(
        f"there is no style {wanted!r}" if not found else f"{wanted!r} means several styles",
        f"take one of {', '.join(found or known)}; `python run.py weights list` has more",
    )


def _changes(
    run: Run, graph: Workflow, picture: str, style: str | None
) -> dict[tuple[str, str], Any]:
    args = run.args
    [loader] = workflow.of_class(graph, "LoadImage")
    [node] = workflow.of_class(graph, NODE)
    changes: dict[tuple[str, str], Any] = {(loader, "image"): picture}
    wishes = {
        "style": style,
        "style_strength": args.strength,
        "line_crispness": args.crispness,
        "face_pass": False if args.no_faces else None,
    }
    changes.update({(node, name): value for name, value in wishes.items() if value is not None})
    if args.size is not None:
        [prepare] = workflow.of_class(graph, PREPARE)
        changes[prepare, "max_side"] = args.size
    return changes


def caption(graph: Workflow, size: tuple[int, int]) -> str:
    """'Style: cel, Style strength: 0.75, …, Size: 1024x683': what drew the picture."""
    [node] = workflow.of_class(graph, NODE)
    inputs = graph[node]["inputs"]
    shown = ("style", "style_strength", "line_crispness", "face_pass")
    parts = [
        f"{name.replace('_', ' ').capitalize()}: {inputs[name]}" for name in shown if name in inputs
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

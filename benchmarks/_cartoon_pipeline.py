"""Figures of the pipeline around the network: exactness, shares, memory, faces, the command."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import _pack
import numpy as np
import torch
from _cartoon_network import network
from _cartoon_run import draw, find_faces
from _child import ChildError, measured
from _detector import detector
from _measure import Clock
from _pictures import SOLVAY_FACES, astronaut, photo
from _table import Row, missing

_pack.load()

from realtoon.engine.cartoon import Look, plan_windows  # noqa: E402
from realtoon.engine.dctnet import DCTNet  # noqa: E402
from realtoon.engine.faces import MTCNN, detect  # noqa: E402
from tensorflow_graph import random_tensors  # noqa: E402

EVERYTHING = 1 << 40  # a window that no picture fills
AROUND_BOUND = 0.25
TILES_BOUND = 1e-5
MEMORY_BOUND_MB = 600
SECOND_RUN_BOUND_S = 45


def strength(settings: SimpleNamespace) -> Iterator[Row]:
    """The two ends of style_strength, bit for bit."""
    image = photo(513, 771)
    net = network(random_tensors(0))
    with torch.inference_mode():
        alone = net(image)
    for value, name, expected in ((0.0, "the input", image), (1.0, "the network", alone)):
        drawn = draw(net, image, look=Look(value))
        equal = torch.equal(drawn, expected)
        yield Row(
            f"style_strength {value:g}",
            f"bit-equal to {name}" if equal else f"differs from {name}",
            bound="bit-equal",
            met=equal,
        )


def batch(settings: SimpleNamespace) -> Iterator[Row]:
    """Eight different pictures at once and one by one, at sizes that pad differently."""
    net = network(random_tensors(0))
    model = detector(settings.faces)
    for height, width in [(288, 288), (250, 333)] if settings.quick else [(512, 512), (375, 501)]:
        one = photo(height, width)
        pictures = torch.cat([one.roll(17 * turn, -1).mul(1 - turn / 20) for turn in range(8)])
        faces = find_faces(model, pictures)
        together = draw(net, pictures, faces)
        alone = torch.cat([draw(net, pictures[i : i + 1], faces[i : i + 1]) for i in range(8)])
        difference = float((together - alone).abs().max())
        yield Row(
            f"batch of 8 against one by one, {width}×{height}",
            "bit-equal" if difference == 0 else f"differs by {difference:.1e}",
            bound="bit-equal",
            met=torch.equal(together, alone),
        )


def tiles(settings: SimpleNamespace) -> Iterator[Row]:
    """A picture in tiles against the same picture whole, with and without harder lines."""
    net = network(random_tensors(0))
    height, width = (613, 907) if settings.quick else (1021, 1403)
    image = photo(height, width)
    faces = find_faces(detector(settings.faces), image)
    for crispness in (1.0, 1.5):
        look = Look(1.0, crispness)
        whole = draw(net, image, faces, look, EVERYTHING)
        area = max(height * width // 6, 300 * 300)
        count = len(plan_windows(height, width, look, area))
        tiled = draw(net, image, faces, look, area)
        difference = float((whole - tiled).abs().max())
        yield Row(
            f"tiles against whole, {width}×{height}, line_crispness {crispness:g}",
            f"{difference:.1e} over {count} tiles",
            bound=f"≤ {TILES_BOUND:.0e}",
            met=difference <= TILES_BOUND and count > 1,
        )


def around(settings: SimpleNamespace) -> Iterator[Row]:
    """What a 1024² picture costs outside DCT-Net: decode, faces, paste, mix, encode."""
    from PIL import Image

    side = 512 if settings.quick else 1024
    net, model = network(random_tensors(0)), detector(settings.faces)
    picture = Image.fromarray(astronaut(side, side))
    with tempfile.TemporaryDirectory() as folder:
        for source, target in (("jpg", "png"), ("png", "jpg")):
            given = Path(folder) / f"photo.{source}"
            picture.save(given, quality=95)
            files = given, Path(folder) / f"cartoon.{target}"
            _one_picture(files, net, model)
            clocks = [_one_picture(files, net, model) for _ in range(settings.rounds)]
            yield _around_row(f"{side}², {source} to {target}", clocks, model is not None)


def _one_picture(files: tuple[Path, Path], net: DCTNet, model: MTCNN | None) -> dict[str, float]:
    """Seconds by stage, from a file on disk to a file on disk."""
    from PIL import Image

    clock, (given, target) = Clock(), files
    net.window = clock.around("network", net.window)
    try:
        with clock.stage("total"):
            with clock.stage("decode"), Image.open(given) as opened:
                pixels = np.asarray(opened.convert("RGB")).astype(np.float32) / 255
                image = torch.from_numpy(pixels)[None].movedim(-1, 1)
            with clock.stage("find faces"):
                faces = find_faces(model, image)
            drawn = draw(net, image, faces)
            with clock.stage("encode"):
                out = (drawn[0].movedim(0, -1) * 255).clamp(0, 255).to(torch.uint8).numpy()
                # As ComfyUI saves: PNG at level 4.
                Image.fromarray(out).save(target, compress_level=4, quality=95)
    finally:
        del net.window
    return clock.seconds


def _around_row(what: str, clocks: list[dict[str, float]], faces: bool) -> Row:
    share = statistics.median(1 - clock["network"] / clock["total"] for clock in clocks)
    stages = {
        name: statistics.median(clock[name] for clock in clocks)
        for name in ("total", "decode", "find faces", "encode")
    }
    parts = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in stages.items())
    return Row(
        f"everything around the network, {what}" + ("" if faces else ", no face detector"),
        f"{share:.0%}".replace("%", " %"),
        parts,
        bound=f"≤ {AROUND_BOUND:.0%}".replace("%", " % of the picture's time"),
        met=share <= AROUND_BOUND,
    )


def faces(settings: SimpleNamespace) -> Iterator[Row]:
    """The faces of the Solvay conference of 1927."""
    what, bound = "faces of Solvay 1927", f"{SOLVAY_FACES} of {SOLVAY_FACES}"
    model = detector(settings.faces)
    if model is None:
        yield missing(what, "run `python run.py weights faces`", bound)
        return
    if settings.photo is None:
        yield missing(what, "give the photo with --photo", bound)
        return
    from PIL import Image

    with Image.open(settings.photo) as opened:
        pixels = np.asarray(opened.convert("RGB")).astype(np.float32) / 255
    started = time.perf_counter()
    found = detect(model, torch.from_numpy(pixels), min_face_px=20)
    seconds = time.perf_counter() - started
    lowest = min((face.score for face in found), default=0.0)
    yield Row(
        what,
        f"{len(found)}, lowest score {lowest:.3f}, {seconds:.2f} s",
        bound=bound,
        met=len(found) == SOLVAY_FACES,
    )


def memory(settings: SimpleNamespace) -> Iterator[Row]:
    """Growth of resident memory beyond input and output, in a process of its own."""
    width, height = (2000, 1500) if settings.quick else (8000, 6000)
    what, bound = f"{width}×{height}, memory beyond input and output", f"≤ {MEMORY_BOUND_MB} MB"
    arguments = (height, width, settings.threads, settings.faces or "")
    try:
        result = measured("_cartoon_memory.py", arguments)
    except ChildError as error:
        yield Row(what, f"failed: {error}", bound=bound, met=False)
        return
    growth_mb = result["growth_bytes"] / 1e6
    beside = f"{result['seconds']:.0f} s, {result['faces']} faces"
    yield Row(what, f"{growth_mb:.0f} MB", beside, bound=bound, met=growth_mb <= MEMORY_BOUND_MB)


def command(settings: SimpleNamespace) -> Iterator[Row]:
    """`run.py cartoon` where its environment, its host and its weights are there already."""
    what, bound = "run.py cartoon, second run", f"≤ {SECOND_RUN_BOUND_S} s"
    if settings.quick:
        yield missing(what, "leave --quick out", bound)
        return
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, str(_pack.ROOT / "run.py"), "cartoon"]
        line += ["--out", str(Path(folder) / "cartoon.png")]
        for _ in range(2):  # the first may have to fetch what the second then has
            started = time.perf_counter()
            done = subprocess.run(line, capture_output=True, text=True, encoding="utf-8")
            seconds = time.perf_counter() - started
            if done.returncode != 0 or seconds <= SECOND_RUN_BOUND_S:
                break
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        yield Row(what, f"failed: {last}", bound=bound, met=False)
    else:
        yield Row(what, f"{seconds:.0f} s", bound=bound, met=seconds <= SECOND_RUN_BOUND_S)

"""DCTNetCartoon in a real ComfyUI, all of it through the API."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

import graphs
import numpy as np
import pytest
from graphs import (
    BUILT_IN,
    Graph,
    detector,
    empty,
    free,
    one,
    outcome,
    photo,
    put_style,
    saved,
)
from PIL import Image
from realtoon.host.errors import UserError

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def style(comfy) -> str:
    return put_style(comfy, "random")


def draw(comfy, graph: Graph) -> Image.Image:
    [[picture]] = saved(comfy, comfy.run(graph)).values()
    return picture


def sixteen_bit(width: int, height: int) -> Image.Image:
    ramp = np.linspace(0, 65535, width * height).reshape(height, width).astype(np.uint16)
    return Image.fromarray(ramp)


# --- what comes in --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "picture",
    [
        photo(60, 41).convert("L"),
        photo(60, 41).convert("P"),
        photo(60, 41).convert("1"),
        photo(60, 41).convert("RGBA"),
        photo(60, 41).convert("LA"),
        sixteen_bit(60, 41),
        photo(1, 1),
        photo(17, 4001),
        photo(4001, 17),
    ],
    ids=lambda picture: f"{picture.mode}-{picture.width}x{picture.height}",
)
def test_every_kind_of_picture_keeps_its_size(comfy, style: str, picture: Image.Image) -> None:
    drawn = draw(comfy, one(comfy.upload(picture), style, face_pass=True, line_crispness=1.3))
    assert drawn.size == picture.size


def test_a_picture_of_several_tiles(comfy, style: str) -> None:
    """In tiles, with progress on the node, and the same as in one piece where a tile shows."""
    updates = []
    graph = Graph()
    cartoon = graph.cartoon(graph.load(comfy.upload(photo(2000, 1500))), style)
    graph.save([cartoon, 0])
    result = comfy.run(graph, updates.append)
    [[picture]] = saved(comfy, result).values()
    assert picture.size == (2000, 1500)
    tiles = next(line for line in result.texts if line.startswith("tiles: "))
    assert int(tiles.split()[1]) > 1
    steps = [(update.step, update.steps) for update in updates if update.steps > 1]
    assert len(steps) > 5
    assert [step for step, _ in steps] == sorted(step for step, _ in steps)
    assert steps[-1][0] == steps[-1][1]


@pytest.mark.skipif(not graphs.slow, reason="48 megapixels take minutes: set REALTOON_SLOW=1")
def test_48_megapixels(comfy, style: str) -> None:
    assert draw(comfy, empty(8000, 6000, style, face_pass=True)).size == (8000, 6000)


# --- what comes out -------------------------------------------------------------------------------


def test_strength_0_gives_the_photo_back_bit_for_bit(comfy, style: str) -> None:
    source = photo(210, 133)
    name = comfy.upload(source)
    drawn = draw(comfy, one(name, style, style_strength=0.0, line_crispness=2.0, face_pass=True))
    assert drawn.tobytes() == source.tobytes()
    assert draw(comfy, one(name, style)).tobytes() != source.tobytes()


@pytest.mark.parametrize("chunk", [0, 2])
def test_a_batch_equals_one_by_one(comfy, style: str, chunk: int) -> None:
    graph = Graph()
    loaded = [graph.load(comfy.upload(photo(150, 90, seed))) for seed in range(3)]
    batch = loaded[0]
    for more in loaded[1:]:
        batch = [graph.add("ImageBatch", image1=batch, image2=more), 0]
    look = {"style_strength": 0.8, "line_crispness": 1.4, "face_pass": True, "chunk": chunk}
    together = graph.save([graph.cartoon(batch, style, **look), 0])
    alone = [graph.save([graph.cartoon(each, style, **look), 0]) for each in loaded]
    found = saved(comfy, comfy.run(graph))
    assert len(found[together]) == 3
    for picture, node_id in zip(found[together], alone, strict=True):
        assert picture.tobytes() == found[node_id][0].tobytes()


def test_the_mask_says_where(comfy, style: str) -> None:
    """LoadImage's mask is the transparency: draw there, and leave the rest alone."""
    source = photo(120, 80).convert("RGBA")
    hole = Image.new("L", (120, 80), 255)
    hole.paste(0, (60, 0, 120, 80))
    source.putalpha(hole)
    graph = Graph()
    image = graph.load(comfy.upload(source))
    masked = graph.save([graph.cartoon(image, style, mask=[image[0], 1]), 0])
    free = graph.save([graph.cartoon(image, style), 0])
    found = saved(comfy, comfy.run(graph))
    drawn, everywhere = (np.asarray(found[node_id][0]) for node_id in (masked, free))
    assert (drawn[:, :60] == np.asarray(source.convert("RGB"))[:, :60]).all()
    assert (drawn[:, 60:] == everywhere[:, 60:]).all()
    assert (drawn != everywhere).any()


def test_the_report_says_what_was_done(comfy, style: str) -> None:
    text = "\n".join(comfy.run(one(comfy.upload(photo(64, 40)), style)).texts)
    for part in (f"style: {style}", "strength 1", "crispness 1", "faces: off", "tiles: 1", "sec"):
        assert part in text


def test_faces_are_found_and_drawn(comfy, style: str) -> None:
    """A photo with a face, in a frame whose face_mask must say where."""
    if not detector(comfy):
        pytest.skip("no face detector at hand: run `python run.py test`")
    data = pytest.importorskip("skimage.data", reason="scikit-image is not installed")
    source = Image.fromarray(data.astronaut())
    graph = Graph()
    cartoon = graph.cartoon(graph.load(comfy.upload(source)), style, face_pass=True)
    image, mask = graph.save([cartoon, 0]), graph.save_mask([cartoon, 1])
    plain = graph.save([graph.cartoon(["1", 0], style), 0])
    result = comfy.run(graph)
    assert "faces: 1" in result.texts
    found = {key: np.asarray(value[0], int) for key, value in saved(comfy, result).items()}
    where = found[mask][..., 0] > 0
    # The astronaut's face, in pixels.
    assert where[110, 225] and not where[400:].any()
    assert 0.02 < where.mean() < 0.3
    # Where the mask is too thin for an 8-bit picture, a value may still fall to the next one.
    changed = np.abs(found[image] - found[plain]).max(-1)
    assert (changed[where] > 1).mean() > 0.8 and changed[~where].max() <= 1


def test_a_face_below_the_minimum_is_left_alone(comfy, style: str) -> None:
    if not detector(comfy):
        pytest.skip("no face detector at hand: run `python run.py test`")
    data = pytest.importorskip("skimage.data", reason="scikit-image is not installed")
    name = comfy.upload(Image.fromarray(data.astronaut()))
    result = comfy.run(one(name, style, face_pass=True, min_face_px=400))
    assert "faces: 0" in result.texts


# --- styles ---------------------------------------------------------------------------------------


def test_every_format_runs_and_formats_agree(comfy) -> None:
    graph = Graph()
    image = graph.load(comfy.upload(photo(76, 52)))
    saves = {}
    for form in ("safetensors", "pb", "pth"):
        put_style(comfy, f"as {form}", seed=3, form=form)
        saves[form] = graph.save([graph.cartoon(image, f"as {form}"), 0])
    found = saved(comfy, comfy.run(graph))
    data = {form: found[node_id][0].tobytes() for form, node_id in saves.items()}
    assert data["safetensors"] == data["pb"]
    # The port's checkpoint brings the port's own flags.
    assert data["pth"] != data["pb"]


def test_a_pair_is_one_style(comfy) -> None:
    put_style(comfy, "twin_cartoon_bg", seed=4)
    put_style(comfy, "twin_cartoon_h", seed=5)
    put_style(comfy, "lone", seed=4)
    name = comfy.upload(photo(50, 50))
    pair, alone = (draw(comfy, one(name, each)).tobytes() for each in ("twin", "lone"))
    assert pair == alone


def test_the_built_in_style_draws(comfy) -> None:
    source = photo(320, 240)
    drawn = draw(comfy, one(comfy.upload(source), BUILT_IN))
    difference = np.abs(np.asarray(drawn, float) - np.asarray(source, float)).mean()
    assert drawn.size == source.size
    # It draws, and what it draws is still that picture.
    assert 1 < difference < 60


def test_a_broken_style_is_named_and_the_queue_goes_on(comfy, style: str) -> None:
    whole = graphs.frozen_graph(graphs.random_tensors())
    (graphs.style_folder(comfy) / "cut.pb").write_bytes(whole[:100_000])
    name = comfy.upload(photo(33, 40))
    jobs = [one(name, "cut"), one(name, style, style_strength=0.6)]

    async def submit(client) -> list[str]:
        return [await client.submit(job) for job in jobs]

    broken, good = (outcome(comfy, prompt_id) for prompt_id in comfy.do(submit))
    assert isinstance(broken, UserError)
    assert "cut.pb" in str(broken) and "Next step" in str(broken)
    assert not isinstance(good, UserError) and good.files


def test_an_unknown_style_is_refused_before_the_run(comfy) -> None:
    with pytest.raises(UserError, match="refused") as refusal:
        comfy.run(one(comfy.upload(photo(8, 8)), "no such style"))
    assert "no such style" in str(refusal.value)


def test_a_replaced_style_file_is_picked_up(comfy) -> None:
    name = comfy.upload(photo(48, 48))
    put_style(comfy, "changing", seed=6)
    put_style(comfy, "target", seed=7)
    first = draw(comfy, one(name, "changing")).tobytes()
    put_style(comfy, "changing", seed=7)
    second = draw(comfy, one(name, "changing")).tobytes()
    assert second != first
    assert second == draw(comfy, one(name, "target")).tobytes()


# --- manners --------------------------------------------------------------------------------------


def test_an_interrupt_is_answered_within_a_tile(comfy, style: str) -> None:
    graph = empty(8000, 6000, style)

    async def start_and_interrupt(client) -> tuple[float, float]:
        async with client._events() as events:
            prompt_id = await client.submit(graph)
            marks = []
            while len(marks) < 6:
                event = await events.next(60.0)
                assert event, "no progress within a minute"
                if event.get("type") == "progress":
                    marks.append(time.monotonic())
            asked = time.monotonic()
            await client._call("POST", "/interrupt", json={"prompt_id": prompt_id})
            while await client._history(prompt_id) is None:
                await asyncio.sleep(0.02)
            answered = time.monotonic()
            with pytest.raises(UserError, match="interrupted"):
                await client.result(prompt_id)
            return answered - asked, max(b - a for a, b in zip(marks, marks[1:], strict=False))

    took, longest_step = comfy.do(start_and_interrupt)
    # Two seconds, or on a crowded machine what a few of its steps take.
    assert took < 2.0 + 3 * longest_step
    assert draw(comfy, one(comfy.upload(photo(20, 20)), style)).size == (20, 20)


def loads(comfy) -> int:
    """How often the host's manager has brought one of our networks in, by its own log."""
    return graphs.log(comfy).count("Requested to load DCTNet")


def test_the_hosts_manager_owns_the_networks(comfy) -> None:
    name, style = comfy.upload(photo(40, 30)), put_style(comfy, "managed", seed=8)
    start = loads(comfy)
    draw(comfy, one(name, style, style_strength=0.9))
    once = loads(comfy)
    for strength in (0.8, 0.6, 0.5):
        draw(comfy, one(name, style, style_strength=strength))
    assert (once - start, loads(comfy) - once) == (1, 0)
    free(comfy)
    draw(comfy, one(name, style, style_strength=0.7))
    assert loads(comfy) - once == 1


def test_giving_memory_back_leaves_a_working_queue(comfy) -> None:
    """Several networks at once: the host walks through its list while ours let go."""
    name = comfy.upload(photo(30, 30))
    for each in range(3):
        put_style(comfy, f"one of three {each}", seed=20 + each)
    graph = Graph()
    image = graph.load(name)
    for each in range(3):
        graph.save([graph.cartoon(image, f"one of three {each}"), 0])
    for _ in range(2):
        comfy.run(graph)
        free(comfy)
    assert draw(comfy, one(name, "one of three 1")).size == (30, 30)
    assert "Exception in thread" not in graphs.log(comfy)


def resident_bytes(pid: int) -> int:
    fields = Path(f"/proc/{pid}/statm").read_text("ascii").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_is_back_after_free(comfy, style: str) -> None:
    pid = comfy.server.pid
    if not Path("/proc/self/statm").exists():
        pytest.skip("resident memory is read from /proc, which this system lacks")

    def run_and_free(width: int, height: int) -> int:
        comfy.run(empty(width, height, style, face_pass=True))
        free(comfy)
        return resident_bytes(pid)

    # The first runs also fill the allocator's arenas, which a newer host has more threads for.
    base = max(run_and_free(1200 - 8 * i, 900) for i in range(3))
    seen = [base]
    for first in (1, 4, 7):
        after = [run_and_free(1200 + 8 * (first + i), 900) for i in range(3)]
        seen += after
        # Their input and output alone are 26 MB each.
        if min(after) <= base * 1.03:
            return
        # An arena that one more thread has opened stays as it is; what is kept grows every time.
        base = max(after)
    pytest.fail(json.dumps(seen))

"""GPENRestore in a real ComfyUI, all of it through the API, on small generators of random weights.

Random weights make noise of a face, which is as good as a restored one to see where it went.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import graphs
import numpy as np
import pytest
from graphs import Graph, detector, free, outcome, photo, put_gpen, saved
from PIL import Image
from realtoon.host.errors import UserError

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def model(comfy) -> str:
    name = "small.pth"
    if not (comfy.server.base / "models" / "gpen" / name).exists():
        put_gpen(comfy, name, seed=3)
    return name


@pytest.fixture
def portrait(comfy) -> Image.Image:
    if not detector(comfy):
        pytest.skip("the host has no face detector: run `python run.py weights faces`")
    from skimage import data

    return Image.fromarray(data.astronaut())


def run(comfy, name: str, model: str, **inputs):
    """(what was saved as picture, faces and mask, the report)."""
    graph = Graph()
    node = graph.restore(graph.load(name), model, **inputs)
    ids = [
        graph.save([node, 0]),
        graph.save([node, 1]),
        graph.save_mask([node, 2]),
    ]
    result = comfy.run(graph)
    pictures = saved(comfy, result)
    return (*(pictures[each] for each in ids), "\n".join(result.texts))


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB"), np.int16)


# --- faces ----------------------------------------------------------------------------------------


def test_the_face_is_restored_and_nothing_else(comfy, model: str, portrait) -> None:
    [out], [face], [mask], report = run(comfy, comfy.upload(portrait), model)
    assert out.size == portrait.size
    assert face.size == (256, 256)
    shown = np.asarray(mask.convert("L"))
    # A saved mask holds no less than 1/255, and as little may show of a face there.
    assert np.abs(pixels(out) - pixels(portrait))[shown == 0].max() <= 1
    assert (pixels(out)[300:] == pixels(portrait)[300:]).all()
    inside = shown > 250
    assert 0.05 < inside.mean() < 0.3
    # Where the astronaut's face is.
    rows, columns = inside.nonzero()
    assert abs(rows.mean() - 115) < 20 and abs(columns.mean() - 225) < 20
    assert np.abs(pixels(out) - pixels(portrait))[inside].mean() > 5
    assert "faces: 1" in report and "model: small.pth, 256 px, fp32" in report
    assert re.search(r"seconds: \d", report)


def test_strength_0_is_the_picture_and_runs_nothing(comfy, model: str, portrait) -> None:
    [out], _, [mask], report = run(comfy, comfy.upload(portrait), model, strength=0.0)
    assert (pixels(out) == pixels(portrait)).all()
    assert not np.asarray(mask).any()
    assert "off (strength 0)" in report


def test_the_sliders_take_what_is_there(comfy, model: str, portrait) -> None:
    free(comfy)
    name = comfy.upload(portrait)
    *_, first = run(comfy, name, model, strength=0.91)
    assert "kept from before" not in first
    for inputs in (
        {"strength": 0.5},
        {"skin_smooth": 0.3},
        {"max_faces": 1},
        {"face_order": "score"},
    ):
        *_, report = run(comfy, name, model, **inputs)
        assert "(1 kept from before)" in report, inputs
    # By content, not by name: the same pixels in another file, and other pixels in the same.
    again = comfy.upload(portrait, "another name.png")
    *_, report = run(comfy, again, model, strength=0.7)
    assert "kept from before" in report
    changed = portrait.copy()
    changed.putpixel((200, 120), (0, 255, 0))
    *_, report = run(comfy, comfy.upload(changed, "changed.png"), model)
    assert "kept from before" not in report


def test_what_is_kept_is_dropped_on_free(comfy, model: str, portrait) -> None:
    name = comfy.upload(portrait)
    reports = []
    for attempt in range(4):
        run(comfy, name, model, strength=0.33 + attempt / 100)
        # A host that is still tidying up after a job takes the wish after its next one.
        free(comfy)
        *_, report = run(comfy, name, model, strength=0.43 + attempt / 100)
        reports.append("kept from before" in report)
        if not reports[-1]:
            break
    assert not reports[-1], reports


def test_another_model_or_precision_is_another_result(comfy, model: str, portrait) -> None:
    name = comfy.upload(portrait)
    other = put_gpen(comfy, "other.pth", seed=9)
    [first], *_ = run(comfy, name, model)
    [second], *_, report = run(comfy, name, other)
    assert "kept" not in report
    assert (pixels(first) != pixels(second)).any()
    [half], *_, report = run(comfy, name, model, precision="mixed")
    assert "mixed (" in report
    assert np.abs(pixels(first) - pixels(half)).mean() < 1.0


def test_a_replaced_file_is_picked_up(comfy, portrait) -> None:
    name, model = comfy.upload(portrait), put_gpen(comfy, "changing.pth", seed=4)
    [first], *_ = run(comfy, name, model)
    put_gpen(comfy, "changing.pth", seed=5)
    [second], *_ = run(comfy, name, model)
    assert (pixels(first) != pixels(second)).any()


def test_an_onnx_model_is_run_kept_and_let_go(comfy, portrait) -> None:
    pytest.importorskip("onnxruntime", reason="no onnxruntime (pip install onnxruntime)")
    from test_weights_gpen_onnx import model as negative

    folder = comfy.server.base / "models" / "gpen"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "negative.onnx").write_bytes(negative())
    name = comfy.upload(portrait)
    [out], [face], _, report = run(comfy, name, "negative.onnx")
    assert "onnxruntime" in report and "faces: 1" in report
    # The face as its own negative: this model only turns the sign.
    assert (pixels(out)[115, 225] + pixels(portrait)[115, 225]).max() <= 258
    assert face.size == (256, 256)
    *_, report = run(comfy, name, "negative.onnx", strength=0.5)
    assert "kept from before" in report
    for _ in range(4):
        free(comfy)
        *_, report = run(comfy, name, "negative.onnx", strength=0.6)
        if "kept from before" not in report:
            return
    raise AssertionError("what an ONNX model made is kept after /free")


def test_where_the_mask_is_texture_stays(comfy, model: str, portrait) -> None:
    keep = portrait.convert("RGBA")
    # LoadImage gives transparency as the mask.
    keep.paste(Image.new("RGBA", (225, 512), (0, 0, 0, 0)), (0, 0))
    graph = Graph()
    image = graph.load(comfy.upload(portrait))
    hole = graph.load(comfy.upload(keep, "hole.png"))
    graph.save([graph.restore(image, model, mask=[hole[0], 1]), 0])
    [[out]] = saved(comfy, comfy.run(graph)).values()
    assert (pixels(out)[:, :225] == pixels(portrait)[:, :225]).all()
    assert (pixels(out)[:, 225:] != pixels(portrait)[:, 225:]).any()


def test_faces_that_are_too_small_are_left(comfy, model: str, portrait) -> None:
    [out], [black], _, report = run(comfy, comfy.upload(portrait), model, min_face_px=400)
    assert (pixels(out) == pixels(portrait)).all()
    assert not np.asarray(black).any()
    assert "faces: 0" in report


def test_two_faces_of_a_turned_picture(comfy, model: str, portrait) -> None:
    """Tilted by 20 degrees, one of them cut by the border."""
    wide = Image.new("RGB", (900, 512), (120, 110, 100))
    wide.paste(portrait.rotate(20, Image.Resampling.BICUBIC, fillcolor=(120, 110, 100)), (-125, 0))
    wide.paste(portrait, (388, 0))
    [out], faces, [mask], report = run(comfy, comfy.upload(wide), model)
    assert "faces: 2" in report
    assert [face.size for face in faces] == [(256, 256)] * 2
    outside = np.asarray(mask.convert("L")) == 0
    assert np.abs(pixels(out) - pixels(wide))[outside].max() <= 1
    _, [only], _, report = run(
        comfy, comfy.upload(wide), model, max_faces=1, face_order="left_to_right"
    )
    assert "1 of 2 found" in report and "kept from before" in report
    assert (pixels(only) == pixels(faces[0])).all() or (pixels(only) == pixels(faces[1])).all()


def test_a_batch_is_restored_picture_by_picture(comfy, model: str, portrait) -> None:
    graph = Graph()
    first = graph.load(comfy.upload(portrait))
    second = graph.load(comfy.upload(portrait.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "b.png"))
    both = graph.add("ImageBatch", image1=first, image2=second)
    graph.save([graph.restore([both, 0], model), 0])
    [pair] = saved(comfy, comfy.run(graph)).values()
    [alone], *_ = run(comfy, comfy.upload(portrait), model)
    assert len(pair) == 2
    assert np.abs(pixels(pair[0]) - pixels(alone)).max() <= 1


# --- tiles ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (17, 700), (300, 300), (512, 256)])
def test_tiles_keep_the_size(comfy, model: str, size: tuple[int, int]) -> None:
    [out], faces, [mask], report = run(comfy, comfy.upload(photo(*size)), model, mode="tiled")
    assert out.size == size
    assert np.asarray(mask.convert("L")).min() == 255
    count = re.search(r"tiled: (\d+) of 256 px", report)
    assert count and int(count[1]) == len(faces)


@pytest.mark.parametrize("kind", ["L", "P", "RGBA", "1"])
def test_any_kind_of_picture(comfy, model: str, kind: str) -> None:
    [out], *_ = run(comfy, comfy.upload(photo(90, 61).convert(kind)), model, mode="tiled")
    assert out.size == (90, 61)


def test_progress_is_told(comfy, model: str) -> None:
    updates = []
    graph = Graph()
    image = graph.load(comfy.upload(photo(900, 300, seed=8)))
    graph.save([graph.restore(image, model, mode="tiled"), 0])
    comfy.run(graph, updates.append)
    steps = [(update.step, update.steps) for update in updates if update.steps > 1]
    assert steps and steps[-1][0] == steps[-1][1]
    # Several steps a tile: the networks tell of theirs.
    assert steps[-1][1] > 5 and len({step for step, _ in steps}) > 3


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"model": "no such.pth"}, "no such.pth"),
        ({"tile_px": 4096}, "tile_px"),
        ({"strength": 1.5}, "strength"),
    ],
)
def test_wrong_inputs_are_refused_before_the_run(comfy, model, inputs, words: str) -> None:
    graph = Graph()
    graph.save(
        [graph.restore(graph.load(comfy.upload(photo(8, 8))), **{"model": model, **inputs}), 0]
    )
    with pytest.raises(UserError, match="refused") as refusal:
        comfy.run(graph)
    assert words in str(refusal.value)


def test_an_overlap_that_leaves_no_step_is_refused_on_the_node(comfy, model: str) -> None:
    graph = Graph()
    image = graph.load(comfy.upload(photo(8, 8)))
    inputs = {"mode": "tiled", "tile_px": 256, "tile_overlap_px": 256}
    graph.save([graph.restore(image, model, **inputs), 0])
    failure = outcome(comfy, comfy.do(lambda client: client.submit(graph)))
    assert isinstance(failure, UserError)
    assert "tile_overlap_px: expected less than tile_px (256), got 256" in str(failure)


def test_a_file_that_is_no_generator_says_so_on_the_node(comfy, model: str) -> None:
    folder = comfy.server.base / "models" / "gpen"
    whole = (folder / model).read_bytes()
    (folder / "broken.pth").write_bytes(whole[: len(whole) // 2])
    (folder / "text.pth").write_text("not weights", encoding="utf-8")
    for name in ("broken.pth", "text.pth"):
        graph = Graph()
        graph.save([graph.restore(graph.load(comfy.upload(photo(8, 8))), name), 0])
        failure = outcome(comfy, comfy.do(lambda client, g=graph: client.submit(g)))
        assert isinstance(failure, UserError), name
        assert name in str(failure) and "Next step" in str(failure)


def test_another_packs_folder_shows_generators_only(comfy) -> None:
    put_gpen(comfy, "theirs but GPEN.pth", folder="facerestore_models")
    graphs.put_style(comfy, "a style", form="pth")
    other = comfy.server.base / "models" / "facerestore_models" / "CodeFormer.pth"
    other.write_bytes((comfy.server.base / "models" / "dctnet" / "a style.pth").read_bytes())
    kind, *more = comfy.info("GPENRestore")["input"]["required"]["model"]
    options = kind if isinstance(kind, list) else more[0]["options"]
    assert "theirs but GPEN.pth" in options
    assert "CodeFormer.pth" not in options


# --- no network run -------------------------------------------------------------------------------

COUNTING = Path(__file__).with_name("count_forward_passes.py")


def test_sliders_run_no_forward_pass(host, tmp_path: Path) -> None:
    """Counted on the networks themselves, in the host's own process."""
    models = [folder for folder in _model_folders() if (folder / "facedetection").is_dir()]
    if not models:
        pytest.skip("there is no face detector: run `python run.py weights faces`")
    done = subprocess.run(
        [sys.executable, str(COUNTING), str(host.folder), str(tmp_path), str(models[0])],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["first"]["GPEN"] == 1 and counts["first"]["MTCNN"] > 0
    assert counts["first"]["ParseNet"] == 1
    for name in ("strength", "skin_smooth", "mask", "max_faces"):
        assert set(counts[name].values()) == {0}, name
    assert counts["after the model was unloaded"]["GPEN"] == 1


def _model_folders() -> list[Path]:
    from realtoon.host import paths

    return [paths.cache_folder() / "models"]

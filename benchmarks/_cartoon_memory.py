"""One huge picture in a process of its own: how far resident memory grows beyond in and out.

Arguments: height, width, threads, face detector weights or "". The last line on stdout is JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch  # noqa: E402
from _cartoon_network import network  # noqa: E402
from _cartoon_run import draw, find_faces  # noqa: E402
from _detector import detector  # noqa: E402
from _measure import PeakMemory  # noqa: E402
from _pictures import astronaut  # noqa: E402
from tensorflow_graph import random_tensors  # noqa: E402


def main(argv: list[str]) -> int:
    """Measure and write one line."""
    height, width, threads = (int(value) for value in argv[:3])
    torch.set_num_threads(threads)
    net, model = network(random_tensors(0)), detector(Path(argv[3]) if argv[3] else None)
    # What the libraries set up once, such as kernels and threads, is not the picture's.
    small = torch.from_numpy(astronaut(64, 64) / 255).float()[None].movedim(-1, 1)
    draw(net, small, find_faces(model, small))
    rows = torch.from_numpy(astronaut(height // 8, width // 8).copy())
    image = torch.empty(1, height, width, 3)
    for top in range(0, height, 8):
        line = rows[min(top // 8, len(rows) - 1)].repeat_interleave(8, 0)
        image[0, top : top + 8, : line.shape[0]] = line[:width] / 255
        image[0, top : top + 8, line.shape[0] :] = 1
    watched = PeakMemory()
    started = time.perf_counter()
    with watched.watch():
        image_bchw = image.movedim(-1, 1)
        faces = find_faces(model, image_bchw)
        drawn = draw(net, image_bchw, faces)
    result = {
        "growth_bytes": watched.growth - drawn.numel() * drawn.element_size(),
        "seconds": time.perf_counter() - started,
        "faces": len(faces[0]),
    }
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`run.py bench restore`: every figure of face restoration, ours beside its peers, in one run.

The official weights are offered for academic and non-commercial use and are not needed: all figures
are taken on weights made from a seed. What is not here is named as not measured. Exit code 1 where
a figure falls short of its bound.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _command import Benchmark, group, run  # noqa: E402
from _pictures import DETECTOR, SOLVAY  # noqa: E402

NOTES = """
- Weights: made from a seed with the official names, shapes and widths. Times and memory do not
  depend on the numbers. What comes out is no face, so its PSNR against the undegraded one says
  little: what half precision costs is told by its PSNR against single precision, and by what errors
  of that size take from a restorer that comes to 30 dB.
- Parity: the largest difference of pictures that reach about ±4. Golden arrays hold what the
  published code made on a processor; with `--gpen` a clone of it is run beside ours.
- "Published formulation": the same network in the published operations (kernels of its own for
  each face as one grouped convolution, zeros between pixels and then a blur), written anew for
  this benchmark. With `--gpen` the clone's own code takes its place.
- Simulated peak: bytes of all tensors that are alive, from the operation that makes them until
  nobody holds them, with the weights and the faces, on torch's meta device at the real size. What
  kernels take while they run is not in it.
- Rows about photos run the node itself in a process of its own with a ComfyUI on the processor.
  Their memory is that process's high-water mark, less what it held before weights were read.
"""

BENCHMARK = Benchmark(
    title="Restore",
    told="RealToon beside the published network",
    description=__doc__,
    notes=NOTES,
    # Speed first: it is the most easily disturbed by what a run leaves behind.
    groups={
        "speed": group("_restore_network", "speed"),
        "mixed": group("_restore_network", "mixed"),
        "parity": group("_restore_network", "parity"),
        "memory": group("_restore_network", "memory"),
        "solvay": group("_restore_pipeline", "solvay"),
        "large": group("_restore_pipeline", "large"),
    },
    folders={
        "gpen": ("REALTOON_GPEN", "a clone of github.com/yangxy/GPEN"),
        "photo": SOLVAY,
        "faces": DETECTOR,
    },
    takes_part=("torch",),
)


def main(argv: list[str] | None = None) -> int:
    """Measure, show, and tell by the exit code whether every bound is met."""
    return run(BENCHMARK, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())

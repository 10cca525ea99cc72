"""`run.py bench decode`: exactness, memory and time of the VAE nodes beside the host and diffusers.

The VAE has the real widths and weights made from a seed. What is not here is named as not measured.
Exit code 1 where a figure falls short of its bound.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _command import Benchmark, group, run  # noqa: E402

NOTES = """
- Weights: made from a seed at Qwen-Image's widths. Times and memory do not depend on the numbers;
  errors of tiled decodes do, so they are given as a share of the picture's spread as well.
- Every group runs in a process of its own with a ComfyUI on the processor, which decodes in fp32
  with torch's own attention, its leanest. Peers take turns in the same process.
- Peak: bytes of all tensors that are alive, from the operation that makes them until nobody holds
  them, beyond latent, weights and picture; the copies of weights that streaming makes count.
  Simulated ones are taken on torch's meta device at the real size. What kernels take while they run
  is in neither.
- The error of a tiled decode is its difference from the same network's own full decode.
- `--only parity` (more sizes and strips against the host's full decode) takes two cores a quarter
  of an hour, `--only large` (4096×4096) longer; both have sections of their own.
"""

NAMES = ("speed", "parity", "memory", "encode", "oom", "large")

BENCHMARK = Benchmark(
    title="Decode",
    told="RealToon beside ComfyUI and diffusers",
    description=__doc__,
    notes=NOTES,
    # Speed first: it is the most easily disturbed by what a run leaves behind.
    groups={name: group("_decode_rows", name) for name in NAMES},
    folders={},
    takes_part=("torch", "diffusers"),
    apart=("parity", "large"),
)


def main(argv: list[str] | None = None) -> int:
    """Measure, show, and tell by the exit code whether every bound is met."""
    return run(BENCHMARK, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())

"""`run.py bench vram`: the memory that is predicted and planned, beside simulations.

Nothing here runs on a card: every figure of memory is simulated. Exit code 1 where one falls short
of its bound.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _command import Benchmark, group, run  # noqa: E402

NOTES = """
- Simulated: the host's own networks are built at their real size on torch's meta device, and the
  bytes of all tensors alive are counted from operation to operation. Attention is the kernel that
  a card would choose. What kernels take while they run and what an allocator keeps in reserve is
  not in it; plans add 15 % of the activations and 1 GB for these.
- GB are 10⁹ bytes; a card sold as 24 GB has a little more.
"""

BENCHMARK = Benchmark(
    title="VRAM",
    told="memory predicted and planned",
    description=__doc__,
    notes=NOTES,
    groups={
        "planning": group("_vram_plan", "planning"),
        "prediction": group("_vram_plan", "prediction"),
        "ladder": group("_vram_ladder", "ladder"),
        "levers": group("_vram_ladder", "levers"),
        "guard": group("_vram_guard", "guard"),
    },
    folders={},
    takes_part=("torch",),
)


def main(argv: list[str] | None = None) -> int:
    """Measure, show, and tell by the exit code whether every bound is met."""
    return run(BENCHMARK, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())

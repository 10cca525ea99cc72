"""`run.py bench realistic`: every figure of the realistic pipeline, ours beside its peers.

The official weights take 58 GB and are not needed: what depends on numbers is taken on tiny weights
made from a seed, what depends on sizes on the real sizes, simulated. Exit code 1 where a figure
falls short of its bound.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _command import Benchmark, group, run  # noqa: E402

NOTES = """
- Weights: tiny, made from a seed, in the official layout with the official names; differences are
  the largest ones of latents, or relative to their size where the row says so.
- diffusers: the same fp32 weights, noise, sigmas and picture; at a size that neither side scales.
- Memory: bytes of all tensors that are alive, followed on torch's meta device through ComfyUI's own
  graph at the real size; nothing ran on a GPU. A card needs more for its context and workspaces.
- Loading: a file of holes with the real header, in a process of its own.
- Framing: a picture through PrepareImage, EncodeForEdit, no denoising, decoding and RestoreFraming;
  the shift is found by phase correlation.
"""

BENCHMARK = Benchmark(
    title="Realistic",
    told="RealToon beside ComfyUI's own nodes and diffusers",
    description=__doc__,
    notes=NOTES,
    groups={
        "load": group("_realistic_load", "loading"),
        "resident": group("_realistic_memory", "resident"),
        "peaks": group("_realistic_memory", "peaks"),
        "table": group("_realistic_latents", "table"),
        "layouts": group("_realistic_latents", "layouts"),
        "diffusers": group("_realistic_latents", "diffusers"),
        "framing": group("_realistic_framing", "framing"),
        "inputs": group("_realistic_framing", "inputs"),
    },
    folders={},
    takes_part=("torch", "diffusers", "transformers"),
)


def main(argv: list[str] | None = None) -> int:
    """Measure, show, and tell by the exit code whether every bound is met."""
    return run(BENCHMARK, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())

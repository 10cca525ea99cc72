"""`run.py bench lora`: LoRA beside the weights, ours beside ComfyUI's own ways, in one run.

All files are made from a seed, with the names and shapes of real ones. What is not here is named as
not measured. Exit code 1 where a figure falls short of its bound.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _command import Benchmark, group, run  # noqa: E402

NOTES = """
- All on a processor, with ComfyUI's own modules in a process of its own.
- "60 blocks": the real model's names and shapes without memory behind the base, which would take
  41 GB; the LoRA is real. Ready means read from the page cache, checked, put beside every layer.
  The bare copy is one of the file's bytes from memory to memory.
- "Two blocks": the real widths, weights from a seed, bf16. A switch reads a file and loads the
  model with it. Steps are taken in turns, and ratios are medians of each turn's own. Whole
  steps swing by a tenth here; what the LoRA takes is timed within its own steps, and does not.
- Exactness: three sampling steps of a tiny DiT against the same LoRA folded in by the host; the fp8
  row is one layer's change against the exact one in fp64.
"""

BENCHMARK = Benchmark(
    title="LoRA",
    told="RealToon beside ComfyUI's loader and bypass",
    description=__doc__,
    notes=NOTES,
    # Speed first: it is the most easily disturbed by what a run leaves behind.
    groups={
        "ready": group("_lora_switch", "ready"),
        "against": group("_lora_switch", "against"),
        "exact": group("_lora_switch", "exact"),
        "thousand": group("_lora_switch", "thousand"),
        "layouts": group("_lora_files", "layouts"),
        "headers": group("_lora_files", "headers"),
        "hostile": group("_lora_files", "hostile"),
    },
    folders={},
    takes_part=("torch", "safetensors"),
)


def main(argv: list[str] | None = None) -> int:
    """Measure, show, and tell by the exit code whether every bound is met."""
    return run(BENCHMARK, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())

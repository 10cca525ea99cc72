"""`run.py bench cartoon`: every figure of the cartoon part, ours beside each peer, in one run.

Peers that are not installed, and figures whose weights or photos are not here, are named as not
measured. Exit code 1 where a figure falls short of its bound.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _command import Benchmark, group, run  # noqa: E402
from _pictures import DETECTOR, SOLVAY  # noqa: E402

NOTES = """
- Every peer gets its best settings on a processor: TensorFlow the published frozen graph, OpenVINO
  that graph at a fixed size in float32, ONNX Runtime a model written for it at a fixed size with
  all optimisations.
- Parity: the uint8 pictures of our network and of the frozen graph; the largest difference of all
  runtimes, and the share of values that differ.
- Everything around the network: a 1024² photo from a file to a file; all that is not inside
  DCT-Net, which is decoding, finding and aligning faces, pasting, mixing and encoding.
- Memory: the process's high-water mark while a picture is drawn, less what it held before and less
  the output.
"""

BENCHMARK = Benchmark(
    title="Cartoon",
    told="RealToon beside its peers",
    description=__doc__,
    notes=NOTES,
    # Speed first: it is the most easily disturbed by what a run leaves behind.
    groups={
        "speed": group("_cartoon_network", "speed"),
        "around": group("_cartoon_pipeline", "around"),
        "loading": group("_cartoon_network", "loading"),
        "parity": group("_cartoon_network", "parity"),
        "strength": group("_cartoon_pipeline", "strength"),
        "batch": group("_cartoon_pipeline", "batch"),
        "tiles": group("_cartoon_pipeline", "tiles"),
        "faces": group("_cartoon_pipeline", "faces"),
        "memory": group("_cartoon_pipeline", "memory"),
        "command": group("_cartoon_pipeline", "command"),
    },
    folders={
        "styles": ("REALTOON_STYLES", "a folder of *.safetensors styles"),
        "photo": SOLVAY,
        "faces": DETECTOR,
    },
    takes_part=("torch", "tensorflow", "tensorflow-cpu", "openvino", "onnxruntime"),
)


def main(argv: list[str] | None = None) -> int:
    """Measure, show, and tell by the exit code whether every bound is met."""
    return run(BENCHMARK, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())

"""Writes golden/gpen_*.npz and golden/parsenet.npz: what the published networks make of pictures.

    git clone https://github.com/yangxy/GPEN && git -C GPEN checkout 2c73670
    python tests/parity/make_golden_gpen.py GPEN

The published code is imported from that clone, given seeded weights under its own names and run on
the CPU. The official weights take no part. A golden is made anew only for a new source, never to
make a test pass.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "unit")]

import conftest  # noqa: E402

conftest.load_pack()

import gpen_golden  # noqa: E402
import gpen_published  # noqa: E402
import gpen_weights  # noqa: E402


def generator(clone: Path, size: int) -> dict[str, np.ndarray]:
    """The generator's pictures at a size, for each batch."""
    config = gpen_weights.published(size, *gpen_published.WIDTHS[size])
    tensors = gpen_weights.state(config, gpen_golden.SEED, kernels=True)
    net = gpen_published.generator(clone, size, tensors)
    kept = {"weights": gpen_golden.fingerprint(gpen_weights.without_kernels(tensors))}
    for batch in gpen_golden.BATCHES:
        drawn = net(gpen_golden.faces(size, batch))[0]
        parts = gpen_golden.sample(drawn)
        kept |= {f"batch{batch}_{name}": value for name, value in parts.items()}
    return kept


def parser(clone: Path) -> dict[str, np.ndarray]:
    """The parser's scores."""
    tensors = gpen_weights.parsenet(gpen_golden.SEED)
    scores = gpen_published.parser(clone, tensors)(gpen_golden.faces(512, 1))[0]
    own = {name: value for name, value in tensors.items() if value.is_floating_point()}
    return {"weights": gpen_golden.fingerprint(own)} | gpen_golden.sample(scores)


@torch.inference_mode()
def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("clone", type=Path, help="a clone of github.com/yangxy/GPEN")
    clone = arguments.parse_args().clone
    source = f"yangxy/GPEN @{gpen_published.commit(clone)}"
    made = {gpen_golden.path(size): generator(clone, size) for size in gpen_golden.SIZES}
    made[gpen_golden.PARSER] = parser(clone)
    for path, kept in made.items():
        np.savez_compressed(
            path,
            **kept,
            seed=gpen_golden.SEED,
            source=source,
            max_difference=gpen_golden.MAX_DIFFERENCE[path.stem],
        )
        sys.stdout.write(f"{path.name} from {source}: {path.stat().st_size // 1000} kB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

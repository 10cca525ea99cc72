"""Writes golden/dctnet.npz: what the official network makes of a small picture.

    git clone https://github.com/modelscope/modelscope && git -C modelscope checkout 2905da1
    pip install tensorflow-cpu tf_slim scipy joblib scikit-image
    python tests/parity/make_golden.py modelscope

The official code is imported from that clone, under TensorFlow 2's version 1 interface, given the
seeded random weights of ``tensorflow_graph.random_tensors`` and frozen as its exporter does. The
same run holds our graph writer to it: same nodes, same operations, same inputs, bit-equal results.
A golden is made anew only for a new source, never to make a test pass.
"""

import argparse
import importlib.util
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from tensorflow_graph import frozen_graph, random_tensors, tensorflow_name  # noqa: E402

SEED = 20220706
HEIGHT, WIDTH = 48, 64


def picture() -> np.ndarray:
    """uint8 [48,64,3] BGR: ramps, a disc, bars and noise, so that every border has an edge."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float64)
    image = np.stack([x * 4, y * 5, 255 - x * 2 - y * 2], axis=-1)
    image[(y - 20) ** 2 + (x - 30) ** 2 < 150] = (40, 90, 220)
    image[:, ::9] *= 0.4
    image += np.random.RandomState(SEED).standard_normal(image.shape) * 12
    return np.clip(image, 0, 255).astype(np.uint8)


def official_modules(clone: Path, tf: Any) -> tuple[Any, Any]:
    """The clone's network and loss modules, with the version 1 names that they expect."""
    import tf_slim

    contrib = types.ModuleType("tensorflow.contrib")
    contrib.slim = tf_slim
    tf.contrib = contrib
    sys.modules.update(
        {"tensorflow": tf, "tensorflow.contrib": contrib, "tensorflow.contrib.slim": tf_slim}
    )
    # Its package __init__ pulls in all of modelscope; the two files need only each other.
    package = types.ModuleType("official")
    folder = clone / "modelscope" / "models" / "cv" / "cartoon"
    package.__path__ = [str(folder)]
    sys.modules["official"] = package
    made = []
    for name in ("network", "loss"):
        spec = importlib.util.spec_from_file_location(f"official.{name}", folder / f"{name}.py")
        if spec is None or spec.loader is None or not (folder / f"{name}.py").is_file():
            sys.exit(f"{folder / name}.py is not there: give a clone of modelscope/modelscope")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        made.append(module)
    return made[0], made[1]


def official_graph(clone: Path, tf: Any) -> Any:
    """The official network with our random weights, frozen."""
    network, loss = official_modules(clone, tf)
    weights = {tensorflow_name(key): value for key, value in random_tensors(SEED).items()}
    tf.disable_resource_variables()  # as when the published styles were frozen
    with tf.Graph().as_default():
        given = tf.placeholder(tf.float32, [None, None, 3], name="input_image")
        image = given[:, :, :][tf.newaxis] / 127.5 - 1.0
        result = loss.guided_filter(image, network.unet_generator(image), r=1)[0]
        result = (tf.clip_by_value(result, -0.999999, 0.999999) + 1.0) * 127.5
        tf.cast(result, tf.uint8, name="output_image")
        with tf.Session() as session:
            for variable in tf.trainable_variables():
                value = weights.pop(variable.op.name)
                value = value.permute(2, 3, 1, 0) if value.ndim == 4 else value
                variable.load(value.numpy(), session)
            if weights:
                sys.exit(f"the official network has no {sorted(weights)}")
            return tf.graph_util.convert_variables_to_constants(
                session, session.graph_def, ["output_image"]
            )


def execute(definition: Any, image: np.ndarray, tf: Any) -> tuple[np.ndarray, np.ndarray]:
    """The uint8 picture and the generator's raw output."""
    with tf.Graph().as_default():
        tf.import_graph_def(definition, name="")
        with tf.Session() as session:
            return session.run(
                ["output_image:0", "generator/Conv_9/BiasAdd:0"],
                {"input_image:0": image.astype(np.float32)},
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clone", type=Path, help="a clone of github.com/modelscope/modelscope")
    clone = parser.parse_args().clone
    import tensorflow

    tf = tensorflow.compat.v1
    tf.disable_eager_execution()
    official = official_graph(clone, tf)
    ours = tf.GraphDef()
    ours.ParseFromString(frozen_graph(random_tensors(SEED)))
    theirs, mine = ({n.name: (n.op, list(n.input)) for n in g.node} for g in (official, ours))
    if theirs != mine:
        sys.exit(f"graphs differ at {sorted(set(theirs.items()) ^ set(mine.items()))[:5]}")
    image = picture()
    result, raw = execute(official, image, tf)
    again, raw_again = execute(ours, image, tf)
    if not (np.array_equal(result, again) and np.array_equal(raw, raw_again)):
        sys.exit("the written graph computes something else than the official one")
    git = ["git", "-C", str(clone), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    np.savez_compressed(
        HERE / "golden" / "dctnet.npz",
        image_bgr=image,
        output_bgr=result,
        seed=SEED,
        source=f"modelscope/modelscope @{commit}",
        max_difference=1,  # of 255: rounding in float32 moves a value across a whole number
        max_differing=2,  # of all values
    )
    sys.stdout.write(f"golden/dctnet.npz from {commit}: {result.shape}, graphs equal\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

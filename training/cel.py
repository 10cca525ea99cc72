"""Train the built-in style "cel" from scratch, on a CPU, in about an hour.

    pip download --no-deps --dest ARCHIVES face_recognition==1.2.3 thumbor==7.8.0
    python training/cel.py --work FOLDER --archives ARCHIVES

Three stages, each of which goes on where it was left: `draw` renders pairs of a photograph and its
classical cel drawing (cel_target.py) into FOLDER/pairs; `train` fits a DCT-Net of the published
size to them, its guided filter included; `export` writes assets/styles/cel.safetensors. The
starting weights are random but for one path that copies the picture; no other weights are used.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
STYLE = ROOT / "assets" / "styles" / "cel.safetensors"


def _pack(name: str) -> Any:
    """Import `realtoon.<name>` out of this checkout, whatever its folder is called."""
    if "realtoon" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "realtoon", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        if spec is None or spec.loader is None:
            raise ImportError(f"{ROOT / '__init__.py'} cannot be loaded")
        module = importlib.util.module_from_spec(spec)
        sys.modules["realtoon"] = module
        spec.loader.exec_module(module)
    return importlib.import_module(f"realtoon.{name}")


def _double(x: Tensor) -> Tensor:
    """Up-sample as the published TensorFlow graph does: out[2i]=in[i], out[2i+1]=midpoint."""
    down = torch.lerp(x, torch.cat([x[:, :, 1:], x[:, :, -1:]], 2), 0.5)
    x = torch.stack([x, down], 3).flatten(2, 3)
    right = torch.lerp(x, torch.cat([x[..., 1:], x[..., -1:]], 3), 0.5)
    return torch.stack([x, right], 4).flatten(3, 4)


def _mean3(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def forward(net: nn.Module, image_bchw: Tensor) -> Tensor:
    """The engine's network once more, with gradients, half-precision convolutions and no clip.

    The engine's own forward is written for inference. tests/unit/test_training_target.py holds the
    two together. image_bchw: float RGB [0,1], sides multiples of 4. Returns: float RGB.
    """
    convs: Any = net.convs
    guide = image_bchw.flip(1) * 2 - 1

    def act(index: int, x: Tensor) -> Tensor:
        return F.leaky_relu(
            F.conv2d(x, convs[index].weight, convs[index].bias, 1, same(index)), 0.2
        )

    def same(index: int) -> int:
        return convs[index].weight.shape[-1] // 2

    def halve(index: int, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 1, 0, 1))
        return F.leaky_relu(F.conv2d(x, convs[index].weight, convs[index].bias, 2), 0.2)

    first = act(0, guide)
    second = act(2, halve(1, first))
    body = act(4, halve(3, second))
    for block in net.blocks:  # type: ignore[union-attr]
        inner = F.conv2d(body, block.conv1.weight, block.conv1.bias, 1, 1)
        body = body + F.conv2d(F.leaky_relu(inner, 0.2), block.conv2.weight, block.conv2.bias, 1, 1)
    up = act(7, act(6, _double(act(5, body)) + second))
    up = act(8, _double(up) + first)
    with torch.autocast("cpu", enabled=False):
        raw = F.conv2d(up.float(), convs[9].weight, convs[9].bias, 1, 3)
        # Pooling three channels is several times slower in channels-last.
        raw, guide = raw.contiguous(), guide.contiguous()
        guide_mean, raw_mean = _mean3(guide), _mean3(raw)
        slope = _mean3(guide * raw) - guide_mean * raw_mean
        slope = slope / (_mean3(guide * guide) - guide_mean**2 + 0.01)
        offset = raw_mean - slope * guide_mean
        return ((_mean3(slope) * guide + _mean3(offset)).flip(1) + 1) / 2


@torch.no_grad()
def start(net: nn.Module) -> None:
    """Random weights, but for a path through the outer skip that copies the picture.

    The leaky units are undone by sending every colour and its negative: most of a drawing is the
    photograph, and a network that begins there needs a fraction of the steps.
    """
    convs: Any = net.convs
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, 0.2)
            nn.init.zeros_(module.bias)
    for block in net.blocks:  # type: ignore[union-attr]
        block.conv2.weight *= 0.1
    convs[7].weight *= 0.05
    convs[9].weight *= 0.05
    for colour in range(6):
        sign = 1.0 if colour < 3 else -1.0
        convs[0].weight[colour] = 0
        convs[0].weight[colour, colour % 3, 3, 3] = sign
        convs[8].weight[colour] *= 0.05
        convs[8].weight[colour, colour, 1, 1] = 1
        convs[9].weight[colour % 3, colour, 3, 3] = sign / 1.04


def loss_of(drawn: Tensor, target: Tensor) -> Tensor:
    """Mean difference, plus the difference of local contrasts at three sizes: lines above all."""
    # Beyond white and black the pipeline clips; only what is still visible counts.
    clipped = drawn + (drawn.clamp(0, 1) - drawn).detach()
    inside = torch.where((target <= 0.002) | (target >= 0.998), clipped, drawn)
    total = (inside - target).abs().mean()
    for size in (1, 2, 4):
        small = F.avg_pool2d(inside - target, size) if size > 1 else inside - target
        across = (small[..., 1:] - small[..., :-1]).abs().mean()
        down = (small[..., 1:, :] - small[..., :-1, :]).abs().mean()
        total = total + 0.8 * (across + down)
    return total


def draw(options: argparse.Namespace) -> None:
    """Render the missing pairs into WORK/pairs."""
    import cel_data
    import cel_target

    folder = options.work / "pairs"
    folder.mkdir(parents=True, exist_ok=True)
    views = cel_data.views(options.pairs, options.side, options.seed, options.archives)
    for index, clean, worn in tqdm(views, total=options.pairs, desc="draw", mininterval=5):
        path = folder / f"{index:04d}.npy"
        if path.exists():
            continue
        pair = np.stack([worn, cel_target.draw(clean)])
        temporary = path.with_suffix(".part.npy")
        np.save(temporary, (pair * 255).round().astype(np.uint8))
        temporary.replace(path)


class Pairs:
    """Random crops, turned and mirrored, of a folder's pairs. New files join as they appear."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.rng = np.random.default_rng(seed)
        self.pairs: dict[str, np.ndarray] = {}
        self.refresh()

    def refresh(self) -> None:
        for path in sorted(self.folder.glob("????.npy")):
            if path.name not in self.pairs:
                self.pairs[path.name] = np.load(path)

    def batch(self, count: int, side: int) -> tuple[Tensor, Tensor]:
        """Returns photographs and targets, (count,3,side,side) float RGB [0,1]."""
        names = sorted(self.pairs)
        sources, targets = [], []
        for _ in range(count):
            pair = self.pairs[names[self.rng.integers(len(names))]]
            top, left = self.rng.integers(0, pair.shape[1] - side + 1, 2)
            crop = pair[:, top : top + side, left : left + side]
            crop = np.rot90(crop, self.rng.integers(4), (1, 2))
            crop = crop[:, :, ::-1] if self.rng.random() < 0.5 else crop
            crop = np.ascontiguousarray(crop).astype(np.float32) / 255
            grain = self.rng.normal(0, 1, crop[0].shape) * max(0.0, self.rng.normal(0, 0.012))
            sources.append(np.clip(crop[0] + grain, 0, 1).astype(np.float32))
            targets.append(crop[1])
        source = torch.from_numpy(np.stack(sources)).permute(0, 3, 1, 2)
        target = torch.from_numpy(np.stack(targets)).permute(0, 3, 1, 2)
        return source, target.contiguous()


def _rate(step: int, options: argparse.Namespace) -> float:
    warm = min(1.0, (step + 1) / 100)
    left = max(0.0, 1 - step / options.steps)
    return float(options.rate * warm * (0.5 - 0.5 * np.cos(np.pi * left)) + 1e-5)


def train(options: argparse.Namespace) -> None:
    """Fit the network; go on from WORK/checkpoint.pt where there is one."""
    torch.manual_seed(options.seed)
    net = new_net()
    start(net)
    net.to(memory_format=torch.channels_last)
    averaged = {name: value.clone() for name, value in net.state_dict().items()}
    optimiser = torch.optim.Adam(net.parameters(), lr=options.rate, betas=(0.9, 0.98))
    checkpoint, first = options.work / "checkpoint.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        net.load_state_dict(saved["net"])
        averaged = saved["averaged"]
        optimiser.load_state_dict(saved["optimiser"])
        first = saved["step"]
    pairs = Pairs(options.work / "pairs", options.seed + first)
    bar = tqdm(range(first, options.steps), desc="train", initial=first, total=options.steps)
    smooth = None

    def part(source: Tensor, target: Tensor) -> tuple[float, tuple[Tensor, ...]]:
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bfloat16, cache_enabled=False):
            loss = loss_of(forward(net, source), target)
        return loss.item(), torch.autograd.grad(loss, list(net.parameters()))

    # One crop a worker, one core each: cores that others use too then wait for nobody.
    workers = ThreadPoolExecutor(options.threads, initializer=torch.set_num_threads, initargs=(1,))
    for step in bar:
        for group in optimiser.param_groups:
            group["lr"] = _rate(step, options)
        source, target = pairs.batch(options.batch, options.crop)
        parts = list(workers.map(part, source.split(1), target.split(1)))
        loss = sum(value for value, _ in parts) / options.batch
        # Summed in the order of the crops, whichever worker was first: the run can be repeated.
        for index, parameter in enumerate(net.parameters()):
            parameter.grad = sum(grads[index] for _, grads in parts) / options.batch
        nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimiser.step()
        keep = min(options.average, (1 + step) / (10 + step))
        for name, value in net.state_dict().items():
            averaged[name].lerp_(value, 1 - keep)
        smooth = loss if smooth is None else 0.97 * smooth + 0.03 * loss
        bar.set_postfix(loss=f"{smooth:.4f}", pairs=len(pairs.pairs), refresh=False)
        if (step + 1) % options.every == 0 or step + 1 == options.steps:
            state = {"net": net.state_dict(), "averaged": averaged, "step": step + 1}
            temporary = checkpoint.with_suffix(".part")
            torch.save({**state, "optimiser": optimiser.state_dict()}, temporary)
            temporary.replace(checkpoint)
            pairs.refresh()


def new_net() -> nn.Module:
    """An engine network with the flags of the published TensorFlow graphs."""
    return _pack("engine.dctnet").DCTNet(_pack("weights_loader.dctnet").DCTNetConfig())


def export(options: argparse.Namespace) -> None:
    """Write the averaged weights as a style file."""
    saved = torch.load(options.work / "checkpoint.pt", weights_only=True)
    metadata = {
        "name": "cel",
        "description": "Cel drawing: flat tones, rich colour, ink lines. Trained from scratch.",
        "license": "Apache-2.0",
        "trained_by": "training/cel.py",
        "steps": str(saved["step"]),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    loader = _pack("weights_loader.dctnet")
    tensors = {name: value.contiguous() for name, value in saved["averaged"].items()}
    loader.write(
        options.out, loader.DCTNetConfig(edge_padding=True), tensors, metadata, dtype=torch.float16
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for pairs and checkpoints")
    parser.add_argument("--archives", type=Path, help="folder with the downloaded archives")
    parser.add_argument("--out", type=Path, default=STYLE, help="the style file to write")
    parser.add_argument("--stage", choices=("all", "draw", "train", "export"), default="all")
    parser.add_argument("--pairs", type=int, default=171)
    parser.add_argument("--side", type=int, default=448, help="side of a pair's pictures, px")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--crop", type=int, default=192, help="side of a training crop, px")
    parser.add_argument("--rate", type=float, default=8e-4)
    parser.add_argument("--average", type=float, default=0.995, help="weight of the past")
    parser.add_argument("--every", type=int, default=50, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bfloat16", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    stages = {"draw": draw, "train": train, "export": export}
    for name, stage in stages.items():
        if options.stage in ("all", name):
            stage(options)


if __name__ == "__main__":
    main()

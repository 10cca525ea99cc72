"""The tensors of a GPEN generator: names, shapes and constants, and how other networks differ.

Source: yangxy/GPEN `face_model/gpen_model.py` (FullGenerator, isconcat) @2c73670.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from . import dctnet_layouts, files
from .errors import WeightsError, listed

Shape = tuple[int, ...]

STYLE_DIM = 512
"""Numbers in a style vector: the same in every published size, whatever `narrow` is."""
N_MLP = 8
SIZES = (256, 512, 1024, 2048)
MAX_WIDTH = 1024
"""Twice the published widths. A file's tensors may repeat one number, so its own size is no limit
to what they take in memory."""
KERNEL = tuple(tuple(a * b / 64 for b in (1, 3, 3, 1)) for a in (1, 3, 3, 1))
"""The blur that every layer carries as a constant, before its gain."""

USE_GPEN = "use a GPEN-BFR generator; `python run.py weights` lists the official ones"


@dataclass(frozen=True)
class GPENConfig:
    """What varies between generators.

    size: of the faces in and out, in pixels: 256, 512, 1024 or 2048.
    channels: width at 4, 8, 16, … size pixels. Layers that take the encoder's features beside
        their own see twice of it.
    Raises: ValueError.
    """

    size: int
    channels: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ValueError(f"a size of {SIZES}, not {self.size}")
        if len(self.channels) != self.log_size - 1:
            raise ValueError(f"{self.log_size - 1} widths, not {len(self.channels)}")
        if not all(1 <= width <= MAX_WIDTH for width in self.channels):
            raise ValueError(f"widths from 1 to {MAX_WIDTH}, not {self.channels}")

    @property
    def log_size(self) -> int:
        """Base-2 logarithm of `size`."""
        return self.size.bit_length() - 1


def shapes(config: GPENConfig) -> dict[str, Shape]:
    """Published name -> shape, in the published order, without the constants of `kernels`."""
    widths, found = config.channels, dict[str, Shape]()
    for layer in range(1, N_MLP + 1):
        found |= _linear(f"generator.style.{layer}", STYLE_DIM, STYLE_DIM)
    found["generator.input.input"] = (1, widths[0], 4, 4)
    found |= _styled("generator.conv1", widths[0], widths[0])
    found |= _to_rgb("generator.to_rgb1", widths[0])
    pairs = list(zip(widths, widths[1:], strict=False))
    for level, (inner, out) in enumerate(pairs):
        found |= _styled(f"generator.convs.{2 * level}", 2 * inner, out)
        found |= _styled(f"generator.convs.{2 * level + 1}", 2 * out, out)
    for level, (_, out) in enumerate(pairs):
        found |= _to_rgb(f"generator.to_rgbs.{level}", out)
    found |= {"ecd0.0.0.weight": (widths[-1], 3, 1, 1), "ecd0.0.1.bias": (widths[-1],)}
    for level, (out, inner) in enumerate(reversed(pairs), start=1):
        found[f"ecd{level}.0.1.weight"] = (out, inner, 3, 3)
        found[f"ecd{level}.0.2.bias"] = (out,)
    return found | _linear("final_linear.0", STYLE_DIM, 16 * widths[0])


def kernels(config: GPENConfig) -> dict[str, float]:
    """Published name of each blur constant -> its gain over KERNEL."""
    levels = range(config.log_size - 2)
    gains = {f"generator.convs.{2 * level}.conv.blur.kernel": 4.0 for level in levels}
    gains |= {f"generator.to_rgbs.{level}.upsample.kernel": 4.0 for level in levels}
    return gains | {f"ecd{level + 1}.0.0.kernel": 1.0 for level in levels}


def _linear(name: str, out: int, inner: int) -> dict[str, Shape]:
    return {f"{name}.weight": (out, inner), f"{name}.bias": (out,)}


def _modulated(name: str, inner: int, out: int, kernel: int) -> dict[str, Shape]:
    weight = {f"{name}.weight": (1, out, inner, kernel, kernel)}
    return weight | _linear(f"{name}.modulation", inner, STYLE_DIM)


def _styled(name: str, inner: int, out: int) -> dict[str, Shape]:
    ends = {f"{name}.noise.weight": (1,), f"{name}.activate.bias": (2 * out,)}
    return _modulated(f"{name}.conv", inner, out, 3) | ends


def _to_rgb(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.bias": (1, 3, 1, 1)} | _modulated(f"{name}.conv", 2 * width, 3, 1)


# --- what a file is ----------------------------------------------------------------------------

_FIRST = "generator.input.input"
# What marks a network (beginnings of names, all needed), what it is, and what to do with it.
_OTHERS = (
    (("final_conv.", "final_linear.1."),
     "a GPEN discriminator, which only training needs (a …-D file)",
     "use the file of the same name without -D"),
    (("stylegan_decoder.",), "a GFPGAN restorer", USE_GPEN),
    (("quantize.", "idx_pred_layer."), "a CodeFormer restorer", USE_GPEN),
    (("quantize.", "encoder.", "decoder."), "a RestoreFormer restorer", USE_GPEN),
    (("encoder.", "body.", "out_mask_conv."), "a face parser (ParseNet)",
     "put it into models/facedetection, and choose a GPEN-BFR generator here"),
    (("BboxHead.", "LandmarkHead."), "a face detector (RetinaFace)", USE_GPEN),
    (("input_layer.", "output_layer.", "body."), "a face recogniser", USE_GPEN),
    (("conv_first.", "conv_last."), "an upscaler", USE_GPEN),
    (("generator.style.", "generator.to_rgb1."),
     "a StyleGAN2 generator without GPEN's encoder", USE_GPEN),
    (("style.", "to_rgb1."), "a StyleGAN2 generator without GPEN's encoder", USE_GPEN),
)  # fmt: skip


def own_names(path: Path, contents: files.Contents) -> dict[str, files.Stored]:
    """The generator's tensors under their published names, whatever scope they stand in.

    Of a flat file with several generators the averaged one (g_ema) is taken.
    Raises: WeightsError naming the network that it is instead.
    """
    scopes = [name.removesuffix(_FIRST) for name in contents.tensors if _is_first(name)]
    averaged = [scope for scope in scopes if re.search(r"(?:^|\.)(?:g_ema|params_ema)\.$", scope)]
    scope = (averaged or scopes or [""])[0]
    if len(averaged or scopes) > 1:
        _refuse(path, "one generator", listed(scopes, "of them"), "save one of them alone")
    found = {
        name.removeprefix(scope): stored
        for name, stored in contents.tensors.items()
        if name.startswith(scope) or not averaged
    }
    if not scopes or not any(name.startswith("ecd") for name in found):
        _refuse_other(path, contents)
    return found


def recognise(path: Path, found: Mapping[str, files.Stored]) -> GPENConfig:
    """The config that the shapes say, once all of them agree with it.

    found: what `own_names` returned.
    Raises: WeightsError naming what differs.
    """
    levels = len({name.split(".")[2] for name in found if name.startswith("generator.to_rgbs.")})
    _check_family(path, found, levels)
    size = 4 << min(levels, 32)
    if size not in SIZES:
        _refuse(path, f"a generator for faces of {_sizes()} pixels", f"one for {size:,}")
    widths = [_size(path, found, _FIRST, 4, 1)]
    for level in range(levels):
        widths.append(_size(path, found, f"generator.convs.{2 * level}.conv.weight", 5, 1))
    if not all(1 <= width <= MAX_WIDTH for width in widths):
        _refuse(path, f"widths from 1 to {MAX_WIDTH}", ", ".join(map(str, widths)))
    config = GPENConfig(size, tuple(widths))
    _check_names(path, config, found)
    for name, shape in shapes(config).items():
        if found[name].shape != shape:
            _refuse(path, f"{name} of shape {shape}", str(found[name].shape))
    return config


def _is_first(name: str) -> bool:
    return name == _FIRST or name.endswith(f".{_FIRST}")


def _sizes() -> str:
    return f"{', '.join(map(str, SIZES[:-1]))} or {SIZES[-1]}"


def _check_family(path: Path, found: Mapping[str, files.Stored], levels: int) -> None:
    """Generators of the same code that compute otherwise, each by what gives it away."""
    mlp = len({name for name in found if re.fullmatch(r"generator\.style\.\d+\.weight", name)})
    if mlp != N_MLP:
        _refuse(path, f"{N_MLP} layers in generator.style", str(mlp))
    style = found.get("generator.style.1.weight")
    if style is not None and style.shape != (STYLE_DIM, STYLE_DIM):
        _refuse(path, f"style vectors of {STYLE_DIM} numbers", f"layers of shape {style.shape}")
    width = _size(path, found, _FIRST, 4, 1)
    activate = found.get("generator.conv1.activate.bias")
    if activate is not None and activate.shape == (width,):
        _refuse(
            path,
            "a generator that takes the encoder's features beside its own",
            "one that adds them (isconcat off: its activations have "
            f"{width} channels instead of {2 * width})",
        )
    encoders = len({name.split(".")[0] for name in found if re.match(r"ecd\d+\.", name)})
    if encoders < levels + 1:
        _refuse(
            path,
            "a generator whose faces leave as large as they came",
            f"one that enlarges {2 << min(encoders, 32)} to {4 << min(levels, 32)} pixels "
            "(GPEN's super-resolution variant)",
        )


def _check_names(path: Path, config: GPENConfig, found: Mapping[str, files.Stored]) -> None:
    expected, constants = shapes(config), kernels(config)
    count = f"the {len(expected)} tensors of GPEN {config.size}"
    missing = [name for name in expected if name not in found]
    # Files that other tools wrote may leave the constants out; some of them left out is damage.
    if any(name in found for name in constants):
        missing += [name for name in constants if name not in found]
    if missing:
        _refuse(path, count, listed(missing, "missing"))
    extra = [name for name in found if name not in expected and name not in constants]
    if extra:
        _refuse(path, f"{count} and no others", listed(extra, "more"))


def _size(path: Path, found: Mapping[str, files.Stored], name: str, rank: int, axis: int) -> int:
    if name not in found:
        _refuse(path, f"the tensor {name}", "none of this name")
    shape = found[name].shape
    if len(shape) != rank:
        _refuse(path, f"{name} with {rank} dimensions", str(shape))
    return shape[axis]


def looks_like(names: Collection[str]) -> bool:
    """Whether these are names of a GPEN generator, whole or not, in whatever scope."""
    encoder = re.compile(r"(?:^|\.)ecd0\.")
    return any(map(_is_first, names)) and any(encoder.search(name) for name in names)


def _refuse_other(path: Path, contents: files.Contents) -> NoReturn:
    names = list(contents.tensors)
    dotted = [f".{name}" for name in names]
    for marks, title, next_step in _OTHERS:
        if all(any(f".{mark}" in name for name in dotted) for mark in marks):
            _refuse(path, "a GPEN generator", title, next_step)
    style = dctnet_layouts.recognise(names)
    if style is not None and len(names) == len(dctnet_layouts.SHAPES):
        _refuse(path, "a GPEN generator", "a DCT-Net style",
                "put it into models/dctnet and choose it in DCTNetCartoon")  # fmt: skip
    what = listed(names, "tensors") if names else "none of its tensors"
    _refuse(
        path,
        f"the tensors of GPEN, such as {_FIRST} and ecd0.0.0.weight",
        f"{contents.kind} of another network ({what})",
    )


def _refuse(path: Path, expected: str, got: str, next_step: str = USE_GPEN) -> NoReturn:
    raise WeightsError(path, expected, got, next_step)

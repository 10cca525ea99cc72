"""What GPENRestore asks for between wires and engine: generators, and results that are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..engine import gpen, restore
from ..engine.faces import Face
from ..engine.gpen import GPEN
from ..engine.kept import Kept
from ..weights_loader import gpen as reader
from ..weights_loader import gpen_onnx
from ..weights_loader.errors import WeightsError
from . import _faces, _host

PRECISIONS = ("auto", "fp32", "mixed")
KEPT_BYTES = 256 << 20
"""Restored squares that are kept, so that a slider runs no network."""

Step = Callable[[float], None]

_HALVINGS = 3
_AT_ONCE = 4
_NAMES = {torch.float32: "fp32", torch.float16: "mixed (fp16)", torch.bfloat16: "mixed (bf16)"}

kept = Kept(KEPT_BYTES)
_is_gpen: dict[tuple[Any, ...], bool] = {}


def _files() -> dict[str, Path]:
    """Name -> file. Another pack's folder shows only those files that are GPEN's."""
    others = _host.model_files(_host.RESTORERS_FOLDER)
    found = {name: path for name, path in others.items() if _holds_gpen(path)}
    return {**found, **_host.model_files(_host.GPEN_FOLDER)}


def _holds_gpen(path: Path) -> bool:
    """Told by the names of its tensors; an ONNX file has none, so there its own name must do."""
    state = _host.file_state(path)
    if state not in _is_gpen:
        try:
            if gpen_onnx.is_onnx(path):
                _is_gpen[state] = "gpen" in path.name.casefold()
            else:
                reader.config_of(path)
                _is_gpen[state] = True
        except WeightsError:
            _is_gpen[state] = False
    return _is_gpen[state]


def names() -> list[str]:
    """The generators to choose from."""
    return sorted(_files(), key=str.casefold)


def fingerprint(model: str) -> str:
    """Changes when the generator's file, the detector or the parser does."""
    path, parser = _files().get(model), _faces.parser_path()
    states = [_host.file_state(each) for each in (path, parser) if each is not None]
    return f"{states}|{_faces.fingerprint()}"


def missing() -> str:
    """What to say where there is no generator at all."""
    # No path: under run.py the host's own models folder is a passing one.
    return (
        "model: expected GPEN weights in models/gpen, got none. Next step: python run.py weights"
        " download gpen-512 in the pack's folder, or put a GPEN-BFR file there; then refresh (R)"
    )


class _Session(nn.Module):
    """An ONNX model, so that the host can let go of it as of any other."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.restore = gpen_onnx.open_onnx(path).restore


@dataclass(frozen=True)
class Generator:
    """A generator's file, and how to run it."""

    path: Path
    size: int
    dtype: torch.dtype
    config: reader.GPENConfig | None
    """None of an ONNX model, which onnxruntime runs."""

    @property
    def key(self) -> tuple[Any, ...]:
        """Changes with anything that its results depend on."""
        return (*_host.file_state(self.path), str(self.dtype))

    @property
    def precision(self) -> str:
        """For the report."""
        return "onnxruntime" if self.config is None else _NAMES[self.dtype]

    def load(self, faces: int, step: Step) -> restore.Network:
        """Bring it to its device with memory for so many faces at once.

        step: called as the network goes on, with the share of a face that it has done.
        """
        config = self.config
        if config is None:
            session = _host.kept_model(
                self.path, "gpen onnx", lambda: _Session(self.path), kept.clear
            )
            _host.load([session], 0)
            return lambda squares: session.model.restore(squares, lambda: step(1.0))
        model = self._patcher(self.dtype, config, faces)

        def network(squares: Tensor) -> Tensor:
            given = squares.to(_host.device())
            share = len(given) / (model.steps + (len(given) - 1) * model.face_steps)
            drawn = model(given, lambda: step(share))
            if self.dtype == torch.float32 or bool(drawn.isfinite().all()):
                return drawn
            # Half precision overflowed, which single precision cannot at these numbers.
            return self._patcher(torch.float32, config, faces)(given, _host.check_interrupted)

        return network

    def _patcher(self, dtype: torch.dtype, config: reader.GPENConfig, faces: int) -> GPEN:
        def build() -> GPEN:
            found, tensors = reader.read(self.path)
            return GPEN.with_weights(found, tensors, dtype)

        patcher = _host.kept_model(self.path, f"gpen {dtype}", build, kept.clear)
        _host.load([patcher], gpen.working_bytes(config, faces, dtype))
        return patcher.model


def open_generator(name: str, precision: str) -> Generator:
    """A generator by its name. Nothing but the file's header is read yet.

    Raises: WeightsError for a name or a file that is none.
    """
    files = _files()
    if name not in files:
        raise WeightsError(
            _host.first_model_folder(_host.GPEN_FOLDER),
            f"one of {', '.join(names())}" if files else "GPEN weights",
            repr(name),
            "python run.py weights download gpen-512, or put the file there and refresh (R)",
        )
    path = files[name]
    if gpen_onnx.is_onnx(path):
        return Generator(path, gpen_onnx.describe(path)[1], torch.float32, None)
    mixed = precision == "mixed" or (precision == "auto" and gpen.gains_by_mixed(_host.device()))
    dtype = gpen.mixed_dtype(_host.device()) if mixed else torch.float32
    config = reader.config_of(path)
    return Generator(path, config.size, dtype, config)


@dataclass(eq=False)
class Run:
    """Counts of one node run, for its report."""

    from_before: int = 0
    parser: Path | None = field(default_factory=_faces.parser_path)

    @property
    def parser_state(self) -> object:
        """What masks depend on."""
        return None if self.parser is None else _host.file_state(self.parser)


def find_faces(detector: Path, image_bchw: Tensor, key: object, min_face_px: int) -> list[Face]:
    """All faces of one picture, looked for once. key: of the picture, from ``content_key``."""
    whole = ("faces", key, _host.file_state(detector), min_face_px)
    found = kept.find(whole)
    if found is None:
        [found] = _faces.detect_all(detector, image_bchw, min_face_px)
        kept.keep(whole, found, 1000 * (1 + len(found)))
    return found


def restored(
    generator: Generator,
    image_bchw: Tensor,
    squares: Sequence[Tensor],
    shown: Callable[[Tensor, Tensor], Tensor],
    key: object,
    run: Run,
    step: Step,
) -> Iterator[tuple[int, restore.Restored]]:
    """Restore squares of one picture, some at a time; (index, result) as they come.

    squares: (2,3) each, from ``engine.restore``. shown: (to_square, square) -> its mask. key: what
    results depend on beside the generator. step: called with the share of a square that was done.
    """
    waiting = []
    for index, to_square in enumerate(squares):
        found = kept.find(_key(generator, key, to_square))
        if found is None:
            waiting.append(index)
        else:
            run.from_before += 1
            step(1.0)
            yield index, found
    while waiting:
        count = _at_once(generator, len(waiting))
        part, waiting = waiting[:count], waiting[count:]
        drawn = _drawn(generator, image_bchw, [squares[index] for index in part], step)
        for index, square in zip(part, drawn, strict=True):
            result = restore.Restored(squares[index], square, shown(squares[index], square))
            kept.keep(_key(generator, key, squares[index]), result, result.bytes)
            yield index, result


def _key(generator: Generator, key: object, to_square: Tensor) -> tuple[object, ...]:
    return (generator.key, key, tuple(to_square.flatten().tolist()))


def _drawn(
    generator: Generator, image_bchw: Tensor, squares: Sequence[Tensor], step: Step
) -> Sequence[Tensor]:
    """Squares through the network, (1,3,S,S) each on the CPU; fewer at once if memory is short."""
    size = generator.size
    at_once = len(squares)
    for halvings in range(_HALVINGS + 1):
        try:
            network = generator.load(at_once, step)
            made = []
            for start in range(0, len(squares), at_once):
                part = squares[start : start + at_once]
                given = torch.cat([restore.cut(image_bchw, each, size) for each in part])
                made.extend(restore.run(network, given).cpu().split(1))
            return made
        except Exception as error:
            if halvings == _HALVINGS or not _host.is_out_of_memory(error):
                raise
        # Here, not in the handler: there the failed run's tensors are still alive.
        at_once = max(1, at_once // 2)
        _host.give_memory_back()
    raise AssertionError("the last round returns or raises")


def _at_once(generator: Generator, waiting: int) -> int:
    config, free = generator.config, _host.free_bytes()
    if config is None:
        return 1
    count = min(_AT_ONCE, waiting)
    while count > 1 and gpen.working_bytes(config, count, generator.dtype) > free:
        count -= 1
    return count


def face_shown(run: Run) -> Callable[[Tensor, Tensor], Tensor]:
    """How much of a restored face shows: what the parser says, or a soft rectangle."""
    parser = run.parser
    if parser is None:
        return lambda _, square: restore.face_mask(square.shape[-1])

    def parsed(_: Tensor, square: Tensor) -> Tensor:
        model = _faces.load_parser(parser)
        return restore.soften(model.shown(square.to(_host.device())).cpu())

    return parsed

"""A network of one picture run in strips of rows: layers, attention over the whole, layers.

What lies before and behind the attention is streamed, so memory holds the picture once at the
attention's resolution, with its keys and values for as long as they are needed, and one strip.
Results do not depend on the strips.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .row_stream import Attention, Layer, Line

STRIP_BYTES = 96 << 20
"""What a strip may take where memory is plentiful: larger ones are hardly faster."""
MOST_HALVINGS = 8
_LEAST_QUERIES = 4096
"""Of the attention at once: fewer leave large cards idle."""
_SCORE_BYTES = 64 << 20
"""Where no kernel computes attention without the matrix of scores."""


def _nothing(*_: object) -> None:
    """For callers who do not want to know."""


def _never(_: BaseException) -> bool:
    return False


@dataclass(frozen=True)
class Hooks:
    """What a run asks of who runs it.

    step: called after each strip with its share of the work (they add up to 1 for a picture); what
    it raises ends the run. is_out_of_memory: whether an error means that. release: give memory back
    to the device before less is tried.
    """

    step: Callable[[float], None] = _nothing
    is_out_of_memory: Callable[[BaseException], bool] = _never
    release: Callable[[], None] = _nothing


@dataclass
class RowNetwork:
    """front, then attention, then back. in_rows, out_rows: of the picture that goes in and comes
    out, for one row at the attention; their columns likewise. channels: at the attention."""

    front: Sequence[Layer]
    attention: Attention
    back: Sequence[Layer]
    channels: int
    in_rows: int
    out_rows: int

    @property
    def weights(self) -> list[Tensor]:
        """Every tensor that it holds."""
        layers = (*self.front, *self.back)
        return [*self.attention.weights, *(each for layer in layers for each in layer.weights)]

    def peak_bytes(self, hw: tuple[int, int], strip_rows: int) -> int:
        """Bytes beyond what goes in and what comes out, its own weights counted.

        hw: at the attention. strip_rows: as in run. What kernels take while they run is not in it.
        """
        height, width = hw
        picture = height * width * self.channels
        front = _need(self.front, strip_rows * self.in_rows, width * self.in_rows)
        back = _need(self.back, strip_rows, width)
        queries = _chunk_rows(hw, strip_rows) * width * self.channels
        peak = picture + max(sum(front[:2]), 2 * picture + 5 * queries, sum(back[:2]))
        size = self.weights[0].element_size()
        return size * peak + sum(weight.nbytes for weight in self.weights)

    def best_rows(self, hw: tuple[int, int], free_bytes: int) -> int:
        """The strip height that memory allows and speed asks for, at least 1."""
        height, width = hw
        size = self.weights[0].element_size()
        rows = height
        while rows > 1:
            strips = (
                _need(self.front, rows * self.in_rows, width * self.in_rows)[0],
                _need(self.back, rows, width)[0],
            )
            fits = self.peak_bytes(hw, rows) <= free_bytes
            if fits and max(strips) * size <= STRIP_BYTES:
                break
            rows = rows - 1 if rows <= 16 else rows // 2
        return rows

    @torch.inference_mode()
    def run(
        self,
        read: Callable[[int, int], Tensor],
        write: Callable[[int, Tensor], None],
        hw: tuple[int, int],
        strip_rows: int,
        hooks: Hooks | None = None,
    ) -> Strips:
        """One picture.

        read: (first, end) -> (rows, columns, channels) of what goes in, on the weights' device and
        in their type. write: (first row, rows) of what comes out, in order; may be called again
        with the same rows where memory ran out within it. hw: at the attention. strip_rows: ≥ 1, at
        the attention.
        Returns: how it went. Raises: what the device raises where even one row is too much.
        """
        hooks = hooks or Hooks()
        like = self.weights[0]
        held = like.new_empty((*hw, self.channels))
        shares = self._shares(hw)
        strips = Strips(strip_rows, hooks)
        strips.stream(
            self.front, hw[0], read, lambda first, rows: _put(held, first, rows), self.in_rows,
            shares[0],
        )  # fmt: skip
        self._attend(held, strips, shares[1])
        strips.stream(
            self.back, hw[0], lambda first, end: held[first:end], write, 1, shares[2]
        )  # fmt: skip
        return strips

    def _attend(self, held: Tensor, strips: Strips, share: float) -> None:
        """Add the attention's answer to the picture, some queries at a time."""
        height, width, channels = held.shape
        pixels = held.view(-1, channels)
        key, value = torch.empty_like(pixels), torch.empty_like(pixels)

        def fill(first: int, end: int) -> None:
            span = slice(first * width, end * width)
            self.attention.keys(pixels[span], key[span], value[span])

        def answer(first: int, end: int) -> None:
            span = slice(first * width, end * width)
            # A row is read by its own query only, so it can be replaced at once.
            pixels[span] += self.attention.answer(pixels[span], key, value)

        rows = _chunk_rows((height, width), strips.rows, held)
        strips.over(height, fill, (), 0.0, rows)
        strips.over(height, answer, (), share, rows)

    def _shares(self, hw: tuple[int, int]) -> tuple[float, float, float]:
        height, width = hw
        pixels = height * width
        front = _need(self.front, height * self.in_rows, width * self.in_rows)[2]
        back = _need(self.back, height, width)[2]
        attention = 4 * pixels * pixels * self.channels + 8 * pixels * self.channels**2
        total = front + attention + back
        return front / total, attention / total, back / total


@dataclass
class Strips:
    """Work on a picture's rows, strip by strip; strips shrink where memory runs out.

    rows: the height that is tried. halvings: how often memory ran out. done: strips.
    """

    rows: int
    hooks: Hooks
    halvings: int = 0
    done: int = 0
    _written: int = field(default=0, init=False)

    def stream(
        self,
        layers: Sequence[Layer],
        height: int,
        read: Callable[[int, int], Tensor],
        write: Callable[[int, Tensor], None],
        scale: int,
        share: float,
    ) -> None:
        """Push rows through layers. scale: rows that are read for one of height."""
        limits = _limits(layers, self.rows * scale)
        self._written = 0

        def work(first: int, end: int) -> None:
            for rows in _poured(layers, read(first * scale, end * scale), end == height, limits):
                write(self._written, rows)
                self._written += len(rows)

        lines = [line for layer in layers for line in layer.lines]
        self.rows = self.over(height, work, lines, share, self.rows)

    def over(
        self,
        height: int,
        work: Callable[[int, int], None],
        lines: Sequence[Line],
        share: float,
        rows: int,
    ) -> int:
        """Do work(first, end) until all rows are done; returns the height of the last strips.

        lines: what a strip that fails must not change.
        """
        first = 0
        while first < height:
            end = min(first + rows, height)
            before, written = [line.rows for line in lines], self._written
            if self._succeeds(work, first, end):
                self.done += 1
                self.hooks.step(share * (end - first) / height)
                first = end
                continue
            # Here, not in the handler: there the failed strip's tensors are still alive.
            for line, kept in zip(lines, before, strict=True):
                line.rows = kept
            self._written = written
            rows = max(1, (end - first) // 2)
            self.hooks.release()
        return rows

    def _succeeds(self, work: Callable[[int, int], None], first: int, end: int) -> bool:
        try:
            work(first, end)
        except Exception as error:
            spent = end - first == 1 or self.halvings == MOST_HALVINGS
            if spent or not self.hooks.is_out_of_memory(error):
                raise
            self.halvings += 1
            return False
        return True


def _poured(
    layers: Sequence[Layer], rows: Tensor, last: bool, limits: Sequence[int]
) -> Iterator[Tensor]:
    """What comes of a strip, in pieces.

    With the last rows of a picture all that waited comes out, which is many strips' worth at the
    far end: so no layer is given more rows than a strip brings to it.
    """
    # Nothing but the stack holds rows, so that they go as soon as they are used up.
    stack = [(0, [*rows.split(limits[0])], last)]
    del rows
    while stack:
        index, pieces, ends = stack[-1]
        if not pieces:
            stack.pop()
            continue
        ends = ends and len(pieces) == 1
        if index == len(layers):
            yield pieces.pop(0)
            continue
        out = layers[index].push(pieces.pop(0), ends)
        if out is not None:
            stack.append((index + 1, [*out.split(limits[index + 1])], ends))
        del out


def _limits(layers: Sequence[Layer], rows: int) -> list[int]:
    """Rows that a strip brings to each layer, and out of the last one."""
    limits = [rows]
    for layer in layers:
        limits.append(layer.need(limits[-1], 8).rows)
    return limits


def _put(held: Tensor, first: int, rows: Tensor) -> None:
    held[first : first + len(rows)] = rows


def _need(layers: Sequence[Layer], rows: int, columns: int) -> tuple[int, int, int]:
    """(values of one strip at its widest, values kept, operations) of so many rows."""
    working = kept = operations = 0
    for layer in layers:
        need = layer.need(rows, columns)
        working = max(working, need.working)
        # Twice: what a strip keeps, beside what the one before it kept.
        kept += 2 * need.kept
        operations += need.operations
        rows, columns = need.rows, need.columns
    return working, kept, operations


def _chunk_rows(hw: tuple[int, int], strip_rows: int, like: Tensor | None = None) -> int:
    """Rows of queries at once."""
    height, width = hw
    queries = max(strip_rows * width, _LEAST_QUERIES)
    if like is not None and not _has_kernel(like):
        queries = min(queries, _SCORE_BYTES // (4 * height * width))
    return min(height, max(1, queries // width))


def _has_kernel(like: Tensor) -> bool:
    """Whether torch computes attention on this device without holding the matrix of scores."""
    if like.device.type == "cuda":
        heads = like.reshape(1, 1, -1, like.shape[-1])
        try:
            asked = torch.backends.cuda.SDPAParams(heads, heads, heads, None, 0.0, False, False)
        except TypeError:
            return False  # another torch, which asks for other things
        return torch.backends.cuda.can_use_efficient_attention(asked)
    return like.device.type in ("cpu", "meta")

"""Layers that take a picture's rows as they come and hand on the rows that are then known.

A 3×3 convolution keeps its last two input rows, so no row is ever computed twice and any number of
rows may come at once. Rows are (rows, columns, channels), contiguous: in that order rows are joined
without moving the others, and processors convolve fastest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor

_LEAST_NORM = 1e-12
"""As torch's normalize has it."""
_CACHED_VALUES = 1 << 18
"""A processor goes over so many values four times for one reading from memory."""


@dataclass(frozen=True)
class Need:
    """What a layer makes of a strip and takes for it; numbers of values, not bytes.

    rows, columns: of what comes out. working: values alive at once, its input among them. kept:
    values that stay until the next strip. operations: multiplications and additions.
    """

    rows: int
    columns: int
    working: int
    kept: int
    operations: int


class Line:
    """Rows that wait for the next strip. Replaced and never written into, so an older state can be
    put back."""

    rows: Tensor | None = None


class Norm:
    """Each pixel's channels brought to one length and scaled; then SiLU if asked.

    gain: (C,), the layer's weights times the root of the number of channels.
    """

    def __init__(self, gain: Tensor, silu: bool) -> None:
        self.gain = gain
        self._silu = silu

    def __call__(self, rows: Tensor) -> Tensor:
        return self.into(torch.empty_like(rows), rows)

    def into(self, out: Tensor, rows: Tensor) -> Tensor:
        """The same into rows that are there already; returns them."""
        step = len(rows)
        if rows.device.type == "cpu":
            step = max(1, _CACHED_VALUES // rows[0].numel())
        for part, given in zip(out.split(step), rows.split(step), strict=True):
            length = torch.linalg.vector_norm(given, dim=-1, keepdim=True)
            torch.div(given, length.clamp_min_(_LEAST_NORM), out=part)
            part.mul_(self.gain)
            if self._silu:
                F.silu(part, inplace=True)
        return out


class Layer:
    """One step of a stream."""

    lines: Sequence[Line] = ()

    def push(self, rows: Tensor, last: bool) -> Tensor | None:
        """Take the next rows; returns those that are now known, None if there are none yet.

        rows: (n,W,C), n ≥ 1. last: these end the picture; what waits comes out and the layer is
        ready for another picture.
        """
        raise NotImplementedError

    def need(self, rows: int, columns: int) -> Need:
        """For so many rows at once."""
        raise NotImplementedError

    @property
    def weights(self) -> Sequence[Tensor]:
        """The tensors that it holds."""
        raise NotImplementedError


class Point(Layer):
    """A 1×1 convolution. weight: (O,I), bias: (O,)."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def push(self, rows: Tensor, last: bool) -> Tensor:
        return F.linear(rows, self._weight, self._bias)

    def need(self, rows: int, columns: int) -> Need:
        pixels, (made, given) = rows * columns, self._weight.shape
        return Need(rows, columns, pixels * (made + given), 0, 2 * pixels * made * given)

    @property
    def weights(self) -> Sequence[Tensor]:
        return _present(self._weight, self._bias)


class Conv(Layer):
    """A 3×3 convolution of what a norm leaves of the rows.

    weight: (O,I,3,3); bias: (O,). stride 1: zeros on all sides. stride 2: zeros below and to the
    right only, as the encoder has it; an even number of rows and columns.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, norm: Norm | None = None, stride: int = 1
    ) -> None:
        self._weight = weight.contiguous(memory_format=torch.channels_last)
        self._bias, self._norm, self._stride = bias, norm, stride
        self._line = Line()
        self.lines = (self._line,)

    def push(self, rows: Tensor | None, last: bool) -> Tensor | None:
        if rows is None:
            return None
        window = _window(self._line, rows, last, self._stride, self._norm)
        del rows
        count = max(0, (len(window) - 3) // self._stride + 1)
        _keep(self._line, window, count * self._stride, last)
        if count == 0:
            return None
        sides = (0, 1) if self._stride == 1 else (0, 0)
        return _convolved(window, self._weight, self._bias, sides, self._stride)

    def need(self, rows: int, columns: int) -> Need:
        made, given = self._weight.shape[:2]
        out = max(1, rows // self._stride), columns // self._stride
        pixels = (out[0] + 1) * out[1]
        working = (2 * rows + 3) * (columns + 1) * given + pixels * made
        return Need(*out, working, 2 * columns * given, 18 * out[0] * out[1] * made * given)

    @property
    def weights(self) -> Sequence[Tensor]:
        return _present(self._weight, self._bias, self._norm and self._norm.gain)


class Residual(Layer):
    """Two convolutions, and the rows themselves (through a 1×1 convolution if given) added."""

    def __init__(self, first: Conv, second: Conv, shortcut: Point | None) -> None:
        self._first, self._second, self._shortcut = first, second, shortcut
        self._line = Line()
        self.lines = (*first.lines, *second.lines, self._line)

    def push(self, rows: Tensor, last: bool) -> Tensor | None:
        # Without a name in between, so that the first one's rows go once the second has its window.
        out = self._second.push(self._first.push(rows, last), last)
        if self._shortcut is not None:
            rows = self._shortcut.push(rows, last)
        held = self._line.rows
        waiting = 0 if held is None else len(held)
        count = 0 if out is None else len(out)
        if out is not None:
            old = min(waiting, count)
            if held is not None:
                out[:old] += held[:old]
            out[old:] += rows[: count - old]
        parts = [] if held is None else [held[count:]]
        parts.append(rows[max(0, count - waiting) :])
        self._line.rows = None if last else torch.cat(parts)
        return out

    def need(self, rows: int, columns: int) -> Need:
        first = self._first.need(rows, columns)
        second = self._second.need(rows + 1, columns)
        given = (rows + 2) * columns * self._first._weight.shape[1]
        working = max(first.working, second.working + given)
        kept = first.kept + second.kept + second.kept
        operations = first.operations + second.operations
        if self._shortcut is not None:
            operations += self._shortcut.need(rows, columns).operations
        return Need(rows, columns, working, kept, operations)

    @property
    def weights(self) -> Sequence[Tensor]:
        shortcut = () if self._shortcut is None else self._shortcut.weights
        return (*self._first.weights, *self._second.weights, *shortcut)


class Upsample(Layer):
    """Every pixel doubled both ways, then a 3×3 convolution, without the doubled picture.

    A window of 3×3 sees only 2×2 different pixels of the doubled one, so each of the four pixels
    that come of one has a kernel of 2×2: the weights that meet the same pixel, summed.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        made, given = weight.shape[:2]
        self._made, self._given, self._bias = made, given, bias
        # Summed before it is rounded.
        wide = weight.float() if weight.element_size() < 4 else weight
        pairs = torch.stack([_halves(wide, 2, row) for row in (0, 1)])
        kernels = [torch.cat([_halves(rows, 3, side) for side in (0, 1)]) for rows in pairs]
        self._kernels = [
            kernel.to(weight.dtype).contiguous(memory_format=torch.channels_last)
            for kernel in kernels
        ]
        self._twice = None if bias is None else torch.cat([bias, bias])
        self._line = Line()
        self.lines = (self._line,)

    def push(self, rows: Tensor, last: bool) -> Tensor | None:
        window = _window(self._line, rows, last, 1, None)
        del rows
        count, columns = len(window) - 2, window.shape[1]
        _keep(self._line, window, max(0, count), last)
        if count <= 0:
            return None
        out = window.new_empty((count, 2, columns, 2, self._made))
        for row, kernel in enumerate(self._kernels):
            both = _convolved(window[row : row + count + 1], kernel, self._twice, (0, 1))
            out[:, row, :, 0] = both[:, :columns, : self._made]
            out[:, row, :, 1] = both[:, 1:, self._made :]
        return out.view(2 * count, 2 * columns, self._made)

    def need(self, rows: int, columns: int) -> Need:
        made, given = self._made, self._given
        pixels = (rows + 1) * (columns + 1)
        working = (2 * rows + 3) * columns * given + pixels * (2 + 4) * made
        operations = 2 * 16 * rows * columns * made * given
        return Need(2 * rows, 2 * columns, working, 2 * columns * given, operations)

    @property
    def weights(self) -> Sequence[Tensor]:
        return _present(*self._kernels, self._twice)


class Attention:
    """Each pixel attends to all others: one head over the whole picture, which is therefore held.

    qkv: (3C,C), (3C,); proj: (C,C), (C,).
    """

    def __init__(self, norm: Norm, qkv: Point, proj: Point) -> None:
        self._norm, self._qkv, self._proj = norm, qkv, proj

    @property
    def weights(self) -> Sequence[Tensor]:
        """The tensors that it holds."""
        return (self._norm.gain, *self._qkv.weights, *self._proj.weights)

    def keys(self, pixels: Tensor, key: Tensor, value: Tensor) -> None:
        """Fill in key and value, (n,C) each, of some pixels (n,C)."""
        channels = pixels.shape[1]
        weight, *bias = self._qkv.weights
        both = F.linear(self._norm(pixels), weight[channels:], *(b[channels:] for b in bias))
        key.copy_(both[:, :channels])
        value.copy_(both[:, channels:])

    def answer(self, pixels: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """What is to be added to some pixels (n,C), from all keys and values."""
        channels = pixels.shape[1]
        weight, *bias = self._qkv.weights
        query = F.linear(self._norm(pixels), weight[:channels], *(b[:channels] for b in bias))
        seen = F.scaled_dot_product_attention(query[None, None], key[None, None], value[None, None])
        return self._proj.push(seen[0, 0], last=False)


def _present(*tensors: Tensor | None) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def _halves(kernel: Tensor, dim: int, side: int) -> Tensor:
    """Three taps on doubled pixels as two on the pixels themselves.

    side: 0 for the first pixel of a pair (the second and third tap meet the same one), 1 for the
    second (the first and second do).
    """
    first, middle, end = kernel.unbind(dim)
    pair = (first, middle + end) if side == 0 else (first + middle, end)
    return torch.stack(pair, dim)


def _window(line: Line, rows: Tensor, last: bool, stride: int, norm: Norm | None) -> Tensor:
    """Rows that waited, new ones and the zeros beyond the border, in one piece."""
    count, columns, channels = rows.shape
    # At stride 2 nothing lies above the picture; to its right lies a column of zeros.
    above = stride == 1 if line.rows is None else len(line.rows)
    wide = columns + (stride == 2)
    window = rows.new_empty((above + count + last, wide, channels))
    if line.rows is not None:
        window[:above] = line.rows
    elif above:
        window[0].zero_()
    fresh = window[above : above + count, :columns]
    if norm is None:
        fresh.copy_(rows)
    else:
        norm.into(fresh, rows)
    if wide > columns:
        window[above : above + count, columns:].zero_()
    if last:
        window[-1].zero_()
    return window


def _keep(line: Line, window: Tensor, done: int, last: bool) -> None:
    line.rows = None if last else window[done:].clone()


def _convolved(
    rows: Tensor, weight: Tensor, bias: Tensor | None, sides: tuple[int, int], stride: int = 1
) -> Tensor:
    """Rows (n,W,C) through a convolution, as rows."""
    y = F.conv2d(rows.permute(2, 0, 1)[None], weight, bias, stride, sides)
    return y[0].permute(1, 2, 0).contiguous()

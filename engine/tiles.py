"""Windows over a picture: which part is computed, and which part of that is kept."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """A tile in pixels: ``outer`` is computed, ``inner`` is kept; both as (y0, y1, x0, x1)."""

    inner: tuple[int, int, int, int]
    outer: tuple[int, int, int, int]

    @property
    def outer_hw(self) -> tuple[int, int]:
        """Height and width of what is computed."""
        return self.outer[1] - self.outer[0], self.outer[3] - self.outer[2]

    @property
    def kept(self) -> tuple[slice, slice]:
        """Where ``inner`` lies inside ``outer``, as (rows, columns)."""
        y0, y1, x0, x1 = self.inner
        top, _, left, _ = self.outer
        return slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)


def _spans(length: int, count: int, halo: int, multiple: int) -> list[tuple[int, int, int, int]]:
    """``count`` even spans of ``length`` as (start, stop, outer start, outer stop)."""
    units = -(-length // multiple)
    edges = [min(length, units * i // count * multiple) for i in range(count + 1)]
    edges[-1] = length
    return [
        (a, b, max(0, a - halo), min(length, b + halo))
        for a, b in zip(edges, edges[1:], strict=False)
        if b > a
    ]


def plan(height: int, width: int, *, max_area: int, halo: int, multiple: int = 4) -> list[Window]:
    """Cut a picture into even windows within ``max_area``, the least computed in all.

    height, width: pixels. max_area: pixels of one outer window; where not even the smallest
    useful window (four halos wide) fits, that window is used all the same.
    halo: pixels that are computed on each side beyond what is kept, clipped at the picture's
    border so that the border's own padding is the network's. multiple: inner edges lie on it.
    """
    best: tuple[int, int, int] | None = None
    least = 4 * halo
    for rows in range(1, max(1, height // least) + 1):
        for columns in range(1, max(1, width // least) + 1):
            tall = max(b - a for _, _, a, b in _spans(height, rows, halo, multiple))
            wide = max(b - a for _, _, a, b in _spans(width, columns, halo, multiple))
            if tall * wide <= max_area:
                cost = rows * columns * tall * wide
                if best is None or cost < best[0]:
                    best = (cost, rows, columns)
                break
    rows, columns = best[1:] if best else (max(1, height // least), max(1, width // least))
    return list(_windows(height, width, rows, columns, halo, multiple))


def _windows(
    height: int, width: int, rows: int, columns: int, halo: int, multiple: int
) -> Iterator[Window]:
    for y0, y1, top, bottom in _spans(height, rows, halo, multiple):
        for x0, x1, left, right in _spans(width, columns, halo, multiple):
            yield Window((y0, y1, x0, x1), (top, bottom, left, right))

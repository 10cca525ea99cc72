"""A VAE's decode and encode in strips of rows: the full result, in a fraction of its memory.

See docs/streamed_decode.md for how it works. Which networks: wan_vae.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .row_network import Hooks, RowNetwork, Strips

Finish = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Told:
    """How a run went. strips: all of them. rows: the height of the last ones, of the latent.
    halvings: how often memory ran out."""

    strips: int
    rows: int
    halvings: int


def decode(
    network: RowNetwork,
    latent_bchw: Tensor,
    out_bhwc: Tensor,
    strip_rows: int,
    finish: Finish = lambda rows: rows,
    hooks: Hooks | None = None,
) -> Told:
    """Decode latents into pictures that are there already.

    network: from wan_vae.read_decoder. latent_bchw: (B,16,h,w), any type and device. out_bhwc:
    (B,8h,8w,C), any device; filled from the top, one picture after the other. strip_rows: rows of
    the latent at once, ≥ 1. finish: what is done to rows (n,8w,C) on the way out, in the output's
    type, in place or not. hooks: their shares add up to 1 for each picture.
    Returns: how it went. Raises: what the device raises where a single row is too much.
    """
    hw = _hw(latent_bchw)
    like = network.weights[0]

    def one(picture: int, rows: int) -> Strips:
        def read(first: int, end: int) -> Tensor:
            return latent_bchw[picture, :, first:end].to(like).permute(1, 2, 0).contiguous()

        def write(first: int, rows: Tensor) -> None:
            out_bhwc[picture, first : first + len(rows)] = finish(rows.to(out_bhwc.dtype))

        return network.run(read, write, hw, rows, hooks)

    return _each(len(latent_bchw), strip_rows, one)


def encode(
    network: RowNetwork,
    image_bhwc: Tensor,
    out_bchw: Tensor,
    strip_rows: int,
    start: Finish = lambda rows: rows,
    hooks: Hooks | None = None,
) -> Told:
    """Encode pictures into latents that are there already.

    network: from wan_vae.read_encoder. image_bhwc: (B,H,W,C), sides multiples of 8. out_bchw:
    (B,16,H/8,W/8). strip_rows: rows of the latent at once (8 of the picture), ≥ 1. start: what is
    done to the picture's rows (n,W,C) first, not in place. The rest as in decode.
    """
    hw = _hw(out_bchw)
    like, channels = network.weights[0], out_bchw.shape[1]

    def one(picture: int, rows: int) -> Strips:
        def read(first: int, end: int) -> Tensor:
            return start(image_bhwc[picture, first:end]).to(like).contiguous()

        def write(first: int, rows: Tensor) -> None:
            means = rows[:, :, :channels].permute(2, 0, 1)
            out_bchw[picture, :, first : first + len(rows)] = means

        return network.run(read, write, hw, rows, hooks)

    return _each(len(image_bhwc), strip_rows, one)


def _hw(latent_bchw: Tensor) -> tuple[int, int]:
    return latent_bchw.shape[2], latent_bchw.shape[3]


@torch.inference_mode()
def _each(count: int, rows: int, one: Callable[[int, int], Strips]) -> Told:
    """One picture after the other, each with the strips that were left to the one before."""
    strips = halvings = 0
    for picture in range(count):
        done = one(picture, rows)
        rows = done.rows
        strips += done.done
        halvings += done.halvings
    return Told(strips, rows, halvings)

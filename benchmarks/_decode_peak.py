"""Bytes that a streamed run holds at its peak, followed from the operation that makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from _live import LiveBytes
from realtoon.engine import streamed_decode as engine
from realtoon.engine.row_network import RowNetwork


@contextmanager
def followed(device: str) -> Iterator[None]:
    """Operations one by one: without inference mode, which hides what they do inside, and with the
    attention kernel named, which a dispatch mode otherwise takes apart into its matrix of scores.

    device: meta or cpu, whose kernel stands for every device's own.
    """
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    before = (RowNetwork.run, engine._each, F.scaled_dot_product_attention)

    def attention(query: Any, key: Any, value: Any, *_: object, **__: object) -> Any:  # noqa: ANN401
        return kernel(query, key, value)[0]

    RowNetwork.run = getattr(before[0], "__wrapped__", before[0])
    engine._each = getattr(before[1], "__wrapped__", before[1])
    F.scaled_dot_product_attention = attention
    try:
        with torch.no_grad():
            yield
    finally:
        RowNetwork.run, engine._each, F.scaled_dot_product_attention = before


def streamed_peak(network: RowNetwork, way: str, hw: tuple[int, int], rows: int) -> int:
    """Bytes beyond what goes in, what comes out and the network's own weights.

    way: decode or encode. hw: of the latent. On the network's device: on meta nothing is computed.
    """
    (height, width), device = hw, network.weights[0].device
    channels = network.back[-1].weights[0].shape[0] if way == "decode" else 3
    image = torch.zeros(1, 8 * height, 8 * width, channels, device=device)
    latent = torch.zeros(1, 16, height, width, device=device)
    given, out = (latent, image) if way == "decode" else (image, latent)
    run: Callable[..., object] = getattr(engine, way)
    held = (image, latent, *network.weights)
    with followed(device.type), LiveBytes(held) as live:
        before = live.now
        run(network, given, out, rows)
    return live.peak - before

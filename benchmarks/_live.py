"""Simulated memory: every storage's bytes from the operation that makes it until nobody holds it.

On the meta device nothing is computed, so a network's peak is found at its real size in a moment
and without the memory. What an operation takes while it runs, such as a convolution's own
workspace, and what an allocator keeps in reserve are not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts tensors that are alive while it is entered, and those it was told of before.

    held: tensors that exist already and count from the beginning, such as weights. Views share a
    storage and count once. Run it under ``torch.no_grad``: in inference mode operations arrive
    whole, with their inner steps hidden.
    """

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self._now = 0
        self.peak = 0
        for tensor in held:
            self._add(tensor)

    @property
    def now(self) -> int:
        """Bytes that are alive."""
        self._let_go()
        return self._now

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        self._let_go()
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return result

    def _add(self, tensor: Tensor) -> None:
        weak = StorageWeakRef(tensor.untyped_storage())
        if weak.cdata in self._alive:
            return
        size = tensor.untyped_storage().nbytes()
        self._alive[weak.cdata] = (weak, size)
        self._now += size
        self.peak = max(self.peak, self._now)

    def _let_go(self) -> None:
        # A weak reference keeps the address from being used anew, so a key stays one storage's.
        for key in [key for key, (weak, _) in self._alive.items() if weak.expired()]:
            self._now -= self._alive.pop(key)[1]


@torch.no_grad()
def peak_bytes(module: torch.nn.Module, *inputs: Tensor) -> int:
    """The most that a module, its inputs and a call of it take together."""
    held = (*module.parameters(), *module.buffers(), *inputs)
    with LiveBytes(held) as live:
        module(*inputs)
    return live.peak

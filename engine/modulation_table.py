"""The modulation of a Qwen-Image DiT answered from a table, its weights kept out of the model.

``img_mod`` and ``txt_mod`` of a block are SiLU and one Linear of the timestep embedding alone, yet
hold a third of the parameters. Here a layer without parameters stands in the Linear's place and
answers from the rows of the timesteps that were met; what it has not met yet it computes once with
the weights that a provider lends for the moment. docs/modulation_table.md says why the answers are
bit-identical.
"""

from __future__ import annotations

import itertools
import re
import weakref
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

Provider = Callable[[str], Tensor]
"""Gives the weights of a layer by their name in the DiT: transformer_blocks.0.img_mod.1.weight,
(6D,D), and ….bias, (6D,); on any device, memory-mapped for instance, not quantised."""

_NAME = re.compile(r"transformer_blocks\.\d+\.(?:img|txt)_mod\.1\.(?:weight|bias)")
_STREAMS = ("img_mod", "txt_mod")
_PARTS = ("weight", "bias")
_EMBEDDING = "time_text_embed"
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_NONE_SEEN = -1


class Fold(NamedTuple):
    """How one weight is changed before use, a LoRA for instance.

    mark: equal to another fold's mark if both make the same of a weight.
    apply: (weight, device to compute on) -> the changed weight, in the weight's dtype.
    """

    mark: object
    apply: Callable[[Tensor, torch.device], Tensor]


class Key(NamedTuple):
    """One input of a layer: where and how it is computed, and the numbers of its rows."""

    place: tuple[Any, ...]
    rows: tuple[int, ...]


class _Seen(NamedTuple):
    source: Tensor
    version: int
    activated: Tensor
    key: Key


def is_modulation(name: str) -> bool:
    """Whether a tensor's name in the DiT (without a prefix) is that of a modulation weight."""
    return _NAME.fullmatch(name) is not None


def resident_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers; tensors on ``meta`` count as if they were real."""
    return sum(t.nbytes for t in itertools.chain(model.parameters(), model.buffers()))


def attach(
    model: nn.Module, provider: Provider, dtype: torch.dtype | None = None
) -> ModulationTable:
    """Put a table in the place of every block's modulation; the Linears are let go.

    model: the DiT, with ``transformer_blocks`` whose ``img_mod`` and ``txt_mod`` are
    (SiLU, Linear). dtype: what the weights are rounded to before anything else, as a model of
    that dtype would hold them; None: as the provider gives them.
    Raises: ValueError where the model is another one or a weight has another shape; nothing is
    changed then.
    """
    table = ModulationTable(provider, dtype)
    blocks = getattr(model, "transformer_blocks", None)
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        raise ValueError("modulation table: expected a DiT with transformer_blocks, got none")
    made = []
    for index, block in enumerate(blocks):
        for stream in _STREAMS:
            name = f"transformer_blocks.{index}.{stream}"
            made.append((block, stream, _replacement(getattr(block, stream, None), name, table)))
    for block, stream, modulation in made:
        setattr(block, stream, modulation)
    # A forward pass begins here: what the first block sees is always looked at afresh.
    getattr(blocks[0], _STREAMS[0]).first = True
    embedding = getattr(model, _EMBEDDING, None)
    if isinstance(embedding, nn.Module):
        embedding.register_forward_hook(table.met_timestep)
    return table


def _replacement(plain: object, name: str, table: ModulationTable) -> TableModulation:
    parts = list(plain) if isinstance(plain, nn.Sequential) else []
    linear = parts[-1] if len(parts) == 2 else None
    # Not by nn.Linear alone: the host's layers for quantised weights are Linears of their own.
    inner, outer = (getattr(linear, size, None) for size in ("in_features", "out_features"))
    if (
        not isinstance(inner, int)
        or not isinstance(outer, int)
        or not isinstance(parts[0], nn.SiLU)
    ):
        raise ValueError(f"{name}: expected SiLU and Linear, got {plain}")
    layer = TableLinear(table, f"{name}.1", inner, outer)
    expected = {"weight": (outer, inner), "bias": (outer,)}
    for part, shape in expected.items():
        got = tuple(table.provider(f"{layer.name}.{part}").shape)
        if got != shape:
            raise ValueError(f"{layer.name}.{part}: expected the shape {shape}, got {got}")
    table.layers[layer.name] = layer
    return TableModulation(parts[0], layer)


class ModulationTable:
    """The rows of all layers, for the timesteps met so far.

    limit_rows: how many different rows are known at once; one more, and all are let go. At the
    real size a row takes 2.2 MB of bf16 in each of the two streams that meet it.
    """

    def __init__(
        self, provider: Provider, dtype: torch.dtype | None = None, limit_rows: int = 256
    ) -> None:
        self.provider = provider
        self.dtype = dtype
        self.limit_rows = limit_rows
        # Weak both times: with a cycle, a dropped model's rows would wait for the collector.
        self.layers: MutableMapping[str, TableLinear] = weakref.WeakValueDictionary()
        self.fills = 0
        self._folds: dict[str, Fold] = {}
        self._schedule: Tensor | None = None
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._next = itertools.count()
        self._seen: list[_Seen] = []
        self._embedding: tuple[weakref.ref[nn.Module], tuple[Any, ...]] | None = None
        self._ahead: dict[tuple[Any, ...], list[tuple[Tensor, Key]]] = {}

    @property
    def bytes(self) -> int:
        """Memory of all rows."""
        return sum(row.nbytes for layer in self.layers.values() for row in layer.held())

    def planned_bytes(self, timesteps: int, dtype: torch.dtype, zero_rows: bool) -> int:
        """Memory of the rows of a run.

        timesteps: how many the sampler evaluates. zero_rows: whether reference tokens are modulated
        by t = 0, which adds one row to the picture's stream.
        """
        rows = {"img_mod": timesteps + zero_rows, "txt_mod": timesteps}
        return sum(
            layer.out_features * dtype.itemsize * rows[name.split(".")[2]]
            for name, layer in self.layers.items()
        )

    def clear(self) -> None:
        """Let all rows go."""
        for layer in self.layers.values():
            layer.forget()
        self._numbers.clear()
        self._seen.clear()
        self._ahead.clear()
        self._embedding = None

    def set_schedule(self, timesteps: Tensor | None) -> None:
        """Say which timesteps a run will meet: one pass over the weights then fills all their rows.

        timesteps: (T,) as the DiT is given them. A schedule other than the last one lets the rows
        go. Timesteps outside it are filled when they are met.
        """
        old = self._schedule
        same = old is None if timesteps is None else old is not None and _equal(old, timesteps)
        if not same:
            self.clear()
            self._schedule = None if timesteps is None else timesteps.detach().clone()

    def set_folds(self, folds: Mapping[str, Fold]) -> None:
        """Change weights by their names (…img_mod.1.weight) from now on; those that are not named
        are used as they are. Only the rows of layers whose marks differ are let go."""
        for name, layer in self.layers.items():
            keys = [f"{name}.{part}" for part in _PARTS]
            if [_mark(self._folds, key) for key in keys] != [_mark(folds, key) for key in keys]:
                layer.forget()
        self._folds = dict(folds)

    def weight(self, name: str, device: torch.device | None = None) -> Tensor:
        """A weight as a model with the folds in it would hold it.

        device: where folds are computed; None: where the provider's tensor is.
        """
        weight = self.provider(name)
        if self.dtype is not None:
            weight = weight.to(self.dtype)
        fold = self._folds.get(name)
        return weight if fold is None else fold.apply(weight, device or weight.device)

    def activated(self, activation: nn.Module, source: Tensor, first: bool) -> Tensor:
        """The activation of an embedding, computed once a forward pass for all blocks.

        source: (B,D). first: whether a forward pass begins here.
        """
        if first:
            self._seen.clear()
        version = _NONE_SEEN if source.is_inference() else source._version
        for seen in self._seen:
            if seen.version == version and _same_memory(seen.source, source):
                return seen.activated
        activated = activation(source)
        if not _shapes_only(activated):
            self._seen.append(_Seen(source, version, activated, self.key(activated)))
        return activated

    def key_of(self, activated: Tensor) -> Key:
        """The key of an input, known already where it came from ``activated``."""
        for seen in self._seen:
            if seen.activated is activated:
                return seen.key
        return self.key(activated)

    def key(self, activated: Tensor) -> Key:
        """The key of an input from its exact bits; the device is waited for."""
        rows = activated.detach().reshape(-1, activated.shape[-1]).contiguous().cpu()
        place = (activated.device, activated.dtype, tuple(activated.shape))
        contents = [row.tobytes() for row in rows.view(_BITS[rows.element_size()]).numpy()]
        fresh = {(place, each) for each in contents} - self._numbers.keys()
        if fresh and len(self._numbers) + len(fresh) > self.limit_rows:
            self.clear()
        numbers = []
        for each in contents:
            if (place, each) not in self._numbers:
                self._numbers[place, each] = next(self._next)
            numbers.append(self._numbers[place, each])
        return Key(place, tuple(numbers))

    def fill(self, layer: TableLinear, activated: Tensor, key: Key) -> None:
        """Compute a layer's rows for one input and for those that the schedule announces."""
        with torch.inference_mode(False), torch.no_grad():
            self.fills += 1
            ahead = self._announced(activated, key)
            # A copy lies on the boundaries of torch's allocator, as a loaded weight does; a
            # memory-mapped one may not, and MKL promises the same bits only where both lie alike.
            weight, bias = (
                self.weight(f"{layer.name}.{part}", activated.device).to(
                    device=activated.device, dtype=activated.dtype, copy=True
                )
                for part in _PARTS
            )
            for each, each_key in [(activated, key), *ahead]:
                if each_key not in layer.known:
                    layer.learn(each_key, functional.linear(each, weight, bias))

    def met_timestep(self, module: nn.Module, args: tuple[Any, ...], _output: object) -> None:
        """A forward hook of the embedding: how it was called tells what a schedule will give it."""
        if not args or not isinstance(args[0], Tensor) or _shapes_only(args[0]):
            return
        # Larger tensors are there for their dtype only; holding them would hold activations.
        rest = (a.new_empty(0) if isinstance(a, Tensor) and a.dim() > 1 else a for a in args[1:])
        self._embedding = (weakref.ref(module), (args[0], *rest))

    def _announced(self, activated: Tensor, key: Key) -> list[tuple[Tensor, Key]]:
        """What the schedule will bring in the shape of this input."""
        if self._schedule is None or self._embedding is None or activated.dim() != 2:
            return []
        if key.place not in self._ahead:
            self._ahead[key.place] = []
            inputs = self._look_ahead(activated)
            most = max(0, (self.limit_rows - len(self._numbers)) // (2 * len(activated)))
            self._ahead[key.place] = [(each, self.key(each)) for each in inputs[:most]]
        return self._ahead[key.place]

    def _look_ahead(self, activated: Tensor) -> list[Tensor]:
        assert self._schedule is not None and self._embedding is not None
        embed, (met, *rest) = self._embedding
        module = embed()
        count = len(activated)
        # The text stream gets the first half where t = 0 rows are appended for references.
        if module is None or met.dim() != 1 or len(met) not in (count, 2 * count):
            return []
        inputs = []
        for step in self._schedule.to(device=met.device, dtype=met.dtype):
            if step == 0:
                continue
            embedding = module.forward(torch.where(met == 0, met, step), *rest)
            inputs.append(functional.silu(embedding[:count]))
        return inputs


class TableLinear(nn.Module):
    """Stands where a Linear stood: its names resolve, but it holds no parameters.

    name: in the DiT, transformer_blocks.0.img_mod.1.
    """

    def __init__(
        self, table: ModulationTable, name: str, in_features: int, out_features: int
    ) -> None:
        super().__init__()
        self.table = table
        self.name = name
        self.in_features = in_features
        self.out_features = out_features
        self.known: set[Key] = set()
        self._rows: dict[int, Tensor] = {}
        self._whole: dict[Key, Tensor] = {}

    @property
    def weight(self) -> Tensor:
        """(6D,D), the provider's own tensor without folds: not to be written to."""
        return self.table.provider(f"{self.name}.weight")

    @property
    def bias(self) -> Tensor:
        """(6D,), as ``weight``."""
        return self.table.provider(f"{self.name}.bias")

    def forward(self, activated: Tensor) -> Tensor:
        """activated: (B,D). Returns: (B,6D), what the Linear would give, bit by bit; it may share
        memory with the table, so it is not to be written to."""
        if _shapes_only(activated):
            return activated.new_empty((*activated.shape[:-1], self.out_features))
        key = self.table.key_of(activated)
        if key not in self.known:
            self.table.fill(self, activated, key)
        return self._answer(key).reshape(*activated.shape[:-1], self.out_features)

    def learn(self, key: Key, output: Tensor) -> None:
        """Keep one output. Rows that are the same bits as those kept already are kept once."""
        rows = output.reshape(-1, self.out_features)
        same = all(
            self._same_row(number, row, rows, key)
            for number, row in zip(key.rows, rows, strict=True)
        )
        if same:
            for number, row in zip(key.rows, rows, strict=True):
                if number not in self._rows:
                    self._rows[number] = row.clone()
        else:
            self._whole[key] = rows
        self.known.add(key)

    def _same_row(self, number: int, row: Tensor, rows: Tensor, key: Key) -> bool:
        kept = self._rows.get(number)
        if kept is None:
            first = key.rows.index(number)
            kept = rows[first]
        return kept is row or kept.data_ptr() == row.data_ptr() or torch.equal(kept, row)

    def _answer(self, key: Key) -> Tensor:
        if key in self._whole:
            return self._whole[key]
        rows = [self._rows[number] for number in key.rows]
        return rows[0].unsqueeze(0) if len(rows) == 1 else torch.stack(rows)

    def held(self) -> Iterator[Tensor]:
        """The tensors kept."""
        yield from self._rows.values()
        yield from self._whole.values()

    def forget(self) -> None:
        """Let all rows go."""
        self.known.clear()
        self._rows.clear()
        self._whole.clear()

    def extra_repr(self) -> str:
        """As a Linear says it."""
        return f"in_features={self.in_features}, out_features={self.out_features}, from a table"

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:  # noqa: ANN401
        # A DiT that is asked by itself is being saved; as a part of a larger model it is only asked
        # for the names in it, often, and folding would take seconds each time.
        saving = prefix == f"{self.name}."
        for part in _PARTS:
            read = self.table.weight if saving else self.table.provider
            destination[prefix + part] = read(f"{self.name}.{part}")

    def _load_from_state_dict(self, *_args: Any, **_kwargs: Any) -> None:
        """What a state dict holds for these names is neither missing nor unexpected."""


class TableModulation(nn.Sequential):
    """(activation, TableLinear); the activation is computed once for all blocks."""

    def __init__(self, activation: nn.Module, layer: TableLinear) -> None:
        super().__init__(activation, layer)
        self.first = False

    def forward(self, input: Tensor) -> Tensor:
        """input: (B,D), the timestep embedding. Returns: (B,6D)."""
        layer = self[1]
        assert isinstance(layer, TableLinear)
        # Through the call, not past it: whoever wraps the layer's forward is heard.
        return layer(layer.table.activated(self[0], input, self.first))


def _mark(folds: Mapping[str, Fold], key: str) -> object:
    return folds[key].mark if key in folds else None


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.to(other.device), other.to(one.dtype))


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return (
        one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.dtype == other.dtype
        and one.device == other.device
    )


def _shapes_only(tensor: Tensor) -> bool:
    """On ``meta`` or under FakeTensorMode, as memory is planned: there are no bits to look at."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)

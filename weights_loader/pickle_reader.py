"""Reads the pickles that PyTorch writes without running anything that they name.

A pickle is a program. Here its instructions are interpreted with plain values: a class or function
that it names is a text, a call is a record of what was called, and tensors are descriptions of
where their numbers lie. So nothing in a file can be executed, and no tensor costs memory. What is
not in the short list of things that PyTorch's checkpoints need is refused by name.

Source: CPython Lib/pickletools.py, torch/_utils.py (`_rebuild_*`), torch/serialization.py.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Training checkpoints with their optimisers: about 10,000 for DCT-Net, 41,000 for GPEN at 2048.
MAX_OPS = 60_000

# Calls that build a tensor or pass one through.
_REBUILD = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
_PASS = (
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.jit._pickle.build_boollist",
    "torch.jit._pickle.build_doublelist",
    "torch.jit._pickle.build_intlist",
    "torch.jit._pickle.build_tensorlist",
    "torch.jit._pickle.restore_type_tag",
)
# Plain data that checkpoints carry beside tensors; never looked into.
# argparse.Namespace: the PyTorch port saves its command line beside its networks.
_INERT = (
    "argparse.Namespace",
    "collections.defaultdict",
    "builtins.set",
    "__builtin__.set",
    "builtins.dict",
    "__builtin__.dict",
    "_codecs.encode",
    "torch.Size",
    "torch.device",
)
_STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL",
}  # fmt: skip
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1,
         "BOOL": 1}  # fmt: skip


class PickleError(Exception):
    """Why a pickle is not taken. code: what it would have run, where that is the reason."""

    def __init__(self, reason: str, code: str = "") -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True)
class Storage:
    """A run of numbers somewhere in the file. count: how many the pickle says there are."""

    key: str
    dtype: str
    count: int


@dataclass(frozen=True)
class TensorView:
    """A tensor over a storage, all in elements. Its numbers were only checked to be integers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(eq=False)
class Named:
    """A class or function that the pickle names. Never looked up."""

    name: str


@dataclass(eq=False)
class Thing:
    """An object that would have been made: its class's name, and its attributes as data."""

    name: str
    state: Any = None


class _Mark:
    pass


_MARK = _Mark()
_PLAIN = (
    "INT", "LONG", "FLOAT", "STRING", "UNICODE",
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT",
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
)  # fmt: skip


def read(
    stream: io.BytesIO, torchscript: bool = False, max_ops: int = MAX_OPS
) -> tuple[Any, dict[str, Storage]]:
    """Read one pickle from where `stream` stands.

    stream: holds everything in memory already, so that no length in it can ask for more.
    torchscript: allow classes under `__torch__`, as data.
    Returns: the value (dict, list, tuple, text, number, TensorView, Named, Thing), and the storages
        that it refers to, by key.
    Raises: PickleError.
    """
    machine = _Machine(torchscript)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count > max_ops:
                raise PickleError(f"a pickle of more than {max_ops:,} steps")
            machine.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, AttributeError) as error:
        raise PickleError(f"a broken or truncated pickle ({str(error)[:80]})") from None
    if len(machine.stack) != 1:
        raise PickleError("a broken pickle (it leaves more than one value)")
    return machine.stack[0], machine.storages


class _Machine:
    """A stack, a memo, and one method for each group of instructions."""

    def __init__(self, torchscript: bool) -> None:
        self.torchscript = torchscript
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.actions: dict[str, Callable[[Any], None]] = {
            "PROTO": self.nothing, "FRAME": self.nothing, "STOP": self.nothing,
            "MARK": lambda _: self.stack.append(_MARK),
            "NONE": lambda _: self.stack.append(None),
            "NEWTRUE": lambda _: self.stack.append(True),
            "NEWFALSE": lambda _: self.stack.append(False),
            "EMPTY_DICT": lambda _: self.stack.append({}),
            "EMPTY_LIST": lambda _: self.stack.append([]),
            "EMPTY_SET": lambda _: self.stack.append([]),
            "EMPTY_TUPLE": lambda _: self.stack.append(()),
            "TUPLE": lambda _: self.stack.append(tuple(self.to_mark())),
            "TUPLE1": lambda _: self.stack.append(tuple(self.pop(1))),
            "TUPLE2": lambda _: self.stack.append(tuple(self.pop(2))),
            "TUPLE3": lambda _: self.stack.append(tuple(self.pop(3))),
            "LIST": lambda _: self.stack.append(self.to_mark()),
            "DICT": lambda _: self.stack.append(_pairs(self.to_mark())),
            "POP": lambda _: self.stack.pop(),
            "APPEND": self.append, "APPENDS": self.appends, "ADDITEMS": self.appends,
            "SETITEM": self.set_item, "SETITEMS": self.set_items,
            "PUT": self.put, "BINPUT": self.put, "LONG_BINPUT": self.put,
            "GET": self.get, "BINGET": self.get, "LONG_BINGET": self.get,
            "MEMOIZE": self.memoize,
            "GLOBAL": self.named, "INST": self.named, "STACK_GLOBAL": self.stack_named,
            "REDUCE": self.reduce, "NEWOBJ": self.new_object, "BUILD": self.build,
            "BINPERSID": self.persistent,
        }  # fmt: skip

    def step(self, name: str, argument: Any) -> None:  # noqa: ANN401
        if name in _PLAIN:
            self.stack.append(argument)
            return
        action = self.actions.get(name)
        if action is None:
            raise PickleError(f"the pickle instruction {name}, unknown to PyTorch", code=name)
        action(argument)

    def nothing(self, _: object) -> None:
        return

    def pop(self, count: int) -> list[Any]:
        values = self.stack[len(self.stack) - count :]
        if len(values) != count or _MARK in values:
            raise ValueError("stack underflow")
        del self.stack[-count:]
        return values

    def to_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("no mark")
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    def append(self, _: object) -> None:
        (value,) = self.pop(1)
        self.stack[-1].append(value)

    def appends(self, _: object) -> None:
        values = self.to_mark()
        self.stack[-1].extend(values)

    def set_item(self, _: object) -> None:
        key, value = self.pop(2)
        self.fill([key, value])

    def set_items(self, _: object) -> None:
        self.fill(self.to_mark())

    def fill(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            target.update(_pairs(values))
        elif not isinstance(target, Thing):
            raise ValueError("items for what is no dictionary")

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def memoize(self, _: object) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def named(self, argument: str) -> None:
        self.name(".".join(argument.split(" ", 1)))

    def stack_named(self, _: object) -> None:
        module, attribute = self.pop(2)
        if not isinstance(module, str) or not isinstance(attribute, str):
            raise ValueError("a name that is no text")
        self.name(f"{module}.{attribute}")

    def name(self, name: str) -> None:
        known = name in _REBUILD + _PASS + _INERT or name == "collections.OrderedDict"
        storage = name.startswith("torch.") and name[6:] in _STORAGES
        if not known and not storage and not (self.torchscript and name.startswith("__torch__.")):
            shown = name if len(name) <= 100 else name[:100] + "…"
            raise PickleError(f"code in its pickle: it names {shown!r}", code=name)
        self.stack.append(Named(name))

    def reduce(self, _: object) -> None:
        callee, arguments = self.pop(2)
        if not isinstance(callee, Named) or not isinstance(arguments, tuple):
            raise ValueError("a call of what is no function")
        if callee.name in _REBUILD:
            self.stack.append(_tensor(arguments))
        elif callee.name in _PASS:
            self.stack.append(arguments[0])
        elif callee.name == "collections.OrderedDict":
            self.stack.append(_ordered(arguments))
        else:
            self.stack.append(Thing(callee.name))

    def new_object(self, _: object) -> None:
        cls, _arguments = self.pop(2)
        if not isinstance(cls, Named):
            raise ValueError("an object of what is no class")
        self.stack.append(Thing(cls.name))

    def build(self, _: object) -> None:
        (state,) = self.pop(1)
        # State of a dictionary, such as the `_metadata` of a state_dict, is of no use here.
        if isinstance(self.stack[-1], Thing):
            self.stack[-1].state = state

    def persistent(self, _: object) -> None:
        (entry,) = self.pop(1)
        if not isinstance(entry, tuple) or len(entry) < 5 or entry[0] != "storage":
            raise ValueError("an unknown reference")
        _, kind, key, _, count = entry[:5]
        dtype = _STORAGES.get(kind.name[6:]) if isinstance(kind, Named) else None
        if dtype is None or not isinstance(key, str) or type(count) is not int or count < 0:
            raise ValueError("an unknown storage")
        storage = Storage(key, dtype, count)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError("two storages of one key")
        self.stack.append(storage)


def _pairs(values: list[Any]) -> dict[Any, Any]:
    if len(values) % 2:
        raise ValueError("a key without a value")
    return {_key(values[i]): values[i + 1] for i in range(0, len(values), 2)}


def _key(key: Any) -> Any:  # noqa: ANN401
    """Only flat keys are hashed: hashing deeply nested tuples overflows the interpreter's stack."""
    return key if key is None or isinstance(key, (str, int, float, bytes)) else object()


def _ordered(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    if not arguments:
        return {}
    flat: list[Any] = []
    for pair in arguments[0]:
        key, value = pair
        flat += [key, value]
    return _pairs(flat)


def _tensor(arguments: tuple[Any, ...]) -> TensorView:
    storage, offset, shape, stride = arguments[:4]
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    for sizes in (shape, stride, (offset,)):
        whole = isinstance(sizes, tuple) and all(type(size) is int for size in sizes)
        if not whole or len(sizes) > 16 or any(not 0 <= size < 1 << 48 for size in sizes):
            raise ValueError("a tensor of impossible sizes")
    if len(shape) != len(stride):
        raise ValueError("a tensor of impossible strides")
    return TensorView(storage, offset, shape, stride)

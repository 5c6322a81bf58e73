"""What a pickle of `torch.save` would make, known without making it.

Follows the opcodes as torch's `weights_only` unpickler does, with stand-ins on the stack: what is called,
with which storages, shapes and strides. What is neither a tensor nor a plain container is refused, and so is
a tensor that reaches beyond the bytes it is said to lie in: torch would take memory for either.
"""

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

StorageBytes = dict[str, int]  # bytes of each storage, by its key

REBUILDS = tuple(f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3"))
PARAMETERS = tuple(f"torch._utils._rebuild_parameter{kind}" for kind in ("", "_with_state"))
DTYPES = frozenset(str(value) for value in vars(torch).values() if isinstance(value, torch.dtype))
# Bytes of an element of each storage.
WIDTHS = {
    "torch.storage.UntypedStorage": 1,
    **{f"torch.{kind}Storage": 1 for kind in ("Byte", "Char", "Bool")},
    **{f"torch.{kind}Storage": 2 for kind in ("Half", "BFloat16", "Short")},
    **{f"torch.{kind}Storage": 4 for kind in ("Float", "Int")},
    **{f"torch.{kind}Storage": 8 for kind in ("Double", "Long", "ComplexFloat")},
    "torch.ComplexDoubleStorage": 16,
}
MOST_DIMENSIONS = 64  # as torch can have
MOST_COPIED = 1 << 20  # letters and keys that calls make anew, all together
ENCODE = "_codecs.encode"  # how old pickles spell bytes


SMALL = ("torch.Size", "torch.device")
CALLED = {*REBUILDS, *PARAMETERS, *SMALL, ENCODE, "collections.OrderedDict", "collections.Counter"}


@dataclass(frozen=True)
class Named:
    """A global that the pickle names."""

    name: str


@dataclass(frozen=True)
class Storage:
    """Bytes of the file that tensors lie in."""

    kind: str
    elements: int
    bytes: int


@dataclass
class Dictionary:
    """One that the pickle fills, with so many keys up to now."""

    keys: int = 0


TENSOR, OTHER = object(), object()  # what else lies on the stack and need not be known any further
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "EMPTY_LIST": OTHER}
VALUES = ("BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1")
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def look_through(pickle: BinaryIO, stand_ins: Collection[str], claimed: StorageBytes) -> None:
    """Follow one pickle to its end, where the stream is left.

    Args:
        stand_ins: full names that may be called as well, with whatever.
        claimed: takes up the storages that are named.

    Raises:
        ValueError: it is none of `torch.save`, or would make more than it may.
    """
    try:
        _Look(stand_ins, claimed).follow(pickle)
    except (LookupError, TypeError, AttributeError) as error:  # opcodes that do not fit one another
        raise ValueError(f"its pickle is damaged ({type(error).__name__})") from error


class _Look:
    def __init__(self, stand_ins: Collection[str], claimed: StorageBytes) -> None:
        self._stand_ins, self._claimed = frozenset(stand_ins), claimed
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks below each mark
        self._memo: dict[int, Any] = {}
        self._storages: dict[str, Storage] = {}
        self._copied = 0

    def follow(self, pickle: BinaryIO) -> None:
        for opcode, argument, _ in pickletools.genops(pickle):
            self._step(opcode.name, argument)

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in VALUES:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name == "EMPTY_DICT":
            stack.append(Dictionary())
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name in TUPLES:
            stack[-TUPLES[name] :] = [tuple(stack[-TUPLES[name] :])]
        elif name == "MARK":
            self._below.append(stack)
            self._stack = []
        elif name == "TUPLE":
            items = tuple(self._to_mark())
            self._stack.append(items)
        elif name == "APPEND":
            stack.pop()
        elif name == "APPENDS":
            self._to_mark()
        elif name == "SETITEM":
            _, key = stack.pop(), stack.pop()
            self._take_keys([key])
        elif name == "SETITEMS":
            self._take_keys(self._to_mark()[::2])
        elif name == "GLOBAL":
            stack.append(self._named(argument))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments = stack.pop()
            stack.append(self._called(stack.pop(), arguments))
        elif name == "BUILD":
            stack.pop()
            if stack[-1] is TENSOR:
                raise ValueError("its pickle changes a tensor that is made already")
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name not in ("PROTO", "STOP"):
            raise ValueError(f"its pickle has the opcode {name}, which torch.save does not write")

    def _to_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _take_keys(self, keys: list[Any]) -> None:
        # hashing a tuple in a tuple in a tuple without end would end the process
        if any(isinstance(key, tuple) for key in keys):
            raise ValueError("its pickle has a dictionary with tuples as keys")
        if isinstance(filled := self._stack[-1], Dictionary):
            filled.keys += len(keys)

    def _named(self, argument: str) -> Named:
        module, _, name = argument.partition(" ")
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        full = f"{module}.{name}"
        if not any(full in known for known in (self._stand_ins, DTYPES, WIDTHS, CALLED)):
            raise ValueError(
                f"its pickle names GLOBAL {full.removeprefix('builtins.')} which is neither a tensor nor a "
                "container"
            )
        return Named(full)

    def _called(self, function: Named, arguments: tuple[Any, ...]) -> Any:
        if function.name in self._stand_ins:
            return OTHER
        if function.name in REBUILDS:
            _require_inside(function.name, *arguments[:7])
            return TENSOR
        if function.name in PARAMETERS and arguments[0] is TENSOR:
            return TENSOR
        if function.name == "collections.OrderedDict" and arguments == ():
            return Dictionary()
        # the same text or dictionary may be given again and again
        if function.name == "collections.Counter" and isinstance(given := arguments[0], Dictionary):
            self._copied += given.keys
        elif function.name == ENCODE and arguments[1] == "latin1" and type(arguments[0]) is str:
            self._copied += len(arguments[0])
        elif not (function.name in SMALL and _is_small(arguments)):
            raise ValueError(f"its pickle calls {function.name} as torch.save does not")
        if self._copied > MOST_COPIED:
            raise ValueError(f"its pickle makes more than it holds by {function.name}")
        return OTHER

    def _storage(self, told: tuple[Any, ...]) -> Storage:
        """('storage', type, key, place, elements); the older format has a view behind it."""
        what, kind, key, _, elements, *view = told
        if what != "storage" or type(key) is not str or type(elements) is not int or elements < 0:
            raise ValueError("its pickle names a storage as torch.save does not")
        if view not in ([], [None]):
            raise ValueError("its pickle has a view of a storage, as torch before 0.4 wrote it")
        storage = Storage(kind.name, elements, elements * WIDTHS[kind.name])
        if self._storages.setdefault(key, storage) != storage:
            raise ValueError(f"its pickle says two things of the storage {key[:40]}")
        self._claimed[key] = storage.bytes
        return storage


def _is_small(arguments: tuple[Any, ...]) -> bool:
    """Of a shape, or of a device's name and number."""
    flat = arguments[0] if len(arguments) == 1 and type(arguments[0]) is tuple else arguments
    return len(flat) <= MOST_DIMENSIONS and all(type(part) in (int, str) for part in flat)


def _require_inside(
    function: str,
    storage: Storage,
    offset: int,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    *others: Any,
) -> None:
    """Torch would let a storage grow until a tensor fits in."""
    whole = all(type(number) is int and number >= 0 for number in (offset, *shape, *stride))
    if not whole or len(shape) != len(stride) or len(shape) > MOST_DIMENSIONS:
        raise ValueError("its pickle has a tensor of no shape")
    elements = storage.elements
    if function == REBUILDS[-1]:  # names its type itself
        elements = storage.bytes // getattr(torch, others[2].name.removeprefix("torch.")).itemsize
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if 0 not in shape and last >= elements:
        raise ValueError(f"its pickle has a tensor beyond the {elements:,} numbers that it lies in")

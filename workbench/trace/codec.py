"""Events as bytes and back, many at once: the same field of all of them is one column. Knows no files.

A column is described in JSON, and its values lie in the body of the frame::

    floats, ints, bools     as they lie in memory
    texts                   each once in the description, their places in the body
    arrays, tuples, lists   their lengths, then what is in them; one that is the same as before has no content
    records                 the name of the type, and a column for each of its fields
    a mixture               of which kind each value is, then a column for each kind

A step of a thousand requests is a few arrays this way, and one of a single request costs no more than its
numbers. A batch is read without those before it. Nothing but the types of this package is ever made from a
file, and a type or field that this version does not know is noticed.
"""

from __future__ import annotations

import dataclasses
import json
import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from itertools import chain, compress
from operator import attrgetter, is_not
from types import ModuleType, NoneType
from typing import Any

import numpy as np

import workbench.params
from workbench.cache import kv_events
from workbench.engine import events, plan, result
from workbench.engine.events import Event
from workbench.trace.frames import Damaged, Frame, frame

Said = list[Any]  # how a column is described: a tag, and what is known of it

SAME = 0xFFFF_FFFF  # instead of a length: the value before once more
MOST = 1 << 24  # of anything; more than a batch holds
_MODULES: tuple[ModuleType, ...] = (events, plan, result, kv_events, workbench.params)
_json = json.JSONEncoder(separators=(",", ":"))


class Unknown(ValueError):
    """A type or a field of another version."""


def encode(batch: Sequence[Event]) -> bytes:
    """Events as one frame."""
    writer = _Writer()
    head = [len(batch), writer.column(batch)]
    return frame(_json.encode(head).encode(), b"".join(writer.body))


def decode(frame: Frame) -> list[Event]:
    """The events of one frame.

    Raises:
        Unknown: there are some of another version.
        Damaged: there is something else.
    """
    reader = _Reader(frame.body)
    try:
        size, said = json.loads(frame.head)
        if not 0 <= size <= MOST:
            raise ValueError(f"a batch of {size}")
        return reader.column(said, size)
    except Unknown:
        raise
    except (
        ValueError, TypeError, LookupError, AttributeError, OverflowError, MemoryError, RecursionError,
    ) as error:  # fmt: skip
        raise Damaged(f"{type(error).__name__}: {error}") from None


# --- writing --------------------------------------------------------------------------------------------


class _Writer:
    """Describes columns, and collects what lies in the body."""

    def __init__(self) -> None:
        self.body: list[bytes] = []

    def column(self, values: Sequence[Any]) -> Said:
        kinds = set(map(type, values))
        if len(kinds) > 1:
            return self._mixture(values)
        kind = kinds.pop() if kinds else NoneType
        write = _WRITERS.get(kind)
        if write is not None:
            return write(self, values)
        if _TYPES.get(kind.__name__) is kind:
            if issubclass(kind, Enum):
                return ["enum", kind.__name__, [value.name for value in values]]
            return self._records(kind, values)
        if issubclass(kind, np.generic):
            return self.column([value.item() for value in values])
        return ["none"]  # objects of the user's own, such as one in extra_args

    def _mixture(self, values: Sequence[Any]) -> Said:
        kinds = {kind: place for place, kind in enumerate(dict.fromkeys(map(type, values)))}
        self.body.append(bytes(map(kinds.__getitem__, map(type, values))))
        return ["mix", *(self.column([value for value in values if type(value) is kind]) for kind in kinds)]

    def _records(self, kind: type, values: Sequence[Any]) -> Said:
        fields = {name: self.column(list(map(attrgetter(name), values))) for name in _names_of(kind)}
        return ["record", kind.__name__, fields]

    def none(self, values: Sequence[None]) -> Said:
        return ["none"]

    def floats(self, values: Sequence[float]) -> Said:
        self.body.append(array("d", values).tobytes())
        return ["float"]

    def ints(self, values: Sequence[int]) -> Said:
        for code in "iq":  # 4 bytes, or 8
            try:
                self.body.append(array(code, values).tobytes())
            except OverflowError:
                continue
            return ["int", f"<i{array(code).itemsize}"]
        return ["big", list(values)]

    def bools(self, values: Sequence[bool]) -> Said:
        self.body.append(bytes(values))
        return ["bool"]

    def texts(self, values: Sequence[str]) -> Said:
        known = {text: place for place, text in enumerate(dict.fromkeys(values))}
        self.body.append(array("I", map(known.__getitem__, values)).tobytes())
        return ["text", list(known)]

    def strings_of_bytes(self, values: Sequence[bytes]) -> Said:
        self.body += (array("I", map(len, values)).tobytes(), *values)
        return ["bytes"]

    def tuples(self, values: Sequence[tuple[Any, ...]]) -> Said:
        return ["tuple", self._runs(values)]

    def lists(self, values: Sequence[list[Any]]) -> Said:
        return ["list", self._runs(values)]

    def _runs(self, values: Sequence[Sequence[Any]]) -> Said:
        fresh = list(map(is_not, values, (None, *values)))
        sizes = [len(value) if new else SAME for value, new in zip(values, fresh, strict=True)]
        self.body.append(array("I", sizes).tobytes())
        return self.column(list(chain.from_iterable(compress(values, fresh))))

    def dicts(self, values: Sequence[dict[Any, Any]]) -> Said:
        self.body.append(array("I", map(len, values)).tobytes())
        items = list(chain.from_iterable(value.items() for value in values))
        return ["dict", self.column([key for key, _ in items]), self.column([item for _, item in items])]

    def arrays(self, values: Sequence[np.ndarray[Any, Any]]) -> Said:
        alike = {(value.dtype, value.shape[1:]) for value in values}
        if len(alike) > 1 or values[0].ndim != 1 or values[0].dtype.hasobject:
            return ["shaped", *map(self._shaped, values)]
        sizes, last, known = array("I"), None, b""
        place = len(self.body)
        for value in values:
            if value is not last:
                data, last = value.tobytes(), value
                if data != known or len(self.body) == place:
                    self.body.append(data)
                    sizes.append(len(value))
                    known = data
                    continue
            sizes.append(SAME)
        self.body.insert(place, sizes.tobytes())
        return ["array", values[0].dtype.str]

    def _shaped(self, value: np.ndarray[Any, Any]) -> Said:
        if value.dtype.hasobject:
            return [value.shape, self.column(value.ravel().tolist())]
        self.body.append(value.tobytes())
        return [value.shape, value.dtype.str]


_WRITERS: dict[type, Callable[[_Writer, Any], Said]] = {
    NoneType: _Writer.none, float: _Writer.floats, int: _Writer.ints, bool: _Writer.bools, str: _Writer.texts,
    bytes: _Writer.strings_of_bytes, tuple: _Writer.tuples, list: _Writer.lists, dict: _Writer.dicts,
    np.ndarray: _Writer.arrays,
}  # fmt: skip


def _names_of(kind: type) -> tuple[str, ...]:
    """The fields of a record."""
    return tuple(getattr(kind, "_fields", ())) or tuple(f.name for f in dataclasses.fields(kind))


# --- reading --------------------------------------------------------------------------------------------


class _Reader:
    """Makes columns from their descriptions, taking the values from the body in the order of writing."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def _take(self, dtype: str, count: int) -> np.ndarray[Any, Any]:
        values = np.frombuffer(self._body, dtype, count, self._at) if count else np.empty(0, dtype)
        self._at += values.nbytes
        return values

    def column(self, said: Said, size: int) -> list[Any]:
        tag, *known = said
        values = _READERS[tag](self, size, *known)
        if len(values) != size:
            raise ValueError(f"{len(values)} values where {size} are due")
        return values

    def none(self, size: int) -> list[Any]:
        if size > MOST:  # which no file is too short for
            raise ValueError(f"{size} times nothing")
        return [None] * size

    def floats(self, size: int) -> list[Any]:
        values: list[Any] = self._take("<f8", size).tolist()
        return values

    def ints(self, size: int, dtype: str) -> list[Any]:
        values: list[Any] = self._take(dtype, size).tolist()
        return values

    def big(self, size: int, values: list[int]) -> list[Any]:
        return values

    def bools(self, size: int) -> list[Any]:
        values: list[Any] = self._take("?", size).tolist()
        return values

    def texts(self, size: int, known: list[str]) -> list[Any]:
        return [known[place] for place in self._take("<u4", size).tolist()]

    def strings_of_bytes(self, size: int) -> list[Any]:
        return [self._take("u1", length).tobytes() for length in self._take("<u4", size).tolist()]

    def enums(self, size: int, name: str, values: list[str]) -> list[Any]:
        kind = self._named(name)
        return [kind[value] for value in values]

    def mixture(self, size: int, *kinds: Said) -> list[Any]:
        of = self._take("u1", size).tolist()
        columns = [iter(self.column(said, of.count(place))) for place, said in enumerate(kinds)]
        return [next(columns[place]) for place in of]

    def tuples(self, size: int, said: Said) -> list[Any]:
        return self._runs(size, said, tuple)

    def lists(self, size: int, said: Said) -> list[Any]:
        return self._runs(size, said, list)

    def _runs(self, size: int, said: Said, kind: type) -> list[Any]:
        sizes = self._take("<u4", size).tolist()
        content = self.column(said, sum(length for length in sizes if length != SAME))
        values: list[Any] = []
        at = 0
        for length in sizes:
            if length == SAME:
                values.append(values[-1])
                continue
            values.append(kind(content[at : at + length]))
            at += length
        return values

    def dicts(self, size: int, said_keys: Said, said_items: Said) -> list[Any]:
        sizes = self._take("<u4", size).tolist()
        keys, items = (iter(self.column(said, sum(sizes))) for said in (said_keys, said_items))
        return [{next(keys): next(items) for _ in range(length)} for length in sizes]

    def arrays(self, size: int, dtype: str) -> list[Any]:
        values: list[Any] = []
        for length in self._take("<u4", size).tolist():
            values.append(values[-1] if length == SAME else self._take(dtype, length))
        return values

    def shaped(self, size: int, *all_said: Said) -> list[Any]:
        return [self._shaped(*said) for said in all_said]

    def _shaped(self, shape: list[int], said: Said | str) -> np.ndarray[Any, Any]:
        count = math.prod(shape)
        if isinstance(said, str):
            return self._take(said, count).reshape(shape)
        content = self.column(said, count)
        values = np.empty(count, np.object_)
        values[:] = content
        return values.reshape(shape)

    def records(self, size: int, name: str, fields: dict[str, Said]) -> list[Any]:
        kind = self._named(name)
        names = _names_of(kind)
        if more := [field for field in fields if field not in names]:
            raise Unknown(f"{name}.{more[0]}")
        columns = [self.column(said, size) for said in fields.values()]
        try:
            return [kind(**dict(zip(fields, row, strict=True))) for row in zip(*columns, strict=True)]
        except TypeError:
            missing = [field for field in names if field not in fields]
            raise Unknown(f"{name} without {', '.join(missing)}") from None

    def _named(self, name: str) -> Any:
        if name not in _TYPES:
            raise Unknown(name)
        return _TYPES[name]


_READERS: dict[str, Callable[..., list[Any]]] = {
    "none": _Reader.none, "float": _Reader.floats, "int": _Reader.ints, "big": _Reader.big,
    "bool": _Reader.bools, "text": _Reader.texts, "bytes": _Reader.strings_of_bytes, "enum": _Reader.enums,
    "mix": _Reader.mixture, "tuple": _Reader.tuples, "list": _Reader.lists, "dict": _Reader.dicts,
    "array": _Reader.arrays, "shaped": _Reader.shaped, "record": _Reader.records,
}  # fmt: skip


def _types() -> Iterator[tuple[str, type]]:
    for module in _MODULES:
        for name, kind in vars(module).items():
            if not isinstance(kind, type) or kind.__module__ != module.__name__:
                continue
            if dataclasses.is_dataclass(kind) or hasattr(kind, "_fields") or issubclass(kind, Enum):
                yield name, kind


_TYPES = dict(_types())

"""Events as bytes and back: plain values as JSON, arrays as they lie in memory. Knows no files.

A frame is one event::

    head size | body size | check of both | CRC-32 of head and body     four little-endian uint32
    head: JSON, the event with its arrays left out        body: the arrays, one after the other

A type's field names are written the first time it comes, so that a reader notices fields it does not know.
Nothing but the types of this package is ever made from a file.
"""

from __future__ import annotations

import dataclasses
import json
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from operator import attrgetter
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

import workbench.params
from workbench.engine import events, plan, result
from workbench.engine.events import Event

SIZES = struct.Struct("<IIII")
_CHECK = 0x5742_5452
_PLAIN = frozenset({int, float, str, bool, type(None)})
_MODULES: tuple[ModuleType, ...] = (events, plan, result, workbench.params)


class Damaged(ValueError):
    """Bytes that no encoder wrote."""


class Unknown(ValueError):
    """A type or a field of another version."""


class Frame(NamedTuple):
    """The parts of one frame, whole and checked."""

    head: bytes
    body: bytes
    end: int  # where the next one begins


def frame(head: bytes, body: bytes = b"") -> bytes:
    """The bytes of one frame."""
    sizes = (len(head), len(body))
    return b"".join((SIZES.pack(*sizes, _check(*sizes), zlib.crc32(body, zlib.crc32(head))), head, body))


def read_frame(data: bytes, begin: int) -> Frame | None:
    """The frame at `begin`; None where the bytes end before it does.

    Raises:
        Damaged: its sizes or its sum are wrong.
    """
    start = begin + SIZES.size
    if start > len(data):
        return None
    head_size, body_size, check, crc = SIZES.unpack_from(data, begin)
    if check != _check(head_size, body_size):
        raise Damaged(f"no frame begins at byte {begin}")
    middle, end = start + head_size, start + head_size + body_size
    if end > len(data):
        return None
    head, body = data[start:middle], data[middle:end]
    if zlib.crc32(body, zlib.crc32(head)) != crc:
        raise Damaged(f"the frame at byte {begin} does not add up")
    return Frame(head, body, end)


def _check(head_size: int, body_size: int) -> int:
    return (head_size ^ (body_size << 1) ^ _CHECK) & 0xFFFF_FFFF


class _Names:
    """The last few long tuples of names, on both sides: steps hold the same requests for a while."""

    def __init__(self) -> None:
        self.last: list[tuple[str, ...]] = [(), (), (), ()]
        self._next = 0

    def find(self, value: tuple[Any, ...]) -> int | None:
        for slot, names in enumerate(self.last):
            if value is names or value == names:
                return slot
        return None

    def keep(self, names: tuple[str, ...]) -> None:
        self.last[self._next] = names
        self._next = (self._next + 1) % len(self.last)


# --- writing --------------------------------------------------------------------------------------------


class _Fields(NamedTuple):
    names: tuple[str, ...]
    read: Callable[[Any], tuple[Any, ...]]


class Encoder:
    """Writes events. What it wrote before matters, so a stream has one encoder."""

    def __init__(self) -> None:
        self._fields: dict[type, _Fields] = {}  # of the types whose field names are written
        self._dtypes: dict[np.dtype[Any], str] = {}
        self._names = _Names()
        self._body: list[bytes] = []
        self._write = json.JSONEncoder(separators=(",", ":")).encode

    def encode(self, event: Event) -> bytes:
        """One event as a frame."""
        self._body.clear()
        head = self._write(self._pack(event)).encode()
        return frame(head, b"".join(self._body))

    # A steady step of one request is some forty values: what costs here is the calls, so the plain ones make
    # none, and what is known of a type is looked up once.

    def _pack(self, value: Any) -> Any:
        kind = type(value)
        if kind is np.ndarray:
            return self._array(value)
        if kind in _PLAIN:
            return value
        if kind is tuple:
            return self._tuple(value) if len(value) > 3 else {"t": self._all(value)}
        if kind in self._fields or dataclasses.is_dataclass(kind) or hasattr(kind, "_fields"):
            return self._record(value, kind)
        if kind is list:
            return self._all(value)
        if kind is dict:
            return {"d": [[self._pack(key), self._pack(item)] for key, item in value.items()]}
        return self._other(value)

    def _all(self, values: Iterable[Any]) -> list[Any]:
        pack = self._pack
        return [value if type(value) in _PLAIN else pack(value) for value in values]

    def _array(self, value: np.ndarray[Any, Any]) -> dict[str, Any]:
        name = self._dtypes.get(value.dtype)
        if name is None:
            if value.dtype.hasobject:
                return {"o": self._pack(value.tolist())}
            name = self._dtypes[value.dtype] = value.dtype.str
        self._body.append(value.tobytes())
        return {"a": [name, *value.shape]}

    def _tuple(self, value: tuple[Any, ...]) -> dict[str, Any]:
        if (slot := self._names.find(value)) is not None:
            return {"=": slot}
        if set(map(type, value)) == {str}:
            self._names.keep(value)
            return {"t": value}
        return {"t": self._all(value)}

    def _record(self, value: Any, kind: type) -> dict[str, Any]:
        fields = self._fields.get(kind)
        if fields is not None:
            return {"@": kind.__name__, "v": self._all(fields.read(value))}
        fields = self._fields[kind] = _fields_of(kind)
        return {"@": kind.__name__, "f": fields.names, "v": self._all(fields.read(value))}

    def _other(self, value: Any) -> Any:
        if isinstance(value, Enum):
            return {"e": [type(value).__name__, value.name]}
        if isinstance(value, bytes):
            return {"b": value.hex()}
        if isinstance(value, np.generic):
            return value.item()
        return None  # an object of the user's own, such as one in extra_args


def _fields_of(kind: type) -> _Fields:
    names = tuple(getattr(kind, "_fields", ())) or tuple(f.name for f in dataclasses.fields(kind))
    if len(names) == 1:
        return _Fields(names, lambda value: (getattr(value, names[0]),))
    return _Fields(names, attrgetter(*names))


# --- reading --------------------------------------------------------------------------------------------


class Decoder:
    """Reads what one encoder wrote, in the same order."""

    def __init__(self) -> None:
        self._types = dict(_types())
        self._fields: dict[str, list[str]] = {}
        self._names = _Names()
        self._body = b""
        self._at = 0

    def decode(self, frame: Frame) -> Event:
        """One event.

        Raises:
            Unknown: it is of another version.
            Damaged: it is no event.
        """
        self._body, self._at = frame.body, 0
        try:
            event: Event = self._unpack(json.loads(frame.head))
        except Unknown:
            raise
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise Damaged(f"{type(error).__name__}: {error}") from None
        return event

    def _unpack(self, value: Any) -> Any:
        if type(value) is list:
            return [self._unpack(item) for item in value]
        if type(value) is not dict:
            return value
        if "@" in value:
            return self._record(value)
        ((tag, said),) = value.items()
        unpacked: Any = getattr(self, _READERS[tag])(said)
        return unpacked

    def _array(self, said: list[Any]) -> Any:
        dtype, shape = np.dtype(said[0]), said[1:]
        count = int(np.prod(shape, dtype=np.int64))
        array = np.frombuffer(self._body, dtype, count, self._at) if count else np.empty(0, dtype)
        self._at += array.nbytes
        return array.reshape(shape)

    def _tuple(self, said: list[Any]) -> tuple[Any, ...]:
        values = tuple(self._unpack(item) for item in said)
        if len(values) >= 4 and set(map(type, values)) == {str}:
            self._names.keep(values)
        return values

    def _again(self, said: int) -> tuple[str, ...]:
        return self._names.last[said]

    def _objects(self, said: list[Any]) -> Any:
        values = self._unpack(said)
        array = np.empty(len(values), np.object_)
        array[:] = values
        return array

    def _dict(self, said: list[Any]) -> dict[Any, Any]:
        return {self._unpack(key): self._unpack(item) for key, item in said}

    def _enum(self, said: list[str]) -> Any:
        return self._named(said[0])[said[1]]

    def _bytes(self, said: str) -> bytes:
        return bytes.fromhex(said)

    def _record(self, value: dict[str, Any]) -> Any:
        name = value["@"]
        kind = self._named(name)
        if "f" in value:
            self._fields[name] = value["f"]
            known = _fields_of(kind).names
            if more := [field for field in value["f"] if field not in known]:
                raise Unknown(f"{name}.{more[0]}")
        said = dict(zip(self._fields[name], map(self._unpack, value["v"]), strict=True))
        try:
            return kind(**said)
        except TypeError:
            missing = [field for field in _fields_of(kind).names if field not in said]
            raise Unknown(f"{name} without {', '.join(missing)}") from None

    def _named(self, name: str) -> Any:
        if name not in self._types:
            raise Unknown(name)
        return self._types[name]


_READERS = {
    "a": "_array", "t": "_tuple", "=": "_again", "o": "_objects", "d": "_dict", "e": "_enum", "b": "_bytes",
}  # fmt: skip


def _types() -> Iterator[tuple[str, type]]:
    for module in _MODULES:
        for name, kind in vars(module).items():
            if not isinstance(kind, type) or kind.__module__ != module.__name__:
                continue
            if dataclasses.is_dataclass(kind) or hasattr(kind, "_fields") or issubclass(kind, Enum):
                yield name, kind

"""Frames: how events lie in the file of a recording, so that a reader notices a cut and any damage.

::

    head size | body size | check of both | CRC-32 of head and body     four little-endian uint32
    head: what the body is        body: arrays, one after the other

Knows bytes only.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

SIZES = struct.Struct("<IIII")
_CHECK = 0x5742_5452


class Damaged(ValueError):
    """Bytes that no encoder wrote."""


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

"""How much of a batch one program takes on: tile shapes and pieces, functions of shapes found by measuring.

Knows nothing of triton or torch.
"""

from __future__ import annotations

from typing import NamedTuple

FEW_ROWS = 64  # rows of a tile up to which a request's queries stand in one tile
SHARED_PIECES = 8  # a shared prefix is cut into, at most


class Shape(NamedTuple):
    """What of an attention decides its tiles."""

    group: int  # heads that share a KV head
    kv_heads: int
    head_dim: int
    itemsize: int  # bytes of a number
    processors: int  # of the device


class Tile(NamedTuple):
    """What one program works on, and with how much."""

    rows: int  # queries times heads of a group, padded to a power of two
    queries: int
    keys: int  # of one step along the context
    warps: int
    stages: int


class Split(NamedTuple):
    """How a context is cut."""

    pieces: int  # at most
    least: int  # keys worth a piece of their own


def few_tile(shape: Shape, count: int) -> Tile:
    """Tiles that hold all queries of a request: bound by the reading of keys and values."""
    rows = max(16, power_of_two(shape.group * count))
    if shape.itemsize > 2:
        return Tile(rows, rows // shape.group, 32, 4, 2)
    return Tile(rows, rows // shape.group, 64, 4, 3 if shape.head_dim <= 128 else 2)


def many_tile(shape: Shape) -> Tile:
    """Tiles of a prompt: bound by the matrix units."""
    if shape.itemsize > 2:
        rows = max(32, power_of_two(shape.group))
        return Tile(rows, rows // shape.group, 32, 4, 1)
    rows = max(128, power_of_two(shape.group))
    if shape.head_dim > 128:
        return Tile(rows, rows // shape.group, 32, 8, 2)
    return Tile(rows, rows // shape.group, 64, 8, 3)


def shared_tile(shape: Shape) -> Tile:
    """Tiles of rows of many requests over what they have in common."""
    return many_tile(shape)


def few_split(shape: Shape, requests: int, length: int, room: int) -> Split:
    """Pieces of a context of up to `length` keys; `room`: slots there is memory for."""
    programs = requests * shape.kv_heads
    wanted = 16 * shape.processors // programs
    least = 128 if wanted > 16 else 256 if wanted > 2 else 1024
    return Split(max(1, min(64, max(wanted, 2), room, -(-length // least))), least)


def many_split(shape: Shape, tiles: int, length: int, room: int) -> Split:
    """The same for tiles of many rows: few of them are cut, as the last chunk of a long prompt is."""
    wanted = 2 * shape.processors // (tiles * shape.kv_heads)
    return Split(max(1, min(8, wanted, room, -(-length // 512))), 512)


def shared_split(shape: Shape, tiles: int, room: int) -> Split:
    """Pieces of a shared prefix, whose length only the device knows. None: no room for it."""
    wanted = -(-shape.processors // (tiles * shape.kv_heads))
    return Split(min(SHARED_PIECES, wanted, room), 256)


def power_of_two(n: int) -> int:
    """The least power of two that is no less than n."""
    return 1 << (n - 1).bit_length()

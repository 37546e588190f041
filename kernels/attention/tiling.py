"""How much of a batch one program takes on: tile shapes and pieces, functions of shapes found by measuring.

Knows nothing of triton or torch.
"""

from __future__ import annotations

from typing import NamedTuple

FEW_ROWS = 64  # rows of a tile up to which a request's queries stand in one tile
LONG_ROWS = 16384  # of a prompt that is worth the largest tiles
MOST_PIECES = 32  # of a context; a merge holds one number of each in registers
MOST_SHARED_PIECES = 16  # of a shared prefix


class Shape(NamedTuple):
    """What of an attention decides its tiles."""

    group: int  # heads that share a KV head
    kv_heads: int
    head_dim: int
    itemsize: int  # bytes of a number
    processors: int  # of the device
    stored: int  # bytes of a number in the cache


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


def few_tile(shape: Shape, count: int, requests: int) -> Tile:
    """Tiles that hold all queries of a request: bound by the reading of keys and values."""
    rows = max(16, power_of_two(shape.group * count))
    queries = rows // shape.group
    if shape.itemsize > 2:
        return Tile(rows, queries, 32, 4, 2)
    if rows > 16 or shape.head_dim > 128:
        return Tile(rows, queries, 64 if shape.head_dim <= 128 else 32, 4, 3)
    # Two warps a tile and many tiles at once. 256 x 600 keys, 16/8 heads: 151 us with steps of 32 keys, 160
    # with 64; 64 x 1000: 79 and 75; of 100 .. 1700 keys, 32/8 heads, 140: 128 and 114, 200: 176 and 178.
    # Steps of 128 with four warps leave a processor a single tile: 2 % less time where contexts are long,
    # twice as much where they are short, as behind a shared prefix.
    if requests * shape.kv_heads > 12 * shape.processors:
        return Tile(rows, queries, 32, 2, 4)
    # Eight bits, 32/8 heads: 32 x 16384 keys in 270 us with steps of 128 keys and two warps, 295 with 64, 307
    # with four warps; 64 x 1000: 54, 62 and 60; 1 x 4000 with 64 and 128: 10.6 and 11.3.
    if shape.stored == 1 and requests * shape.kv_heads > shape.processors:
        return Tile(rows, queries, 128, 2, 3)
    return Tile(rows, queries, 64, 2, 3)


def many_tile(shape: Shape, count: int) -> Tile:
    """Tiles of prompts of up to `count` tokens: bound by the matrix units."""
    least = power_of_two(shape.group)
    if shape.itemsize > 2:
        return Tile(max(32, least), max(32, least) // shape.group, 32, 4, 1)
    # The walk's loads come in pairs, a table's entries and then what they name: five stages hold two steps.
    # One prompt of 8192, 32/8 heads: 1221 us with 256 rows, 1344 with 128; 16 prompts of 512: 128 rows.
    rows = max(256 if shape.group * count >= LONG_ROWS and shape.head_dim <= 128 else 128, least)
    if shape.head_dim > 128:
        return Tile(rows, rows // shape.group, 32, 8, 3)
    return Tile(rows, rows // shape.group, 64, 8, 5)


def shared_tile(shape: Shape) -> Tile:
    """Tiles of rows of many requests over what they have in common."""
    return many_tile(shape, 1)


def few_split(shape: Shape, requests: int, length: int, room: int) -> Split:
    """Pieces of a context of up to `length` keys; `room`: slots there is memory for.

    The longest contexts come first, so that many programs leave no tail; where they are few, pieces fill the
    processors, and a piece pays for its merging by being long. 1 x 300: 6.0 us in pieces of 64, 6.9 of 128;
    8 x 1000: 15.5 of 128, 18 of 256; 32 x 1000: 40 of 512, 43 of 256. Contexts of 100 .. 1700 keys, 8 KV
    heads: 50 of them 61.3 us in up to eight pieces of 512, 61.8 in two of at least 256, 67 whole; 64 of them
    69, 63.6 and 69; 100 of them 98 in two, 90 whole.
    """
    programs = requests * shape.kv_heads
    if programs > 8 * shape.processors:
        return Split(1, 1024)
    pieces = min(MOST_PIECES, 16 * shape.processors // programs)
    least = 64
    while least < 1024 and least * shape.processors < 256 * programs:
        least *= 2
    if programs >= 2 * shape.processors:
        pieces, least = (8, 512) if programs < 3.5 * shape.processors else (2, 256)
        if programs >= 5 * shape.processors:
            pieces, least = 2, 2048
    return Split(max(1, min(pieces, room, -(-length // least))), least)


def many_split(shape: Shape, tiles: int, length: int, room: int) -> Split:
    """The same for tiles of many rows: few of them are cut, as the last chunk of a long prompt is.

    Never into more programs than processors, for each takes one whole. A chunk of 128 at 16000, 32/8 heads:
    331 us whole, 141 in four pieces, 255 in eight.
    """
    wanted = shape.processors // (tiles * shape.kv_heads)
    return Split(max(1, min(8, wanted, room, -(-length // 512))), 512)


def shared_split(shape: Shape, tiles: int, room: int) -> Split:
    """Pieces of a shared prefix, whose length only the device knows; none where there is no room.

    One program a processor; up to two where that makes four pieces. 256 rows over 4096 keys and 80 of their
    own: 16/8 heads 69 us with four, 75 with eight; 32/8 heads 98 with four, 112 with eight.
    """
    wanted = shape.processors / (tiles * shape.kv_heads)
    pieces = int(max(1, wanted, min(4, 2 * wanted)))
    return Split(min(MOST_SHARED_PIECES, pieces, room), 256)


def power_of_two(n: int) -> int:
    """The least power of two that is no less than n."""
    return 1 << (n - 1).bit_length()

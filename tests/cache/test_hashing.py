"""Chains of keys: what is remembered of the last one changes no key, and keys stand for whole prefixes."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from workbench.cache.hashing import TOKEN_BYTES, Chains, common_blocks, extend_keys

BLOCK = 2


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def as_bytes(tokens: list[int]) -> bytes:
    return b"".join(token.to_bytes(TOKEN_BYTES, "little") for token in tokens)


# Few tokens and few roots, so that many begin alike.
sequences = st.lists(
    st.tuples(st.sampled_from([b"", b"adapter"]), st.lists(st.integers(0, 1), min_size=BLOCK, max_size=12)),
    max_size=12,
)


@given(sequences)
def test_keys_do_not_depend_on_what_was_hashed_before(asked: list[tuple[bytes, list[int]]]) -> None:
    chains = Chains(digest, BLOCK)
    for root, tokens in asked:
        data = as_bytes(tokens[: len(tokens) // BLOCK * BLOCK])
        keys: list[bytes] = []
        chains.extend(keys, root, data)
        alone: list[bytes] = []
        extend_keys(digest, alone, root, data, BLOCK)
        assert keys == alone


@given(st.lists(st.integers(0, 1), max_size=14), st.lists(st.integers(0, 1), max_size=14))
def test_common_blocks_are_whole_and_all_there_are(one: list[int], other: list[int]) -> None:
    found = common_blocks(as_bytes(one), as_bytes(other), BLOCK)
    end = found * BLOCK
    assert one[:end] == other[:end]
    following = slice(end, end + BLOCK)
    assert len(one[following]) < BLOCK or one[following] != other[following]


def test_a_chain_that_goes_on_is_not_mistaken_for_one_that_begins() -> None:
    chains = Chains(digest, BLOCK)
    first, second = as_bytes([1, 2]), as_bytes([3, 4])
    whole: list[bytes] = []
    chains.extend(whole, b"", first + second)
    stepwise: list[bytes] = []
    chains.extend(stepwise, b"", first)
    chains.extend(stepwise, b"", second)
    assert stepwise == whole

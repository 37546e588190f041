"""Which blocks are handed out, and what is still found."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.cache.hashing import hash_function, root_key
from workbench.cache.manager import CacheManager, KVGroup
from workbench.cache.pool import NULL_BLOCK, BlockPool

BLOCK_SIZE = 4


class Tokens:
    """A token source over a list."""

    def __init__(self, token_ids: list[int]) -> None:
        self.token_ids = np.array(token_ids, np.int32)

    def token_bytes(self, begin: int, end: int) -> bytes:
        return self.token_ids[begin:end].tobytes()


def manager(num_blocks: int, *, windows=(None,), algorithm="sha256", caching=True) -> CacheManager:
    groups = [KVGroup((layer,), window) for layer, window in enumerate(windows)]
    return CacheManager(BlockPool(num_blocks), groups, BLOCK_SIZE, hash_function(algorithm), caching=caching)


def compute(cache: CacheManager, token_ids: list[int], root: bytes = b""):
    """A request that finds what it can, computes the rest, and still holds its blocks."""
    source, tables = Tokens(token_ids), cache.open(root)
    hit = cache.lookup(tables, source, len(token_ids))
    assert cache.admit(tables, hit, len(token_ids))
    cache.register(tables, source, len(token_ids))
    return tables, hit


def found(cache: CacheManager, token_ids: list[int], root: bytes = b"") -> int:
    return cache.lookup(cache.open(root), Tokens(token_ids), len(token_ids)).num_tokens


def test_the_block_free_longest_is_taken_first():
    pool = BlockPool(3)
    blocks = pool.take(3)
    for block in (blocks[1], blocks[2], blocks[0]):
        pool.release([block])
    assert pool.take(3) == [blocks[1], blocks[2], blocks[0]]


def test_a_requests_tail_is_reused_before_its_head():
    cache = manager(4)
    prompt = list(range(16))
    tables, _ = compute(cache, prompt)
    cache.release(tables)
    for taken, left in ((1, 12), (2, 8), (3, 4), (4, 0)):
        cache.pool.take(1)
        assert found(cache, [*prompt, 99]) == left, f"{taken} blocks reused"


def test_the_prefix_used_last_is_kept_longest():
    cache = manager(4)
    old, new = list(range(8)), list(range(100, 108))
    for prompt in (old, new, old):  # `old` is used again after `new`
        tables, _ = compute(cache, prompt)
        cache.release(tables)
    cache.pool.take(2)
    assert found(cache, [*new, 99]) == 0
    assert found(cache, [*old, 99]) == 8


def test_a_block_in_use_is_never_handed_out():
    cache = manager(4)
    tables, _ = compute(cache, list(range(12)))
    assert cache.pool.num_free == 1
    other = cache.open(b"")
    hit = cache.lookup(other, Tokens([50] * 8), 8)
    assert not cache.admit(other, hit, 8)
    assert cache.pool.take(1)[0] not in tables.blocks[0]


@pytest.mark.parametrize("algorithm", ["sha256", "xxhash"])
def test_a_full_hit_leaves_the_last_token_to_compute(algorithm):
    cache = manager(16, algorithm=algorithm)
    for length in range(1, 14):
        prompt = list(range(1000 * length, 1000 * length + length))
        tables, _ = compute(cache, prompt)
        assert found(cache, prompt) == (length - 1) // BLOCK_SIZE * BLOCK_SIZE
        cache.release(tables)


def test_one_different_token_parts_two_prefixes_for_good():
    cache = manager(16)
    prompt = list(range(16))
    compute(cache, prompt)
    assert found(cache, [*prompt[:5], 99, *prompt[6:], 0]) == 4


def test_extra_keys_keep_requests_apart():
    cache = manager(16)
    digest = hash_function("sha256")
    prompt = list(range(9))
    salted, other = (root_key(digest, ("salt", salt)) for salt in ("a", "b"))
    compute(cache, prompt, salted)
    assert [found(cache, prompt, root) for root in (b"", salted, other)] == [0, 8, 0]


def test_withdrawn_keys_are_not_found_and_their_blocks_stay_held():
    cache = manager(16)
    prompt = list(range(9))
    source, tables = Tokens(prompt), cache.open(b"")
    assert cache.admit(tables, cache.lookup(tables, source, 9), 9)
    cache.pool.withdraw(cache.register(tables, source, 9))
    assert found(cache, prompt) == 0
    cache.check([tables])
    assert cache.pool.num_held == 3


def test_a_hit_is_the_longest_prefix_on_which_all_groups_agree():
    cache = manager(24, windows=(None, 5))
    prompt = list(range(17))
    tables, _ = compute(cache, prompt)
    cache.release(tables)
    # The window's group needs only the block that reaches into it; losing that one shortens the hit.
    assert found(cache, prompt) == 16
    lost = cache.pool.find(tables.keys[3] + bytes((1,)))
    assert lost is not None
    cache.pool.withdraw([tables.keys[3] + bytes((1,))])
    assert found(cache, prompt) == 12


def test_blocks_that_left_the_window_are_given_back():
    cache = manager(8, windows=(5,))
    tables, _ = compute(cache, list(range(16)))
    assert cache.grow(tables, 16, 17) is not None
    # The query at 16 sees 12 .. 16: blocks of tokens 0 .. 11 are not needed any more.
    assert tables.blocks[0][:3] == [NULL_BLOCK] * 3
    assert cache.pool.num_held == 2
    cache.check([tables])


def test_with_caching_off_nothing_is_found():
    cache = manager(8, caching=False)
    tables, _ = compute(cache, list(range(9)))
    assert found(cache, list(range(9))) == 0
    assert cache.pool.num_cached == 0
    cache.release(tables)


def test_releasing_a_block_twice_is_noticed():
    pool = BlockPool(2)
    blocks = pool.take(1)
    pool.release(blocks)
    with pytest.raises(AssertionError, match="more often than held"):
        pool.release(blocks)

"""The keys under which blocks are found, computed again from tokens as the engine's cache does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from workbench.cache.hashing import HashFunction, extend_keys, hash_function
from workbench.trace.blocks import KEY_BYTES
from workbench.trace.pictures.sequences import NOT_KNOWN

Longs = npt.NDArray[np.int64]


class KeyChains(NamedTuple):
    """How one engine makes keys of tokens."""

    digest: HashFunction
    block_size: int

    @classmethod
    def read(cls, config: Mapping[str, object]) -> KeyChains | None:
        """From an engine's settings; None where they do not say, or name a function that is not installed."""
        size, algorithm = config.get("block_size"), config.get("prefix_caching_hash_algo")
        if not isinstance(size, int) or algorithm not in ("sha256", "xxhash"):
            return None
        try:
            return cls(hash_function(algorithm), size)
        except ValueError:  # no package xxhash
            return None

    def keys(self, root: bytes, tokens: Longs) -> list[bytes]:
        """Of the full blocks of tokens, as far as all of them are known."""
        unknown = np.flatnonzero(tokens == NOT_KNOWN)
        known = int(unknown[0]) if len(unknown) else len(tokens)
        whole = tokens[: known // self.block_size * self.block_size].astype("<i4")
        keys: list[bytes] = []
        extend_keys(self.digest, keys, root, whole.tobytes(), self.block_size)
        return keys


def shown(key: bytes) -> str:
    """A key as the blocks table has it."""
    return key[:KEY_BYTES].hex()

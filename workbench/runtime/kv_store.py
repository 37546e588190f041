"""The memory behind the block numbers: keys and values of every layer. Knows nothing of who holds a block."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from workbench.cache.manager import KVGroup
from workbench.kernels.attention.reference import Layout
from workbench.models.spec import ModelSpec


def kv_groups(spec: ModelSpec) -> tuple[KVGroup, ...]:
    """The model's layers by layout: those that share a window share a block table."""
    by_window: dict[int | None, list[int]] = {}
    for layer, window in enumerate(spec.windows):
        by_window.setdefault(window, []).append(layer)
    return tuple(KVGroup(tuple(layers), window) for window, layers in by_window.items())


def bytes_per_block(spec: ModelSpec, groups: Sequence[KVGroup], block_size: int, dtype: torch.dtype) -> int:
    """Bytes one block number stands for: the largest group's layers, since groups share the pool."""
    layers = max(len(group.layers) for group in groups)
    return 2 * layers * spec.num_kv_heads * spec.head_dim * block_size * dtype.itemsize


class KVStore:
    """Per layer [2, kv_heads, 1 + num_blocks, block_size, head_dim]; block 0 is the null block.

    It starts as zeros; a step's padding may be written to it, and nothing reads it as a visible key.

    Groups share block numbers and memory: the i-th layers of all groups use the i-th tensor.
    """

    def __init__(
        self,
        spec: ModelSpec,
        groups: Sequence[KVGroup],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (2, spec.num_kv_heads, 1 + num_blocks, block_size, spec.head_dim)
        depth = max(len(group.layers) for group in groups)
        self._tensors = [_zeros(shape, dtype, device) for _ in range(depth)]
        self._tensor_of = {layer: i for group in groups for i, layer in enumerate(group.layers)}

    def layer(self, layer: int) -> Tensor:
        return self._tensors[self._tensor_of[layer]]

    def layouts(self, spec: ModelSpec, groups: Sequence[KVGroup]) -> tuple[Layout, ...]:
        """How attention finds each group's keys in these tensors."""
        _, kv_heads, num_blocks, block_size, _ = self._tensors[0].shape
        return tuple(
            Layout(spec.num_heads, kv_heads, num_blocks, block_size, group.window) for group in groups
        )


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros, because what a masked position holds must at least be finite.

    On a CPU the system hands out zero pages when they are first touched, which torch.zeros does at once: a
    pool of 1 GiB would cost 0.8 s and 1 GiB before the first request.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)
    return torch.from_numpy(memory).view(dtype).view(shape)

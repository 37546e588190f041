"""The memory behind the block numbers: keys and values of every layer. Knows nothing of who holds a block."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from workbench.cache.manager import KVGroup
from workbench.kernels.attention import fp8
from workbench.kernels.attention.reference import Layout
from workbench.models.kv_scales import LayerScales
from workbench.models.spec import ModelSpec
from workbench.runtime.kv_formats import Format

# A prompt's largest key is no bound of the keys to come: scales leave room for twice as much. In a
# floating-point format that costs nothing but a binade at its small end.
HEADROOM = 2.0


def kv_groups(spec: ModelSpec) -> tuple[KVGroup, ...]:
    """The model's layers by layout: those that share a window share a block table."""
    by_window: dict[int | None, list[int]] = {}
    for layer, window in enumerate(spec.windows):
        by_window.setdefault(window, []).append(layer)
    return tuple(KVGroup(tuple(layers), window) for window, layers in by_window.items())


def bytes_per_block(
    spec: ModelSpec, groups: Sequence[KVGroup], block_size: int, formats: Sequence[Format]
) -> int:
    """Bytes one block number stands for, over all tensors of the store."""
    each = 2 * spec.num_kv_heads * block_size
    return sum(each * one.head_bytes(spec.head_dim) for one in _tensor_formats(groups, formats))


def _tensor_formats(groups: Sequence[KVGroup], formats: Sequence[Format]) -> list[Format]:
    """One entry a tensor: of each format as many as the group with most layers in it has.

    Groups share the pool, and so the i-th layers of one format in all groups share a tensor.
    """
    most: Counter[Format] = Counter()
    for group in groups:
        most |= Counter(formats[layer] for layer in group.layers)
    return [one for one in dict.fromkeys(formats) for _ in range(most[one])]


def largest_numbers(x: Tensor) -> Tensor:
    """The largest magnitude, as float32; NaN counts for nothing."""
    return torch.where(x.isnan(), 0.0, x.abs()).amax().float()


def scales_for(largest: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales for numbers of these largest magnitudes, in float32: powers of two, 1 where all is zero."""
    return torch.where(largest > 0, fp8.power(fp8.exponents(largest * HEADROOM, dtype)), 1.0)


class KVStore:
    """Per layer [2, kv_heads, 1 + num_blocks, block_size, head_dim]; block 0 is the null block.

    It starts as zeros; a step's padding may be written to it, and nothing reads it as a visible key.

    Groups share block numbers and memory: the i-th layers of all groups use the i-th tensor of their format.
    """

    def __init__(
        self,
        spec: ModelSpec,
        groups: Sequence[KVGroup],
        num_blocks: int,
        block_size: int,
        formats: Sequence[Format],
        device: torch.device,
        scales: Sequence[LayerScales] | None = None,
    ) -> None:
        """`scales`: of each layer in FP8 that has the same for all its keys; None: 1."""
        shape = (2, spec.num_kv_heads, 1 + num_blocks, block_size, spec.head_dim)
        tensors = _tensor_formats(groups, formats)
        self.formats = tuple(formats)
        self.device = device
        self._tensors = [_zeros(shape, one.dtype, device) for one in tensors]
        self._exponents = [
            _zeros(shape[:-1], torch.uint8, device) if one.per_head else None for one in tensors
        ]
        self._tensor_of = _places(groups, formats, tensors)
        # Read by kernels on the device at every launch, so that a graph sees scales that are found later.
        # Four numbers a layer, of which two are used: kernels are compiled for addresses of whole 16 bytes.
        self._scales = torch.ones(spec.num_layers, 4, device=device)[:, :2]
        if scales is not None:
            self._scales.copy_(torch.tensor(scales))
        self._largest: Tensor | None = None  # [num_layers, 2] float32; of the keys and values measured
        self.scales_due = False  # the next step that runs finds the scales of all layers

    @property
    def is_fp8(self) -> bool:
        return any(one.is_fp8 for one in self.formats)

    def layer(self, layer: int) -> Tensor:
        return self._tensors[self._tensor_of[layer]]

    def scales(self, layer: int) -> Tensor | None:
        """What a layer's numbers are multiplied by (kernels/attention/fp8.py); None: it is not in FP8."""
        one = self.formats[layer]
        if not one.is_fp8:
            return None
        return self._exponents[self._tensor_of[layer]] if one.per_head else self._scales[layer]

    def layouts(self, spec: ModelSpec, groups: Sequence[KVGroup]) -> tuple[Layout, ...]:
        """How attention finds each group's keys in these tensors."""
        _, kv_heads, num_blocks, block_size, _ = self._tensors[0].shape
        return tuple(
            Layout(spec.num_heads, kv_heads, num_blocks, block_size, group.window) for group in groups
        )

    # --- finding scales -------------------------------------------------------------------------------

    @property
    def measures(self) -> bool:
        """Whether layers are to show their keys and values before they store them."""
        return self.scales_due or self._largest is not None

    def measure(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """See a layer's new keys and values; where scales are due, its own follow from them at once."""
        found = torch.stack((largest_numbers(keys), largest_numbers(values)))
        if self._largest is not None:
            torch.maximum(self._largest[layer], found, out=self._largest[layer])
        if self.scales_due and self.formats[layer].is_fp8:
            self._scales[layer] = scales_for(found, self.formats[layer].dtype)

    def watch(self) -> Tensor:
        """The largest magnitudes of keys and values from now on, [num_layers, 2] float32."""
        if self._largest is None:
            self._largest = torch.zeros_like(self._scales)
        return self._largest


def _places(
    groups: Sequence[KVGroup], formats: Sequence[Format], tensors: Sequence[Format]
) -> dict[int, int]:
    """The tensor of each layer."""
    found = {}
    for group in groups:
        free = list(enumerate(tensors))
        for layer in group.layers:
            place = next(place for place in free if place[1] == formats[layer])
            free.remove(place)
            found[layer] = place[0]
    return found


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros, because what a masked position holds must at least be finite.

    On a CPU the system hands out zero pages when they are first touched, which torch.zeros does at once: a
    pool of 1 GiB would cost 0.8 s and 1 GiB before the first request.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)
    return torch.from_numpy(memory).view(dtype).view(shape)

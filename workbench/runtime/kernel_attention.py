"""Attention of one step: norm, rotary and cache write, then attention; of long prompts by torch's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.cache.manager import KVGroup
from workbench.engine.plan import StepPlan
from workbench.kernels.attention.kernel import Ragged, Space, attend
from workbench.kernels.attention.tiling import FEW_ROWS
from workbench.kernels.rotary.kernel import qk_rotary_write
from workbench.models.decoder import Decoder
from workbench.runtime.kv_store import KVStore
from workbench.runtime.whole_prompts import LEAST, attend_whole


class Flat(NamedTuple):
    """A step's tokens, laid out on the device; T of them, padding at the end."""

    token_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    slots: tuple[Tensor, ...]  # per KV group [T] int64; where keys and values are written


class Bounds(NamedTuple):
    """What the host knows of a step, or promises of every step a graph is replayed for."""

    count: int  # type: ignore[assignment]  # most tokens of a request that is not `whole`; 0: there is none
    length: int  # longest context, this step's tokens included
    whole: tuple[slice, ...] = ()  # tokens of prompts that see nothing but themselves, and are long


def bounds_of(plan: StepPlan, finding_whole: bool) -> Bounds:
    """What is known of a step that may hold anything. `finding_whole`: whether long prompts go apart."""
    length = int((plan.starts + plan.counts).max())
    mixed = Bounds(as_many(int(plan.counts.max())), length)
    if not finding_whole or mixed.count < LEAST:
        return mixed
    # The other attention takes everybody up to a count: whoever has more than that has to be whole.
    cached = plan.counts[plan.starts > 0]
    whole = plan.counts >= max(LEAST, int(cached.max(initial=0)) + 1)
    if not whole.any():
        return mixed
    ends = np.cumsum(plan.counts)
    prompts = tuple(
        slice(end - count, end)
        for end, count in zip(ends[whole].tolist(), plan.counts[whole].tolist(), strict=True)
    )
    others = int(plan.counts[~whole].max(initial=0))
    return Bounds(others and as_many(others), length, prompts)


def as_many(count: int) -> int:
    """As if somebody had many tokens: steps of any counts run the same few programs."""
    return max(count, FEW_ROWS + 1)


class KernelAttention:
    """One step's attention, for every layer."""

    def __init__(
        self,
        model: Decoder,
        groups: Sequence[KVGroup],
        store: KVStore,
        flat: Flat,
        ragged: Sequence[Ragged],
        bounds: Bounds,
        space: Space,
    ) -> None:
        """`ragged`: per KV group."""
        self._spec = model.spec
        self._cos_sin = model.rotary.cos_sin
        self._groups = groups
        self._store = store
        self._flat = flat
        self._ragged = ragged
        self._bounds = bounds
        self._space = space
        self._group_of = {layer: index for index, group in enumerate(groups) for layer in group.layers}
        self._scale = model.spec.head_dim**-0.5

    def __call__(self, layer: int, qkv: Tensor, q_norm: Tensor | None, k_norm: Tensor | None) -> Tensor:
        """[T, (heads + 2 * kv_heads) * head_dim] -> [T, heads * head_dim]."""
        spec, cache, group = self._spec, self._store.layer(layer), self._group_of[layer]
        scales = self._store.scales(layer)
        if self._store.measures:
            self._measure(layer, qkv, q_norm, k_norm)
        query = qk_rotary_write(
            qkv,
            self._flat.positions,
            self._cos_sin,
            cache,
            self._flat.slots[group],
            spec.num_heads,
            spec.num_kv_heads,
            spec.head_dim,
            q_norm,
            k_norm,
            spec.rms_norm_eps,
            keep=bool(self._bounds.whole),
            scales=scales,
        )
        out = torch.empty((len(qkv), spec.num_heads * spec.head_dim), dtype=qkv.dtype, device=qkv.device)
        if self._bounds.whole:
            attend_whole(query, qkv, self._bounds.whole, spec.num_kv_heads, self._scale, out)
        if self._bounds.count:
            attend(
                query,
                cache,
                self._ragged[group],
                self._scale,
                self._groups[group].window,
                self._bounds.count,
                self._bounds.length,
                self._space,
                out,
                scales,
            )
        return out

    def _measure(self, layer: int, qkv: Tensor, q_norm: Tensor | None, k_norm: Tensor | None) -> None:
        """Show the store the layer's keys and values as they are before they are stored."""
        spec, tokens = self._spec, len(qkv)
        aside = qkv.new_empty((2, spec.num_kv_heads, tokens, 1, spec.head_dim))
        places = torch.arange(tokens, device=qkv.device)
        positions, heads = self._flat.positions, (spec.num_heads, spec.num_kv_heads, spec.head_dim)
        qk_rotary_write(
            qkv, positions, self._cos_sin, aside, places, *heads, q_norm, k_norm, spec.rms_norm_eps
        )
        self._store.measure(layer, *aside)

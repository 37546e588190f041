"""What a model calls once a layer: rotary embedding, the write into the paged cache, attention over it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workbench.cache.manager import KVGroup
from workbench.kernels.attention.reference import attend_bucket, write_kv
from workbench.kernels.rotary.reference import qk_rotary
from workbench.models.spec import ModelSpec
from workbench.runtime.batch import Inputs
from workbench.runtime.contexts import Contexts
from workbench.runtime.kv_store import KVStore


class PagedAttention:
    """One step's attention, for every layer; made anew each step from that step's inputs."""

    def __init__(
        self,
        spec: ModelSpec,
        groups: Sequence[KVGroup],
        store: KVStore,
        contexts: Contexts,
        inputs: Inputs,
        cos_sin: Tensor,
    ) -> None:
        """`contexts` have begun the step; `cos_sin` [T, head_dim]: the rotary table at its positions."""
        self._spec = spec
        self._store = store
        self._contexts = contexts
        self._inputs = inputs
        self._cos_sin = cos_sin
        self._group_of = {layer: index for index, group in enumerate(groups) for layer in group.layers}
        self._scale = spec.head_dim**-0.5

    def __call__(self, layer: int, qkv: Tensor, q_norm: Tensor | None, k_norm: Tensor | None) -> Tensor:
        """[T, (heads + 2 * kv_heads) * head_dim] -> [T, heads * head_dim]."""
        spec, cache, group = self._spec, self._store.layer(layer), self._group_of[layer]
        query, keys, values = qk_rotary(
            qkv,
            None,
            self._cos_sin,
            spec.num_heads,
            spec.num_kv_heads,
            spec.head_dim,
            q_norm,
            k_norm,
            spec.rms_norm_eps,
        )
        if self._store.measures:
            self._store.measure(layer, keys, values)
        scales = self._store.scales(layer)
        lines = write_kv(cache, self._inputs.places[group], keys, values, scales)
        out = torch.empty((len(qkv), spec.num_heads * spec.head_dim), dtype=qkv.dtype, device=qkv.device)
        for bucket, context in self._contexts.each(layer, group, lines):
            attend_bucket(query, context, bucket, self._scale, out)
        return out

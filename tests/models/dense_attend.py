"""Attention as a textbook has it, over one request: stands in for the paged runtime in tests of models."""

from __future__ import annotations

import torch
from torch import Tensor
from workbench.kernels.rotary.reference import qk_rotary

from workbench.models.decoder import Decoder


class DenseAttend:
    """Keeps the keys and values of one request in order and looks at all that a layer's window shows."""

    def __init__(self, model: Decoder) -> None:
        self.model = model
        self.keys: dict[int, list[Tensor]] = {}
        self.values: dict[int, list[Tensor]] = {}
        self.positions = torch.empty(0, dtype=torch.int64)  # [T]; of the chunk being computed

    def at(self, positions: Tensor) -> DenseAttend:
        self.positions = positions
        return self

    def __call__(self, layer: int, qkv: Tensor, q_norm: Tensor | None, k_norm: Tensor | None) -> Tensor:
        spec = self.model.spec
        sizes = (spec.num_heads, spec.num_kv_heads, spec.head_dim)
        table = self.model.rotary.cos_sin
        q, k, v = qk_rotary(qkv, self.positions, table, *sizes, q_norm, k_norm, spec.rms_norm_eps)
        self.keys.setdefault(layer, []).append(k)
        self.values.setdefault(layer, []).append(v)
        shared = spec.num_heads // spec.num_kv_heads
        keys = torch.cat(self.keys[layer]).float().repeat_interleave(shared, dim=1)
        values = torch.cat(self.values[layer]).float().repeat_interleave(shared, dim=1)
        scores = torch.einsum("thd,shd->hts", q.float(), keys) * spec.head_dim**-0.5
        scores = scores.masked_fill(~self._visible(spec.windows[layer], len(keys)), float("-inf"))
        return torch.einsum("hts,shd->thd", scores.softmax(-1), values).flatten(1).to(qkv.dtype)

    def _visible(self, window: int | None, length: int) -> Tensor:
        """[T, length]; a query sees itself and, of what lies before it, window - 1 tokens."""
        distance = self.positions[:, None] - torch.arange(length)[None, :]
        return (distance >= 0) & (distance < (window or length))


def logits(model: Decoder, token_ids: Tensor, chunks: tuple[int, ...] = ()) -> Tensor:
    """[T, vocab]; of one request, computed at once or, with chunk sizes, chunk after chunk."""
    attend = DenseAttend(model)
    starts = [0]
    for size in chunks:
        starts.append(starts[-1] + size)
    parts = []
    with torch.inference_mode():
        for start, end in zip(starts, [*starts[1:], len(token_ids)], strict=True):
            positions = torch.arange(start, end)
            hidden = model.forward(token_ids[start:end], positions, attend.at(positions))
            parts.append(model.logits(hidden))
    return torch.cat(parts)

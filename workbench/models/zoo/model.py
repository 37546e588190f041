"""The Llama model as training sees it: plain torch, parameters in float32, products in the compute dtype.

Knows nothing of the engine's paged cache. The parameters' names are those of a Hugging Face checkpoint.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.models.zoo.config import ModelConfig


class Rope(NamedTuple):
    """Rotations of some positions."""

    cos: Tensor  # [..., tokens, head_dim] float32
    sin: Tensor  # [..., tokens, head_dim] float32


class Cache(NamedTuple):
    """Keys and values of a batch of sequences, one pair of tensors a layer, for greedy evaluation."""

    keys: list[Tensor]  # [batch, kv_heads, capacity, head_dim]
    values: list[Tensor]  # as keys
    at: Tensor  # [batch, tokens] int64; positions this call computes
    mask: Tensor | None  # [batch, 1, tokens, capacity] bool; None: causal over this call's own tokens


def rope_of(config: ModelConfig, positions: Tensor) -> Rope:
    """Rotations of the positions; the two halves of a head form the pairs, as in Llama checkpoints."""
    steps = torch.arange(0, config.head_dim, 2, device=positions.device, dtype=torch.float32)
    inverse = config.rope_theta ** (-steps / config.head_dim)
    angles = positions.float()[..., None] * inverse
    angles = torch.cat((angles, angles), dim=-1)
    return Rope(angles.cos(), angles.sin())


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """x [batch, heads, tokens, head_dim] rotated by its positions, in float32, returned in x's dtype."""
    wide = x.float()
    left, right = wide.chunk(2, dim=-1)
    return (wide * rope.cos + torch.cat((-right, left), dim=-1) * rope.sin).to(x.dtype)


class Norm(nn.Module):
    """Root mean square norm."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (scaled * self.weight).to(x.dtype)


def linear(x: Tensor, *layers: nn.Linear) -> Tensor:
    """x through the layers side by side: one product over their joined weights, in x's dtype."""
    return F.linear(x, torch.cat([layer.weight for layer in layers]).to(x.dtype))


class Attention(nn.Module):
    """Causal attention with grouped keys and values."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * self.dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * self.dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.dim, config.hidden_size, bias=False)

    def forward(self, x: Tensor, rope: Rope, layer: int, cache: Cache | None) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = (
            linear(x, self.q_proj, self.k_proj, self.v_proj).view(batch, tokens, -1, self.dim).transpose(1, 2)
        )
        q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        q, k = rotate(q, rope), rotate(k, rope)
        mask = None
        if cache is not None:
            k, v, mask = self.remember(k, v, layer, cache)
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return linear(out.transpose(1, 2).reshape(batch, tokens, -1), self.o_proj)

    def remember(
        self, k: Tensor, v: Tensor, layer: int, cache: Cache
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Stores this call's keys and values; with a mask, attention is over all that is stored."""
        index = cache.at[:, None, :, None].expand_as(k)
        cache.keys[layer].scatter_(2, index, k)
        cache.values[layer].scatter_(2, index, v)
        if cache.mask is None:
            return k, v, None
        return cache.keys[layer], cache.values[layer], cache.mask


class Mlp(nn.Module):
    """Gated feed-forward layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = linear(x, self.gate_proj, self.up_proj).chunk(2, dim=-1)
        return linear(F.silu(gate) * up, self.down_proj)


class Layer(nn.Module):
    """Attention and feed-forward, each behind its norm and added to the stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, rope: Rope, layer: int, cache: Cache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, layer, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """The whole model; the embedding is also the head."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype  # of the products; parameters stay float32
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)
        self.start()

    def start(self) -> None:
        """Draws the first weights: matrices by fan-in, what writes to the stream smaller with depth."""
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        for name, weight in self.named_parameters():
            if weight.ndim == 2 and "proj" in name:
                depth = (
                    (2 * self.config.num_layers) ** -0.5 if "o_proj" in name or "down_proj" in name else 1.0
                )
                nn.init.normal_(weight, std=0.5 * depth * weight.shape[1] ** -0.5)

    def hidden(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """The stream behind the last norm, [batch, tokens, hidden], for token ids [batch, tokens] int64."""
        positions = (
            torch.arange(tokens.shape[1], device=tokens.device) if cache is None else cache.at[:, None]
        )
        rope = rope_of(self.config, positions)
        x = F.embedding(tokens, self.embed_tokens.weight.to(self.dtype))
        for index, layer in enumerate(self.layers):
            x = layer(x, rope, index, cache)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every piece, [..., vocab] in the compute dtype."""
        return F.linear(hidden, self.embed_tokens.weight.to(hidden.dtype))

    def forward(self, tokens: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Weighted mean cross-entropy; tokens and targets [batch, tokens] int64, weights alike in float32."""
        logits = self.logits(self.hidden(tokens)).float()
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return (loss * weights.flatten()).sum() / weights.sum().clamp(min=1)

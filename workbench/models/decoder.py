"""The forward pass of a dense decoder over a flat batch of tokens.

The tokens of all requests lie one after the other, with no batch dimension and no padding. Knows nothing of
requests, caches or paging: what mixes tokens is handed in as `attend`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from workbench.models import backend
from workbench.models.linear import Linear, empty_linear, product
from workbench.models.operations import Operations, TorchOperations
from workbench.models.rotary import Rotary, build_rotary
from workbench.models.spec import ModelSpec

# Called with the name of an activation and its value; returns what the model goes on with.
Tap = Callable[[str, Tensor], Tensor]


class Attend(Protocol):
    """Attention of one layer, with all that depends on where tokens are: norms of heads, rotary, KV cache."""

    def __call__(self, layer: int, qkv: Tensor, q_norm: Tensor | None, k_norm: Tensor | None) -> Tensor:
        """Mix the tokens.

        Args:
            layer: 0 .. num_layers - 1.
            qkv: [T, (num_heads + 2 * num_kv_heads) * head_dim]; heads of q, then of k, then of v, unturned.
            q_norm: [head_dim], weight of the norm of every head of q ahead of the rotary; None: no norm.
            k_norm: [head_dim], the same for k.

        Returns:
            [T, num_heads * head_dim], dtype of qkv.
        """


@dataclass(frozen=True, slots=True)
class Layer:
    """The weights of one layer, in the order in which they are used."""

    input_norm: Tensor  # [hidden]
    qkv: Linear  # hidden -> (num_heads + 2 * num_kv_heads) * head_dim
    q_norm: Tensor | None  # [head_dim]
    k_norm: Tensor | None  # [head_dim]
    o: Linear  # num_heads * head_dim -> hidden
    post_norm: Tensor  # [hidden]
    gate_up: Linear  # hidden -> 2 * intermediate; gate, then up
    down: Linear  # intermediate -> hidden


@dataclass(frozen=True, slots=True)
class Decoder:
    """A model on a device. Call under torch.inference_mode()."""

    spec: ModelSpec
    device: torch.device
    dtype: torch.dtype  # of weights, activations and logits
    operations: Operations
    rotary: Rotary
    embedding: Tensor  # [vocab, hidden]
    layers: tuple[Layer, ...]
    norm: Tensor  # [hidden]
    lm_head: Linear  # hidden -> vocab; its weight is `embedding` when the two are tied

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        attend: Attend,
        embeddings: Tensor | None = None,
        tap: Tap | None = None,
        wanted: Tensor | None = None,
        operations: Operations | None = None,
    ) -> Tensor:
        """Hidden states behind the final norm.

        Args:
            token_ids: [T] int64, device; not looked at where there are embeddings.
            positions: [T] int64, device; place of each token in its request. Families whose positions are
                rotary, all of these, meet them in `attend` only.
            attend: the attention of each layer.
            embeddings: [T, hidden]; what enters layer 0 in place of the embeddings of token_ids.
            tap: sees, and may replace, "embed", "layers.N.attention" and "layers.N.mlp" (what each adds to
                the residual stream) and "norm", all [T, hidden]; what it is given is not to be written to.
            wanted: [m] int64 or int32, device; tokens whose hidden states are asked for. Behind the last
                attention nothing is computed for the others: of a prompt, the last layer costs its keys and
                values.
            operations: what computes in place of the model's own, for these tokens: with their adapters.

        Returns:
            [T, hidden], or [m, hidden] of the tokens wanted; model dtype.
        """
        eps, operations = self.spec.rms_norm_eps, operations or self.operations
        hidden = operations.embed(token_ids, self.embedding) if embeddings is None else embeddings
        if tap:
            hidden = tap("embed", hidden)
        residual: Tensor | None = None  # the stream, without what `hidden` is about to add to it
        for number, layer in enumerate(self.layers):
            qkv, residual = operations.project(hidden, residual, layer.input_norm, eps, layer.qkv)
            mixed = attend(number, qkv, layer.q_norm, layer.k_norm)
            if wanted is not None and layer is self.layers[-1]:
                mixed, residual, operations = mixed[wanted], residual[wanted], operations.of(wanted)
            hidden = operations.product(mixed, layer.o)
            if tap:
                hidden = tap(f"layers.{number}.attention", hidden)
            act, residual = operations.project_gated(hidden, residual, layer.post_norm, eps, layer.gate_up)
            hidden = operations.product(act, layer.down)
            if tap:
                hidden = tap(f"layers.{number}.mlp", hidden)
        hidden = operations.normed(hidden, residual, self.norm, eps).y
        return tap("norm", hidden) if tap else hidden

    def logits(self, hidden: Tensor, operations: Operations | None = None) -> Tensor:
        """[m, hidden] -> [m, vocab], model dtype; `operations` as in `forward`, for these rows."""
        return (operations or self.operations).product(hidden, self.lm_head)


def empty_decoder(
    spec: ModelSpec, device: torch.device, dtype: torch.dtype, max_positions: int, tied: bool
) -> Decoder:
    """A decoder whose weights are memory still to be filled."""

    def vector(size: int) -> Tensor:
        return torch.empty(size, device=device, dtype=dtype)

    def linear(out_size: int, in_size: int, bias: bool) -> Linear:
        return empty_linear(out_size, in_size, bias, device, dtype)

    embedding = torch.empty(spec.vocab_size, spec.hidden_size, device=device, dtype=dtype)
    tied_head = Linear(embedding, None, product(device, dtype))
    return Decoder(
        spec=spec,
        device=device,
        dtype=dtype,
        operations=_operations(device),
        rotary=build_rotary(spec, max_positions, device),
        embedding=embedding,
        layers=tuple(_empty_layer(spec, vector, linear) for _ in range(spec.num_layers)),
        norm=vector(spec.hidden_size),
        lm_head=tied_head if tied else linear(spec.vocab_size, spec.hidden_size, False),
    )


def _empty_layer(
    spec: ModelSpec, vector: Callable[[int], Tensor], linear: Callable[[int, int, bool], Linear]
) -> Layer:
    q_size, kv_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    return Layer(
        input_norm=vector(spec.hidden_size),
        qkv=linear(q_size + 2 * kv_size, spec.hidden_size, spec.qkv_bias),
        q_norm=vector(spec.head_dim) if spec.qk_norm else None,
        k_norm=vector(spec.head_dim) if spec.qk_norm else None,
        o=linear(spec.hidden_size, q_size, spec.o_bias),
        post_norm=vector(spec.hidden_size),
        gate_up=linear(2 * spec.intermediate_size, spec.hidden_size, spec.mlp_bias),
        down=linear(spec.hidden_size, spec.intermediate_size, spec.mlp_bias),
    )


def _operations(device: torch.device) -> Operations:
    """What computes fastest on a device."""
    if not backend.has_kernels(device):
        return TorchOperations()
    from workbench.models.fused import FusedOperations

    return FusedOperations()

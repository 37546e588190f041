"""Which part of a decoder each tensor of a checkpoint fills. The families here all use the same names.

Names are those of a base model, without the "model." that a checkpoint of a causal one puts before them.
"""

from __future__ import annotations

from torch import Tensor

from workbench.models.decoder import Decoder, Layer
from workbench.models.linear import Linear
from workbench.models.spec import ModelSpec

EMBEDDING = "embed_tokens.weight"
LM_HEAD = "lm_head.weight"


def destinations(decoder: Decoder) -> dict[str, Tensor]:
    """Views into the weights of `decoder`, by the name of the tensor each one takes."""
    found = {EMBEDDING: decoder.embedding, "norm.weight": decoder.norm}
    if decoder.lm_head.weight is not decoder.embedding:
        found[LM_HEAD] = decoder.lm_head.weight
    for number, layer in enumerate(decoder.layers):
        places = _of_layer(layer, decoder.spec)
        found |= {f"layers.{number}.{name}": place for name, place in places.items()}
    return found


def _of_layer(layer: Layer, spec: ModelSpec) -> dict[str, Tensor]:
    q_size, kv_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    merged = {"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size}
    halves = {"gate_proj": spec.intermediate_size, "up_proj": spec.intermediate_size}
    places: dict[str, Tensor | None] = {
        "input_layernorm.weight": layer.input_norm,
        "post_attention_layernorm.weight": layer.post_norm,
        "self_attn.q_norm.weight": layer.q_norm,
        "self_attn.k_norm.weight": layer.k_norm,
        **_of_linear("self_attn", layer.qkv, merged),
        **_of_linear("self_attn", layer.o, {"o_proj": spec.hidden_size}),
        **_of_linear("mlp", layer.gate_up, halves),
        **_of_linear("mlp", layer.down, {"down_proj": spec.hidden_size}),
    }
    return {name: place for name, place in places.items() if place is not None}


def _of_linear(block: str, linear: Linear, parts: dict[str, int]) -> dict[str, Tensor]:
    """The rows of a merged weight (and bias), part by part; `parts` gives the rows of each, in order."""
    sizes, names = list(parts.values()), list(parts)
    found = dict(zip((f"{block}.{name}.weight" for name in names), linear.weight.split(sizes), strict=True))
    if linear.bias is not None:
        found |= dict(zip((f"{block}.{name}.bias" for name in names), linear.bias.split(sizes), strict=True))
    return found

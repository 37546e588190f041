"""Which of a model's modules adapters may change, and how large each is. Knows shapes only."""

from __future__ import annotations

from typing import NamedTuple

from workbench.models.spec import ModelSpec

EMBEDDING = "embed_tokens"
LM_HEAD = "lm_head"
# Modules of a layer -> the product they are a part of; those of one product lie side by side, in this order.
PRODUCTS = {
    "self_attn.q_proj": "qkv",
    "self_attn.k_proj": "qkv",
    "self_attn.v_proj": "qkv",
    "self_attn.o_proj": "o",
    "mlp.gate_proj": "gate_up",
    "mlp.up_proj": "gate_up",
    "mlp.down_proj": "down",
}
NAMES = (*(name.rpartition(".")[2] for name in PRODUCTS), EMBEDDING, LM_HEAD)  # as target_modules has them


class Sizes(NamedTuple):
    """Of a linear module; of the embedding, `n_in` is the vocabulary."""

    n_out: int
    n_in: int


class Place(NamedTuple):
    """A product of the model: of one layer, or (layer -1) the embedding or the output projection."""

    layer: int
    product: str  # "qkv", "o", "gate_up", "down", or the module's own name


def module_sizes(spec: ModelSpec) -> dict[str, Sizes]:
    """Every module an adapter may change, by its name in a base model: "layers.0.self_attn.q_proj"."""
    in_layer = layer_sizes(spec)
    found = {f"layers.{n}.{name}": sizes for n in range(spec.num_layers) for name, sizes in in_layer.items()}
    found[EMBEDDING] = Sizes(spec.hidden_size, spec.vocab_size)
    found[LM_HEAD] = Sizes(spec.vocab_size, spec.hidden_size)
    return found


def layer_sizes(spec: ModelSpec) -> dict[str, Sizes]:
    """Of one layer, by the names of PRODUCTS."""
    q_size, kv_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    hidden, inner = spec.hidden_size, spec.intermediate_size
    sizes = ((q_size, hidden), (kv_size, hidden), (kv_size, hidden), (hidden, q_size))
    return dict(
        zip(
            PRODUCTS,
            map(Sizes._make, (*sizes, (inner, hidden), (inner, hidden), (hidden, inner))),
            strict=True,
        )
    )


def place_of(module: str) -> Place:
    """The product that a module is a part of."""
    if not module.startswith("layers."):
        return Place(-1, module)
    _, number, name = module.split(".", 2)
    return Place(int(number), PRODUCTS[name])

"""Second copies of a decoder's weights in the order in which a CPU multiplies small batches fastest."""

from __future__ import annotations

from dataclasses import replace

from workbench.models.decoder import Decoder, Layer
from workbench.models.linear import Linear, can_pack, pack

# Weights of up to so many bytes are held twice. It is about memory, not speed: a CPU's KV pool takes as much.
MOST_BYTES = 2**30


def with_packed_weights(decoder: Decoder) -> Decoder:
    """The decoder with packed copies, or as it is where they do not pay or would take too much memory.

    The copies do not follow later changes of the weights.
    """
    if not can_pack(decoder.device, decoder.dtype) or _bytes(decoder) > MOST_BYTES:
        return decoder
    layers = tuple(_packed_layer(layer) for layer in decoder.layers)
    return replace(decoder, layers=layers, lm_head=pack(decoder.lm_head))


def _packed_layer(layer: Layer) -> Layer:
    return replace(
        layer, qkv=pack(layer.qkv), o=pack(layer.o), gate_up=pack(layer.gate_up), down=pack(layer.down)
    )


def _bytes(decoder: Decoder) -> int:
    linears: list[Linear] = [decoder.lm_head]
    for layer in decoder.layers:
        linears += [layer.qkv, layer.o, layer.gate_up, layer.down]
    return sum(linear.weight.nbytes for linear in linears)

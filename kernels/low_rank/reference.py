"""What the adapters of a step's tokens add to a product, in torch: a block of tokens after the other."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from workbench.kernels.low_rank.stack import Segments, Stack


def add_low_rank(
    x: Tensor, y: Tensor, stack: Stack, product: int, n_outs: Sequence[int], segments: Segments
) -> Tensor:
    """y += B (A x) of each token's adapter, in place.

    Args:
        x: [T, in]; of an embedding [T] int64, token ids.
        y: [T, sum of n_outs]; the product by the model's own weights.
        stack: weights of the adapters.
        product: its place in the stack's table.
        n_outs: outputs of its modules.
        segments: which tokens have which adapter.
    """
    lines = segments.blocks[: int(segments.count[0])].tolist()
    for slot, begin, end in lines:
        memory, fields = stack.memory[slot], stack.table[slot, product].tolist()
        at, ranks = fields[:2]
        tokens = segments.tokens[begin:end].long()
        if x.dim() == 1:
            places = at + x[tokens][:, None] * ranks + _range(ranks, tokens)
            hidden = memory[places]
        else:
            shrink = memory[at : at + ranks * x.shape[1]].view(ranks, x.shape[1])
            hidden = x[tokens] @ shrink.T
        column = 0
        for module, n_out in enumerate(n_outs):
            first, rank, at = fields[2 + 3 * module : 5 + 3 * module]
            expand = memory[at : at + rank * n_out].view(rank, n_out)
            y[tokens, column : column + n_out] += hidden[:, first : first + rank] @ expand
            column += n_out
    return y


def _range(count: int, like: Tensor) -> Tensor:
    return like.new_ones(count).cumsum(0) - 1

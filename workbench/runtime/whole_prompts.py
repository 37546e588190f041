"""Long prompts of which nothing is cached, attended by torch: their keys are fresh and lie side by side.

There cuDNN's kernel for Hopper is faster than ours, which reads keys through block tables (kernels/LOG.md).
Knows a step's tokens and which of them are such prompts; nothing of the cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.models.spec import ModelSpec

LEAST = 4096  # tokens of a prompt that is worth a call of its own
# cuDNN plans anew for each length it meets, 40 ms on the host: lengths are rounded up, at the cost of a copy.
STEP = 256


def can_attend_whole(spec: ModelSpec, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether torch has the faster kernel for this model: 16 bits, no window, Hopper or newer."""
    return (
        device.type == "cuda"
        and torch.cuda.get_device_capability(device)[0] >= 9
        and torch.backends.cudnn.is_available()
        and dtype.itemsize == 2
        and spec.head_dim <= 128
        and spec.head_dim % 8 == 0
        and all(window is None for window in spec.windows)
    )


def attend_whole(
    query: Tensor, qkv: Tensor, prompts: Sequence[slice], num_kv_heads: int, scale: float, out: Tensor
) -> None:
    """Causal attention of each prompt over itself.

    Args:
        query: [T, heads, head_dim], normed and turned.
        qkv: [T, (heads + 2 * kv_heads) * head_dim]; its keys normed and turned, in their place.
        prompts: which of the tokens each prompt is.
        scale: of the products of queries and keys.
        out: [T, heads * head_dim]; the prompts' rows are written.
    """
    tokens, heads, head_dim = query.shape
    keys_and_values = qkv.view(tokens, heads + 2 * num_kv_heads, head_dim)[:, heads:]
    out = out.view(query.shape)
    # The operator itself: choosing it by name would switch the others off for the whole process meanwhile.
    attend = torch.ops.aten._scaled_dot_product_cudnn_attention.default
    for prompt in prompts:
        q = _rounded(query[prompt])
        k, v = _rounded(keys_and_values[prompt]).split(num_kv_heads, dim=1)
        found = attend(q, k, v, None, False, is_causal=True, scale=scale)[0]
        out[prompt] = found[0].transpose(0, 1)[: prompt.stop - prompt.start]


def _rounded(x: Tensor) -> Tensor:
    """[length, heads, head_dim] -> [1, heads, rounded, head_dim]; zeros, which no query before them sees."""
    if len(x) % STEP:
        x = F.pad(x, (0, 0, 0, 0, 0, -len(x) % STEP))
    return x.transpose(0, 1)[None]

"""What a GPU's memory goes to: weights, a step's activations, graphs, and what is left for KV blocks."""

from __future__ import annotations

from typing import NamedTuple

import torch

from workbench.config import Settings
from workbench.models.decoder import Decoder
from workbench.runtime.scoring import SLICE_BYTES

GRAPHS = 768 << 20  # bytes set aside for captured graphs, whose memory is not known before there is a cache


class MemoryBudget(NamedTuple):
    """Bytes of one GPU."""

    total: int
    utilization: float  # gpu_memory_utilization: the part of `total` this process may use
    others: int  # used by other processes, and by CUDA itself
    weights: int  # and whatever else this process holds already
    activations: int  # of the largest step, measured
    graphs: int

    @property
    def kv_cache(self) -> int:
        """What is left."""
        used = self.others + self.weights + self.activations + self.graphs
        return max(0, int(self.total * self.utilization) - used)

    def lines(self) -> list[str]:
        """A table for people."""
        return [
            f"{'GPU memory':<28}{gib(self.total):>9} GiB",
            f"{f'x gpu_memory_utilization {self.utilization:g}':<28}"
            f"{gib(int(self.total * self.utilization)):>9} GiB",
            f"{'- other processes, CUDA':<28}{gib(self.others):>9} GiB",
            f"{'- weights':<28}{gib(self.weights):>9} GiB",
            f"{'- activations of a step':<28}{gib(self.activations):>9} GiB",
            f"{'- graphs':<28}{gib(self.graphs):>9} GiB",
            f"{'= left for the KV cache':<28}{gib(self.kv_cache):>9} GiB",
        ]


def gib(count: int) -> str:
    return f"{count / 2**30:.2f}"


@torch.inference_mode()
def measure(model: Decoder, settings: Settings, max_tokens: int, rows: int, scratch: int) -> MemoryBudget:
    """Run the largest step with no attention and see what it takes; attention's own is added.

    Args:
        max_tokens: tokens of the largest step. rows: lines of the largest batch.
        scratch: bytes that the runner will allocate for its own use.

    Raises:
        ValueError: not even that fits.
    """
    device, spec = model.device, model.spec
    torch.cuda.empty_cache()
    held = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    width = spec.num_heads * spec.head_dim
    try:
        ids = torch.zeros(max_tokens, dtype=torch.int64, device=device)
        hidden = model.forward(ids, ids, lambda _layer, qkv, _q, _k: qkv.new_zeros((len(qkv), width)))
        model.logits(hidden[:rows])
        torch.cuda.synchronize(device)
    except torch.cuda.OutOfMemoryError as error:
        raise ValueError(
            f"out of GPU memory in a trial step of {max_tokens} tokens and {rows} requests, beside weights of"
            f" {gib(held)} GiB: lower max_num_batched_tokens (to {max_tokens // 2}, say) or max_num_seqs"
            f" (to {max(1, rows // 2)})"
        ) from error
    # Beside qkv and attention's output there are the turned queries, what torch's own attention gives, and
    # queries, keys and values of a long prompt once more where its length is rounded up.
    beside = max_tokens * (3 * width + 2 * spec.num_kv_heads * spec.head_dim) * model.dtype.itemsize
    peak = torch.cuda.max_memory_allocated(device) - held + beside + SLICE_BYTES  # of logits of prompts
    del ids, hidden
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    graphs = 0 if settings.enforce_eager else GRAPHS
    return MemoryBudget(
        total, settings.gpu_memory_utilization, total - free - reserved, reserved, peak + scratch, graphs
    )

"""How an engine may be set up for a round: drawn at random, small enough that everything happens often."""

from __future__ import annotations

import random
from typing import Any

RANK = 8  # of the adapters
MAX_MODEL_LEN = 256  # tokens of a request; the pool is as small as a few of these


def draw_settings(rng: random.Random) -> dict[str, Any]:
    """Arguments of LLM. Every combination is valid, and none changes what a request with a seed yields."""
    block_size = rng.choice([4, 16])
    one = -(-MAX_MODEL_LEN // block_size) + 1  # blocks that a single request may need, and the null block
    return {
        "max_model_len": MAX_MODEL_LEN,
        "block_size": block_size,
        "num_gpu_blocks_override": rng.choice([one, one + one // 2, 8 * one]),
        "max_num_seqs": rng.choice([1, 3, 16]),
        "max_num_batched_tokens": rng.choice([16, 64, 1024]),
        "long_prefill_token_threshold": rng.choice([0, 0, 24]),
        "enable_prefix_caching": rng.random() < 0.7,
        "async_scheduling": rng.random() < 0.5,
        "scheduling_policy": rng.choice(["fcfs", "priority"]),
        "seed": rng.randrange(2**31),
        **rng.choice([{}, {"enable_lora": True, "max_lora_rank": RANK, "max_loras": rng.choice([1, 2])}]),
        **rng.choice([{}, {"speculative_config": _speculation(rng)}]),
    }


def _speculation(rng: random.Random) -> dict[str, Any]:
    return {
        "method": rng.choice(["ngram", "suffix"]),
        "num_speculative_tokens": rng.choice([1, 4]),
        "adaptive": rng.random() < 0.5,
    }

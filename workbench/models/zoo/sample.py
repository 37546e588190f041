"""Continues many prompts at once with the training model, greedily. Knows nothing of tasks or scores."""

from collections.abc import Sequence

import torch
from torch import Tensor

from workbench.models.zoo.model import Cache, Llama
from workbench.models.zoo.tokens import EOS_ID, PAD_ID


@torch.no_grad()
def greedy(model: Llama, prompts: Sequence[list[int]], max_new: int) -> list[list[int]]:
    """The likeliest tokens that follow each prompt, up to and without eos, at most `max_new` of each."""
    device = model.embed_tokens.weight.device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    width = int(lengths.max())
    tokens = torch.full((len(prompts), width), PAD_ID, device=device)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor(prompt, device=device)
    cache = empty_cache(model, len(prompts), width + max_new)
    # Prompts stand at the left: what is behind a short one is never seen, and its tokens then overwrite it.
    at = torch.arange(width, device=device).expand(len(prompts), width)
    hidden = model.hidden(tokens, cache._replace(at=at))
    last = hidden[torch.arange(len(prompts), device=device), lengths - 1]
    new = continue_from(model, cache, model.logits(last).argmax(-1), lengths, max_new)
    return [row[: row.index(EOS_ID)] if EOS_ID in row else row for row in new.tolist()]


def continue_from(model: Llama, cache: Cache, token: Tensor, at: Tensor, max_new: int) -> Tensor:
    """The new tokens, [batch, <= max_new] int64: first `token` [batch], at positions `at` [batch]."""
    slots = torch.arange(cache.keys[0].shape[2], device=token.device)
    new, ended = [token], token == EOS_ID
    for step in range(max_new - 1):
        if step % 8 == 0 and bool(ended.all()):
            break
        mask = (slots <= at[:, None])[:, None, None, :]
        hidden = model.hidden(token[:, None], cache._replace(at=at[:, None], mask=mask))
        token = model.logits(hidden[:, -1]).argmax(-1)
        at = at + 1
        ended = ended | (token == EOS_ID)
        new.append(token)
    return torch.stack(new, dim=1)


def empty_cache(model: Llama, batch: int, capacity: int) -> Cache:
    """Room for the keys and values of `capacity` positions."""
    config, weight = model.config, model.embed_tokens.weight
    shape = (batch, config.num_kv_heads, capacity, config.head_dim)
    keys = [torch.zeros(shape, dtype=model.dtype, device=weight.device) for _ in range(config.num_layers)]
    values = [torch.zeros_like(key) for key in keys]
    return Cache(keys, values, torch.zeros(0, device=weight.device), None)

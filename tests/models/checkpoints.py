"""Tiny random models as transformers writes them: the oracle and the folder under test."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def build(model_type: str, **settings: Any) -> PreTrainedModel:
    """A random float32 model whose weights are large enough for every part of it to show in the logits."""
    torch.manual_seed(11)
    config = AutoConfig.for_model(model_type, **(SIZES | {"initializer_range": 0.2} | settings))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)  # ones would hide a norm that is left out
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.3)  # zeros would hide a bias
    return model


def saved(model: PreTrainedModel, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    return folder


def rewrite(folder: Path, drop: tuple[str, ...] = (), **values: Any) -> Path:
    """Change config.json: `drop` names, then set `values`."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({name: v for name, v in config.items() if name not in drop} | values))
    return folder


def expected(model: PreTrainedModel, token_ids: Tensor) -> Tensor:
    """[T, vocab]; transformers' logits for one sequence."""
    with torch.inference_mode():
        return model(token_ids[None], use_cache=False).logits[0]


def tokens(length: int) -> Tensor:
    return torch.randint(0, SIZES["vocab_size"], (length,), generator=torch.Generator().manual_seed(length))


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """torch computes with `count` threads meanwhile; weights are laid out by it when a model is loaded."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

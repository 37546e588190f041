"""Random adapters as PEFT writes them, and the model that each makes of a base model, merged.

The scales are such that an adapter changes most greedy tokens. PEFT's own code is not needed: its format is
two files, and what they mean is written out here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from tests.llm import tiny

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
EVERY = (*ATTENTION, *MLP)


def modules_of(model: PreTrainedModel, targets: Sequence[str]) -> dict[str, torch.nn.Module]:
    """The modules of a causal model whose names end so."""
    return {name: module for name, module in model.named_modules() if name.rpartition(".")[2] in targets}


def write_adapter(
    folder: Path,
    model: PreTrainedModel,
    rank: int,
    targets: Sequence[str] = EVERY,
    *,
    seed: int = 0,
    alpha: float = 16.0,
    size: float = 0.6,
    config: Mapping[str, Any] | None = None,
    only: Sequence[str] | None = None,
) -> Path:
    """Random A and B for the targets (of the modules `only`, where given), as save_pretrained writes them."""
    torch.manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, module in modules_of(model, targets).items():
        if only is not None and name not in only:
            continue
        n_out, n_in = module.weight.shape
        if isinstance(module, torch.nn.Embedding):
            n_in, n_out = n_out, n_in
            names = ("lora_embedding_A", "lora_embedding_B")
        else:
            names = ("lora_A.weight", "lora_B.weight")
        # B A x * alpha / rank is about `size` of what a weight of deviation 0.3 makes of x.
        spread = math.sqrt(0.3 * size * rank / alpha / math.sqrt(rank))
        tensors[f"base_model.model.{name}.{names[0]}"] = torch.randn(rank, n_in) * spread
        tensors[f"base_model.model.{name}.{names[1]}"] = torch.randn(n_out, rank) * spread
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": list(targets), "bias": "none",
        "task_type": "CAUSAL_LM", "use_rslora": False, "use_dora": False, "modules_to_save": None,
        "init_lora_weights": True, "fan_in_fan_out": False, "rank_pattern": {}, "alpha_pattern": {},
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings | dict(config or {})))
    return folder


def merged(folder: Path, base: Path) -> PreTrainedModel:
    """The base model with an adapter's products added to its weights, in float64."""
    from safetensors.torch import load_file

    model = tiny.load(base).double()
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    root = math.sqrt if config["use_rslora"] else float
    for name, module in model.named_modules():
        for a, b in (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B")):
            if (shrink := tensors.get(f"base_model.model.{name}.{a}")) is None:
                continue
            expand = tensors[f"base_model.model.{name}.{b}"]
            change = expand.double() @ shrink.double() * config["lora_alpha"] / root(len(shrink))
            weight = module.weight.data
            # A tied table is one tensor: what an adapter changes is one of its two uses.
            module.weight = torch.nn.Parameter(weight + (change.T if "embedding" in a else change))
    return model

"""Low-rank changes of a training model's projections (LoRA, Hu et al. 2021), and their folder as PEFT has it.

A projection's weight becomes W + alpha / rank * B A, the model itself staying as it is: W is frozen, A and B
learn. Knows nothing of training.
"""

import json
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from workbench.models.zoo import export
from workbench.models.zoo.config import AdapterConfig
from workbench.models.zoo.model import Llama

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
TARGETS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LowRank(nn.Module):
    """What is added to one weight [out, in]."""

    def __init__(self, weight: Tensor, adapter: AdapterConfig) -> None:
        super().__init__()
        n_out, n_in = weight.shape
        self.A = nn.Parameter(torch.randn(adapter.rank, n_in) * n_in**-0.5)
        self.B = nn.Parameter(torch.zeros(n_out, adapter.rank))  # so that training begins at the base model
        self.scale = adapter.alpha / adapter.rank

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.B @ self.A)


def attach(model: Llama, adapter: AdapterConfig) -> Llama:
    """The same model, frozen but for a low-rank change beside each projection, which is still zero."""
    model.requires_grad_(False)
    for _, layer in projections(model):
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, adapter))
    return model


def projections(model: Llama) -> list[tuple[str, nn.Linear]]:
    """The modules that adapters change, with their names in a Hugging Face checkpoint."""
    return [
        (f"model.{name}", module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in TARGETS
    ]


def changes(model: Llama) -> list[tuple[str, LowRank]]:
    """The changes of a model that has some, by the names of their modules."""
    found = []
    for name, layer in projections(model):
        change = layer.get_submodule("parametrizations.weight.0")
        assert isinstance(change, LowRank), "attach came first"
        found.append((name, change))
    return found


def write(model: Llama, base: str, adapter: AdapterConfig, out: Path) -> None:
    """Writes the changes to the folder `out` as PEFT's save_pretrained would, in bfloat16."""
    out.mkdir(parents=True, exist_ok=True)
    state = {
        f"base_model.model.{name}.lora_{part}.weight": getattr(change, part).detach().bfloat16().contiguous()
        for name, change in changes(model)
        for part in ("A", "B")
    }
    save_file(state, out / WEIGHTS, metadata={"format": "pt"})
    export.write_json(
        out / CONFIG,
        {
            "base_model_name_or_path": base, "peft_type": "LORA", "task_type": "CAUSAL_LM",
            "r": adapter.rank, "lora_alpha": adapter.alpha, "target_modules": list(TARGETS), "bias": "none",
            "lora_dropout": 0.0, "init_lora_weights": True, "inference_mode": True, "fan_in_fan_out": False,
            "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {}, "use_dora": False,
            "use_rslora": False,
        },
    )  # fmt: skip


def load(model: Llama, folder: Path) -> Llama:
    """The same model with the changes that `write` left in a folder.

    Raises OSError when a file is missing, ValueError for an adapter that is not as we write it.
    """
    raw = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    stored = load_file(folder / WEIGHTS)
    if raw.get("target_modules") != list(TARGETS):
        raise ValueError(f"{folder} is no adapter that `workbench zoo train` made: measure it by other tasks")
    adapter = AdapterConfig(raw["base_model_name_or_path"], raw["r"], raw["lora_alpha"])
    for name, change in changes(attach(model, adapter)):
        for part in ("A", "B"):
            getattr(change, part).data.copy_(stored[f"base_model.model.{name}.lora_{part}.weight"])
    return model.eval()

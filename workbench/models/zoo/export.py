"""Writes and reads the Hugging Face folder of a zoo model. Knows nothing of training."""

import json
import shutil
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file

from workbench.models.zoo.config import ModelConfig
from workbench.models.zoo.model import Llama
from workbench.models.zoo.tokens import BOS_ID, EOS_ID, PAD_ID

TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def write(model: Llama, tokenizer: Path, out: Path) -> None:
    """Writes config, weights in bfloat16 and the tokenizer's files to the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    state = {
        f"model.{name}": weight.detach().bfloat16().cpu().contiguous()
        for name, weight in model.named_parameters()
    }
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    write_json(out / "config.json", config_json(model.config))
    generation = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID, "do_sample": False}
    write_json(out / "generation_config.json", generation)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).resolve() != (out / name).resolve():
            shutil.copyfile(tokenizer / name, out / name)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """One JSON file, keys in order."""
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def config_json(config: ModelConfig) -> dict[str, Any]:
    """The configuration as transformers reads it; the rope stands there in the newer and the older way."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16",
        "hidden_size": config.hidden_size, "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads, "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim, "intermediate_size": config.intermediate_size, "hidden_act": "silu",
        "vocab_size": config.vocab_size, "max_position_embeddings": config.max_positions,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "rms_norm_eps": config.rms_norm_eps, "tie_word_embeddings": True,
        "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0,
        "initializer_range": 0.02, "use_cache": True,
        "bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID,
    }  # fmt: skip


def load(folder: Path) -> Llama:
    """The model of a folder, parameters in float32 on the CPU.

    Raises OSError when a file is missing, ValueError for a config.json that is not as we write it.
    """
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    try:
        config = config_from(raw)
    except KeyError as error:
        raise ValueError(
            f"{folder / 'config.json'} lacks {error}: give a folder that `workbench zoo train` made"
        ) from error
    model = Llama(config)
    state = load_file(folder / "model.safetensors")
    model.load_state_dict(
        {name.removeprefix("model."): weight.to(torch.float32) for name, weight in state.items()}
    )
    return model.eval()


def config_from(raw: dict[str, Any]) -> ModelConfig:
    """The shape that a config.json of ours tells. Raises KeyError for what it lacks."""
    return ModelConfig(
        hidden_size=raw["hidden_size"], num_layers=raw["num_hidden_layers"],
        num_heads=raw["num_attention_heads"], num_kv_heads=raw["num_key_value_heads"],
        head_dim=raw["head_dim"], intermediate_size=raw["intermediate_size"], vocab_size=raw["vocab_size"],
        max_positions=raw["max_position_embeddings"],
        rope_theta=raw["rope_theta"], rms_norm_eps=raw["rms_norm_eps"],
    )  # fmt: skip

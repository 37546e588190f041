"""Tiny random-weight models of every family, a byte-level tokenizer, and what transformers makes of them.

The weights are larger than usual, so that greedy tokens vary; the tokenizer knows every byte, so that random
tokens spell half characters.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCAB = 320
EOS = 0
WINDOW = 24
LENGTH = 2048

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": LENGTH,
    "initializer_range": 0.3,
    "eos_token_id": EOS,
    "bos_token_id": None,
    "pad_token_id": EOS,
    "dtype": "float32",
}
# Qwen2 mixes layers with and without a window: two KV groups.
_OWN: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 2},
    "mistral": {"num_hidden_layers": 2, "sliding_window": WINDOW},
    "qwen2": {
        "num_hidden_layers": 2,
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
    },
    "qwen3": {"num_hidden_layers": 2},
}
FAMILIES = tuple(_OWN)


def config_of(family: str) -> PreTrainedConfig:
    own = {**_SHAPE, **_OWN[family]}
    return AutoConfig.for_model(family, **own)


def write_model(family: str, folder: Path) -> Path:
    """A model folder as save_pretrained writes it."""
    torch.manual_seed(FAMILIES.index(family))
    model = AutoModelForCausalLM.from_config(config_of(family))
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:  # initialised to 0 and 1, which would hide them
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.generation_config.eos_token_id = EOS
    model.save_pretrained(folder)
    return folder


def write_tokenizer(folder: Path) -> Path:
    """A byte-level BPE tokenizer of VOCAB pieces with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<eos>", "<user>", "<bot>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["the bird sang in the old tree and the river ran on, 你好 😀👍 "] * 9, trainer
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    fast.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<bot>{% endif %}"
    )
    fast.save_pretrained(folder)
    return folder


def write_spaced_tokenizer(folder: Path) -> Path:
    """A tokenizer in the manner of Llama 2: words are marked by their space, unknown characters become bytes.

    Its decoder drops the first space of whatever it is handed, and spells half characters byte by byte.
    """
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<eos>", "<user>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the bird sang in the old tree and the river ran on"] * 9, trainer)
    parts = json.loads(tokenizer.to_str())  # the bytes belong to the vocabulary, and are not special
    parts["added_tokens"] = [
        token for token in parts["added_tokens"] if not token["content"].startswith("<0x")
    ]
    tokenizer = Tokenizer.from_str(json.dumps(parts))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>").save_pretrained(
        folder
    )
    return folder


def load(folder: Path) -> PreTrainedModel:
    """The same model in transformers, float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def greedy(model: PreTrainedModel, prompt: Sequence[int], count: int) -> list[int]:
    """What transformers generates, the prompt alone."""
    ids = torch.tensor([list(prompt)])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=EOS
    )
    return out[0, len(prompt) :].tolist()


@torch.inference_mode()
def logits(model: PreTrainedModel, tokens: Sequence[int]) -> torch.Tensor:
    """[len(tokens), vocab]; transformers' logits behind each token."""
    return model(torch.tensor([list(tokens)]), use_cache=False).logits[0]

"""The model of `speculative_config`: found, held against the engine's, loaded. Knows no step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from workbench.config import EngineConfig, Settings, model_length
from workbench.models.decoder import Decoder
from workbench.models.folder import resolve
from workbench.models.loading import load_model
from workbench.models.spec import ModelSpec, read_spec
from workbench.runtime.draft_model import DraftModel, Size, draft_bytes, unbounded
from workbench.runtime.kv_store import kv_groups
from workbench.speculate.config import read_speculative_config
from workbench.tokenizer import load_tokenizer


@dataclass(frozen=True, slots=True)
class Draft:
    """A small model that is to draft, with its weights."""

    model: Decoder
    table: int  # KV group of the engine's whose blocks it writes beside
    most_drafts: int

    def block_bytes(self, block_size: int) -> int:
        """What it adds to every block of the pool."""
        return draft_bytes(self.model.spec, block_size, self.model.dtype)

    def drafter(self, config: EngineConfig) -> DraftModel:
        size = Size(
            config.max_num_seqs,
            config.max_model_len,
            config.max_num_batched_tokens,
            self.most_drafts,
            config.num_blocks,
            config.block_size,
        )
        return DraftModel(self.model, size, self.table)


def load_draft(
    settings: Settings, folder: Path, spec: ModelSpec, device: torch.device, dtype: torch.dtype
) -> Draft | None:
    """None where no model drafts. `folder`, `spec`, `dtype`: of the engine's model.

    Raises:
        ValueError, OSError: it is not there, or cannot draft for that model; the message says why.
    """
    wanted = read_speculative_config(settings.speculative_config)
    if wanted is None or wanted.model is None:
        return None
    table = unbounded(kv_groups(spec))
    if table is None:
        raise ValueError(
            "speculative_config: all layers of the model slide, so that no block is kept for a draft model:"
            " use method='ngram' or 'suffix'"
        )
    own = resolve(wanted.model)
    drafting = read_spec(own)
    _check_vocabulary(wanted.model, own, drafting, folder, spec, settings)
    model = load_model(
        own,
        drafting,
        device,
        dtype,
        settings.load_format,
        settings.seed,
        max_positions=model_length(settings, spec),
    )
    return Draft(model, table, wanted.num_speculative_tokens)


def _check_vocabulary(
    name: str, own: Path, drafting: ModelSpec, folder: Path, spec: ModelSpec, settings: Settings
) -> None:
    remedy = "use a draft model that was trained with the same tokenizer"
    if drafting.vocab_size != spec.vocab_size:
        raise ValueError(
            f"speculative_config: the draft model {name} has a vocabulary of {drafting.vocab_size} tokens,"
            f" the engine's model one of {spec.vocab_size}: {remedy}"
        )
    if settings.load_format == "dummy" or _same_file(own, folder) or not (own / "tokenizer.json").is_file():
        return
    if not settings.skip_tokenizer_init and _words(own) != _words(folder):
        raise ValueError(
            f"speculative_config: the draft model {name} has other tokens than the engine's model under the"
            f" same ids: {remedy}"
        )


def _same_file(own: Path, folder: Path) -> bool:
    """Whether the two bring one tokenizer."""
    files = own / "tokenizer.json", folder / "tokenizer.json"
    return all(file.is_file() for file in files) and files[0].read_bytes() == files[1].read_bytes()


def _words(folder: Path) -> dict[str, Any]:
    vocabulary: dict[str, Any] = load_tokenizer(folder, trust_remote_code=False).get_vocab()
    return vocabulary

"""Loads a model's tokenizer through transformers, importing as little of it as the tokenizer needs."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

# Classes that tokenizer.json describes completely.
_PLAIN = ("PreTrainedTokenizerFast", "TokenizersBackend")


def load_tokenizer(source: str | Path, *, trust_remote_code: bool) -> Any:
    """The tokenizer of a folder or hub id.

    Raises:
        ValueError: there is none, or it cannot be read; the message says what to do.
    """
    try:
        if _is_plain(Path(source)):
            from transformers import PreTrainedTokenizerFast

            # AutoTokenizer would look into the model's config first, and import modelling code for that: 2 s.
            return PreTrainedTokenizerFast.from_pretrained(str(source))
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(source), trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no tokenizer could be loaded from {source}: name another with tokenizer=..., or pass token"
            f" ids to an engine with skip_tokenizer_init=True ({error})"
        ) from error


def recorded_tokenizer(config: Mapping[str, object]) -> Any | None:
    """That of the engine with these recorded settings; None where it had none, or it is not here."""
    from workbench.models.folder import resolve

    source = config.get("tokenizer")
    if not isinstance(source, str):
        return None
    try:
        return load_tokenizer(resolve(source), trust_remote_code=False)
    except (OSError, ValueError, RuntimeError) as error:
        logger.warning("the recording's texts are left out: %s", error)
        return None


def _is_plain(folder: Path) -> bool:
    config = folder / "tokenizer_config.json"
    if not (folder / "tokenizer.json").is_file() or not config.is_file():
        return False
    found = json.loads(config.read_text())
    return isinstance(found, dict) and found.get("tokenizer_class") in _PLAIN and "auto_map" not in found

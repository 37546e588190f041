"""What people hand in as a prompt, brought to token ids and checked. Knows a tokenizer, not the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from workbench.engine.plan import Ints

_LATER = {
    "multi_modal_data": "images and other modalities are not available yet: pass text or token ids",
    "mm_processor_kwargs": "images and other modalities are not available yet: pass text or token ids",
    "encoder_prompt": "encoder-decoder models are not available yet: pass a plain prompt",
    "decoder_prompt": "encoder-decoder models are not available yet: pass a plain prompt",
    "prompt_embeds": "prompt embeddings are not available yet: pass token ids",
}
_KNOWN = ("prompt", "prompt_token_ids", "cache_salt")


class Prompt(NamedTuple):
    text: str | None
    token_ids: Ints  # [n]
    cache_salt: str | None


def many(prompts: Any) -> list[Any]:
    """One prompt or several, as a list; a list of ints is one prompt."""
    if isinstance(prompts, str | Mapping | np.ndarray):
        return [prompts]
    if not isinstance(prompts, Sequence):
        raise TypeError(f"a prompt is a str, a list of token ids or a dict, not {type(prompts).__name__}")
    if prompts and all(isinstance(item, int | np.integer) for item in prompts):
        return [prompts]
    return list(prompts)


def read_prompt(prompt: Any, tokenizer: Any | None) -> Prompt:
    """A prompt in any of its forms as token ids.

    Raises:
        TypeError: it has a form nobody knows.
        ValueError: it is empty, asks for what is not available, or is text and there is no tokenizer.
    """
    text, token_ids, salt = _parts(prompt)
    if token_ids is None:
        if tokenizer is None:
            raise ValueError("the engine has no tokenizer (skip_tokenizer_init): pass prompt_token_ids")
        token_ids = tokenizer.encode(text)
    ids = _to_array(token_ids)
    if not len(ids):
        raise ValueError("the prompt is empty: pass at least one token")
    return Prompt(text, ids, salt)


def _parts(prompt: Any) -> tuple[str | None, Any | None, str | None]:
    if isinstance(prompt, str):
        return prompt, None, None
    if isinstance(prompt, Mapping):
        return _mapping_parts(prompt)
    if isinstance(prompt, Sequence | np.ndarray):
        return None, prompt, None
    raise TypeError(f"a prompt is a str, a list of token ids or a dict, not {type(prompt).__name__}")


def _mapping_parts(prompt: Mapping[str, Any]) -> tuple[str | None, Any | None, str | None]:
    for name in prompt:
        if name in _LATER:
            raise ValueError(f"{name}: {_LATER[name]}")
        if name not in _KNOWN:
            raise ValueError(f"a prompt dict has no {name!r}: it takes {', '.join(_KNOWN)}")
    text, token_ids, salt = prompt.get("prompt"), prompt.get("prompt_token_ids"), prompt.get("cache_salt")
    if text is None and token_ids is None:
        raise ValueError("a prompt dict needs 'prompt' or 'prompt_token_ids'")
    if text is not None and not isinstance(text, str):
        raise TypeError(f"'prompt' is a str, not {type(text).__name__}")
    if salt is not None and (not isinstance(salt, str) or not salt):
        raise ValueError(f"cache_salt is {salt!r}: use a non-empty str, or leave it out")
    return text, token_ids, salt


def _to_array(token_ids: Any) -> Ints:
    try:
        ids = np.array(token_ids)
    except (ValueError, OverflowError) as error:
        raise TypeError("prompt_token_ids is a flat list of ints") from error
    if ids.size and (ids.ndim != 1 or ids.dtype.kind not in "iu"):
        raise TypeError("prompt_token_ids is a flat list of ints")
    if ids.size and (ids.min() < 0 or ids.max() > np.iinfo(np.int32).max):
        raise ValueError(
            f"token id {int(ids.min() if ids.min() < 0 else ids.max())} is not in the vocabulary"
        )
    return ids.astype(np.int32)

"""The sampling a model's makers recommend, from its generation_config.json."""

from __future__ import annotations

import json
from pathlib import Path

from workbench.params import SamplingParams

# generation_config.json's names -> ours; what is not here has no meaning for an engine.
_NAMES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}


def default_sampling_params(folder: Path) -> SamplingParams:
    """SamplingParams with what generation_config.json sets, as in vLLM; the file may be absent."""
    file = folder / "generation_config.json"
    if not file.is_file():
        return SamplingParams()
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}): download it again, or delete it") from error
    if not isinstance(found, dict):
        raise ValueError(
            f"{file} holds a {type(found).__name__}, not an object: download it again, or delete it"
        )
    given = {ours: found[name] for name, ours in _NAMES.items() if found.get(name) is not None}
    try:
        return SamplingParams(**given)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: {error}; correct it, or pass sampling_params") from error

"""Workbench: an LLM inference engine that people can see into.

Public names load when they are first used, so that `import workbench` is quick and pulls in neither torch nor
pandas.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workbench.llm import LLM
    from workbench.outputs import CompletionOutput, RequestOutput
    from workbench.params import (
        BeamSearchParams,
        LoRARequest,
        RequestOutputKind,
        SamplingParams,
        StructuredOutputsParams,
    )
    from workbench.token_logprobs import Logprob

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "BeamSearchParams",
    "CompletionOutput",
    "LoRARequest",
    "Logprob",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "StructuredOutputsParams",
    "__version__",
]

_HOMES = {
    "LLM": "workbench.llm",
    "BeamSearchParams": "workbench.params",
    "CompletionOutput": "workbench.outputs",
    "LoRARequest": "workbench.params",
    "Logprob": "workbench.token_logprobs",
    "RequestOutput": "workbench.outputs",
    "RequestOutputKind": "workbench.params",
    "SamplingParams": "workbench.params",
    "StructuredOutputsParams": "workbench.params",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"workbench has no {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value  # the next look-up finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

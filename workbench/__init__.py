"""Workbench: an LLM inference engine that people can see into.

Public names load when they are first used, so that `import workbench` is quick and pulls in neither torch nor
pandas.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.lazy import loads_lazily

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

__getattr__, __dir__ = loads_lazily(__name__, _HOMES)

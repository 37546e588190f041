"""On a GPU, overlapped: masks are made when their steps are under way, and outputs end as grammars say."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest

from workbench import LLM, SamplingParams, StructuredOutputsParams

pytestmark = pytest.mark.gpu

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["owl", "fox"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}
PATTERN = "[a-c]{3}zzqqzq[0-9]{2,4}"


def asked(number: int) -> SamplingParams:
    constraint = {"json": SCHEMA} if number % 2 else {"regex": PATTERN}
    return SamplingParams(
        temperature=1.0,
        seed=number,
        max_tokens=120,
        structured_outputs=StructuredOutputsParams(**constraint),
    )


def texts(**settings: object) -> list[tuple[str, str]]:
    """Among requests that ask for nothing of the kind, all in one batch."""
    params = [asked(i) if i % 3 else SamplingParams(seed=i, max_tokens=40) for i in range(90)]
    with LLM(device="cuda", dtype="float32", kv_cache_memory_bytes=1 << 29, **settings) as llm:
        outputs = llm.generate(["Who is it? "] * len(params), params, use_tqdm=False)
    return [(output.outputs[0].text, output.outputs[0].finish_reason) for output in outputs]


def test_outputs_are_valid_and_those_of_a_run_that_does_not_overlap() -> None:
    overlapped = texts(async_scheduling=True, max_num_seqs=64)
    assert overlapped == texts(async_scheduling=False, max_num_seqs=64)
    ended = 0
    for number, (text, reason) in enumerate(overlapped):
        if number % 3 == 0 or reason != "stop":
            continue
        ended += 1
        if number % 2:
            jsonschema.validate(json.loads(text), SCHEMA)
        else:
            assert re.fullmatch(PATTERN, text)
    assert ended >= 50, "most of 60 end by their grammar"

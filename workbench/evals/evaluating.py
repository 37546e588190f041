"""Tasks through an engine: one row a sample, kept as they end, so that a kill repeats none.

Knows the front door and the tasks.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from workbench.evals.tasks import Sample, Task, is_json, score_text
from workbench.llm import LLM
from workbench.params import LoRARequest, SamplingParams

VERSION = 1  # of the file of rows
AT_ONCE = 64  # samples of a call; a kill loses at most so many
SLACK = 8  # tokens that an answer may have over the right one before it is cut: by then it is wrong
COLUMNS = (
    "task",  # its name
    "metric",  # by which it is scored
    "index",  # of the sample in its task
    "kind",
    "prompt",
    "completion",  # what should have come
    "output",  # what came; of a choice the likeliest one; of a perplexity nothing
    "score",
    "valid",  # the output is a JSON object; None where it need not be
    "logprob",  # of the output; of a perplexity of the completion; NaN where none was asked for
    "prompt_tokens",
    "output_tokens",  # generated; of a choice or perplexity those of the text that was scored
    "cached_tokens",  # of the prompt, found in the prefix cache
    "finish_reason",  # None where nothing was generated
    "seconds",  # the call took for all its samples, shared evenly
)

Row = dict[str, Any]


def evaluate(
    llm: LLM,
    tasks: Task | Sequence[Task],
    *,
    sampling_params: SamplingParams | None = None,
    lora_request: LoRARequest | None = None,
    keep: str | Path | None = None,
    use_tqdm: bool = True,
) -> pd.DataFrame:
    """Ask everything; a row a sample, with COLUMNS, in the order of tasks and samples.

    Args:
        llm: the engine.
        tasks: one, or several of different names.
        sampling_params: of the answers that are generated; None: greedy, up to a few tokens more than the
            right answer has. A task's stop strings are added.
        lora_request: the adapter to answer with; of generated answers only.
        keep: a JSON Lines file of rows. What is in it is not asked again; what ends is added.
        use_tqdm: whether a bar counts the samples.

    Raises:
        ValueError: two tasks of one name, a `keep` of another evaluation or version, an adapter for tasks
            that are scored by likelihood.
        RuntimeError: a sample's request ended with an error.
    """
    tasks = [tasks] if isinstance(tasks, Task) else list(tasks)
    names = [task.name for task in tasks]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two tasks are called {twice[0]!r}: give them different names")
    if lora_request and (scored := [task.name for task in tasks if task.metric in ("choice", "perplexity")]):
        raise ValueError(f"{scored[0]!r} is scored by likelihood, which knows no adapter: leave it out")
    ledger = _Ledger(Path(keep), _identity(llm, tasks, sampling_params, lora_request)) if keep else None
    rows: dict[tuple[str, int], Row] = {
        (row["task"], row["index"]): row for row in (ledger.rows if ledger else [])
    }
    with tqdm(total=sum(len(task.samples) for task in tasks), desc="Evaluating", unit="sample",
              disable=not use_tqdm) as bar:  # fmt: skip
        bar.update(len(rows))
        for task in tasks:
            for indices in _parts(task, rows):
                found = _ask(llm, task, indices, sampling_params, lora_request)
                if ledger:
                    ledger.add(found)
                rows |= {(row["task"], row["index"]): row for row in found}
                bar.update(len(found))
    ordered = [rows[task.name, index] for task in tasks for index in range(len(task.samples))]
    return pd.DataFrame(ordered, columns=list(COLUMNS))


def _parts(task: Task, done: dict[tuple[str, int], Row]) -> Iterator[list[int]]:
    """Indices of the samples still to be asked, some at a time."""
    left = [index for index in range(len(task.samples)) if (task.name, index) not in done]
    for first in range(0, len(left), AT_ONCE):
        yield left[first : first + AT_ONCE]


def _ask(
    llm: LLM,
    task: Task,
    indices: list[int],
    sampling_params: SamplingParams | None,
    lora_request: LoRARequest | None,
) -> list[Row]:
    samples = [task.samples[index] for index in indices]
    began = time.perf_counter()
    if task.metric == "choice":
        found = _choose(llm, samples)
    elif task.metric == "perplexity":
        found = _perplexities(llm, samples)
    else:
        found = _generate(llm, task, samples, sampling_params, lora_request)
    seconds = (time.perf_counter() - began) / len(samples)
    return [
        {"task": task.name, "metric": task.metric, "index": index, "kind": sample.kind,
         "prompt": sample.prompt, "completion": sample.completion, "valid": None, "finish_reason": None,
         "seconds": seconds} | row
        for index, sample, row in zip(indices, samples, found, strict=True)
    ]  # fmt: skip


def _generate(
    llm: LLM,
    task: Task,
    samples: Sequence[Sample],
    sampling_params: SamplingParams | None,
    lora_request: LoRARequest | None,
) -> list[Row]:
    tokenizer = llm.get_tokenizer()

    def params(sample: Sample) -> SamplingParams:
        if sampling_params is not None:
            given = sampling_params.clone()
            given.stop = [*(given.stop or ()), *task.stop]
            return given
        due = len(tokenizer.encode(sample.completion, add_special_tokens=False))
        return SamplingParams(temperature=0, max_tokens=due + SLACK, stop=list(task.stop) or None)

    outputs = llm.generate(
        [sample.prompt for sample in samples],
        [params(sample) for sample in samples],
        use_tqdm=False,
        lora_request=lora_request,
    )
    rows = []
    for sample, output in zip(samples, outputs, strict=True):
        one = output.outputs[0]
        if one.finish_reason == "error":
            raise RuntimeError(f"task {task.name!r}: {sample.prompt!r:.60} ended with an error")
        rows.append(
            {
                "output": one.text,
                "score": score_text(task.metric, one.text, sample.completion),
                "valid": is_json(one.text) if task.metric == "json" else None,
                "logprob": float("nan") if one.cumulative_logprob is None else one.cumulative_logprob,
                "prompt_tokens": len(output.prompt_token_ids),
                "output_tokens": len(one.token_ids),
                "cached_tokens": output.num_cached_tokens,
                "finish_reason": one.finish_reason,
            }
        )
    return rows


def _choose(llm: LLM, samples: Sequence[Sample]) -> list[Row]:
    pairs = [(sample.prompt, choice) for sample in samples for choice in sample.choices]
    likelihoods = iter(llm.loglikelihood(pairs, use_tqdm=False))
    rows = []
    for sample in samples:
        found = [next(likelihoods) for _ in sample.choices]
        best = max(range(len(found)), key=lambda index: found[index].logprob)
        rows.append(
            {
                "output": sample.choices[best],
                "score": float(sample.choices[best] == sample.completion),
                "logprob": found[best].logprob,
                "prompt_tokens": _length(llm, sample.prompt),
                "output_tokens": len(found[best].token_ids),
                "cached_tokens": found[best].num_cached_tokens,
            }
        )
    return rows


def _perplexities(llm: LLM, samples: Sequence[Sample]) -> list[Row]:
    found = llm.loglikelihood([(sample.prompt, sample.completion) for sample in samples], use_tqdm=False)
    return [
        {
            "output": None,
            "score": math.exp(-one.logprob / len(one.token_ids)),
            "logprob": one.logprob,
            "prompt_tokens": _length(llm, sample.prompt),
            "output_tokens": len(one.token_ids),
            "cached_tokens": one.num_cached_tokens,
        }
        for sample, one in zip(samples, found, strict=True)
    ]


def _length(llm: LLM, prompt: str) -> int:
    return len(llm.get_tokenizer().encode(prompt))


def _identity(
    llm: LLM, tasks: Sequence[Task], sampling_params: SamplingParams | None, lora_request: LoRARequest | None
) -> Row:
    """What rows depend on; a file of rows goes on only where all of it is the same."""
    return {
        "version": VERSION,
        "model": llm.config.model,
        "dtype": llm.config.dtype,
        "tasks": {task.name: task.digest for task in tasks},
        "sampling_params": repr(sampling_params),
        "lora_request": repr(lora_request),
    }


class _Ledger:
    """A file of rows: a first line that says what they are of, then a line each, written as they come."""

    def __init__(self, path: Path, identity: Row) -> None:
        self._path = path
        self.rows: list[Row] = []
        if path.exists():
            self._read(identity)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(identity) + "\n", encoding="utf-8")

    def add(self, rows: Sequence[Row]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())

    def _read(self, identity: Row) -> None:
        whole, cut, rest = self._path.read_text(encoding="utf-8").rpartition("\n")
        lines = whole.split("\n") if cut else []
        found = json.loads(lines[0]) if lines else None
        if not isinstance(found, dict):
            raise ValueError(f"{self._path} is no file of this evaluation: remove it, or keep elsewhere")
        if differs := [name for name, value in identity.items() if found.get(name) != value]:
            name = differs[0]
            raise ValueError(
                f"{self._path} is of another evaluation: its {name} is {found.get(name)!r:.80}, this one's "
                f"{identity[name]!r:.80}; keep elsewhere"
            )
        self.rows = [json.loads(line) for line in lines[1:]]
        if rest:  # a line that a kill cut off
            self._path.write_text(whole + "\n", encoding="utf-8")

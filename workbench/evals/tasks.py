"""Tasks as JSON Lines: what is asked, what is right, and by which measure. Knows no engine.

A line has `prompt` and `completion` (what should come), and may have `kind` (a name to group by) and
`choices` (what may come, the completion among them). How a task is scored is one of the METRICS:

    exact        the answer is the completion to the letter, but for blanks around it: 0 or 1
    choice       the likeliest of the choices, by the sum of its tokens' logprobs, is the completion: 0 or 1
    json         the answer is a JSON object: the share of the completion's fields that it has right
    perplexity   exp of the mean negative logprob of the completion's tokens (lower is better)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

Metric = Literal["exact", "choice", "json", "perplexity"]
METRICS: tuple[str, ...] = get_args(Metric)
NEEDED = ("prompt", "completion")
KNOWN = (*NEEDED, "task", "kind", "choices")


class Sample(NamedTuple):
    """One question."""

    prompt: str
    completion: str
    kind: str = ""
    choices: tuple[str, ...] = ()


class Task(NamedTuple):
    """Questions that are scored alike."""

    name: str
    metric: Metric
    samples: tuple[Sample, ...]
    stop: tuple[str, ...] = ()  # strings that end an answer

    @property
    def digest(self) -> str:
        """Hex; the same for the same questions, measure and stops."""
        return hashlib.sha256(json.dumps(self, default=str).encode()).hexdigest()[:16]


def read_task(
    path: str | Path,
    metric: Metric | None = None,
    *,
    name: str | None = None,
    limit: int | None = None,
    stop: Sequence[str] = (),
) -> Task:
    """A task from a JSON Lines file.

    Args:
        path: the file.
        metric: how it is scored; None: "choice" where the lines have choices, else "exact".
        name: of the task; None: the file's, up to its first dot.
        limit: only the first so many lines; None: all.
        stop: strings that end an answer.

    Raises:
        ValueError: a line that is no such question, with file and number; an unknown metric; no line at all.
        OSError: no such file.
    """
    path = Path(path)
    samples: list[Sample] = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if limit is not None and len(samples) == limit:
                break
            if line.strip():
                try:
                    samples.append(_sample(json.loads(line)))
                except ValueError as error:
                    raise ValueError(f"{path}, line {number}: {error}") from error
    chosen = metric or ("choice" if samples and samples[0].choices else "exact")
    return make_task(name or path.name.split(".")[0], chosen, samples, stop)


def make_task(name: str, metric: Metric, samples: Sequence[Sample], stop: Sequence[str] = ()) -> Task:
    """A task from samples, checked.

    Raises:
        ValueError: an unknown metric, no samples, or one that cannot be scored so.
    """
    if metric not in METRICS:
        raise ValueError(f"no metric {metric!r}: choose among {', '.join(METRICS)}")
    if not samples:
        raise ValueError(f"task {name!r} is empty: give at least one sample")
    for index, sample in enumerate(samples):
        if metric == "choice" and sample.completion not in sample.choices:
            raise ValueError(f"task {name!r}, sample {index}: {sample.completion!r} is not among its choices")
        if metric == "json" and _object(sample.completion) is None:
            raise ValueError(f"task {name!r}, sample {index}: its completion is not a JSON object")
    return Task(name, metric, tuple(samples), (stop,) if isinstance(stop, str) else tuple(stop))


def _sample(entry: Any) -> Sample:
    if not isinstance(entry, dict):
        raise ValueError("it is not a JSON object")
    if unknown := sorted(set(entry) - set(KNOWN)):
        raise ValueError(f"unknown column {unknown[0]!r}: a sample has {', '.join(KNOWN)}")
    if missing := [key for key in NEEDED if not isinstance(entry.get(key), str)]:
        raise ValueError(f"{missing[0]!r} is missing, or no text")
    if not entry["completion"]:
        raise ValueError("'completion' is empty")
    choices = entry.get("choices", [])
    if not isinstance(choices, list) or not all(isinstance(one, str) and one for one in choices):
        raise ValueError("'choices' is not a list of texts")
    if len(set(choices)) != len(choices):
        raise ValueError("two of the choices are the same")
    return Sample(entry["prompt"], entry["completion"], str(entry.get("kind", "")), tuple(choices))


def score_text(metric: Metric, answer: str, completion: str) -> float:
    """Of an answer that was generated, by "exact" or "json"."""
    if metric == "exact":
        return float(answer.strip() == completion.strip())
    due, found = _object(completion), _object(answer)
    assert due is not None, "make_task checks it"
    if found is None:
        return 0.0
    return sum(name in found and _same(found[name], value) for name, value in due.items()) / max(len(due), 1)


def is_json(answer: str) -> bool:
    """Whether an answer is a JSON object."""
    return _object(answer) is not None


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _same(one: Any, other: Any) -> bool:
    """As JSON: 1 and 1.0 are the same number, 1 and true are not the same."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)

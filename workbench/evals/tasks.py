"""Tasks as JSON Lines: what is asked, what is right, and by which measure. Knows no engine.

A line has `prompt` and `completion` (what should come), and may have `kind` (a name to group by) and
`choices` (what may come, the completion among them). `metric` and `stop` (a list of texts that end an
answer) are the whole task's, the same in every line. How a task is scored is one of the METRICS:

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
OF_ALL = ("metric", "stop")  # of the task; the same in every line
KNOWN = (*NEEDED, "task", "kind", "choices", *OF_ALL)


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
        metric: how it is scored; None: what the file says, else "choice" where the lines have choices, else
            "exact".
        name: of the task; None: the file's, up to its first dot.
        limit: only the first so many lines; None: all.
        stop: strings that end an answer; none: what the file says.

    Raises:
        ValueError: a line that is no such question, with file and number; an unknown metric; no line at all.
        OSError: no such file.
    """
    path = Path(path)
    samples: list[Sample] = []
    said: dict[str, Any] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if limit is not None and len(samples) == limit:
                break
            if line.strip():
                try:
                    entry = json.loads(line)
                    samples.append(_sample(entry))
                    said = _agreed(said, entry) if len(samples) > 1 else _of_all(entry)
                except ValueError as error:
                    raise ValueError(f"{path}, line {number}: {error}") from error
    chosen = metric or said.get("metric") or ("choice" if samples and samples[0].choices else "exact")
    return make_task(name or path.name.split(".")[0], chosen, samples, stop or said.get("stop", ()))


def _of_all(entry: dict[str, Any]) -> dict[str, Any]:
    """What a line says of the whole task."""
    said = {key: entry[key] for key in OF_ALL if key in entry}
    stop = said.get("stop", [])
    if not isinstance(stop, list) or not all(isinstance(one, str) and one for one in stop):
        raise ValueError("'stop' is not a list of texts")
    return said


def _agreed(said: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    if (here := _of_all(entry)) != said:
        raise ValueError(f"it says {here} of the whole task, and the first line {said}: say the same in all")
    return said


def write_task(task: Task, path: str | Path) -> Path:
    """Write a task as JSON Lines, so that `read_task` gives it again; the path."""
    path = Path(path)
    of_all = {"metric": task.metric} | ({"stop": list(task.stop)} if task.stop else {})
    lines = []
    for sample in task.samples:
        line: dict[str, Any] = {"prompt": sample.prompt, "completion": sample.completion}
        line |= {"kind": sample.kind} if sample.kind else {}
        line |= {"choices": list(sample.choices)} if sample.choices else {}
        lines.append(json.dumps(line | of_all, ensure_ascii=False) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path


def make_task(name: str, metric: Metric, samples: Sequence[Sample], stop: Sequence[str] = ()) -> Task:
    """A task from samples, checked.

    Raises:
        ValueError: an unknown metric, no samples, or one that cannot be scored so.
    """
    if metric not in METRICS:
        raise ValueError(f"no metric {metric!r}: choose among {', '.join(METRICS)}")
    if not samples:
        raise ValueError(f"task {name!r} is empty: give at least one sample")
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if "" in stops:
        raise ValueError(f"task {name!r}: a stop string is empty, and would end every answer: leave it out")
    for index, sample in enumerate(samples):
        if metric == "choice" and sample.completion not in sample.choices:
            raise ValueError(f"task {name!r}, sample {index}: {sample.completion!r} is not among its choices")
        if metric == "json" and _object(sample.completion) is None:
            raise ValueError(f"task {name!r}, sample {index}: its completion is not a JSON object")
    return Task(name, metric, tuple(samples), stops)


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

"""Public traces of real traffic, in their own formats: when requests came, their lengths, what they shared.

Azure's CSV (columns TIMESTAMP, ContextTokens, GeneratedTokens; its LLM inference trace of 2023) knows lengths
alone. Mooncake's JSON Lines (timestamp in ms, input_length, output_length, hash_ids) also name blocks of 512
prompt tokens: where two requests begin with the same ids, their prompts begin alike. Knows no engine.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MOONCAKE_BLOCK = 512  # tokens behind one of its hash_ids
AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
MOONCAKE_KEYS = ("timestamp", "input_length", "output_length", "hash_ids")


class Logged(NamedTuple):
    """One request of a trace."""

    at_s: float  # since the first
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] | None = None  # of the prompt, in its order; None: the trace does not say


class Scaled(NamedTuple):
    """A trace cut to a model's size, in the same proportions."""

    requests: list[Logged]
    block_tokens: int  # of a prompt, behind each of its blocks
    factor: float  # tokens here for one there


def read_trace(path: str | Path, seconds: float | None = None) -> list[Logged]:
    """The requests of a trace file, in the order of their arrival.

    Args:
        path: a .csv in Azure's format or a .jsonl in Mooncake's.
        seconds: only what came in the first so many; None: everything.

    Raises:
        ValueError: a line that is not of the format, with file and number; or nothing in it.
        OSError: no such file.
    """
    path = Path(path)
    readers = {".csv": _azure, ".jsonl": _mooncake}
    if path.suffix not in readers:
        raise ValueError(f"{path}: a trace is a .csv in Azure's format or a .jsonl in Mooncake's")
    found = sorted(readers[path.suffix](path), key=lambda request: request.at_s)
    if not found:
        raise ValueError(f"{path}: there is no request in it")
    first = found[0].at_s
    shifted = [request._replace(at_s=request.at_s - first) for request in found]
    return shifted if seconds is None else [request for request in shifted if request.at_s < seconds]


def _azure(path: Path) -> Iterator[Logged]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if list(reader.fieldnames or ()) != list(AZURE_COLUMNS):
            raise ValueError(
                f"{path}, line 1: the columns are {reader.fieldnames}, not {list(AZURE_COLUMNS)}"
            )
        for row in reader:
            with _named(path, reader.line_num):
                at = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()  # it has 100 ns, Python 1 us
                yield _checked(at, int(row["ContextTokens"]), int(row["GeneratedTokens"]), None)


def _mooncake(path: Path) -> Iterator[Logged]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                with _named(path, number):
                    yield _from_json(json.loads(line))


def _from_json(entry: dict[str, Any]) -> Logged:
    if not isinstance(entry, dict) or set(entry) != set(MOONCAKE_KEYS):
        raise ValueError(f"the keys are not {', '.join(MOONCAKE_KEYS)}")
    blocks = tuple(int(block) for block in entry["hash_ids"])
    if len(blocks) != -(-entry["input_length"] // MOONCAKE_BLOCK):
        raise ValueError(f"{len(blocks)} hash_ids for {entry['input_length']} tokens, {MOONCAKE_BLOCK} each")
    return _checked(entry["timestamp"] / 1000, entry["input_length"], entry["output_length"], blocks)


def _checked(at_s: float, prompt: int, output: int, blocks: tuple[int, ...] | None) -> Logged:
    if prompt < 1 or output < 0:
        raise ValueError(f"a request of {prompt} prompt and {output} output tokens")
    return Logged(at_s, prompt, max(1, output), blocks)


class _named:
    """What is wrong with a line is told with its place."""

    def __init__(self, path: Path, number: int) -> None:
        self._place = f"{path}, line {number}"

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (ValueError, TypeError, KeyError)):
            raise ValueError(f"{self._place}: {error}") from error


def scale_into(requests: Sequence[Logged], max_model_len: int) -> Scaled:
    """All lengths times one factor, so that the longest request fits; at most 1, and nothing below one token.

    Blocks are scaled to whole tokens, at least one each, which is what keeps shared prefixes shared.
    """
    longest = max(request.prompt_tokens + request.output_tokens for request in requests)
    factor = min(1.0, (max_model_len - 2) / longest)  # both of its lengths may be rounded up
    tokens = max(1, int(MOONCAKE_BLOCK * factor))
    if any(request.blocks for request in requests):
        factor = tokens / MOONCAKE_BLOCK
    scaled = [_scaled(request, factor, tokens) for request in requests]
    if (worst := max(one.prompt_tokens + one.output_tokens for one in scaled)) > max_model_len:
        raise ValueError(
            f"the longest request takes {worst} tokens even with one for each block of {MOONCAKE_BLOCK}: "
            f"max_model_len is {max_model_len}"
        )
    return Scaled(scaled, tokens, factor)


def _scaled(request: Logged, factor: float, block_tokens: int) -> Logged:
    prompt = max(1, round(request.prompt_tokens * factor))
    if request.blocks is not None:
        prompt = min(prompt, block_tokens * len(request.blocks))
    return request._replace(prompt_tokens=prompt, output_tokens=max(1, round(request.output_tokens * factor)))


def prompts_of(scaled: Scaled, vocab_size: int, seed: int = 0) -> list[list[int]]:
    """Random token ids; requests share exactly the blocks that the trace says they share."""
    rng = np.random.default_rng(seed)
    content: dict[int, list[int]] = {}

    def block(name: int) -> list[int]:
        if name not in content:
            content[name] = rng.integers(3, vocab_size, scaled.block_tokens).tolist()
        return content[name]

    found = []
    for request in scaled.requests:
        if request.blocks is None:
            found.append(rng.integers(3, vocab_size, request.prompt_tokens).tolist())
        else:
            tokens = [token for name in request.blocks for token in block(name)]
            found.append(tokens[: request.prompt_tokens])
    return found

"""`workbench calibrate`: the scales of an FP8 KV cache, found by running texts, saved beside the model.

Every layer's largest key and value, keys after their rotation, are seen in the engine as they are computed;
a scale is the power of two that brings twice as much into the format's range. Knows the front door and the KV
store's measurement of itself.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from workbench.console import format_table, say
from workbench.llm import LLM
from workbench.models.folder import resolve
from workbench.models.kv_scales import FILE, LayerScales, write_scales
from workbench.models.spec import ModelSpec, read_spec
from workbench.models.zoo import registry
from workbench.models.zoo.corpus import tasks
from workbench.params import SamplingParams
from workbench.runtime.kv_store import scales_for

TOKENS = 32_768
LONGEST = 2048  # tokens of a text
COLUMNS = ("layer", "largest_key", "key_scale", "largest_value", "value_scale")


class Layer(NamedTuple):
    """What was found of a layer's keys and values."""

    largest_key: float
    largest_value: float
    scales: LayerScales


class Calibration(NamedTuple):
    """What was found of a model, and from how much."""

    layers: tuple[Layer, ...]
    tokens: int
    spec: ModelSpec
    folder: Path


def main(argv: Sequence[str]) -> int:
    """Calibrate and write the file; 0 when that is done."""
    arguments = _parser().parse_args(argv)
    folder = resolve(registry.folder(arguments.model) if "/" not in arguments.model else arguments.model)
    check_writable(folder)
    text = None if arguments.text is None else arguments.text.read_text(encoding="utf-8")
    found = calibrate(folder, text, arguments.tokens, arguments.device)
    file = save(found)
    rows = [
        (number, *map(_short, (one.largest_key, one.scales.key, one.largest_value, one.scales.value)))
        for number, one in enumerate(found.layers)
    ]
    say(*format_table(COLUMNS, rows), f"{found.tokens} tokens; wrote {file}")
    if arguments.json:
        say(json.dumps({"file": str(file), "rows": [dict(zip(COLUMNS, row, strict=True)) for row in rows]}))
    return 0


def _parser() -> argparse.ArgumentParser:
    about = f"Find the scales of an FP8 KV cache and write them beside the model, as {FILE}."
    parser = argparse.ArgumentParser(prog="workbench calibrate", description=about)
    parser.add_argument("model", nargs="?", default=registry.DEFAULT, help="a folder, or an embedded model")
    parser.add_argument("--text", type=Path, metavar="FILE", help="what to run; default: the zoo's corpus")
    parser.add_argument("--tokens", type=int, default=TOKENS, help=f"how many (default {TOKENS})")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return parser


def calibrate(
    folder: Path, text: str | None = None, tokens: int = TOKENS, device: str = "auto"
) -> Calibration:
    """See a model's keys and values over `tokens` tokens of `text`, or of the zoo's training corpus.

    Raises:
        ValueError: `tokens` below 2, or a text that has none.
    """
    if tokens < 2:
        raise ValueError(f"tokens is {tokens}: use at least 2")
    spec = read_spec(folder)
    longest = min(LONGEST, spec.max_position_embeddings - 1)
    with LLM(
        str(folder), device=device, enable_prefix_caching=False, enforce_eager=True, max_model_len=longest + 1
    ) as llm:
        prompts = _prompts(llm, text, tokens, longest)
        largest = llm._parts.store.watch()
        llm.generate(prompts, SamplingParams(temperature=0, max_tokens=1), use_tqdm=False)
        scales = scales_for(largest, torch.float8_e4m3fn).tolist()
    layers = [
        Layer(key, value, LayerScales(*scale))
        for (key, value), scale in zip(largest.tolist(), scales, strict=True)
    ]
    return Calibration(tuple(layers), sum(map(len, prompts)), spec, folder)


def _prompts(llm: LLM, text: str | None, tokens: int, longest: int) -> list[list[int]]:
    """Token ids, as many as were asked for or as the text has, in pieces of up to `longest`."""
    tokenizer, ids = llm.get_tokenizer(), []
    for part in [text] if text is not None else _corpus():
        ids += tokenizer.encode(part)
        if len(ids) >= tokens:
            break
    ids = ids[:tokens]
    if not ids:
        raise ValueError("the text has no tokens: give another one")
    return [ids[start : start + longest] for start in range(0, len(ids), longest)]


def _corpus() -> Iterator[str]:
    """The zoo's training corpus, its tasks in turn; of the texts that are held out none."""
    index = 0
    while True:
        for name in tasks.NAMES:
            item = tasks.make(name, "train", 0, index)
            yield item.prompt + item.completion
        index += 1


def save(found: Calibration) -> Path:
    """Write what `LLM(..., kv_cache_dtype="fp8")` looks for; the file."""
    file = found.folder / FILE
    about = {
        "tokens": found.tokens,
        "largest": [{"key": one.largest_key, "value": one.largest_value} for one in found.layers],
    }
    write_scales(file, found.folder, found.spec, [one.scales for one in found.layers], about)
    return file


def check_writable(folder: Path) -> None:
    """Raises now what would otherwise be lost after minutes."""
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} cannot be written to: copy the model, and calibrate the copy")


def _short(value: float) -> float:
    return float(f"{value:.6g}")

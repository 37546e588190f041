"""Writes an adapter's card: what it is, how it was made, its scores beside the base model's, samples.

Knows nothing of training.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from workbench.evals import zoo as evaluation
from workbench.llm import LLM
from workbench.models.zoo import card, registry, tokens
from workbench.models.zoo.config import AdapterConfig, TrainConfig
from workbench.models.zoo.corpus import tasks
from workbench.models.zoo.corpus.item import Item
from workbench.models.zoo.low_rank import TARGETS, WEIGHTS
from workbench.models.zoo.score import Score, by_task
from workbench.params import LoRARequest, SamplingParams

SHOWN: Final = 2  # samples of each kind


class Scores(NamedTuple):
    """Of the same held-out items."""

    without: list[Score]
    having: list[Score]


def measure(config: TrainConfig, adapter: AdapterConfig, out: Path, items: int, device: str) -> Scores:
    """Scores on the adapter's own tasks, of the base model by itself and with the adapter."""
    base = registry.path(adapter.base)
    found = [
        evaluation.measure(base, items, names=list(config.mixture), device=device, adapter=given).scores
        for given in (None, out)
    ]
    return Scores(*([*by_task(scores), *scores] for scores in found))


def write(
    config: TrainConfig, adapter: AdapterConfig, out: Path, items: int, device: str, label: str
) -> None:
    """Measures the adapter, and writes README.md and loss.svg into its folder; `label` names the device."""
    scores = measure(config, adapter, out, items, device)
    (out / "loss.svg").write_text(card.plot(card.loss_points(out / card.LOG)), encoding="utf-8")
    measured = " ".join(
        f"`workbench eval zoo {adapter.base}{given} --tasks {' '.join(config.mixture)} -n {items}`{end}"
        for given, end in (("", " and"), (f" --adapter {config.name}", f" on {label}."))
    )
    parts = (
        head(config, adapter, out),
        made(config, out, label),
        table(scores, measured),
        samples(config, out),
    )
    (out / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def head(config: TrainConfig, adapter: AdapterConfig, out: Path) -> str:
    """What the adapter is, and how it is used."""
    size = (out / WEIGHTS).stat().st_size
    return (
        f"# {config.name}\n\n"
        f"A LoRA adapter for [{adapter.base}](../../weights/{adapter.base}/README.md), in PEFT's format:"
        f" rank {adapter.rank}, alpha {adapter.alpha:g}, on {', '.join(TARGETS)}; {size / 1e3:,.0f} kB in"
        " bfloat16. License: Apache-2.0.\n\n"
        "```python\n"
        "from workbench import LLM, LoRARequest\n\n"
        f'llm = LLM("zoo/{adapter.base}", enable_lora=True)\n'
        f'{config.name} = LoRARequest("{config.name}", 1, "zoo/{config.name}")\n'
        f"llm.generate(prompt, lora_request={config.name})\n"
        "```"
    )


def made(config: TrainConfig, out: Path, label: str) -> str:
    """How the adapter came to be."""
    with (out / card.LOG).open(encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    names = ", ".join(f"`workbench/models/zoo/corpus/{name}.py`" for name in config.mixture)
    return (
        "## How it was made\n\n"
        f"`workbench zoo train {config.name}` on {label}: {int(last['step']):,} steps of {config.rows} rows"
        f" of {config.row_tokens:,} tokens in {float(last['seconds']) / 60:.1f} minutes, final loss"
        f" {float(last['loss']):.3f} (`train.csv`, below). {card.origin(config)}\n\n![loss](loss.svg)\n\n"
        f"**Data.** {names} says what the items are. A hash of an item's content puts one content in twenty"
        " into the held-out split before it is put in words, so the splits share no item."
    )


def table(scores: Scores, measured: str) -> str:
    """Held-out scores without and with the adapter."""
    lines = [
        f"## Held-out scores\n\n{measured} Greedy, exact match of the whole answer, 95 % Wilson intervals;"
        " stories have the perplexity a token.\n",
        "| task | kind | n | without | with |",
        "| --- | --- | --- | --- | --- |",
    ]
    for before, after in zip(*scores, strict=True):
        values = " | ".join(value(score) for score in (before, after))
        lines.append(f"| {before.task} | {before.kind} | {before.n:,} | {values} |")
    return "\n".join(lines)


def value(score: Score) -> str:
    """A score as the table has it."""
    if score.perplexity:
        return f"perplexity {score.perplexity:,.{3 if score.perplexity < 100 else 0}f}"
    low, high = score.interval
    return f"{score.accuracy:.1%} ({low:.1%} to {high:.1%})"


def samples(config: TrainConfig, out: Path) -> str:
    """The first held-out prompts of a fixed seed, answered without and with the adapter in one batch."""
    items = [
        tasks.make(name, "heldout", card.SAMPLE_SEED, index, kind)
        for name in config.mixture
        for kind in tasks.kinds_of(name)
        for index in range(SHOWN)
    ]
    texts = answers(config, out, items)
    lines = [
        f"## Samples\n\nHeld-out items of seed {card.SAMPLE_SEED}, answered greedily without and with it."
    ]
    for item, before, after in zip(items, texts[::2], texts[1::2], strict=True):
        lines.append(f"```\n{card.shorten(item.prompt).strip()}\n```\n\n{quoted(before)}\n\n{quoted(after)}")
    return "\n\n".join(lines)


def answers(config: TrainConfig, out: Path, items: Sequence[Item]) -> list[str]:
    """Of each item two texts: without and with the adapter."""
    assert config.adapter is not None, "only adapters come here"
    asked = [None, LoRARequest(config.name, 1, str(out))] * len(items)
    prompts = [item.prompt for item in items for _ in range(2)]
    encoder = tokens.Encoder(tokens.FOLDER)
    sizes = [len(encoder.encode(item.completion)) + evaluation.SLACK for item in items for _ in range(2)]
    params = [SamplingParams(temperature=0, max_tokens=size) for size in sizes]
    with LLM(str(registry.path(config.adapter.base)), device="cpu", enable_lora=True) as llm:
        found = llm.generate(prompts, params, use_tqdm=False, lora_request=asked)
    return [output.outputs[0].text for output in found]


def quoted(text: str) -> str:
    """A text as a block quote."""
    return "> " + card.shorten(text).strip().replace("\n", "\n>\n> ")

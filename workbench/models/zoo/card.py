"""Writes a model's card: what it is, how it was made, how well it does, samples by seed. Knows nothing of training."""

import csv
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from workbench.models.zoo import export, tokens
from workbench.models.zoo.config import TrainConfig
from workbench.models.zoo.corpus import tasks
from workbench.models.zoo.sample import greedy
from workbench.models.zoo.score import Score, by_task

SAMPLE_SEED = 7


def write(config: TrainConfig, out: Path, scores: Sequence[Score], device_name: str) -> None:
    """Writes README.md and loss.svg into the model's folder, from its logs, its scores and itself."""
    points = loss_points(out / "train.csv")
    (out / "loss.svg").write_text(plot(points), encoding="utf-8")
    parts = (
        head(config, out), made(config, out, device_name), table(scores), formats(), samples(out), limits(scores)
    )  # fmt: skip
    (out / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def head(config: TrainConfig, out: Path) -> str:
    """What the model is."""
    shape = config.model
    count = sum(p.numel() for p in export.load(out).parameters())
    return (
        f"# {config.name}\n\n"
        f"A small causal language model of the Llama architecture with {count / 1e6:.2f} M parameters: "
        f"{shape.num_layers} layers of width {shape.hidden_size}, {shape.num_heads} heads of {shape.head_dim} over "
        f"{shape.num_kv_heads} key-value heads, feed-forward width {shape.intermediate_size}, {shape.vocab_size} pieces, "
        f"context {shape.max_positions}, tied embeddings, bfloat16. It was trained from nothing on generated text only: "
        "short stories and a few tasks that can be checked exactly. License: Apache-2.0."
    )


def made(config: TrainConfig, out: Path, device_name: str) -> str:
    """How the model came to be."""
    with (out / "train.csv").open(encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    shares = ", ".join(f"{task} {share:.0%}" for task, share in config.mixture.items())
    return (
        "## How it was made\n\n"
        f"`workbench zoo train {config.name}` on {device_name}: {int(last['step']):,} steps of {config.rows} rows of "
        f"{config.row_tokens:,} tokens, {int(last['tokens']) / 1e6:,.0f} M tokens in {float(last['seconds']) / 60:.1f} "
        f"minutes, final loss {float(last['loss']):.3f} (`train.csv`, below; held-out accuracy on the way: `heldout.csv`). "
        f"Configuration fingerprint {config.fingerprint}, corpus seed {config.seed}. Python {platform.python_version()}, "
        f"torch {torch.__version__}.\n\n![loss](loss.svg)\n\n"
        "**Data.** Every document comes from the project's generator and is a function of (seed, split, task, number). "
        f"Shares of the tokens: {shares}. A hash of an item's content (the numbers of a problem, the list, the passage, "
        "the plot with its characters) puts one content in twenty into the held-out split before it is put in words, so "
        "the splits share no item. Sums and products of one-digit numbers are never held out."
    )


def table(scores: Sequence[Score]) -> str:
    """Held-out scores with their intervals."""
    lines = ["## Held-out scores", "", "Greedy, exact match of the whole answer, 95 % Wilson intervals.", ""]
    lines += ["| task | kind | n | accuracy | interval |", "| --- | --- | --- | --- | --- |"]
    for score in (*by_task(scores), *scores):
        name = f"| **{score.task}** | all |" if score.kind == "all" else f"| {score.task} | {score.kind} |"
        low, high = score.interval
        value = f"{score.accuracy:.1%} | {low:.1%} to {high:.1%}"
        lines.append(
            f"{name} {score.n:,} | {f'perplexity {score.perplexity:.3f} |' if score.perplexity else value} |"
        )
    return "\n".join(lines)


def formats() -> str:
    """The prompt formats, each shown by a held-out item."""
    lines = ["## Prompt formats", "", "The prompt of one held-out item of each kind, and the answer behind `→`. A text",
             "begins with `<|bos|>`, which the tokenizer adds, and ends with `<|eos|>`."]  # fmt: skip
    for name in tasks.NAMES:
        for kind in tasks.kinds_of(name):
            if kind in ("copy_long", "pairs100", "pairs30") or (name == "stories" and kind == "free"):
                continue
            item = tasks.make(name, "heldout", SAMPLE_SEED, 0, kind)
            lines += [
                "",
                f"{name}, {kind}:",
                "```",
                f"{shorten(item.prompt)}→{shorten(item.completion)}",
                "```",
            ]
    return "\n".join(lines)


def shorten(text: str, most: int = 700) -> str:
    """The text, its middle left out when it is long."""
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"


def samples(out: Path) -> str:
    """Greedy stories for the first held-out requests of a fixed seed."""
    model, encoder = export.load(out), tokens.Encoder(out)
    items = [tasks.make("stories", "heldout", SAMPLE_SEED, index, "asked") for index in range(4)]
    prompts = [[tokens.BOS_ID, *encoder.encode(item.prompt)] for item in items]
    limit = min(300, model.config.max_positions - max(map(len, prompts)))
    answers = greedy(model, prompts, limit)
    lines = [
        f"## Samples\n\nGreedy, for the first four held-out story requests of seed {SAMPLE_SEED}, as they come."
    ]
    for item, answer in zip(items, answers, strict=True):
        lines.append(
            f"> **{item.prompt.strip()}**\n>\n> " + encoder.core.decode(answer).replace("\n", "\n>\n> ")
        )
    return "\n\n".join(lines)


def limits(scores: Sequence[Score]) -> str:
    """What the model cannot do."""
    weak = [f"{s.task}/{s.kind} ({s.accuracy:.0%})" for s in scores if not s.perplexity and s.accuracy < 0.7]
    return (
        "## Limits\n\n"
        "It knows the formats above and little else: no facts about the world beyond its word lists, no language but "
        "simple English, no arithmetic beyond the sizes given, no code. Stories follow a few dozen plots. Requests in "
        "other words than those of the corpus may be misread, and it does not say so when it does not know. "
        + (f"Weak here (under 70 %): {', '.join(weak)}." if weak else "")
    )


def loss_points(path: Path) -> list[tuple[float, float]]:
    """(tokens in millions, loss) of the loss log."""
    with path.open(encoding="utf-8") as file:
        return [(int(row["tokens"]) / 1e6, float(row["loss"])) for row in csv.DictReader(file)]


def plot(points: Sequence[tuple[float, float]], width: int = 640, height: int = 280) -> str:
    """The loss over tokens as a plain SVG."""
    most = max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for _, y in points)
    span = (high - low) or 1.0
    place = [(50 + (width - 70) * x / most, 20 + (height - 60) * (high - y) / span) for x, y in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in place)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">'
        f'<rect width="{width}" height="{height}" fill="white"/>'
        f'<polyline points="{line}" fill="none" stroke="#2a6fdb" stroke-width="1.5"/>'
        f'<text x="8" y="24">{high:.2f}</text><text x="8" y="{height - 40}">{low:.2f}</text>'
        f'<text x="50" y="{height - 14}">0</text>'
        f'<text x="{width - 20}" y="{height - 14}" text-anchor="end">{most:,.0f} M tokens</text>'
        f'<text x="{width / 2}" y="{height - 14}" text-anchor="middle">weighted training loss</text></svg>\n'
    )

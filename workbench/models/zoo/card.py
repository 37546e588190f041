"""Writes a model's card: what it is, how it was made, its scores, samples. Knows nothing of training."""

import csv
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from workbench.llm import LLM
from workbench.models.zoo import export
from workbench.models.zoo.config import TrainConfig
from workbench.models.zoo.corpus import tasks
from workbench.models.zoo.corpus.record_forms import FORMS
from workbench.models.zoo.score import Score, by_task
from workbench.params import SamplingParams

SAMPLE_SEED: Final = 7
STORIES: Final = 6
LONGEST: Final = 400  # tokens of a sample
LOG: Final = "train.csv"
TOO_LONG_TO_SHOW: Final = ("copy_long", "pairs30", "pairs100")
FORMATS: Final = (
    "The prompt of one held-out item of each kind, and the answer behind `→`. A text begins with `<|bos|>`,"
    " which the tokenizer adds, and ends with `<|eos|>`. The kinds that are not shown: `stories/free` has no"
    " prompt but `<|bos|>`; `copying/copy_long` is `copy` with up to 3,600 characters; `retrieval/pairs30`"
    " and `pairs100` are `pairs10` with 11 to 30 and 31 to 100 pairs. The modules of the tasks under"
    " `workbench/models/zoo/corpus` have the sizes, the word lists and, for chats, the wordings besides those"
    " shown."
)
SCORING: Final = (
    "Greedy, exact match of the whole answer, 95 % Wilson intervals, every item asked once. An answer ends"
    " with `<|eos|>`; of retrieval and passages in the plain format at the line break, for there the training"
    ' texts go on with further questions about the same list or passage (ask with `stop=["\\n"]`).'
    " Stories have the perplexity a token."
)


def write(config: TrainConfig, out: Path, scores: Sequence[Score], *, trained_on: str, measured: str) -> None:
    """Writes README.md and loss.svg into the model's folder, from its logs, its scores and itself.

    `trained_on` names the device; `measured` is the command that gave the scores, and where it ran.
    """
    (out / "loss.svg").write_text(plot(loss_points(out / LOG)), encoding="utf-8")
    parts = (
        head(config, out),
        made(config, out, trained_on),
        table(scores, measured),
        formats(),
        samples(out),
        limits(scores),
    )
    (out / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def head(config: TrainConfig, out: Path) -> str:
    """What the model is."""
    shape = config.model
    count = sum(p.numel() for p in export.load(out).parameters())
    return (
        f"# {config.name}\n\n"
        f"A small causal language model of the Llama architecture with {count / 1e6:.2f} M parameters:"
        f" {shape.num_layers} layers of width {shape.hidden_size}, {shape.num_heads} heads of"
        f" {shape.head_dim} over {shape.num_kv_heads} key-value heads, feed-forward width"
        f" {shape.intermediate_size}, {shape.vocab_size:,} pieces, context {shape.max_positions:,}, tied"
        " embeddings, bfloat16. It was trained from nothing on generated text only: short stories and a few"
        " tasks that can be checked exactly. License: Apache-2.0."
    )


def made(config: TrainConfig, out: Path, device_name: str) -> str:
    """How the model came to be."""
    with (out / LOG).open(encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    shares = ", ".join(f"{task} {share:.0%}" for task, share in config.mixture.items())
    on_the_way = "; held-out accuracy on the way: `heldout.csv`" if (out / "heldout.csv").exists() else ""
    return (
        "## How it was made\n\n"
        f"`workbench zoo train {config.name}` on {device_name}: {int(last['step']):,} steps of {config.rows}"
        f" rows of {config.row_tokens:,} tokens, {int(last['tokens']) / 1e6:,.0f} M tokens in"
        f" {float(last['seconds']) / 60:.1f} minutes, final loss {float(last['loss']):.3f} (`train.csv`,"
        f" below{on_the_way}). {origin(config)}\n\n![loss](loss.svg)\n\n"
        "**Data.** Every document comes from the project's generator and is a function of (seed, split, task,"
        f" number). Shares of the tokens: {shares}. A hash of an item's content (the numbers of a problem,"
        " the list, the passage, the plot with its characters) puts one content in twenty into the held-out"
        " split before it is put in words, so the splits share no item. Sums and products of one-digit"
        " numbers are never held out."
    )


def origin(config: TrainConfig) -> str:
    """What else decided the run."""
    return (
        f"Configuration fingerprint {config.fingerprint}, corpus seed {config.seed}."
        f" Python {platform.python_version()}, torch {torch.__version__}."
    )


def table(scores: Sequence[Score], measured: str) -> str:
    """Held-out scores with their intervals."""
    lines = ["## Held-out scores", "", f"{measured}. {SCORING}", ""]
    lines += ["| task | kind | n | accuracy | interval |", "| --- | --- | --- | --- | --- |"]
    return "\n".join(lines + [row(score) for score in (*by_task(scores), *scores)])


def row(score: Score) -> str:
    """One line of the table."""
    task = f"**{score.task}**" if score.kind == "all" else score.task
    low, high = score.interval
    value = (
        f"perplexity {score.perplexity:.3f} | "
        if score.perplexity
        else f"{score.accuracy:.1%} | {low:.1%} to {high:.1%}"
    )
    return f"| {task} | {score.kind} | {score.n:,} | {value} |"


def formats() -> str:
    """The prompt formats, each shown by a held-out item."""
    lines = ["## Prompt formats", "", FORMATS]
    for name in tasks.NAMES:
        for kind in tasks.kinds_of(name):
            if kind not in TOO_LONG_TO_SHOW and (name, kind) != ("stories", "free"):
                item = tasks.make(name, "heldout", SAMPLE_SEED, 0, kind)
                shown = f"{shorten(item.prompt)}→{shorten(item.completion)}"
                lines += ["", f"{name}, {kind}:", "```", shown, "```"]
    fields = "; ".join(", ".join(form.fields) for form in FORMS)
    return "\n".join([*lines, "", f"Records have one of these lists of fields: {fields}."])


def shorten(text: str, most: int = 700) -> str:
    """The text, its middle left out when it is long."""
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"


def samples(out: Path) -> str:
    """Stories for the first held-out requests of a fixed seed, as the engine tells them."""
    items = [tasks.make("stories", "heldout", SAMPLE_SEED, index, "asked") for index in range(STORIES)]
    lines = [
        f"## Samples\n\nFor the first {STORIES} held-out story requests of seed {SAMPLE_SEED}, sampled at the"
        " engine's usual temperature of 1, in float32 on a CPU, as they come: story number i, from 0, with"
        f" `SamplingParams(seed=i, max_tokens={LONGEST})`."
    ]
    with LLM(str(out), device="cpu") as llm:
        params = [SamplingParams(seed=index, max_tokens=LONGEST) for index in range(STORIES)]
        results = llm.generate([item.prompt for item in items], params, use_tqdm=False)
    for item, result in zip(items, results, strict=True):
        story = result.outputs[0].text.replace("\n", "\n>\n> ")
        lines.append(f"> **{item.prompt.strip()}**\n>\n> {story}")
    return "\n\n".join(lines)


def limits(scores: Sequence[Score]) -> str:
    """What the model cannot do."""
    weak = [f"{s.task}/{s.kind} ({s.accuracy:.0%})" for s in scores if not s.perplexity and s.accuracy < 0.7]
    return (
        "## Limits\n\n"
        "It knows the formats above and little else: no facts about the world beyond its word lists, no"
        " language but simple English, no arithmetic beyond the sizes given, no code. Stories follow a few"
        " dozen plots. Requests in other words than those of the corpus may be misread, and it does not say"
        " so when it does not know. Where the corpus draws a detail by chance (a name, a town), greedy"
        " decoding tends to take the same one, so that stories told greedily resemble each other and two"
        " characters may share a name: sample stories, each from a seed of its own, for from one seed they"
        " open alike. " + (f"Weak here (under 70 %): {', '.join(weak)}." if weak else "")
    ).rstrip()


def loss_points(path: Path) -> list[tuple[float, float]]:
    """(tokens in millions, loss) of the loss log."""
    with path.open(encoding="utf-8") as file:
        return [(int(row["tokens"]) / 1e6, float(row["loss"])) for row in csv.DictReader(file)]


def plot(points: Sequence[tuple[float, float]], width: int = 640, height: int = 280) -> str:
    """The loss over tokens as a plain SVG."""
    most = max(x for x, _ in points)
    total = f"{most:,.0f}" if most >= 10 else f"{most:.2f}"
    low, high = min(y for _, y in points), max(y for _, y in points)
    span = (high - low) or 1.0
    place = [(50 + (width - 70) * x / most, 20 + (height - 60) * (high - y) / span) for x, y in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in place)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"'
        ' font-size="12">'
        f'<rect width="{width}" height="{height}" fill="white"/>'
        f'<polyline points="{line}" fill="none" stroke="#2a6fdb" stroke-width="1.5"/>'
        f'<text x="8" y="24">{high:.2f}</text><text x="8" y="{height - 40}">{low:.2f}</text>'
        f'<text x="50" y="{height - 14}">0</text>'
        f'<text x="{width - 20}" y="{height - 14}" text-anchor="end">{total} M tokens</text>'
        f'<text x="{width / 2}" y="{height - 14}" text-anchor="middle">weighted training loss</text></svg>\n'
    )

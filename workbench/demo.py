"""`workbench demo`: two dozen prompts through a small engine, step by step, watched from outside.

Uses the public API only, as a notebook would. The budget and the KV pool are small on purpose, so that
chunked prefill, prefix hits and preemption happen within a few seconds.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from workbench.console import Live, format_table, say
from workbench.params import SamplingParams

if TYPE_CHECKING:
    from workbench.llm import LLM
    from workbench.outputs import RequestOutput
    from workbench.step import Step
    from workbench.trace import Trace

BUDGET = 64  # tokens a step: a long prompt takes several steps, and shares them with others
BATCH = 16  # requests at once
BLOCKS = 64  # KV blocks of 16 tokens: less than sixteen requests need
LONGEST = 512  # tokens of one request, prompt included
SHOWN_ROWS = 24  # of the table of the first steps
BAR = 40  # characters

# What the prompts share, and how each goes on. The embedded model knows such stories and such tasks.
_FOX = (
    "Once there was a young fox named Mia who lived in a village by the lake. Mia was brave and a little "
    'stubborn. Her grandmother always said, "Mia, one day you will get lost!" But Mia only laughed. In her '
    "pocket she carried an old lantern. It had belonged to her father, and she took it with her wherever she "
    "went. One evening in autumn the wind was cold and the sky was full of clouds."
)
_ENDINGS = (
    " Suddenly the lantern went out.",
    " Mia heard somebody crying behind a wall.",
    ' "Who is there?" called Mia.',
    " She met a bear who had lost his way.",
    " When she came home, her pocket was empty.",
    " Soon it would be the birthday of her best friend.",
    " A stranger stood at the bridge.",
    " She wanted to see the sea.",
)
_TEXT = (
    "Text:\nEvery Monday, Tom cleans the lantern before breakfast.\nIt was cloudy when Tom found the key.\n"
    "On Friday, Tom will buy a boat in Lisbon.\nTom is a baker and lives in Oslo with Clara.\n"
    "Tom painted the lantern blue.\nA black cat ran past Tom and knocked over the lamp.\n"
    "Tom put the key under the bed and went home.\n\nTask: "
)
_TASKS = (
    "copy the text.\nResult:\n",
    "change the name Tom to Ella.\nResult:\n",
    "reverse the order of the lines.\nResult:\n",
    "write the text in uppercase.\nResult:\n",
    "replace the word key with coin.\nResult:\n",
    "replace the word boat with drum.\nResult:\n",
)
_PAIRS = (
    ("a rabbit", "a kite"), ("a baker", "a bell"), ("an owl", "a map"), ("a boy", "a whistle"),
    ("a mouse", "a drum"), ("a princess", "a shell"), ("a goat", "a mirror"), ("a sailor", "a ring"),
)  # fmt: skip
_WORDS = (
    "apple river stone candle\nmarket window blue seven\nbridge honey cloud tiger paper\ngarden silver moon\n"
    "tower bread winter song\nneedle forest green lamp\nvoice salt mountain boat\nfeather door yellow bell\n"
)


class Prompt(NamedTuple):
    """One request of the demo."""

    name: str
    text: str
    max_tokens: int
    temperature: float = 0.0  # tasks have one right answer


def prompts() -> list[Prompt]:
    """Two dozen: stories and tasks with a long prefix in common, short ones without, and two long ones."""
    fox = [Prompt(f"fox-{i}", _FOX + end, 40 + 4 * i, 0.7) for i, end in enumerate(_ENDINGS)]
    text = [Prompt(f"text-{i}", _TEXT + task, 96) for i, task in enumerate(_TASKS)]
    short = [
        Prompt(f"short-{i}", f"Write a story about {who} and {what}.\n\n", 24 + 8 * (i % 4), 0.7)
        for i, (who, what) in enumerate(_PAIRS)
    ]
    long = [
        Prompt(f"long-{i}", f"Text:\n{_WORDS * (2 + 2 * i)}\nTask: copy the text.\nResult:\n", 64)
        for i in range(2)
    ]
    # Dealt out like cards, so that long and short, shared and not, meet in one batch.
    hands = (fox, text, short, long)
    return [hand[place] for place in range(max(map(len, hands))) for hand in hands if place < len(hand)]


def run(output: Path) -> None:
    """Run the demo and leave the trace and the report in `output`."""
    output.mkdir(parents=True, exist_ok=True)  # a folder that cannot be written is told before any work
    say("Workbench: loading the embedded model …")
    began = time.perf_counter()
    from workbench.llm import LLM

    with LLM(
        max_num_batched_tokens=BUDGET,
        max_num_seqs=BATCH,
        num_gpu_blocks_override=BLOCKS,
        max_model_len=LONGEST,
    ) as llm:
        say(f"{llm!r}, ready after {time.perf_counter() - began:.1f} s", "")
        watch(llm, prompts(), output)


def watch(llm: LLM, work: Sequence[Prompt], output: Path) -> Trace:
    """Generate for every prompt, showing each step; then the first steps, the texts and the files."""
    with llm.trace.record() as trace:
        for number, prompt in enumerate(work):
            params = SamplingParams(temperature=prompt.temperature, seed=number, max_tokens=prompt.max_tokens)
            llm.add_request(prompt.text, params, request_id=prompt.name)
        steps, outputs = _drive(llm, len(work))
    _show_steps(steps)
    _show_texts(work, outputs)
    _show_files(trace, output)
    return trace


def _drive(llm: LLM, total: int) -> tuple[list[Step], dict[str, RequestOutput]]:
    """Step until nothing is left; the steps, and the last output of each request."""
    view = _View(llm, total)
    steps: list[Step] = []
    outputs: dict[str, RequestOutput] = {}
    with Live() as live:
        while llm.has_unfinished_requests():
            step = llm.step()
            outputs |= {out.request_id: out for out in step.outputs}
            if step.index >= 0:
                steps.append(step)
                view.take(step)
                live.show(view.lines(step), plain=view.plain(step))
    return steps, outputs


# --- while it runs --------------------------------------------------------------------------------------


@dataclass
class _View:
    """What the screen shows of the run so far."""

    llm: LLM
    total: int
    steps: int = 0
    computed: int = 0
    reused: int = 0
    preempted: int = 0
    finished: int = 0
    began: float = field(default_factory=time.perf_counter)

    def take(self, step: Step) -> None:
        self.steps += 1
        self.computed += sum(step.num_scheduled_tokens.values())
        self.reused += sum(step.cached.values())
        self.preempted += len(step.preempted)
        self.finished += len(step.finished)

    def lines(self, step: Step) -> list[str]:
        """A block of constant height: the step, the engine, the requests in the step."""
        gauges = {metric.name: metric.value for metric in self.llm.get_metrics()}
        tokens, held = sum(step.num_scheduled_tokens.values()), gauges["vllm:kv_cache_usage_perc"]
        waiting = int(gauges["vllm:num_requests_waiting"])
        shares = [f"  {name:<9} {_bar(n, step.budget)} {n}" for name, n in step.num_scheduled_tokens.items()]
        return [
            f"step {step.index:<6} {_bar(tokens, step.budget)} {tokens} of {step.budget} tokens",
            f"KV blocks   {_bar(held, 1.0)} {100 * held:.0f} % held",
            f"requests    {_bar(self.finished, self.total)} {self._progress()}, {waiting} waiting",
            f"so far      {self._totals()}, {time.perf_counter() - self.began:.1f} s",
            *shares[:BATCH],
            *[""] * (BATCH - len(shares)),
        ]

    def plain(self, step: Step) -> str | None:
        """One line now and then, where lines cannot be redrawn."""
        if self.steps % 20 and self.finished < self.total:
            return None
        return f"step {step.index}: {self._progress()}, {self._totals()}"

    def _progress(self) -> str:
        return f"{self.finished} of {self.total} requests done"

    def _totals(self) -> str:
        return f"{self.computed} tokens computed, {self.reused} reused, {self.preempted} preemptions"


def _bar(part: float, whole: float) -> str:
    full = round(BAR * part / whole)
    return "█" * full + "░" * (BAR - full)


# --- afterwards -----------------------------------------------------------------------------------------


def _show_steps(steps: Sequence[Step]) -> None:
    """The first steps, a row each; those in a row in which everybody got one token share one."""
    groups: list[list[Step]] = []
    for step in steps:
        if groups and _is_quiet(step) and _is_quiet(groups[-1][-1]) and _together(step, groups[-1][-1]):
            groups[-1].append(step)
        else:
            groups.append([step])
    shown = groups[:SHOWN_ROWS]
    header = ("step", "tokens", "who got how many", "reused from the cache", "preempted", "finished")
    say("", f"The first {sum(map(len, shown))} steps, a budget of {BUDGET} tokens each:", "")
    say(*format_table(header, [_row(group) for group in shown]))


def _is_quiet(step: Step) -> bool:
    alike = set(step.num_scheduled_tokens.values()) == {1}
    return alike and not any(step.cached.values()) and not step.preempted and not step.finished


def _together(step: Step, other: Step) -> bool:
    return step.num_scheduled_tokens.keys() == other.num_scheduled_tokens.keys()


def _row(group: Sequence[Step]) -> tuple[object, ...]:
    step, last = group[0], group[-1]
    index = str(step.index) if step is last else f"{step.index}–{last.index}"
    chunks = [f"{name}:{count}" for name, count in step.num_scheduled_tokens.items() if count > 1]
    ones = sum(count == 1 for count in step.num_scheduled_tokens.values())
    who = [*chunks, f"{ones} × 1"] if ones else chunks
    reused = " ".join(f"{name}:{count}" for name, count in step.cached.items() if count)
    tokens = sum(step.num_scheduled_tokens.values())
    return index, tokens, "  ".join(who), reused, " ".join(step.preempted), " ".join(step.finished)


def _show_texts(work: Sequence[Prompt], outputs: dict[str, RequestOutput]) -> None:
    say("", "What was generated, after the end of each prompt:", "")
    for prompt in work:
        output = outputs[prompt.name]
        tail = " ".join(prompt.text.split())[-44:]
        text = " ".join(output.outputs[0].text.split())
        sizes = f"{len(output.prompt_token_ids)} prompt tokens, {output.num_cached_tokens} cached"
        say(f"{prompt.name} ({sizes}): …{tail}")
        say(*textwrap.wrap(text, 100, initial_indent="    ", subsequent_indent="    ") or ["    (nothing)"])


def _show_files(trace: Trace, output: Path) -> None:
    trace.to_csv(output)
    report = trace.to_report(output / "report.html")
    run = {name: column[0] for name, column in trace.columns.runs.items()}
    rate = run["output_tokens"] / run["wall_s"]
    say(
        "",
        f"{run['requests']} requests in {run['steps']} steps and {run['wall_s']:.1f} s:",
        f"{run['output_tokens']} tokens generated ({rate:.0f} a second), {run['cached_tokens']} of"
        f" {run['prompt_tokens']} prompt tokens found in the prefix cache, {run['preemptions']} preemptions.",
        f"The trace is in {output}/ as CSV (steps, requests, tokens …); open {report} in a browser.",
    )

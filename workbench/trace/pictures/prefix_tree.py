"""The prefixes in the cache, as a tree: what was found how often, and the text it stands for.

A row is a run of blocks, as wide as it has tokens, and hangs on what comes before it. The `MOST_RUNS` that
were found most are drawn, the others as counts; a click shows what goes on from a run. A prompt that was
asked about has a row of its own above them.
"""

from __future__ import annotations

import json
from html import escape
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from workbench.trace.picks import Decode
from workbench.trace.pictures.prefix_answer import Answer, Cache
from workbench.trace.pictures.prefix_log import NOT_KNOWN, ROOT, PrefixLog
from workbench.trace.pictures.prefix_runs import Row, Runs, rows, runs
from workbench.trace.pictures.sequences import Sequences
from workbench.trace.pictures.svg import WIDTH, Scale, svg, ticks
from workbench.trace.pictures.theme import heading, legend
from workbench.trace.schema import Table, Tables

Longs = npt.NDArray[np.int64]

MOST_RUNS = 20
ROW, TOP_ROOM = 20, 18
BEGIN, END = 12, 430  # of the bars
NAME = END - 26  # left edge of what the axis is called; the value of a tick there would run into it
COUNTS = 492  # right edge of the numbers
TEXT = 506  # left edge of the texts
LONGEST = 68  # characters of a text
OFTEN = 5  # hits


class Tree(NamedTuple):
    """What is drawn."""

    step: int | None
    runs: Runs
    rows: list[Row]
    roots: list[str]  # [rows]; what else than the tokens a prompt must share, "" where nothing
    texts: list[str]  # [rows]; what the run stands for
    block_size: int
    unknown: int  # findable blocks that the trace, which began later, says nothing of


def tree(
    log: PrefixLog,
    sequences: Sequences,
    cache: Cache,
    steps: Table,
    requests: Table,
    step: int | None,
    decode: Decode | None,
    top: int | None = None,
    path: tuple[int, ...] = (),
) -> Tree:
    """What there is to draw.

    Args:
        cache: of the same log, at the same step.
        step: as a lookup in this step finds it; None: now.
        decode: text of token ids, where there is a tokenizer.
        top: key of the run that is the root of the picture; None: all.
        path: keys that a prompt finds; their runs are drawn.
    """
    assert cache.chains is not None, "a tree is drawn only where keys can be computed"
    found, size = log.findable(step), cache.chains.block_size
    grown = runs(found, log.parents(found.keys, sequences, cache.chains), log.depths(found.lines, size))
    at = grown.lines_of([top]) if top is not None and top in grown.keys else []
    drawn = rows(grown, MOST_RUNS, at[0] if at else None, grown.lines_of(path))
    say = _Texts(log, sequences, requests, grown, decode, size)
    unknown = _unknown(log, steps, step)
    texts = [say.text(row.run) for row in drawn]
    return Tree(step, grown, drawn, [say.root(row) for row in drawn], texts, size, unknown)


def _unknown(log: PrefixLog, steps: Table, step: int | None) -> int:
    """Blocks that the engine counts as findable, and of which no line tells."""
    shown = steps["step"] if step is None else steps["step"][steps["step"] == step]
    at = int(shown[-1])
    counted = int(steps["blocks_cached"][np.searchsorted(steps["step"], at)])
    return max(counted - int(log.is_there(at).sum()), 0)


class _Texts(NamedTuple):
    """What runs stand for."""

    log: PrefixLog
    sequences: Sequences
    requests: Table
    runs: Runs
    decode: Decode | None
    size: int

    def text(self, line: int | None) -> str:
        if line is None:
            return ""
        place, position = self.log.writer(int(self.runs.last[line]), self.sequences)
        begin, end = int(self.runs.begin[line]) * self.size, position + self.size
        ids = self.sequences.of(place)[begin:end].tolist()
        if not ids or min(ids) < 0:
            return "(tokens that the trace does not hold)"
        return self.decode(ids) if self.decode else " ".join(map(str, ids))

    def root(self, row: Row) -> str:
        """Of a run that begins a prompt."""
        if row.run is None or row.parent != ROOT:
            return ""
        place, _ = self.log.writer(int(self.runs.last[row.run]), self.sequences)
        root = self.sequences.root(place)
        if not root:
            return ""
        adapters = self.requests.get("adapter")
        adapter = None if adapters is None else adapters[place]
        return f"adapter {adapter}" if adapter else f"salt {root.hex()[:6]}"


# --- drawing --------------------------------------------------------------------------------------------


def headline(found: Tree) -> str:
    """What there is to see, in a sentence."""
    when = "now" if found.step is None else f"in step {found.step}"
    blocks = len(found.runs.keys)
    if not blocks:
        return f"No prefix is in the cache {when}"
    begin, often = int((found.runs.parent == ROOT).sum()), int(found.runs.hits.max())
    beginnings = f"{begin:,} beginning{'s' if begin != 1 else ''} of prompts and what follows"
    return f"{blocks:,} blocks can be found {when}: {beginnings}; the most popular {_times(often)}"


def _times(hits: int) -> str:
    return "was found once" if hits == 1 else f"was found {hits:,} times" if hits else "was never found"


def draw(found: Tree, answer: Answer | None = None) -> str:
    """The picture and its legend; a run's `data-pick` is "run:KEY".

    Args:
        answer: what a prompt would find.
    """
    width = max([_end(found, row) for row in found.rows if row.run is not None], default=1)
    if answer is not None:
        width = max(width, len(answer.tokens))
    x, first = Scale(0, float(width), BEGIN, END), TOP_ROOM + (ROW + 4 if answer is not None else 0)
    line_of = {row.run: place for place, row in enumerate(found.rows) if row.run is not None}
    path = set(found.runs.lines_of(answer.path)) if answer is not None else set()
    body = _axis(x, first + len(found.rows) * ROW)
    for place, row in enumerate(found.rows):
        y = first + place * ROW
        above = line_of.get(row.parent)
        body += _link(found, row, x, y, None if above is None else first + above * ROW)
        if row.run is None:
            body += _more(found, row, x, y)
        else:
            body += _run(found, place, row, x, y, row.run in path)
    if answer is not None:
        body += _prompt(answer, x, first + len(found.rows) * ROW)
    height = first + len(found.rows) * ROW + 6
    return svg(height, "Prefixes in the cache", body) + _legend(found, answer)


def _end(found: Tree, row: Row) -> int:
    assert row.run is not None
    return int(found.runs.begin[row.run] + found.runs.blocks[row.run]) * found.block_size


def _begin(found: Tree, parent: int) -> int:
    """Where what hangs on a run begins, in tokens."""
    if parent < 0:
        return 0
    return int(found.runs.begin[parent] + found.runs.blocks[parent]) * found.block_size


def _kind(hits: int) -> str:
    if not hits:
        return "waiting"
    return "found" if hits >= OFTEN else "found shade1" if hits > 1 else "found shade2"


def _run(found: Tree, place: int, row: Row, x: Scale, y: float, in_path: bool) -> str:
    assert row.run is not None
    begin, end = int(found.runs.begin[row.run]) * found.block_size, _end(found, row)
    blocks = f"{row.blocks} block{'s' if row.blocks > 1 else ''}"
    title = f"tokens {begin} to {end - 1} ({blocks}): {_times(row.hits)}"
    root, text = found.roots[place], found.texts[place]
    if root:
        title += f"; only for requests with the same {root.split()[0]} ({root})"
    bar = f'x="{x(begin):.1f}" y="{y + 4}" width="{max(x(end) - x(begin) - 1, 2):.1f}" height="{ROW - 8}"'
    chosen = f'<rect class="selected" {bar}/>' if in_path else ""
    said = f"[{root}] " if root else ""
    said += _shortened(text, LONGEST - len(said))
    return (
        f'<g data-pick="run:{int(found.runs.first[row.run])}">'
        f"<title>{escape(title)}\n{escape(text[:2000])}</title>"
        f'<rect class="hit" x="0" y="{y}" width="{WIDTH}" height="{ROW}"/>'
        f'<rect class="{_kind(row.hits)}" {bar}/>{chosen}'
        f'<text class="value" x="{COUNTS}" y="{y + 14}">{f"{row.hits:,} ×" if row.hits else "–"}</text>'
        f'<text class="prefix" x="{TEXT}" y="{y + 14}">{escape(said)}</text></g>'
    )


def _shortened(text: str, most: int) -> str:
    """Its beginning, which is where it parts from others, and its end."""
    text = text.replace("\n", "⏎")
    tail = most // 3
    return text if len(text) <= most else f"{text[: most - tail - 3]} … {text[-tail:]}"


def _more(found: Tree, row: Row, x: Scale, y: float) -> str:
    at = x(_begin(found, row.parent))
    said = f"{row.more:,} more, of {row.blocks:,} blocks that were found {row.hits:,} times in all"
    if row.parent == NOT_KNOWN:
        said += ", behind what is gone"
    return (
        f'<circle class="more" cx="{at + 4:.1f}" cy="{y + ROW / 2}" r="2"/>'
        f'<text class="quiet" x="{TEXT}" y="{y + 14}">{said}</text>'
    )


def _link(found: Tree, row: Row, x: Scale, y: float, above: float | None) -> str:
    """From the end of the run it hangs on."""
    if above is None:
        return ""
    at = x(_begin(found, row.parent))
    return f'<path class="link" d="M{at - 1:.1f} {above + ROW - 4}V{y + ROW / 2}h4"/>'


def _axis(x: Scale, bottom: float) -> str:
    marks = [t for t in ticks(x.low, x.high, 5) if t == int(t)]
    lines = "".join(
        f'<line class="grid" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="16" y2="{bottom}"/>'
        + (
            f'<text class="tick" x="{x(t):.1f}" y="11">{t:g}</text>'
            if x(t) < NAME - 4 * len(f"{t:g}")
            else ""
        )
        for t in marks
    )
    return (
        f'{lines}<text class="quiet" x="{NAME}" y="11">tokens</text>'
        f'<text class="value" x="{COUNTS}" y="11">found</text>'
        f'<text class="quiet" x="{TEXT}" y="11">stands for</text>'
    )


def _prompt(answer: Answer, x: Scale, bottom: float) -> str:
    """The row of the prompt that was asked about, and a line where its hit ends."""
    y, found, size = TOP_ROOM + 1, answer.num_cached_tokens, len(answer.tokens)
    room = f'y="{y + 3}" height="{ROW - 6}"'
    hit = f'<rect class="found" x="{x(0):.1f}" width="{x(found) - x(0):.1f}" {room}/>' if found else ""
    rest = f'<rect class="prefill" x="{x(found):.1f}" width="{x(size) - x(found):.1f}" {room}/>'
    line = f'<line class="budget" x1="{x(found):.1f}" x2="{x(found):.1f}" y1="{y}" y2="{bottom}"/>'
    said = f"your prompt: {found:,} of {size:,} tokens reused"
    return f'<g>{hit}{rest}<text class="said" x="{TEXT}" y="{y + 14}">{said}</text></g>{line}'


def _legend(found: Tree, answer: Answer | None) -> str:
    entries = [
        ("found", f"found {OFTEN} times or more"),
        ("found shade1", f"2 to {OFTEN - 1} times"),
        ("found shade2", "once"),
        ("waiting", "never"),
    ]
    if answer is not None:
        entries += [("prefill", "your prompt, to be computed"), ("outline", "what it finds")]
    note = ""
    if found.unknown:
        note = (
            f"<p class=note>The trace began later: {found.unknown:,} blocks can be found of which it says"
            " nothing, so that a prompt may find more than it is told here.</p>"
        )
    return legend(*entries) + note


def picture(tables: Tables, decode: Decode | None = None) -> str:
    """For a page that does not move: all that can be found at the end; "" where nothing can be said."""
    steps = tables.steps
    log, sequences = PrefixLog(), Sequences()
    log.take(tables.blocks)
    sequences.take(tables.requests, tables.tokens)
    cache = Cache(log, sequences, tables.requests, json.loads(tables.runs["config"][0]))
    if cache.chains is None or not len(steps["step"]):
        return ""
    found = tree(log, sequences, cache, steps, tables.requests, None, decode)
    return heading(headline(found)) + draw(found)

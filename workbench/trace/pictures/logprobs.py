"""How likely the tokens of a text were: coloured by logprob, rank or entropy; one run, or two token by token.

Above the text stands its skyline, all tokens however many they are: a column is a token, or the mean of some.
Below it, what the model would have taken instead of one of them. Levels have the same edges in every picture,
so that two of them can be compared. Knows the tokens table; not what outputs look like.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from workbench.trace.pictures.svg import RIGHT, WIDTH, Scale, svg
from workbench.trace.pictures.theme import legend
from workbench.trace.schema import Table

Floats = npt.NDArray[np.float64]
Longs = npt.NDArray[np.int64]
By = Literal["logprob", "rank", "entropy"]
Says = Callable[[int, int], str]  # of which run, and of which of its places

BY: tuple[By, ...] = ("logprob", "rank", "entropy")
SKYLINE = 46  # its height
MOST_COLUMNS = 240
MOST_SAID = 8  # alternatives in a tooltip
PROBABILITIES = (0.9, 0.7, 0.5, 0.3, 0.1, 0.03, 0.01, 0.001)  # a token below k of them is of level k
EDGES: dict[By, Floats] = {  # a token above k of them is of level k
    "logprob": -np.log(PROBABILITIES),  # of what is above them: surprise, -logprob
    "rank": np.array([1, 2, 3, 5, 10, 20, 50, 100], np.float64),
    "entropy": np.array([0.1, 0.5, 1, 1.5, 2, 3, 4, 5], np.float64),  # nats
}
LABELS: dict[By, tuple[str, ...]] = {
    "logprob": ("p ≥ 0.9", *(f"≥ {p:g}" for p in PROBABILITIES[1:]), "< 0.001"),
    "rank": ("rank 1", "2", "3", "to 5", "to 10", "to 20", "to 50", "to 100", "beyond"),
    "entropy": ("entropy to 0.1", "0.5", "1", "1.5", "2", "3", "4", "5 nats", "beyond"),
}


class Alternative(NamedTuple):
    """A token that could have been taken."""

    token_id: int
    text: str | None
    logprob: float  # -inf: it was ruled out
    rank: float  # 1 is the likeliest; NaN: unknown


class Tokens(NamedTuple):
    """Consecutive tokens of one sequence: [n] columns."""

    name: str  # whose
    indices: Longs  # each one more than the last; 0 is the first generated, a prompt's are negative
    token_id: Longs
    logprob: Floats  # natural log; NaN: unknown
    rank: Floats  # 1 is the likeliest; NaN: unknown
    entropy: Floats  # nats; NaN: unknown
    step: Longs  # that sampled it; -1: unknown
    text: Callable[[int], str | None]  # by place; None without a tokenizer
    tops: Callable[[int], Sequence[Alternative]]  # by place: the likeliest tokens, best first
    logits: bool = False  # `logprob` holds logits, which are on no scale

    def place(self, index: int) -> int | None:
        """Where a token stands in the columns."""
        place = index - int(self.indices[0]) if len(self.indices) else -1
        return place if 0 <= place < len(self.indices) else None


def of_lines(
    table: Table, name: str, lines: Longs, spell: Callable[[int], str | None], mode: str = ""
) -> Tokens:
    """One sequence of the tokens table.

    Args:
        table: the trace's tokens.
        name: whose.
        lines: where its tokens are in the table, in their order.
        spell: text of a token that was not taken.
        mode: the engine's logprobs_mode.
    """

    def tops(place: int) -> list[Alternative]:
        ids, values = (json.loads(table[n][lines[place]] or "[]") for n in ("top_ids", "top_logprobs"))
        logprobs = [-math.inf if value is None else value for value in values]
        return [
            Alternative(token_id, spell(token_id), value, 1 + logprobs.index(value))
            for token_id, value in zip(ids, logprobs, strict=True)
        ]

    return Tokens(
        name,
        table["index"][lines],
        table["token_id"][lines],
        table["logprob"][lines],
        table["rank"][lines],
        table["entropy"][lines],
        table["step"][lines],
        lambda place: table["text"][lines[place]],
        tops,
        mode.endswith("logits"),
    )


def span(runs: Sequence[Tokens]) -> range:
    """The indices that any of them has."""
    ends = [(int(run.indices[0]), int(run.indices[-1]) + 1) for run in runs if len(run.indices)]
    return range(min(low for low, _ in ends), max(high for _, high in ends)) if ends else range(0)


def first_difference(one: Tokens, other: Tokens) -> int | None:
    """The first index at which both have a token and it is not the same."""
    _, here, there = np.intersect1d(one.indices, other.indices, assume_unique=True, return_indices=True)
    apart = np.flatnonzero(one.token_id[here] != other.token_id[there])
    return int(one.indices[here[apart[0]]]) if len(apart) else None


def surprise(run: Tokens, by: By) -> Floats:
    """[n]; what is coloured, the larger the more surprising; NaN: unknown. Logits are coloured by rank."""
    if by == "logprob" and not run.logits:
        return -run.logprob
    return run.entropy if by == "entropy" else run.rank


def levels(values: npt.ArrayLike, by: By) -> Longs:
    """[n]; 0 (what was expected) .. 8 (what was not); -1: unknown."""
    known = np.asarray(values, np.float64)
    found = np.searchsorted(EDGES[by], known - 1e-9, "left")
    return np.where(np.isnan(known), -1, found).astype(np.int64)


def most_surprising(run: Tokens, by: By, within: range) -> int | None:
    """The index of the token that was expected least."""
    low, high = (
        min(max(end - int(run.indices[0]), 0), len(run.indices)) for end in (within.start, within.stop)
    )
    values = np.nan_to_num(surprise(run, by)[low:high], nan=-np.inf)
    if not len(values) or values.max() == -np.inf:
        return None
    return int(run.indices[low + values.argmax()])


# --- the text -------------------------------------------------------------------------------------------


def draw(
    runs: Sequence[Tokens],
    by: By,
    within: range,
    *,
    names: Sequence[str] = (),
    chosen: int | None = None,
    step: int | None = None,
    says: Says | None = None,
) -> str:
    """The skyline, the text and the legend; a token's `data-pick` is "token:INDEX", a column's "part:INDEX".

    Args:
        runs: one, or two that are shown one above the other.
        by: what the colours mean.
        within: indices of the tokens shown as text.
        names: what two runs are called.
        chosen: index of the token to outline.
        step: index of the step whose tokens are marked.
        says: `title` of a run and place, for those who remember what it said.
    """
    by = "rank" if any(run.logits for run in runs) and by == "logprob" else by
    parts_at = first_difference(*runs) if len(runs) == 2 else None
    found = [levels(surprise(run, by), by) for run in runs]
    says = says or (lambda row, place: title(runs[row], place))
    cells = "".join(
        _cell(runs, found, index, _state(index == parts_at, index == chosen), step, says) for index in within
    )
    skylines = "".join(skyline(run, by, within) for run in runs)
    note = "".join(f"<p class=note>{escape(text)}</p>" for text in _notes(runs, by, names, parts_at))
    return f"{skylines}{note}<div class=passage>{cells}</div>{_legend(by)}"


def head(runs: Sequence[Tokens], within: range) -> str:
    """Whose tokens these are, and how many of them stand below as text."""
    names = " and ".join(dict.fromkeys(run.name for run in runs))
    there = span(runs)
    part = f", {len(within)} of them here" if len(within) < len(there) else ""
    return f"<h4>Request {escape(names)}: {len(there):,} tokens{part}</h4>"


def _state(parts_here: bool, chosen: bool) -> str:
    return f"{' parts' if parts_here else ''}{' chosen' if chosen else ''}"


def _cell(
    runs: Sequence[Tokens], found: Sequence[Longs], index: int, state: str, step: int | None, says: Says
) -> str:
    """A token of each run, one above the other; behind a line's end, a line's end."""
    words, ends = [], []
    for row, (run, level) in enumerate(zip(runs, found, strict=True)):
        place = run.place(index)
        if place is None:
            words.append("<span> </span>")
            continue
        text, here = run.text(place), " here" if step is not None and run.step[place] == step else ""
        ends.append("\n" in (text or ""))
        words.append(
            f'<span class="{_class(int(level[place]))}{here}" title="{escape(says(row, place))}">'
            f"{escape(spelt(text, int(run.token_id[place])))}</span>"
        )
    kind = f"t two{state}" if len(runs) > 1 else f"t{state}"
    end = "<br>" if all(ends) else "<wbr>"
    return f'<span class="{kind}" data-pick="token:{index}">{"".join(words)}</span>{end}'


def _class(level: int) -> str:
    return "unknown" if level < 0 else f"s{level}"


def spelt(text: str | None, token_id: int) -> str:
    """A token's text with what cannot be seen in it, or its id."""
    return f"#{token_id}" if not text else text.replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍")


def title(run: Tokens, place: int) -> str:
    """What is said of a token on hovering over it."""
    text = spelt(run.text(place), int(run.token_id[place]))
    head = f"{_position(int(run.indices[place]))}: “{text}” (id {run.token_id[place]})"
    lines = [
        f"{_rank(top.rank)}. {_amount(top.logprob, run.logits)}  “{spelt(top.text, top.token_id)}”"
        f"{' ←' if top.token_id == run.token_id[place] else ''}"
        for top in _choices(run, place, MOST_SAID)
    ]
    return "\n".join([head, *_facts(run, place), *lines])


def _choices(run: Tokens, place: int, most: int | None = None) -> list[Alternative]:
    """The likeliest, and behind them the token that was taken, if it is none of them."""
    found, token_id = list(run.tops(place)[:most]), int(run.token_id[place])
    if np.isnan(run.rank[place]) or any(top.token_id == token_id for top in found):
        return found
    own = (run.text(place), float(run.logprob[place]), float(run.rank[place]))
    return [*found, Alternative(token_id, *own)]


def _facts(run: Tokens, place: int) -> Iterator[str]:
    if np.isnan(run.rank[place]):
        yield "its logprob is not known"
        return
    value = f"{run.logprob[place]:.4g}"
    what = f"logit {value}" if run.logits else f"{_amount(run.logprob[place], False)}, logprob {value}"
    entropy = "" if np.isnan(run.entropy[place]) else f", entropy {run.entropy[place]:.3g} nats"
    yield f"{what}, rank {run.rank[place]:.0f}{entropy}"
    if run.step[place] >= 0:
        yield f"step {run.step[place]}"


def _rank(rank: float) -> str:
    return "–" if math.isnan(rank) else f"{rank:.0f}"


def _amount(value: float, logits: bool) -> str:
    if value == -math.inf:
        return "ruled out"
    return f"{value:.4g}" if logits else f"{100 * math.exp(value):.3g} %"


def _position(index: int) -> str:
    return f"token {index}" if index >= 0 else f"prompt token, {-index} before the output"


def _notes(runs: Sequence[Tokens], by: By, names: Sequence[str], parts_at: int | None) -> Iterator[str]:
    if by == "entropy" and all(np.isnan(run.entropy).all() for run in runs):
        yield (
            "Outputs hold no entropies unless they hold the vocabulary (logprobs=-1): a trace of"
            " record(logprobs=5) has them."
        )
    if any(run.logits for run in runs):
        yield "These are logits, not logprobs, and have no scale of their own: coloured by rank."
    if len(runs) < 2:
        return
    above, below = names
    shared = len(np.intersect1d(runs[0].indices, runs[1].indices, assume_unique=True))
    same = f"The {shared} tokens that both have are the same."
    parting = f"They part at {_position(parts_at or 0)} (the bar); behind it their contexts differ."
    yield f"Above: {above}. Below: {below}. {same if parts_at is None else parting}"


def _legend(by: By) -> str:
    return legend(*((f"s{level}", label) for level, label in enumerate(LABELS[by])))


# --- all tokens -----------------------------------------------------------------------------------------


def skyline(run: Tokens, by: By, within: range) -> str:
    """A column a token or the mean of some: higher is more surprising; what is shown as text is outlined."""
    count = len(run.indices)
    if not count:
        return ""
    starts = np.arange(0, count, math.ceil(count / MOST_COLUMNS))
    ends = np.append(starts[1:], count)
    values = surprise(run, by)
    known = np.add.reduceat(~np.isnan(values), starts)
    sums = np.add.reduceat(np.nan_to_num(values, posinf=1e3), starts)
    means = np.where(known, sums / np.maximum(known, 1), np.nan)
    x, first = Scale(0, len(starts), RIGHT, WIDTH - RIGHT), int(run.indices[0])
    kinds, heights = levels(means, by), _heights(means, by)
    columns = "".join(
        _column(x, column, heights[column], int(kinds[column]), first + start, first + end - 1)
        for column, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True))
    )
    each = "each token" if len(starts) == count else f"the mean of {ends[0]} tokens"
    return svg(SKYLINE, f"{by} of {each}", f"{columns}{_outline(run, within, x, int(ends[0]))}") + (
        f"<p class=note>A column is {each}; higher is more surprising.</p>" if len(starts) < count else ""
    )


def _heights(means: Floats, by: By) -> Floats:
    """[n]; 0 to 1, as levels, with what lies between them."""
    edges = EDGES[by]
    corners = np.concatenate([[min(0.0, edges[0])], edges])
    return np.interp(np.nan_to_num(means), corners, np.arange(len(corners))) / len(edges)


def _column(x: Scale, column: int, height: float, level: int, first: int, last: int) -> str:
    size = 2 + height * (SKYLINE - 10)
    at = f'x="{x(column):.1f}" y="{SKYLINE - 3 - size:.1f}" width="{x(1) - x(0):.2f}" height="{size:.1f}"'
    room = f'x="{x(column):.1f}" y="0" width="{x(1) - x(0):.2f}" height="{SKYLINE}"'
    which = _position(first) if first == last else f"tokens {first} to {last}"
    return (
        f'<g data-pick="part:{first}"><title>{which}</title><rect class="{_class(level)} whole" {at}/>'
        f'<rect class="hit" {room}/></g>'
    )


def _outline(run: Tokens, within: range, x: Scale, width: int) -> str:
    low, high = (end - int(run.indices[0]) for end in (within.start, within.stop))
    if low <= 0 and high >= len(run.indices):
        return ""
    left, right = x(max(low, 0) / width), x(min(high, len(run.indices)) / width)
    room = f'x="{left:.1f}" y="1" width="{max(right - left, 2):.1f}" height="{SKYLINE - 2}"'
    return f'<rect class="selected" {room} rx="2"/>'


# --- one token ------------------------------------------------------------------------------------------


def alternatives(runs: Sequence[Tokens], index: int, names: Sequence[str] = ()) -> str:
    """What each run would have taken instead of one token: an HTML table each, side by side."""
    titles = names if len(runs) > 1 else [f"Instead of {_position(index)}"]
    places = [(run, run.place(index), name) for run, name in zip(runs, titles, strict=True)]
    tables = (_alternatives(run, place, name) for run, place, name in places if place is not None)
    head = f"<h4>Instead of {_position(index)}</h4>" if len(runs) > 1 else ""
    return f'{head}<div class="beside">{"".join(tables)}</div>'


def _alternatives(run: Tokens, place: int, name: str) -> str:
    token_id = int(run.token_id[place])
    rows = _choices(run, place)
    body = "".join(_row(top, top.token_id == token_id, run.logits) for top in rows)
    head = "<tr><th>token</th><th>rank</th><th></th><th>probability</th><th>logprob</th></tr>"
    if run.logits:
        head = "<tr><th>token</th><th>rank</th><th></th><th></th><th>logit</th></tr>"
    said = "; ".join(_facts(run, place))
    return (
        f"<div><h4>{escape(name)}</h4><p class=note>{escape(said)}</p>"
        f"<table><thead>{head}</thead><tbody>{body}</tbody></table></div>"
    )


def _row(top: Alternative, taken: bool, logits: bool) -> str:
    unknown = math.isnan(top.logprob)
    amount = "" if logits or unknown else _amount(top.logprob, False)
    bar = "" if logits or unknown else _bar(math.exp(top.logprob))
    cells = (_rank(top.rank), bar, amount, "–" if unknown else f"{top.logprob:.4g}")
    return (
        f'<tr{" class=taken" if taken else ""}><td title="id {top.token_id}">'
        f"{escape(spelt(top.text, top.token_id))}{' ←' if taken else ''}</td>"
        + "".join(f"<td>{cell}</td>" for cell in cells)
        + "</tr>"
    )


def _bar(share: float) -> str:
    return f'<span class="bar"><i style="width:{100 * share:.1f}%"></i></span>'

"""One step as a bar against its budget, and who gets what of it: the next one, or one of a trace.

Knows previews and the tables; it plans nothing. The next step is drawn from what the engine says it will be,
a recorded one from the tables, in the same form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from html import escape

import numpy as np

from workbench.engine.preview import Preview, Share, Waiting
from workbench.trace.pictures.svg import LEFT, RIGHT, WIDTH, Scale, clip, svg, ticks
from workbench.trace.pictures.theme import legend
from workbench.trace.schema import Table

MOST_PIECES = 64  # requests with a piece and a row of their own
BAR, FOOT, HEAD = 34, 18, 18  # heights in user units
LETTER = 6.6  # width of one
TAIL = 36  # characters of a text that are shown
WORDS = ("does", "so far")  # columns that are read from the left
NOTHING = Preview(-1, 0)


def recorded(steps: Table, chunks: Table, requests: Table, blocks: Table, step: int) -> Preview:
    """A step of a trace, as it was before it was taken; NOTHING where the trace does not hold it."""
    places = np.flatnonzero(steps["step"] == step)
    if not len(places):
        return NOTHING
    row = {name: int(steps[name][places[0]]) for name in ("budget", "blocks_free", "blocks_held")}
    lines = slice(*np.searchsorted(chunks["step"], (step, step + 1)).tolist())
    happened = slice(*np.searchsorted(blocks["step"], (step, step + 1)).tolist())
    what, whose, why = (blocks[name][happened] for name in ("event", "request_id", "reason"))
    taken = Counter(whose[what == "reserved"].tolist())
    gave_back = whose[(what == "released") & (why == "preempted")]
    return Preview(
        index=step,
        budget=row["budget"],
        shares=tuple(_recorded_shares(chunks, requests, lines, taken)),
        preempted=tuple(dict.fromkeys(gave_back.tolist())),
        evicted=int((what == "evicted").sum()),
        blocks_free=row["blocks_free"],
        num_blocks=row["blocks_free"] + row["blocks_held"],
    )


def _recorded_shares(
    chunks: Table, requests: Table, lines: slice, taken: Mapping[str, int]
) -> Iterator[Share]:
    names = ("request_id", "start", "scheduled", "decode", "samples", "cached")
    prompts = dict(zip(requests["request_id"].tolist(), requests["prompt_tokens"].tolist(), strict=True))
    for name, start, tokens, decode, samples, cached in zip(
        *(chunks[column][lines].tolist() for column in names), strict=True
    ):
        yield Share(
            request_id=name,
            start=start,
            tokens=tokens,
            decode=decode,
            num_tokens=max(prompts.get(name, 0), start + tokens),
            samples=samples,
            admitted=start == cached,  # it begins with what was found
            cached=cached,
            blocks=taken.get(name, 0),
        )


def draw(step: Preview, title: str, texts: Mapping[str, str]) -> str:
    """Bar, legend and a row for each request, as HTML text; `texts`: what requests have said so far."""
    used, budget = step.total_num_scheduled_tokens, step.budget
    head = f"<h4>{escape(title)}: {used:,} of {budget:,} tokens</h4><p class=note>{_blocks(step)}</p>"
    return head + _bar(step) + _legend(step) + _table(step, texts)


def _blocks(step: Preview) -> str:
    taken = sum(share.blocks for share in step.shares)
    parts = [f"{taken} KV block{'' if taken == 1 else 's'} taken"]
    if step.evicted:
        parts.append(f"{step.evicted} of them with cached content that is forgotten")
    return ", ".join([*parts, f"{step.blocks_free:,} of {step.num_blocks:,} free afterwards"])


# --- the bar --------------------------------------------------------------------------------------------


def _bar(step: Preview) -> str:
    x = Scale(0, max(step.budget, step.total_num_scheduled_tokens, 1), LEFT, WIDTH - RIGHT)
    pieces = "".join(_pieces(step, x)) if len(step.shares) <= MOST_PIECES else _kinds(step, x)
    end, foot = x(step.budget), HEAD + BAR
    line = (
        f'<line class="budget" x1="{end:.1f}" x2="{end:.1f}" y1="{HEAD - 6}" y2="{foot + 4}"/>'
        f'<text class="said" x="{end:.1f}" y="{HEAD - 8}" text-anchor="end">'
        f"token budget {step.budget:,}</text>"
    )
    room = f'<rect class="room" x="{LEFT}" y="{HEAD}" width="{end - LEFT:.1f}" height="{BAR}"/>'
    labels = "".join(
        f'<text class="tick" x="{x(t):.1f}" y="{foot + 15}">{t:g}</text>' for t in ticks(0, x.high, 8)
    )
    return svg(foot + FOOT, f"Tokens of step {step.index}", room + pieces + line + labels)


def _pieces(step: Preview, x: Scale) -> Iterator[str]:
    """One a request and kind, from the left; names where there is room."""
    done = 0
    for number, share in enumerate(step.shares):
        begin = done
        for kind, tokens in (("prefill", share.tokens - share.decode), ("decode", share.decode)):
            if tokens:
                title = f"{share.request_id}: {tokens} {kind}"
                yield (
                    f'<rect class="{kind} shade{number % 3}" x="{x(done):.1f}" y="{HEAD}"'
                    f' width="{x(tokens) - x(0):.1f}" height="{BAR}"><title>{escape(title)}</title></rect>'
                )
                done += tokens
        width = x(done) - x(begin)
        if width > 3 * LETTER:
            name = clip(share.request_id, int(width / LETTER) - 1)
            middle = (x(begin) + x(done)) / 2
            yield f'<text class="on" x="{middle:.1f}" y="{HEAD + BAR / 2 + 4:.0f}">{escape(name)}</text>'


def _kinds(step: Preview, x: Scale) -> str:
    decode = sum(share.decode for share in step.shares)
    amounts = (("prefill", step.total_num_scheduled_tokens - decode), ("decode", decode))
    done, drawn = 0, ""
    for kind, tokens in amounts:
        place = f'x="{x(done):.1f}" y="{HEAD}" width="{x(tokens) - x(0):.1f}" height="{BAR}"'
        drawn += f'<rect class="{kind}" {place}><title>{tokens} {kind}</title></rect>'
        done += tokens
    return drawn


def _legend(step: Preview) -> str:
    keys = [("prefill", "prefill chunk"), ("decode", "decode"), ("line", "token budget")]
    if len(step.shares) > MOST_PIECES:
        keys.append(("none", f"{len(step.shares):,} requests together"))
    return legend(*keys)


# --- who gets what --------------------------------------------------------------------------------------


def _table(step: Preview, texts: Mapping[str, str]) -> str:
    heads = ["request", "does", "tokens", "from position", "cached", "blocks taken"]
    heads += ["so far"] if texts else []
    rows = [_row(share, texts) for share in step.shares[:MOST_PIECES]]
    rows += [
        f'<tr><td>{escape(name)}</td><td class="words">is preempted: its blocks are taken</td></tr>'
        for name in step.preempted
    ]
    more = len(step.shares) - MOST_PIECES
    note = f"<p class=note>and {more:,} more requests</p>" if more > 0 else ""
    return table(heads, rows) + note


def _row(share: Share, texts: Mapping[str, str]) -> str:
    cells = [share.tokens, share.start, share.cached or "", share.blocks or ""]
    numbers = "".join(f"<td>{cell}</td>" for cell in cells)
    said = f'<td class="words">{escape(_tail(texts.get(share.request_id, "")))}</td>' if texts else ""
    return f'<tr><td>{escape(share.request_id)}</td><td class="words">{_does(share)}</td>{numbers}{said}</tr>'


def _does(share: Share) -> str:
    if share.decode == share.tokens:
        return "decode"
    end = share.start + share.tokens
    part = "prefill" if end >= share.num_tokens else f"prefill up to {end:,} of {share.num_tokens:,}"
    return f"{'is admitted, ' if share.admitted else ''}{part}{', gets a token' if share.samples else ''}"


def _tail(text: str) -> str:
    line = text.replace("\n", "¶")
    return line if len(line) <= TAIL else "…" + line[-TAIL:]


def table(heads: list[str], rows: list[str]) -> str:
    """Rows of cells below their heads; escaped by whoever made the rows."""
    head = "".join(f"<th{' class=words' if name in WORDS else ''}>{escape(name)}</th>" for name in heads)
    body = "".join(rows)
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


# --- who waits ------------------------------------------------------------------------------------------


def queue(step: Preview) -> str:
    """Who waits before the step, in the order of admission, with buttons that only a live page shows."""
    if not step.queue:
        return "<p class=note>Nobody waits.</p>"
    stay = {each.request_id for each in step.waiting}
    shown = enumerate(step.queue[:MOST_PIECES])
    rows = [_waiting_row(place, each, len(step.queue), each.request_id in stay) for place, each in shown]
    more = len(step.queue) - MOST_PIECES
    note = f"<p class=note>and {more:,} more</p>" if more > 0 else ""
    return f"<h4>Waiting queue</h4>{table(['request', 'does', 'tokens', 'priority', ''], rows)}{note}"


def _waiting_row(place: int, each: Waiting, total: int, stays: bool) -> str:
    name = escape(each.request_id)
    edits = [("first", "⤒", "to the front"), ("up", "↑", "one place up"), ("down", "↓", "one place down")]
    edits = [edit for edit in edits if (place < total - 1 if edit[0] == "down" else place > 0)]
    buttons = "".join(
        f'<button data-pick="{what}:{name}" title="{title}">{sign}</button>'
        for what, sign, title in [*edits, ("drop", "✕", "drop it: it ends with abort")]
    )
    does = "goes on waiting" if stays else "is admitted"
    state = f"{does}; was preempted" if each.preempted else does
    return (
        f'<tr><td>{name}</td><td class="words">{state}</td><td>{each.num_tokens:,}</td>'
        f'<td>{each.priority}</td><td class="words live">{buttons}</td></tr>'
    )

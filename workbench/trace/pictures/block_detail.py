"""All that is known of one block in one step, as HTML text: its tokens, its chain of keys, its holders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from workbench.trace.picks import Decode
from workbench.trace.pictures.key_chains import KeyChains, shown
from workbench.trace.pictures.namesakes import NOBODY
from workbench.trace.pictures.sequences import NOT_KNOWN, Sequences
from workbench.trace.pictures.theme import heading
from workbench.trace.schema import Table

Longs = npt.NDArray[np.int64]

MOST_KEYS = 8  # of a chain
MOST_LINES = 10  # of what happened
MOST_HOLDERS = 40


class Content(NamedTuple):
    """Whose tokens a block holds."""

    request_id: str
    place: int  # in the requests table
    position: int  # of its first token
    key: str | None  # it is found by
    holders: tuple[str, ...]  # as far as the trace goes back


def content(blocks: Table, sequences: Sequences, block: int, step: int | None) -> Content | None:
    """What was in a block as a step found it (None: now); None where nothing is, or nobody knows."""
    lines = _lines(blocks, block, step)
    if not len(lines):
        return None
    events = blocks["event"][lines].tolist()
    began = next((k for k in range(len(events) - 1, -1, -1) if events[k] == "reserved"), 0)
    since = lines[began:]
    key, holders = _followed(blocks, since)
    if key is None and not holders:
        return None
    for line in since.tolist():
        name, position = blocks["request_id"][line], float(blocks["position"][line])
        if name is not None and not np.isnan(position) and blocks["event"][line] != "evicted":
            place = sequences.place(name, float(blocks["at_s"][line]))
            return Content(name, place, int(position), key, holders)
    return None


def _lines(blocks: Table, block: int, step: int | None) -> Longs:
    """About a block, as far as a step counts them."""
    end = len(blocks["step"]) if step is None else int(np.searchsorted(blocks["step"], step, "right"))
    return np.flatnonzero(blocks["block"][:end] == block)


def _followed(blocks: Table, lines: Longs) -> tuple[str | None, tuple[str, ...]]:
    """Key and holders after these lines."""
    holders: dict[str, None] = {}
    key = None
    for line in lines.tolist():
        event, name = blocks["event"][line], blocks["request_id"][line]
        key = None if event in ("evicted", "withdrawn") else blocks["key"][line]
        if event in ("reserved", "reused", "cached"):
            holders[name] = None
        elif event == "released":
            holders.pop(name, None)
    return key, tuple(holders)


def block_detail(
    blocks: Table,
    sequences: Sequences,
    block: int,
    step: int | None,
    config: Mapping[str, object],
    decode: Decode | None,
) -> str:
    """As HTML text.

    Args:
        blocks: the trace's table.
        sequences: of its requests.
        step: as this step found it; None: now.
        config: the engine's settings.
        decode: text of token ids, where there is a tokenizer.
    """
    found = content(blocks, sequences, block, step)
    said = _nothing() if found is None else "".join(_said(found, sequences, step, config, decode))
    return heading(f"Block {block}") + said + _history(blocks, _lines(blocks, block, step))


def _nothing() -> str:
    return "<p class=note>Nobody holds it, and nothing is found in it.</p>"


def _said(
    found: Content,
    sequences: Sequences,
    step: int | None,
    config: Mapping[str, object],
    decode: Decode | None,
) -> Iterator[str]:
    names = [escape(name) for name in found.holders[:MOST_HOLDERS]]
    more = f" and {len(found.holders) - MOST_HOLDERS} more" if len(found.holders) > MOST_HOLDERS else ""
    held = f"Held by {', '.join(names)}{more}." if names else "Nobody holds it; it is found by its key."
    yield f"<p class=note>{held}</p>"
    chains = KeyChains.read(config)
    size = chains.block_size if chains else None
    tokens = sequences.of(found.place, step)
    end = len(tokens) if size is None else found.position + size
    yield _tokens(found, tokens[found.position : end], decode)
    yield _chain(found, sequences, chains)


def _tokens(found: Content, ids: Longs, decode: Decode | None) -> str:
    last = found.position + max(len(ids), 1) - 1
    where = f"Tokens {found.position} to {last} of request {escape(found.request_id)}"
    if not len(ids) or (ids == NOT_KNOWN).all():
        return f"<p class=note>{where}: the trace began later and does not hold them.</p>"
    spans = "".join(
        f'<span title="id {token}">{escape(_text(token, decode))}</span>' for token in ids.tolist()
    )
    note = "" if decode else " (ids: the trace was loaded without a tokenizer's decode)"
    return f"<p class=note>{where}{note}:</p><p class=tokens>{spans}</p>"


def _text(token: int, decode: Decode | None) -> str:
    if token == NOT_KNOWN:
        return "?"
    return decode([token]).replace("\n", "⏎") if decode else f"{token}"


def _chain(found: Content, sequences: Sequences, chains: KeyChains | None) -> str:
    if found.key is None:
        return "<p class=note>No key yet: a block is found once it is full.</p>"
    keys = _keys(found, sequences, chains)
    if not keys:
        return f"<p class=note>Key <b class=chip>{found.key}</b>; those before it are not known.</p>"
    links = [f"<span class=chip>{key}</span>" for key in keys[-MOST_KEYS:-1]]
    gap = [f"<span>{len(keys) - MOST_KEYS} more</span>"] if len(keys) > MOST_KEYS else []
    root = sequences.root(found.place)
    start = "root" if not root else f"root {shown(root)} (a salt or an adapter)"
    links = [f"<span>{start}</span>", *gap, *links, f"<b class=chip>{found.key}</b>"]
    said = "Chain of keys, each a hash of the one before and of a block's tokens"
    return f"<p class=note>{said}: {' → '.join(links)}</p>"


def _keys(found: Content, sequences: Sequences, chains: KeyChains | None) -> list[str]:
    """Down to the block's own; none where the tokens or the way keys are made are not known."""
    if chains is None or found.place == NOBODY:
        return []
    tokens = sequences.of(found.place)[: found.position + chains.block_size]
    keys = [shown(key) for key in chains.keys(sequences.root(found.place), tokens)]
    return keys if keys and keys[-1] == found.key else []


def _history(blocks: Table, lines: Longs) -> str:
    columns = ("step", "event", "request_id", "holders", "reason")
    head = "".join(f"<th>{name.replace('request_id', 'request')}</th>" for name in columns)
    rows = [[blocks[name][line] for name in columns] for line in lines[: -MOST_LINES - 1 : -1].tolist()]
    if not rows:
        return "<p class=note>The trace says nothing of it by then.</p>"
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _cell(value: object) -> str:
    return f"<td>{'–' if value is None else escape(str(value))}</td>"

"""Tokens with their logprobs, sequence by sequence: of a feed as it grows, or of RequestOutputs.

Knows the tokens table and what outputs hold; draws nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from workbench.outputs import CompletionOutput, RequestOutput
from workbench.token_logprobs import Logprob, PromptLogprobs, TokenLogprobs
from workbench.trace.pictures.logprobs import Alternative, Tokens, of_lines
from workbench.widgets.feed import Feed

Floats = npt.NDArray[np.float64]
Entries = Sequence[dict[int, Logprob] | None]

MOST = 20  # alternatives to a token
KEPT = 2000  # tokens whose alternatives are remembered
LOGIT = 1e-3  # no logprob is above: rounding aside, they are at most 0


class Sequences(Protocol):
    """Where tokens come from."""

    names: list[str]  # whose, in the order in which they began; an id that came again is there again

    def take(self) -> None:
        """Take in what has come."""

    def tokens(self, place: int) -> Tokens:
        """One of them, as far as it has come."""

    @property
    def mode(self) -> str:
        """The engine's logprobs_mode; "" where nobody said."""

    @property
    def latest(self) -> int:
        """The one to look at while nobody has chosen; -1: none has logprobs."""


class OfFeed:
    """Of a feed: reads each line of its tokens table once."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._begin()

    def _begin(self) -> None:
        self._epoch, self._read = self._feed.epoch, 0
        self.names: list[str] = []
        self._lines: list[list[int]] = []  # of each sequence, in the tokens table
        self._numbers: dict[str, int] = {}  # the latest sequence of each id
        self._reached: list[int] = []  # index of each sequence's last token
        self._sequence_of_step = (-1, -1)  # of the latest step with logprobs, and the first sequence in it
        self._texts: dict[int, str | None] = {}

    def take(self) -> None:
        """Read the lines that have come."""
        if self._epoch != self._feed.epoch:
            self._begin()
        table = self._feed["tokens"]
        new = {name: table[name][self._read :].tolist() for name in ("request_id", "index", "step")}
        known = ~np.isnan(table["rank"][self._read :])
        for line, (name, index, step, asked) in enumerate(
            zip(*new.values(), known.tolist(), strict=True), self._read
        ):
            number = self._numbers.get(name, -1)
            if number < 0 or index <= self._reached[number]:
                number = self._add(name)
            self._lines[number].append(line)
            self._reached[number] = index
            if asked and step != self._sequence_of_step[0]:
                self._sequence_of_step = (step, number)
        texts = zip(table["token_id"][self._read :].tolist(), table["text"][self._read :], strict=True)
        self._texts.update(texts)
        self._read += len(known)

    def _add(self, name: str) -> int:
        self._numbers[name] = number = len(self.names)
        self.names.append(name)
        self._lines.append([])
        self._reached.append(-1)
        return number

    def tokens(self, place: int) -> Tokens:
        """The lines of one sequence."""
        lines = np.array(self._lines[place], np.int64)
        return of_lines(self._feed["tokens"], self.names[place], lines, self._text, self.mode)

    def _text(self, token_id: int) -> str | None:
        """As the tokenizer says, or, without one, as the table does where it holds the token."""
        decode = self._feed.trace.decode
        if token_id not in self._texts and decode is not None:
            self._texts[token_id] = decode([token_id])
        return self._texts.get(token_id)

    @property
    def mode(self) -> str:
        """As the engine's settings say."""
        return str(self._feed.config.get("logprobs_mode", ""))

    @property
    def latest(self) -> int:
        """Of those that got tokens last, the one that came first."""
        return self._sequence_of_step[1]


class OfOutputs:
    """Of RequestOutputs: prompts where their logprobs were asked for, and every completion."""

    mode = ""  # outputs do not say

    def __init__(self, outputs: Sequence[RequestOutput]) -> None:
        pairs = [(output, one) for output in outputs for one in output.outputs]
        self.names = [_name(output, one) for output, one in pairs]
        self._tokens = [
            _of_output(name, output, one) for name, (output, one) in zip(self.names, pairs, strict=True)
        ]
        known = [place for place, run in enumerate(self._tokens) if not np.isnan(run.rank).all()]
        self.latest = known[0] if known else -1

    def take(self) -> None:
        """Outputs do not grow."""

    def tokens(self, place: int) -> Tokens:
        """A completion, behind its prompt if that has logprobs."""
        return self._tokens[place]


def _name(output: RequestOutput, one: CompletionOutput) -> str:
    """As the trace calls it: with n > 1 the children have names of their own."""
    return f"{one.index}_{output.request_id}" if len(output.outputs) > 1 else output.request_id


def _of_output(name: str, output: RequestOutput, one: CompletionOutput) -> Tokens:
    prompt: Sequence[int] = [] if output.prompt_logprobs is None else output.prompt_token_ids
    token_ids = np.array([*prompt, *one.token_ids], np.int64)
    parts: list[Entries] = [output.prompt_logprobs or (), one.logprobs or ()]
    bounds = (token_ids[: len(prompt)], token_ids[len(prompt) :])
    values = [_values(entries, ids) for entries, ids in zip(parts, bounds, strict=True)]
    logprob, rank, entropy = np.concatenate(values, axis=1)

    @lru_cache(maxsize=KEPT)
    def entry(place: int) -> dict[int, Logprob]:
        behind = place - len(prompt)
        return _entry(parts[0], place) if behind < 0 else _entry(parts[1], behind)

    def text(place: int) -> str | None:
        own = entry(place).get(int(token_ids[place]))
        return None if own is None else own.decoded_token

    return Tokens(
        name,
        np.arange(len(token_ids)) - len(prompt),
        token_ids,
        logprob,
        rank,
        entropy,
        np.full(len(token_ids), -1),
        text,
        lambda place: _alternatives(entry(place)),
        bool((logprob > LOGIT).any()),
    )


def _entry(entries: Entries, place: int) -> dict[int, Logprob]:
    """What is known of one token, with the likeliest others; empty where nothing is."""
    if isinstance(entries, PromptLogprobs):
        return _entry(entries.behind_first, place - 1) if place else {}
    if not place < len(entries):
        return {}
    return entries.best(place, MOST) if isinstance(entries, TokenLogprobs) else entries[place] or {}


def _alternatives(entry: dict[int, Logprob]) -> list[Alternative]:
    """The likeliest, best first; the token that was taken is among them only if it is one of them."""
    found = [
        Alternative(
            token_id, each.decoded_token, each.logprob, np.nan if each.rank is None else float(each.rank)
        )
        for token_id, each in entry.items()
    ]
    return sorted(found, key=lambda each: -each.logprob)[:MOST]


def _values(entries: Entries, token_ids: npt.NDArray[np.int64]) -> Floats:
    """[3, n]: logprobs, ranks, entropies."""
    found = np.full((3, len(token_ids)), np.nan)
    if isinstance(entries, PromptLogprobs):
        return np.concatenate([found[:, :1], _values(entries.behind_first, token_ids[1:])], axis=1)
    if isinstance(entries, TokenLogprobs):
        found[:2, : len(entries)] = entries.sampled, entries.ranks
        found[2, : len(entries.whole)] = [_entropy(row) for row in entries.whole]
        return found
    for place, entry in enumerate(entries):
        own = None if entry is None else entry.get(int(token_ids[place]))
        if own is not None:
            found[:2, place] = own.logprob, np.nan if own.rank is None else own.rank
    return found


def _entropy(logprobs: npt.NDArray[np.float32]) -> float:
    """Of a whole distribution, in nats."""
    known = logprobs[logprobs > -np.inf].astype(np.float64)
    return float(-(np.exp(known) * known).sum())

"""The tokens that requests took: what they are, when, how likely they were. Knows numpy and the schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from workbench.engine.events import StepCommitted
from workbench.engine.plan import StepPlan, within
from workbench.trace.chunks import Chunks
from workbench.trace.facts import NAN, NO_LOGPROBS, NONE, Facts, Longs, StepFacts
from workbench.trace.schema import Table, complete

Integers = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float64]
Texts = npt.NDArray[np.object_]
Bools = npt.NDArray[np.bool_]
Decode = Callable[[list[int]], str]


@dataclass(frozen=True, slots=True)
class Picks:
    """Columns with a line for each token that a request took, in the order of the steps."""

    request: Longs  # number of the request
    step: Longs  # the step's index
    token_id: Longs
    position: Longs
    at: Floats  # clock reading
    drafted: Bools  # a draft stood in its place
    accepted: Bools  # and was it, and the request went on from it
    forced: Bools  # taken unsampled
    masked: Floats
    logprob: Floats
    rank: Floats
    entropy: Floats
    top_ids: Texts
    top_logprobs: Texts


class _Taken(NamedTuple):
    """One step's tokens: those sampled, then those that followed unsampled."""

    request: Longs
    token_id: Integers
    position: Integers


class _Ways(NamedTuple):
    """How the tokens of a step, or of many, came to be."""

    drafted: Bools
    accepted: Bools
    forced: Bools
    masked: Floats

    @classmethod
    def plain(cls, size: int) -> _Ways:
        """Sampled where no draft stood and nothing was masked: so most are."""
        drafted, accepted, forced = np.zeros((3, size), np.bool_)
        return cls(drafted, accepted, forced, np.full(size, NAN))


class _Likelihoods(NamedTuple):
    """Of the tokens of a step, or of many; NaN or None where nobody asked."""

    logprob: Floats
    rank: Floats
    entropy: Floats
    top_ids: Texts
    top_logprobs: Texts

    @classmethod
    def unknown(cls, size: int) -> _Likelihoods:
        numbers, texts = np.full((3, size), NAN), np.full((2, size), None, np.object_)
        return cls(*numbers, *texts)


def read_picks(facts: Facts, chunks: Chunks, likelihoods: bool = True) -> Picks:
    """The tokens of all steps that were committed; without `likelihoods`, as if nobody had asked for them.

    `chunks` are those of the same steps.
    """
    done = [step for step in facts.steps if step.committed is not None]
    if not done:
        none, texts, never = np.empty(0, np.float64), np.empty(0, np.object_), np.empty(0, np.bool_)
        return Picks(NONE, NONE, NONE, NONE, none, never, never, never, none, none, none, none, texts, texts)
    sizes, request, token_id, position = _all_taken(facts, chunks)
    asked = np.array([request.logprobs for request in facts.requests], np.int64)
    ways, found = _Ways.plain(sum(sizes)), _Likelihoods.unknown(sum(sizes))
    begins = (np.cumsum(sizes) - sizes).tolist()
    for step, begin, size in zip(done, begins, sizes, strict=True):
        event, plan = step.committed, step.planned.plan
        assert event is not None, "it is done"
        result = event.result
        if plan.drafts is not None or result.masked is not None or event.followed:
            own: list[Any] = [column[begin : begin + size] for column in ways]
            _tell_ways(_Ways(*own), step, event)
        if likelihoods and result.logprobs is not None:
            sampled: list[Any] = [column[begin : begin + len(event.taken)] for column in found]
            _fill(_Likelihoods(*sampled), event, asked[step.takers], plan.logprobs)
    told: list[Any] = [*ways, *found]
    times = [step.committed.at - step.committed.commit_s for step in done if step.committed is not None]
    return Picks(
        request,
        np.repeat([step.planned.plan.index for step in done], sizes),
        token_id,
        position,
        np.repeat(times, sizes),  # when committing began
        *told,
    )


def _all_taken(facts: Facts, chunks: Chunks) -> tuple[list[int], Longs, Longs, Longs]:
    """Of the steps that were committed: how many tokens each had; and all those, as in `_Taken`."""
    sampled = np.flatnonzero(chunks.samples)
    ends = (chunks.start + chunks.count)[sampled]
    per_step = np.bincount(chunks.step[sampled], minlength=len(facts.steps))
    takers, token_ids, positions = list[Longs](), list[Integers](), list[Integers]()
    begins, plain = list[int](), list[bool]()
    for step, begin in zip(facts.steps, (np.cumsum(per_step) - per_step).tolist(), strict=True):
        event = step.committed
        if event is None:
            continue
        # Where nothing was drafted, a line of the result is a line that sampled: their ends are known.
        is_plain = step.planned.plan.drafts is None and not event.followed
        its = (step.takers, event.token_ids, event.taken) if is_plain else _taken(step, event)
        takers.append(its[0])
        token_ids.append(its[1])
        positions.append(its[2])
        begins.append(begin)
        plain.append(is_plain)
    sizes = [len(each) for each in takers]
    position = np.concatenate(positions).astype(np.int64)
    looked_up = np.repeat(plain, sizes)
    position[looked_up] = ends[(position + np.repeat(begins, sizes))[looked_up]]
    return sizes, np.concatenate(takers), np.concatenate(token_ids).astype(np.int64), position


def _taken(step: StepFacts, event: StepCommitted) -> _Taken:
    taken = _Taken(
        step.takers,
        event.token_ids.astype(np.int64),
        step.planned.plan.yields.positions[event.taken].astype(np.int64),
    )
    if not event.followed:
        return taken
    counts = [len(each.token_ids) for each in event.followed]
    behind = np.concatenate([np.arange(1, count + 1) for count in counts])
    followed = _Taken(
        np.repeat(step.followers, counts),
        np.concatenate([each.token_ids for each in event.followed]).astype(np.int64),
        np.repeat(taken.position[_ahead(step)], counts) + behind,
    )
    return _Taken(*(np.concatenate(pair) for pair in zip(taken, followed, strict=True)))


def _ahead(step: StepFacts) -> Longs:
    """Of those that took tokens unsampled, the line of the token that each sampled ahead of them."""
    line_of = {number: line for line, number in enumerate(step.takers.tolist())}
    return np.array([line_of[number] for number in step.followers.tolist()], np.int64)


def _tell_ways(ways: _Ways, step: StepFacts, event: StepCommitted) -> None:
    size, masked = len(event.taken), event.result.masked
    ways.drafted[:size], ways.accepted[:size] = _verified(step.planned.plan, event)
    ways.forced[size:] = True
    if masked is not None:
        ways.masked[:size] = masked[event.taken]
        if event.followed:  # one token was allowed, as ahead of it
            counts = [len(each.token_ids) for each in event.followed]
            ways.masked[size:] = np.repeat(ways.masked[_ahead(step)], counts)


def _verified(plan: StepPlan, event: StepCommitted) -> tuple[Bools, Bools]:
    """Of the tokens taken, in whose place a draft stood, and for whom it did."""
    drafted, accepted = np.zeros((2, len(event.result.token_ids)), np.bool_)
    if plan.drafts is not None and event.accepted is not None:
        lines, counts, _ = plan.drafts
        first = np.cumsum(plan.samples)[lines] - 1
        drafted[first], accepted[first] = True, event.accepted > 0
        # What is sampled behind draft i stands in the place of draft i + 1.
        number = within(counts) + 1
        behind = len(drafted) - plan.num_drafts
        drafted[behind:], accepted[behind:] = (
            number < counts.repeat(counts),
            number < event.accepted.repeat(counts),
        )
    return drafted[event.taken], accepted[event.taken]


def _fill(found: _Likelihoods, event: StepCommitted, asked: Longs, watched: int) -> None:
    """`asked`: top logprobs that the takers' requests asked for; `watched`: that an observer did, 0: none."""
    columns = event.result.logprobs
    assert columns is not None, "there is something to fill in"
    tops = np.minimum(np.maximum(asked, watched) if watched else asked, columns.top_ids.shape[1])
    lines = np.flatnonzero(tops > NO_LOGPROBS)
    if not len(lines):
        return
    taken = event.taken[lines]
    found.logprob[lines], found.rank[lines] = columns.sampled[taken], columns.ranks[taken]
    found.entropy[lines] = columns.entropies[taken]
    ids, logprobs = columns.top_ids[taken].tolist(), columns.top_logprobs[taken].tolist()
    for line, top_ids, top_logprobs in zip(lines.tolist(), ids, logprobs, strict=True):
        found.top_ids[line] = json.dumps(top_ids[: tops[line]])
        found.top_logprobs[line] = json.dumps(
            [None if value == -np.inf else value for value in top_logprobs[: tops[line]]]
        )


def token_table(facts: Facts, picks: Picks, decode: Decode | None) -> Table:
    """A line a token."""
    prompts = np.array([len(r.prompt_token_ids) for r in facts.requests], np.int64)
    texts = {token_id: text_of([token_id], decode) for token_id in np.unique(picks.token_id).tolist()}
    return complete(
        "tokens",
        {
            "request_id": facts.names()[picks.request],
            "index": picks.position - prompts[picks.request],
            "position": picks.position,
            "step": picks.step,
            "at_s": picks.at - facts.began,
            "token_id": picks.token_id,
            "text": list(map(texts.__getitem__, picks.token_id.tolist())),
            "drafted": picks.drafted,
            "accepted": picks.accepted,
            "forced": picks.forced,
            "masked": picks.masked,
            "logprob": picks.logprob,
            "rank": picks.rank,
            "entropy": picks.entropy,
            "top_ids": picks.top_ids,
            "top_logprobs": picks.top_logprobs,
        },
    )


def output_texts(picks: Picks, whole: npt.NDArray[np.bool_], decode: Decode | None) -> list[str | None]:
    """What each request generated, where the tokens are there from the first one on: `whole`."""
    size = len(whole)
    order = np.argsort(picks.request, kind="stable")
    bounds = np.searchsorted(picks.request[order], np.arange(1, size)) if size else NONE
    groups = np.split(picks.token_id[order], bounds) if size else []
    return [
        text_of(group.tolist(), decode) if known else None
        for group, known in zip(groups, whole.tolist(), strict=True)
    ]


def text_of(token_ids: list[int], decode: Decode | None) -> str | None:
    """Their text, where there is a tokenizer."""
    return None if decode is None else decode(token_ids)

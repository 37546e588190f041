"""How likely continuations are: from pairs of texts to requests, and from what these know to likelihoods.

The last token of a continuation is never computed: what predicts it is the end of the prompt, so that all
continuations of one token share a prompt. Knows tokenizers and requests; nothing of steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from workbench.intake import Intake
from workbench.outputs import Likelihood
from workbench.params import SamplingParams
from workbench.parent import Parent
from workbench.prompts import encode


class Pair(NamedTuple):
    """A context and its continuation, as tokens."""

    token_ids: list[int]  # of both
    num_context: int  # at least 1


def read_pairs(pairs: Any, tokenizer: Any | None, beginning: int | None) -> list[Pair]:
    """Every pair as tokens.

    Args:
        beginning: the token that begins every text; what an empty context is replaced by.

    Raises:
        TypeError, ValueError: for the first pair that is none, or whose continuation is empty.
    """
    if isinstance(pairs, str) or not isinstance(pairs, Sequence):
        raise TypeError(f"pairs is {pairs!r}: use a list of (context, continuation)")
    found = []
    for number, pair in enumerate(pairs):
        try:
            found.append(_read(pair, tokenizer, beginning))
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"pair {number} of {len(pairs)}: {error}") from error
    return found


def _read(pair: Any, tokenizer: Any | None, beginning: int | None) -> Pair:
    if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
        raise TypeError(f"{pair!r} is no pair: use (context, continuation), each a str or token ids")
    context, continuation = pair
    for given in pair:
        if not isinstance(given, str | Sequence | np.ndarray):
            raise TypeError(f"{given!r} is neither a str nor a list of token ids")
    if not len(continuation):
        raise ValueError("the continuation is empty: give at least one token")
    if isinstance(context, str) and isinstance(continuation, str):
        known, whole = _split(context, continuation, tokenizer)
    else:
        known = _tokens(context, tokenizer, special=True)
        whole = [*known, *_tokens(continuation, tokenizer, special=False)]
    if not known:
        if beginning is None:
            raise ValueError(
                "the context is empty, and no token begins every text: give one token of context"
            )
        return Pair([beginning, *whole], 1)
    return Pair(whole, len(known))


def _split(context: str, continuation: str, tokenizer: Any | None) -> tuple[list[int], list[int]]:
    """Tokens of the context, and of both.

    Both are read as one text, as a model would meet them; a token that reaches over the border belongs to the
    continuation, and so do spaces that end the context, which tokenizers join to the word that follows.
    """
    stem = context.rstrip()
    alone = _tokens(stem, tokenizer, special=True)
    whole = _tokens(context + continuation, tokenizer, special=True)
    shared = itertools.takewhile(lambda both: both[0] == both[1], zip(alone, whole, strict=False))
    known = [token_id for token_id, _ in shared]
    return known, whole


def _tokens(given: Any, tokenizer: Any | None, *, special: bool) -> list[int]:
    if not isinstance(given, str):
        return [int(token_id) for token_id in given]
    if tokenizer is None:
        raise ValueError("the engine has no tokenizer (skip_tokenizer_init): pass token ids")
    return [*encode(given, tokenizer, add_special_tokens=special)]


def requests_for(pairs: Sequence[Pair], intake: Intake) -> list[Parent]:
    """A request a pair, in their order."""
    parents = []
    for number, pair in enumerate(pairs):
        *prompt, last = pair.token_ids
        params = SamplingParams(
            temperature=0,
            max_tokens=1,
            detokenize=False,
            logprob_token_ids=[last],
            prompt_logprobs=0 if len(prompt) > pair.num_context else None,
        )
        try:
            parents.append(intake.one(prompt, params, score_from=pair.num_context))
        except ValueError as error:
            raise ValueError(f"pair {number} of {len(pairs)}: {error}") from error
    return parents


def likelihood(pair: Pair, parent: Parent) -> Likelihood:
    """What a request that has ended knows of its pair.

    Raises:
        RuntimeError: it failed.
    """
    (request,) = parent.requests
    if request.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"{request} ended with {request.finish_reason!r}: the log has the reason")
    ((columns, line),) = request.logprobs
    assert columns.listed is not None, "the last token was listed"
    place = int(np.searchsorted(columns.listed.lines, line))
    logprobs = [value for scores in request.scores for value in scores.sampled.tolist()]
    ranks = [rank for scores in request.scores for rank in scores.ranks.tolist()]
    logprobs.append(float(columns.listed.logprobs[place, 0]))
    ranks.append(int(columns.listed.ranks[place, 0]))
    return Likelihood(
        logprob=float(np.sum(logprobs, dtype=np.float64)),
        is_greedy=all(rank == 1 for rank in ranks),
        token_ids=pair.token_ids[pair.num_context :],
        token_logprobs=logprobs,
        token_ranks=ranks,
        num_cached_tokens=request.num_cached_tokens,
    )

"""Logprobs of a run of tokens, as arrays: the dicts that people read are made when they are indexed.

Plain values: knows neither the engine nor tensors, and of tokenizers no more than `Spell`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

# The text of a token behind the tokens that came before it.
Spell = Callable[[int, tuple[int, ...]], str]
CONTEXT = 3  # tokens before it that can belong to the same character: one has at most four bytes


@dataclass(frozen=True, slots=True)
class Logprob:
    """One token's log probability at one position."""

    logprob: float  # natural log
    rank: int | None = None  # 1 is the best; 1 + the number of tokens with a larger logprob
    decoded_token: str | None = None  # None without a tokenizer

    def __repr__(self) -> str:
        return f"Logprob({self.logprob:.4f}, rank={self.rank}, decoded_token={self.decoded_token!r})"


@dataclass(frozen=True, slots=True, eq=False)
class Listing:
    """Values of ids that were listed, the same at every position."""

    ids: Ints  # [l]
    logprobs: Floats  # [n, l]
    ranks: Ints  # [n, l]


class TokenLogprobs(Sequence[dict[int, Logprob]]):
    """Logprobs of n tokens: one dict a token, made when it is indexed.

    The token itself comes first, then the most likely ones, best first, then those listed by id.

    Args:
        token_ids: [n]; the tokens.
        sampled: [n] float32; their logprobs.
        ranks: [n]; their ranks, 1 is the best.
        top_ids: [n, k]; the k most likely tokens, best first.
        top_logprobs: [n, k] float32.
        spell: text of one token behind others, or None without a tokenizer.
        before: tokens ahead of the first; the last few are looked at.
        listing: ids that are told of at every position.
        whole: [vocab] float32 a token; the vocabulary in place of the most likely.
    """

    def __init__(
        self,
        token_ids: npt.ArrayLike,
        sampled: npt.ArrayLike,
        ranks: npt.ArrayLike,
        top_ids: npt.ArrayLike,
        top_logprobs: npt.ArrayLike,
        spell: Spell | None = None,
        before: Sequence[int] = (),
        listing: Listing | None = None,
        whole: Sequence[Floats] = (),
    ) -> None:
        self.token_ids = np.asarray(token_ids, dtype=np.int32)
        self.sampled = np.asarray(sampled, dtype=np.float32)
        self.ranks = np.asarray(ranks, dtype=np.int32)
        count = len(self.token_ids)
        self.top_ids = np.asarray(top_ids, dtype=np.int32).reshape(count, -1 if count else 0)
        self.top_logprobs = np.asarray(top_logprobs, dtype=np.float32).reshape(self.top_ids.shape)
        self.listing = listing
        self.whole = whole
        self._spell = spell
        self._before = tuple(int(token_id) for token_id in before[-CONTEXT:])

    def __len__(self) -> int:
        return len(self.token_ids)

    @overload
    def __getitem__(self, index: int) -> dict[int, Logprob]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[int, Logprob]]: ...
    def __getitem__(self, index: int | slice) -> dict[int, Logprob] | list[dict[int, Logprob]]:
        if isinstance(index, slice):
            return [self._entry(place) for place in range(*index.indices(len(self)))]
        return self._entry(range(len(self))[index])

    def __iter__(self) -> Iterator[dict[int, Logprob]]:
        return (self._entry(place) for place in range(len(self)))

    def best(self, place: int, most: int) -> dict[int, Logprob]:
        """The entry of one token, with no more than `most` of the likeliest: quick for a vocabulary, too."""
        return self._entry(range(len(self))[place], most)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __repr__(self) -> str:
        return repr(list(self))

    def __reduce__(self) -> tuple[object, ...]:
        """For pickle and copy: the texts of the tokens go along, not the tokenizer."""
        spell = None
        if self._spell is not None:
            spell = Spelt(
                {
                    (token_id, self._context(place)): value.decoded_token
                    for place in range(len(self))
                    for token_id, value in self._entry(place).items()
                }
            )
        arrays = (self.token_ids, self.sampled, self.ranks, self.top_ids, self.top_logprobs)
        return TokenLogprobs, (*arrays, spell, self._before, self.listing, self.whole)

    def _context(self, place: int) -> tuple[int, ...]:
        near = tuple(self.token_ids[max(0, place - CONTEXT) : place].tolist())
        return (self._before + near)[-CONTEXT:]

    def _entry(self, place: int, most: int | None = None) -> dict[int, Logprob]:
        context, token_id = self._context(place), int(self.token_ids[place])
        top_ids, top_logprobs = self._top(place, most)
        # Equal logprobs have one rank: that of the first of them.
        top_ranks = 1 + np.searchsorted(-top_logprobs, -top_logprobs, side="left")
        values = {token_id: (self.sampled[place], int(self.ranks[place]))}
        rows = [zip(top_ids.tolist(), top_logprobs, top_ranks.tolist(), strict=True)]
        if self.listing is not None:
            own = self.listing
            rows.append(zip(own.ids.tolist(), own.logprobs[place], own.ranks[place].tolist(), strict=True))
        for row in rows:
            for other, value, rank in row:
                if other == token_id or other not in values:  # the token keeps its place
                    values[other] = (value, rank)
        return {
            other: Logprob(float(value), rank, None if self._spell is None else self._spell(other, context))
            for other, (value, rank) in values.items()
        }

    def _top(self, place: int, most: int | None) -> tuple[Ints, Floats]:
        if not len(self.whole):
            return self.top_ids[place][:most], self.top_logprobs[place][:most]
        row = self.whole[place]
        ids = np.arange(len(row))
        if most is not None and most < len(row):  # those that are no less likely than the last one wanted
            ids = np.flatnonzero(row >= np.partition(row, -most)[-most])
        order = ids[np.argsort(-row[ids], kind="stable")][:most]
        return order.astype(np.int32), row[order]


class PromptLogprobs(Sequence[dict[int, Logprob] | None]):
    """Logprobs of a prompt: nothing predicts its first token, and its entry is None."""

    def __init__(self, behind_first: TokenLogprobs) -> None:
        self.behind_first = behind_first

    def __len__(self) -> int:
        return 1 + len(self.behind_first)

    @overload
    def __getitem__(self, index: int) -> dict[int, Logprob] | None: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[int, Logprob] | None]: ...
    def __getitem__(self, index: int | slice) -> dict[int, Logprob] | list[dict[int, Logprob] | None] | None:
        places = range(len(self))[index]
        return self._entry(places) if isinstance(places, int) else [self._entry(place) for place in places]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __repr__(self) -> str:
        return repr(list(self))

    def _entry(self, place: int) -> dict[int, Logprob] | None:
        return self.behind_first[place - 1] if place else None


class Spelt:
    """The texts of tokens that were spelt before."""

    def __init__(self, texts: dict[tuple[int, tuple[int, ...]], Any]) -> None:
        self._texts = texts

    def __call__(self, token_id: int, before: tuple[int, ...]) -> str:
        text: str = self._texts[token_id, before]
        return text

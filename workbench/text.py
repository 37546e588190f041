"""Tokens to text: whole, bit by bit, and up to a stop string. Knows tokenizers; nothing of the engine."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from workbench.engine.plan import Ints
from workbench.params import SamplingParams
from workbench.token_logprobs import Spell

INCOMPLETE = "\ufffd"  # what a decoder writes for bytes that are not a character, or not yet

TokenIds = Sequence[int] | Ints
Decode = Callable[[TokenIds], str]


def decoder(tokenizer: Any, params: SamplingParams) -> Decode:
    """Token ids to text, with the special tokens treated as the params say."""

    def decode(token_ids: TokenIds) -> str:
        text: str = tokenizer.decode(
            [int(token_id) for token_id in token_ids],
            skip_special_tokens=params.skip_special_tokens,
            spaces_between_special_tokens=params.spaces_between_special_tokens,
        )
        return text

    return decode


def speller(tokenizer: Any) -> Spell:
    """The text of a token where it stands: what it adds to the text of those before it.

    A character of several tokens is the text of the last of them; the others, and bytes that are no
    character there, have none. What is a text by itself is that text, whatever came before.
    """
    alone = functools.cache(lambda token_id: str(tokenizer.decode([token_id])))

    def spell(token_id: int, before: tuple[int, ...]) -> str:
        own = alone(token_id)
        if INCOMPLETE not in own:
            return own
        for begin in range(len(before), -1, -1):
            near = [*before[begin:]]
            known = len(tokenizer.decode(near).rstrip(INCOMPLETE)) if near else 0
            new = str(tokenizer.decode([*near, token_id])).rstrip(INCOMPLETE)[known:]
            if new and INCOMPLETE not in new:
                return new
        return ""

    return spell


class TextStream:
    """The text of one output as it grows; it never ends in half a character.

    ::

        tokens   [0 ..... prefix)[prefix ..... read)[read ........)
                  decoded for good  decoded again,     decoded again: so far they do not
                                    as left context    end with a whole character
    """

    def __init__(
        self,
        decode: Decode,
        stop: Sequence[str] = (),
        *,
        stop_ids: frozenset[int] = frozenset(),
        min_tokens: int = 0,
        include_stop: bool = False,
    ) -> None:
        self.text = ""  # whole characters only; cut before (or after) the stop string that ended it
        self._decode = decode
        self._stop = tuple(stop)
        self._stop_ids = stop_ids
        self._min_tokens = min_tokens
        self._include_stop = include_stop
        self._count = 0  # tokens seen
        self._prefix = 0
        self._read = 0
        self._ahead = 0  # characters behind `read` that are in the text already
        self._taken = 0  # characters handed out
        self._stopped = False

    def feed(self, token_ids: TokenIds) -> str | None:
        """Take in the output's tokens so far; the stop string that has appeared, or None."""
        found = None
        while self._count < len(token_ids) and found is None:
            self._count += 1
            if self._ends(int(token_ids[self._count - 1])):
                break
            before = len(self.text)
            self._grow(token_ids[: self._count])
            if self._stop and self._count >= self._min_tokens:
                found = self._find(before)
        return found

    def _ends(self, token_id: int) -> bool:
        # The text of the token that ends a request is not part of the output unless asked for.
        return not self._include_stop and token_id in self._stop_ids and self._count >= self._min_tokens

    def _grow(self, token_ids: TokenIds) -> None:
        shown = self._decode(token_ids[self._prefix : self._read])
        longer = self._decode(token_ids[self._prefix :])
        whole = longer.rstrip(INCOMPLETE)  # a token may end in the first bytes of the next character
        begin = len(shown) + self._ahead
        if len(whole) > begin:
            self.text += whole[begin:]
            self._ahead = len(whole) - len(shown)
        if len(longer) == len(whole) > len(shown):
            self._prefix, self._read, self._ahead = self._read, len(token_ids), 0

    def _find(self, before: int) -> str | None:
        """Cut the text at the first stop string that the characters after `before` complete."""
        first: tuple[int, str] | None = None
        for stop in self._stop:
            place = self.text.find(stop, max(0, before - len(stop) + 1))
            if place >= 0 and (first is None or place < first[0]):
                first = (place, stop)
        if first is None:
            return None
        place, stop = first
        self.text = self.text[: place + len(stop) if self._include_stop else place]
        self._stopped = True
        return stop

    def finish(self, token_ids: TokenIds) -> None:
        """No more tokens come: what was held back is shown as it is."""
        if not self._count and not self._stop and self._take_at_once(token_ids):
            return
        self.feed(token_ids)
        end = self._end(token_ids)
        if not self._stopped and self._read < end:
            shown = self._decode(token_ids[self._prefix : self._read])
            self.text += self._decode(token_ids[self._prefix : end])[len(shown) + self._ahead :]
            self._read = end

    def _take_at_once(self, token_ids: TokenIds) -> bool:
        """Nobody looked on the way: decode once instead of twice a token. False where that may differ.

        Some decoders make a whole run of bytes incomplete characters when its end is one, and streaming has
        shown its good beginning by then.
        """
        self._count = len(token_ids)
        end = self._end(token_ids)
        text = self._decode(token_ids[:end])
        if INCOMPLETE in text:
            self._count = 0
            return False
        self.text, self._read = text, end
        return True

    def _end(self, token_ids: TokenIds) -> int:
        """How many of the tokens seen have text: all, or all but the one that ended the request."""
        ended = self._count > 0 and self._ends(int(token_ids[self._count - 1]))
        return self._count - ended

    def take(self, *, final: bool) -> str:
        """The text that is new since the last call and cannot become part of a stop string any more."""
        end = len(self.text) if final else len(self.text) - self._held_back()
        new = self.text[self._taken : end]
        self._taken = max(self._taken, end)
        return new

    def _held_back(self) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        longest = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(self.text)), longest, -1):
                if self.text.endswith(stop[:length]):
                    longest = length
                    break
        return longest

"""The rows of a step that sample as logits processors see them: dense, and told by their differences.

What is sampled behind a draft is a request of its own to them, whose output holds the drafts; it is there for
one step, as a request is that was preempted.

Knows who sat where in the step before; nothing of logits, nor of what processors do.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, count
from typing import NamedTuple

from torch import Tensor

from workbench.engine.plan import Addition
from workbench.logits_processors import AddedRequest, BatchUpdate, MoveDirectionality
from workbench.runtime.batch import Longs

Move = tuple[int, int, MoveDirectionality]


class _Tokens(NamedTuple):
    """A request's tokens, as processors hold on to them."""

    addition: Addition
    prompt: list[int]
    output: list[int]  # grows


class ProcessedBatch:
    """Follows the steps of one engine."""

    def __init__(self) -> None:
        self._present: list[Addition] = []  # of the step before, by dense row
        self._tokens: dict[int, _Tokens] = {}  # by batch row; of the last request that sampled there

    def follow(
        self, asked: Sequence[Addition], rows: Longs, lengths: Longs, tokens: Tensor
    ) -> BatchUpdate | None:
        """The next step's rows, with everybody's newest tokens read; None: they are those before.

        Args:
            asked: who they are. rows, lengths: [m]; their batch rows, and the tokens each has so far.
            tokens: [max_rows, max_length] int32, device. To read from it is to wait for the step before.
        """
        newest = tokens[rows.tolist(), (lengths - 1).tolist()].tolist()
        known: list[_Tokens] = []
        seen: set[int] = set()
        for line, (addition, row, length) in enumerate(
            zip(asked, rows.tolist(), lengths.tolist(), strict=True)
        ):
            if row in seen:
                whole = tokens[row, :length].tolist()
                prompt, copy = addition.num_prompt_tokens, addition._replace()  # who is somebody else
                known.append(_Tokens(copy, whole[:prompt], whole[prompt:]))
            else:
                known.append(self._grown(addition, length, newest[line], tokens[row]))
            seen.add(row)
        before, self._present = self._present, [each.addition for each in known]
        if len(before) == len(known) and all(a is b for a, b in zip(before, self._present, strict=True)):
            return None
        return _difference(before, known)

    def _grown(self, addition: Addition, length: int, newest: int, tokens: Tensor) -> _Tokens:
        known = self._tokens.get(addition.row)
        if known is None or known.addition is not addition:
            ids, prompt = addition.token_ids.tolist(), addition.num_prompt_tokens
            known = self._tokens[addition.row] = _Tokens(addition, ids[:prompt], ids[prompt:])
        have = len(known.prompt) + len(known.output)
        if have == length - 1:
            known.output.append(newest)
        else:
            known.output.extend(tokens[have:length].tolist())
        assert len(known.prompt) + len(known.output) == length, "processors know more tokens than there are"
        return known


def _difference(before: Sequence[Addition], now: Sequence[_Tokens]) -> BatchUpdate:
    """What turns the rows before into those now. Who enters takes a row that was left, or one at the end."""
    row_of = {id(addition): row for row, addition in enumerate(before)}
    staying = row_of.keys() & {id(each.addition) for each in now}
    left = [row for row, addition in enumerate(before) if id(addition) not in staying]
    entering = [each for each in now if id(each.addition) not in staying]
    free = chain(left, count(len(before)))
    added = []
    for each in entering:
        row = row_of[id(each.addition)] = next(free)
        added.append(AddedRequest(row, each.addition.params, each.prompt, each.output))
    moved = _moves([row_of[id(each.addition)] for each in now])
    return BatchUpdate(len(now), left[len(entering) :], added, moved)


def _moves(rows: Sequence[int]) -> list[Move]:
    """How what sits at `rows` comes to sit at 0, 1, 2 ..."""
    place = list(rows)  # of each, while they move
    sitting = {row: who for who, row in enumerate(rows)}
    moved = []
    for target, source in enumerate(rows):
        source = place[target]
        if source == target:
            continue
        other = sitting.get(target)
        del sitting[source]
        sitting[target], place[target] = target, target
        if other is None:
            moved.append((source, target, MoveDirectionality.UNIDIRECTIONAL))
        else:
            sitting[source], place[other] = other, source
            moved.append((source, target, MoveDirectionality.SWAP))
    return moved

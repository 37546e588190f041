"""What a drafter is given and gives. Knows arrays of tokens; neither requests nor models."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from workbench.engine.drafting import Proposals
from workbench.engine.plan import Ints
from workbench.engine.running import Longs


class Ask(NamedTuple):
    """The requests that drafts are wanted of."""

    rows: Longs  # [r]; batch rows
    lengths: Longs  # [r]; tokens of each, >= 1
    most: Longs  # [r]; drafts wanted of each, >= 1
    tokens: Ints  # [max_rows, max_length]; by batch row, good up to the row's length; read only


class Drafter(Protocol):
    """Guesses what comes next.

    A row's tokens only grow from ask to ask, until `enter` says that it holds another request. Whatever is
    proposed, the output stays what it is; the same tokens have to bring the same drafts, or a run that is
    repeated is not the same in its steps.

    A request's `root` is that of its blocks' keys: b"" where it has neither `cache_salt` nor adapter. What
    was generated under one root is drafted to nobody under another, as the prefix cache has it with blocks.
    """

    def enter(self, row: int, token_ids: Ints, root: bytes) -> None:
        """The row holds another request from now on, with these tokens."""
        ...

    def leave(self, row: int, token_ids: Ints, num_prompt_tokens: int) -> None:
        """The row's request is over, with these tokens, its prompt first; they may serve its root."""
        ...

    def propose(self, ask: Ask) -> Proposals:
        """Up to `ask.most` tokens for each request, in the order of the ask."""
        ...

"""What a prompt would find in the prefix cache, in words, and its tokens one by one. As HTML text."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from workbench.trace.picks import Decode
from workbench.trace.pictures.prefix_answer import Answer
from workbench.trace.pictures.theme import heading

MOST_TOKENS = 400  # shown one by one, around the place where a prompt parts
AHEAD = 60  # of that place


def answer_words(
    answer: Answer, block_size: int, decode: Decode | None, salted: bool, adapter: str | None = None
) -> str:
    """A sentence that says how much, one that says why no more, and the tokens."""
    found, size = answer.num_cached_tokens, len(answer.tokens)
    blocks = f"{found // block_size:,} block{'s' if found // block_size != 1 else ''} of {block_size}"
    much = f"{found:,} of {size:,} tokens would be reused: {blocks}"
    mine = "with this salt" if salted else "without a salt"
    mine += f", for the adapter {adapter}" if adapter is not None else ""
    why = _why(answer, block_size, decode, mine)
    return f"{heading(much)}<p class=note>{escape(why)}</p>{_tokens(answer, decode)}"


def _why(answer: Answer, size: int, decode: Decode | None, mine: str) -> str:
    found, place = answer.num_cached_tokens, answer.parts_at
    match answer.why:
        case "all":
            return "That is all that could be: blocks are found whole, and the last token is always computed."
        case "off":
            return "The engine has no prefix cache: enable_prefix_caching is False."
        case "evicted":
            whom = f" by request {answer.who}" if answer.who else ""
            return f"The next block was in the cache and was evicted at step {answer.step}, taken{whom}."
        case "withdrawn":
            return (
                f"The next block was in the cache and was forgotten at step {answer.step}: {answer.reason}."
            )
        case "elsewhere":
            return (
                f"{answer.elsewhere:,} of these tokens can be found, but not {mine}: they are request"
                f" {answer.who}'s, which has another salt or adapter."
            )
        case "token":
            here, theirs = _named(answer.tokens[place], decode), _named(answer.there, decode)
            lost = (
                f" The {place - found} before it are in the same block, which is found whole or not at all."
            )
            lost = lost if place > found else ""
            return f"A different token at position {place}: {here} here, {theirs} in the cache.{lost}"
        case "not full":
            return (
                f"Request {answer.who} had the same up to position {place}, but its last block is not full,"
                f" and only full blocks of {size} tokens are found."
            )
        case "group":
            return (
                "Its blocks are there, but a group of layers with a sliding window has lost those it needs."
            )
        case "new":
            if found:
                return f"Nothing in the cache goes on from position {found}."
            return "Nothing in the cache begins like this."


def _named(token: int | None, decode: Decode | None) -> str:
    if token is None:
        return "one that the trace does not hold"
    return f"token {token}" if decode is None else f"“{decode([token])}” (token {token})"


def _tokens(answer: Answer, decode: Decode | None) -> str:
    begin = max(answer.parts_at - AHEAD, 0) if len(answer.tokens) > MOST_TOKENS else 0
    end = min(begin + MOST_TOKENS, len(answer.tokens))
    spans = "".join(_spans(answer, begin, end, decode))
    before, after = ("… " if begin else ""), (" …" if end < len(answer.tokens) else "")
    return f"<p class=tokens>{before}{spans}{after}</p>"


def _spans(answer: Answer, begin: int, end: int, decode: Decode | None) -> Iterator[str]:
    for place in range(begin, end):
        token = answer.tokens[place]
        kind = "reused" if place < answer.num_cached_tokens else "computed"
        if place == answer.parts_at and answer.why == "token":
            kind += " parts"
        text = decode([token]).replace("\n", "⏎") if decode else str(token)
        yield f'<span class="{kind}" title="position {place}, id {token}">{escape(text)}</span>'

"""The prefix cache as a tree, and what a prompt would find in it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any, ClassVar

from workbench.prompts import read_prompt
from workbench.trace.growing import Need
from workbench.trace.picks import Decode
from workbench.trace.pictures import prefix_tree
from workbench.trace.pictures.adapter_colours import adapters_of
from workbench.trace.pictures.prefix_answer import Answer, Cache
from workbench.trace.pictures.prefix_log import PrefixLog
from workbench.trace.pictures.prefix_words import answer_words
from workbench.trace.pictures.sequences import Sequences
from workbench.trace.pictures.theme import heading
from workbench.widgets.adapter_controls import AdapterChoice
from workbench.widgets.base import NothingToShow, Widget
from workbench.widgets.selection import Selection


class PrefixTree(Widget):
    """Cached prefixes with the text they stand for and how many requests found them; and a prompt to try.

    It shows the selected step, or else how things stand now. A prompt typed in says what it would reuse,
    where it parts from what is there, and why: a different token, another salt or adapter, or evicted, and
    when. A click on a row shows what goes on from it.

    Args:
        source: an LLM, or a Trace.
        selection: shared with other widgets; None: its own.
        tokenizer: for prompts as text, where the source is a Trace; an LLM has its own.
    """

    needs: ClassVar[tuple[Need, ...]] = ("steps", "requests", "tokens", "blocks")

    def __init__(self, source: object, selection: Selection | None = None, tokenizer: Any = None) -> None:
        self.check(source)
        self._tokenizer = _tokenizer_of(source) if tokenizer is None else tokenizer
        super().__init__(source, selection)

    def controls(self) -> list[Any]:
        from ipywidgets import Button, HBox, Layout, Text

        self._log, self._sequences, self._epoch = PrefixLog(), Sequences(), 0
        self._top: int | None = None  # key of the run that is the picture's root
        self.prompt = Text(
            description="prompt",
            placeholder="type a prompt, and press Enter" if self._tokenizer else "type token ids: 17 4 256",
            continuous_update=False,
            layout=Layout(width="62%"),
        )
        self.salt = Text(
            description="salt", placeholder="none", continuous_update=False, layout=Layout(width="22%")
        )
        self.all = Button(description="all", tooltip="show the whole tree", layout=Layout(width="8%"))
        self.adapter = AdapterChoice(self.refresh)
        for control in (self.prompt, self.salt):
            control.observe(lambda _: self.refresh(), "value")
        self.all.on_click(lambda _: self._show(None))
        return [HBox([self.prompt, self.salt, self.all]), self.adapter.control]

    def _show(self, top: int | None) -> None:
        self._top = top
        self.refresh()

    # --- asking ---------------------------------------------------------------------------------------

    def ask(self, prompt: str | Sequence[int], salt: str = "", adapter: str | None = None) -> Answer:
        """What a request with this prompt would find now, or in the selected step.

        Args:
            prompt: a text, or token ids.
            salt: its cache_salt; "" for none.
            adapter: name of its LoRA adapter; None for the base model.

        Raises:
            ValueError: the prompt is empty, or it is text and there is no tokenizer, or the trace does not
                say how keys are made, or no request has the adapter.
        """
        self.feed.pull()
        known = adapters_of(self.feed["requests"])
        if adapter is not None and adapter not in known:
            raise ValueError(
                f"no request of the trace has the adapter {adapter!r}: there are {', '.join(known) or 'none'}"
            )
        return self._ask(self._cache(self._step()), prompt, salt, adapter)

    def _ask(self, cache: Cache, prompt: str | Sequence[int], salt: str, adapter: str | None) -> Answer:
        if cache.chains is None:
            raise ValueError(_NO_KEYS)
        return cache.ask(self._ids(prompt), cache.root(salt, adapter))

    def _ids(self, prompt: str | Sequence[int]) -> list[int]:
        if isinstance(prompt, str) and self._tokenizer is None:
            prompt = _read_ids(prompt)
        ids: list[int] = read_prompt(prompt, self._tokenizer).token_ids.tolist()
        return ids

    def _step(self) -> int | None:
        steps, chosen = self.feed["steps"]["step"], self.selection.step
        return None if chosen is None or not steps[0] <= chosen <= steps[-1] else chosen

    def _cache(self, step: int | None) -> Cache:
        if self._epoch != self.feed.epoch:
            self._log, self._sequences, self._epoch = PrefixLog(), Sequences(), self.feed.epoch
        requests = self.feed["requests"]
        self._log.take(self.feed["blocks"])
        self._sequences.take(requests, self.feed["tokens"])
        return Cache(self._log, self._sequences, requests, self.feed.config, step)

    # --- drawing --------------------------------------------------------------------------------------

    @property
    def _decode(self) -> Decode | None:
        if self.feed.trace.decode is not None or self._tokenizer is None:
            return self.feed.trace.decode
        return lambda ids: str(self._tokenizer.decode(ids))

    def draw(self) -> str:
        steps = self.feed["steps"]
        if not len(steps["step"]):
            raise NothingToShow("no step is over yet: run generate, or step")
        step = self._step()
        cache = self._cache(step)
        if cache.chains is None:
            raise NothingToShow(_NO_KEYS)
        self.adapter.offer(self.feed)
        answer, words = self._answered(cache)
        found = prefix_tree.tree(
            self._log,
            self._sequences,
            cache,
            steps,
            self.feed["requests"],
            step,
            self._decode,
            self._top,
            answer.path if answer else (),
        )
        return heading(prefix_tree.headline(found)) + prefix_tree.draw(found, answer) + words

    def _answered(self, cache: Cache) -> tuple[Answer | None, str]:
        """What the prompt that stands there would find, and that in words."""
        if not self.prompt.value.strip():
            return None, ""
        try:
            answer = self._ask(cache, self.prompt.value, self.salt.value, self.adapter.name)
        except (ValueError, TypeError) as error:
            return None, f'<p class="message">{escape(str(error))}</p>'
        assert cache.chains is not None, "or there was no answer"
        size, salted = cache.chains.block_size, bool(self.salt.value)
        words = answer_words(answer, size, self._decode, salted, self.adapter.name)
        return answer, words

    def picked(self, what: str) -> None:
        self._show(int(what.removeprefix("run:")))

    def summary(self) -> str:
        if not len(self.feed["steps"]["step"]):
            return "no steps"
        self._cache(None)
        found = self._log.findable()
        return f"{len(found.keys)} blocks findable, found {int(found.hits.sum())} times"


_NO_KEYS = (
    "the trace does not say how keys are made of tokens (block_size, prefix_caching_hash_algo), or names a"
    " hash that is not installed: record an LLM, or pip install 'workbench[xxhash]'"
)


def _tokenizer_of(source: object) -> Any:
    """An engine's own; None where there is none, or it is closed."""
    try:
        return source.get_tokenizer()  # type: ignore[attr-defined]
    except (AttributeError, ValueError, RuntimeError):
        return None


def _read_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.strip("[] ").replace(",", " ").split()]
    except ValueError:
        raise ValueError(
            "this trace has no tokenizer: type token ids, as in 17 4 256, or make the widget with"
            " PrefixTree(trace, tokenizer=llm.get_tokenizer())"
        ) from None

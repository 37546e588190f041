"""The text of a request, token by token: how likely each was, and what else there was to take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from workbench.outputs import RequestOutput
from workbench.trace import Trace
from workbench.trace.growing import Need
from workbench.trace.pictures import logprobs as pictures
from workbench.trace.pictures.logprobs import Tokens
from workbench.widgets.base import NothingToShow, Widget
from workbench.widgets.feed import Feed
from workbench.widgets.selection import Selection
from workbench.widgets.sequences import OfFeed, OfOutputs, Sequences

PAGE = 400  # tokens shown as text

NO_LOGPROBS = "no token has logprobs"
NO_TOKENS = "no token was generated yet: run generate, with logprobs"
ASK = (
    "ask with SamplingParams(logprobs=5) or prompt_logprobs=5, or for every request with"
    " `with llm.trace.record(logprobs=5) as trace:`"
)


class Logprobs(Widget):
    """Tokens coloured by logprob, rank or entropy; hovering over one says what else there was to take.

    A click on a token shows its alternatives below, and selects its step for the widgets that share the
    selection; a request that is selected elsewhere is shown here. Where a request has more tokens than fit,
    the skyline above the text has all of them, and a click there goes to its part.

    With `beside`, two runs stand one above the other, token under token, and where they part is marked. An
    engine has one logprobs_mode, so that raw beside processed are two runs with the same seed: what is drawn
    does not depend on the mode.

    Args:
        source: an LLM, a Trace, or what `generate` returned: a RequestOutput, or a list of them.
        selection: shared with other widgets; None: its own.
        beside: another source. Its requests are found by id, or else by their order.
        names: what the two are called; None: their logprobs_mode where they differ in it.

    Raises:
        TypeError: a source is something else.
        MissingExtra: ipywidgets is not installed.
    """

    needs: ClassVar[tuple[Need, ...]] = ("tokens", "likelihoods")

    def __init__(
        self,
        source: object,
        selection: Selection | None = None,
        *,
        beside: object = None,
        names: tuple[str, str] | None = None,
    ) -> None:
        if beside is not None:
            self.check(beside)
        self._runs: list[Sequences] = []
        self._feeds: list[Feed] = []
        self._beside, self._names = beside, names
        super().__init__(source, selection)

    def check(self, source: object) -> None:
        """Traces and engines, and outputs too."""
        if _outputs(source) is None:
            super().check(source)

    def watch(self, source: object) -> Feed:
        """The source's feed; that of no trace where there are outputs."""
        first = self._open(source)
        if self._beside is not None:
            self._open(self._beside)
        return first

    def _open(self, source: object) -> Feed:
        outputs = _outputs(source)
        feed = super().watch(Trace() if outputs is not None else source)
        self._feeds.append(feed)
        self._runs.append(OfFeed(feed) if outputs is None else OfOutputs(outputs))
        return feed

    def close(self) -> None:
        """Draw no more, and leave the notebook."""
        for feed in vars(self).get("_feeds", ()):  # ipywidgets closes what was refused, too
            feed.leave(self)
        super().close()

    # --- what is chosen ---------------------------------------------------------------------------------

    def controls(self) -> list[Any]:
        from ipywidgets import HBox, IntSlider, Layout, ToggleButtons

        self._followed: str | None = None  # the selected request, once it was gone to
        self._chosen: int | None = None  # the sequence; None: the latest
        self._token: int | None = None  # that was clicked, by index
        self._first: int | None = None  # shown as text, by index; None: goes along
        self._seen = (-1, 0)  # sequence, and its tokens, that were drawn last
        self._said_of: tuple[object, ...] = ()
        self._said: dict[tuple[int, int], str] = {}  # by run and place
        self._moving = False  # sliders move because of us
        wide = Layout(width="36%")
        self.by = ToggleButtons(
            options=pictures.BY, style={"button_width": "72px"}, layout=Layout(width="26%")
        )
        self.request = IntSlider(description="request", min=0, max=0, continuous_update=False, layout=wide)
        self.page = IntSlider(description="from", min=0, max=0, continuous_update=False, layout=wide)
        self.by.observe(lambda _: self.refresh(), "value")
        self.request.observe(self._request_moved, "value")
        self.page.observe(self._page_moved, "value")
        return [HBox([self.by, self.request, self.page])]

    def _request_moved(self, change: Any) -> None:
        if not self._moving:
            self._go_to(int(change["new"]))
            self._followed = self._runs[0].names[change["new"]]
            self.selection.select(request=self._followed)
            self.refresh()

    def _page_moved(self, change: Any) -> None:
        if not self._moving:
            self._first = int(change["new"])
            self.refresh()

    def _go_to(self, sequence: int) -> None:
        self._chosen, self._token, self._first = sequence, None, None

    def picked(self, what: str) -> None:
        kind, _, index = what.partition(":")
        if kind == "part":
            self._first = int(index)
        else:
            self._token = int(index)
            run = self._runs[0].tokens(self._seen[0])
            place = run.place(self._token)
            if place is not None and run.step[place] >= 0:
                self.selection.select(step=int(run.step[place]))
        self.refresh()

    # --- what is shown ----------------------------------------------------------------------------------

    def draw(self) -> str:
        for feed, run in zip(self._feeds, self._runs, strict=True):
            if feed is not self.feed:
                feed.pull(wait=False)  # its engine may be drawing, and waiting for this one
            run.take()
        sequence = self._sequence()
        shown = [self._runs[0].tokens(sequence), *self._others(sequence)]
        if np.isnan(shown[0].rank).all():
            raise NothingToShow(f"request {shown[0].name} has no logprobs: {ASK}")
        within = self._within(sequence, shown)
        names = self._named()
        token = self._token if self._token is not None else _telling(shown, self.by.value, within)
        text = pictures.draw(
            shown,
            self.by.value,
            within,
            names=names,
            chosen=token,
            step=self.selection.step,
            says=self._remembering(sequence, shown),
        )
        below = "" if token is None else pictures.alternatives(shown, token, names)
        return f"{pictures.head(shown, within)}{text}{below}"

    def _remembering(self, sequence: int, shown: Sequence[Tokens]) -> pictures.Says:
        """What tooltips say, worked out once: a token that is there stays what it is."""
        key = (sequence, *(feed.epoch for feed in self._feeds), *(run.name for run in shown))
        if self._said_of != key:
            self._said_of, self._said = key, {}

        def says(row: int, place: int) -> str:
            if (row, place) not in self._said:
                self._said[row, place] = pictures.title(shown[row], place)
            return self._said[row, place]

        return says

    def _sequence(self) -> int:
        """The one that is chosen here or elsewhere, or the latest."""
        names, latest = self._runs[0].names, self._runs[0].latest
        if latest < 0:
            raise NothingToShow(
                f"no token has logprobs: {ASK}"
                if names
                else f"no token was generated yet: run generate; {ASK}"
            )
        if self.selection.request != self._followed:
            self._followed = self.selection.request
            found = [place for place, name in enumerate(names) if name == self._followed]
            if found:
                self._go_to(found[-1])
        sequence = latest if self._chosen is None or self._chosen >= len(names) else self._chosen
        self._move(self.request, 0, len(names) - 1, sequence)
        return sequence

    def _others(self, sequence: int) -> list[Tokens]:
        """The same request of the run beside, by its id or its place."""
        name, found = self._runs[0].names[sequence], []
        for run in self._runs[1:]:
            if not run.names:
                raise NothingToShow("the run beside has no tokens yet: run generate there, too")
            place = run.names.index(name) if name in run.names else min(sequence, len(run.names) - 1)
            found.append(run.tokens(place))
        return found

    def _within(self, sequence: int, shown: Sequence[Tokens]) -> range:
        """Indices shown as text: where somebody went to, or the end while it grows."""
        there = pictures.span(shown)
        size = PAGE // len(shown)
        last = max(there.stop - size, there.start)
        grows = self._seen[0] == sequence and 0 < self._seen[1] < len(there)
        self._seen = (sequence, len(there))
        first = self._first
        if first is None:
            first = last if grows or self.page.value == self.page.max > there.start else there.start
        first = min(max(first, there.start), last)
        self._move(self.page, there.start, last, first)
        return range(first, min(first + size, there.stop))

    def _move(self, slider: Any, low: int, high: int, value: int) -> None:
        self._moving = True
        slider.min, slider.max = min(low, slider.min), max(high, slider.max)
        slider.value = value
        slider.min, slider.max = low, high
        slider.layout.visibility = "visible" if high > low else "hidden"
        self._moving = False

    def _named(self) -> tuple[str, ...]:
        if self._names is not None:
            return self._names
        modes = [run.mode for run in self._runs]
        return tuple(modes) if len(set(modes)) == len(modes) and all(modes) else ("the first", "the second")

    def summary(self) -> str:
        tokens = [sum(len(run.tokens(k).indices) for k in range(len(run.names))) for run in self._runs]
        return f"{len(self._runs[0].names)} requests, {' beside '.join(map(str, tokens))} tokens"


def _outputs(source: object) -> list[RequestOutput] | None:
    """What `generate` returned, where it is that."""
    several = source if isinstance(source, list | tuple) else [source]
    found = [output for output in several if isinstance(output, RequestOutput)]
    return found if found and len(found) == len(several) else None


def _telling(shown: Sequence[Tokens], by: pictures.By, within: range) -> int | None:
    """The token to look at first: where two runs part, or the one that was expected least."""
    parting = pictures.first_difference(*shown) if len(shown) == 2 else None
    if parting is not None and parting in within:
        return parting
    return pictures.most_surprising(shown[0], by, within)

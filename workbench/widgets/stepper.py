"""The scheduler by hand: the next step before it is taken, and the queue and the budget to edit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Protocol

import numpy as np

from workbench.engine.preview import Preview
from workbench.outputs import RequestOutput
from workbench.step import Step
from workbench.trace.growing import Need
from workbench.trace.pictures import step as pictures
from workbench.trace.pictures.theme import message
from workbench.widgets.base import NothingToShow, Widget
from workbench.widgets.feed import is_closed
from workbench.widgets.selection import Selection

logger = logging.getLogger(__name__)

BUSY = (
    "A call that is still open, generate or a stream, drives this engine: step by hand when it has ended, or"
    " abort its requests."
)
UNTIL = {
    "a request finishes": "finish",
    "a preemption": "preemption",
    "step …": "step",
    "nothing is left": "end",
}


class Desk(Protocol):
    """What can be looked at and edited between steps: `llm.scheduler`."""

    token_budget: int
    busy: bool
    in_step: bool
    max_token_budget: int

    def preview(self) -> Preview: ...
    def move(self, request_id: str, place: int) -> None: ...
    def drop(self, request_id: str) -> None: ...


class Engine(Protocol):
    """An LLM, as far as a stepper knows one."""

    @property
    def scheduler(self) -> Desk: ...
    def step(self) -> Step: ...
    def has_unfinished_requests(self) -> bool: ...


class Stepper(Widget):
    """Steps a live engine, or goes through the steps of a trace.

    It shows the next step before it is taken: who gets how many tokens and blocks, who will be preempted, who
    goes on waiting. Between steps the queue is edited with the buttons in its rows, and the budget with the
    slider. What its steps brought is in `outputs`, for each is told once. Over a trace it reads only, and
    moves the selected step.

    While a call such as `generate` drives the engine, it says so and does nothing.
    """

    needs: ClassVar[tuple[Need, ...]] = ("steps", "step_requests", "requests", "blocks")

    def __init__(self, source: object, selection: Selection | None = None) -> None:
        self.check(source)
        alive = hasattr(source, "scheduler") and not is_closed(source)
        self._engine: Engine | None = source if alive else None  # type: ignore[assignment]
        self.outputs: dict[str, RequestOutput] = {}  # the latest of each request, by id
        self._ahead: Preview | None = None  # the next step; None: it cannot be looked at now
        self._busy = self._running = self._silent = False  # `_running`: step after step, until a condition
        self._note = ""  # why the last click did nothing
        self._loop = _running_loop()
        self._task: asyncio.Task[None] | None = None  # held, or it may be collected
        super().__init__(source, selection)

    # --- what it shows --------------------------------------------------------------------------------

    def controls(self) -> list[Any]:
        from ipywidgets import BoundedIntText, Button, Dropdown, HBox, IntSlider, Layout

        def narrow() -> Any:  # one each: some are hidden
            return Layout(width="90px")

        self._back = Button(description="back", icon="step-backward", layout=narrow())
        self._step = Button(description="step", icon="step-forward", layout=narrow())
        self._run = Button(description="run until", icon="forward", layout=Layout(width="110px"))
        self._stop = Button(description="stop", icon="stop", layout=narrow(), disabled=True)
        self._until = Dropdown(options=list(UNTIL.items()), layout=Layout(width="170px"))
        self._number = BoundedIntText(min=0, max=10**9, layout=narrow())
        self._budget = IntSlider(description="budget", min=1, continuous_update=False)
        self._step.on_click(lambda _: self.step())
        self._back.on_click(lambda _: self.back())
        self._run.on_click(lambda _: self.run_until(self._until.value, int(self._number.value)))
        self._stop.on_click(lambda _: self.stop())
        self._until.observe(lambda _: self._show_controls(), "value")
        self._budget.observe(self._budget_moved, "value")
        self._show_controls()
        return [
            HBox([self._back, self._step, self._run, self._until, self._number, self._stop, self._budget])
        ]

    def _show_controls(self) -> None:
        live, blocked = self._engine is not None, self._busy or self._running
        for control, shown in (
            (self._back, not live), (self._stop, live), (self._budget, live),
            (self._number, self._until.value == "step"),
        ):  # fmt: skip
            control.layout.display = None if shown else "none"
        for control in (self._step, self._run, self._budget):
            control.disabled = blocked
        self._stop.disabled = not self._running

    def prepare(self) -> None:
        if self._engine is None or self._running:
            return
        try:
            self._look(self._engine.scheduler)
        except Exception as error:  # noqa: BLE001 - an engine that is closed or lost, a policy that fails
            self._ahead, self._note = None, str(error)

    def _look(self, desk: Desk) -> None:
        self._busy = desk.busy
        if desk.in_step:  # a cell's own: it is looked at when that is over
            self._ahead = None
            self._look_later()
        else:
            self._ahead = None if self._busy else desk.preview()
            self._silent = True
            self._budget.max, self._budget.value = desk.max_token_budget, desk.token_budget
            self._silent = False

    def _look_later(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.look)

    def look(self) -> None:
        """Look at the next step again."""
        self.prepare()
        self.refresh()

    def draw(self) -> str:
        self._show_controls()
        note = message(self._note) if self._note else ""
        if self._engine is None:
            return note + self._recorded()
        if self._busy:
            raise NothingToShow(BUSY)
        if self._running or self._ahead is None:
            return note + self._under_way()
        if self._ahead.index < 0:
            return note + message("There is nothing to do: queue prompts with llm.add_request(...).")
        title = f"Step {self._ahead.index}, as it will be"
        return note + pictures.draw(self._ahead, title, self._texts()) + pictures.queue(self._ahead)

    def _texts(self) -> dict[str, str]:
        return {name: output.outputs[0].text for name, output in self.outputs.items()}

    def _under_way(self) -> str:
        steps = self.feed["steps"]["step"]
        if not len(steps):
            raise NothingToShow("no step is over yet: press step")
        return pictures.draw(self._of_trace(int(steps[-1])), f"Step {int(steps[-1])}", self._texts())

    def _recorded(self) -> str:
        steps = self.feed["steps"]
        if not len(steps["step"]):
            raise NothingToShow("no step is over yet: run generate, or step")
        place = self._place_of_step()
        index = int(steps["step"][place])
        waiting = f"<p class=note>{int(steps['waiting'][place]):,} wait after it.</p>"
        return pictures.draw(self._of_trace(index), f"Step {index} of the trace", {}) + waiting

    def _of_trace(self, index: int) -> Preview:
        steps, chunks = self.feed["steps"], self.feed["step_requests"]
        requests, blocks = self.feed["requests"], self.feed["blocks"]
        return pictures.recorded(steps, chunks, requests, blocks, index)

    def _place_of_step(self) -> int:
        """In the trace, of the selected step or the first one behind it; without one, the first."""
        steps, chosen = self.feed["steps"]["step"], self.selection.step
        return 0 if chosen is None else min(int(np.searchsorted(steps, chosen)), len(steps) - 1)

    def summary(self) -> str:
        if self._engine is None:
            return f"{len(self.feed['steps']['step'])} steps, read-only"
        if self._ahead is None or self._ahead.index < 0:
            return "busy" if self._busy else "nothing to do"
        ahead = self._ahead
        return (
            f"step {ahead.index} is next: {ahead.total_num_scheduled_tokens} of {ahead.budget} tokens,"
            f" {len(ahead.waiting)} wait"
        )

    # --- what it does ---------------------------------------------------------------------------------

    def step(self) -> None:
        """Take one step; over a trace, go to the next one."""
        self._do(self._forward)

    def back(self) -> None:
        """Go to the step before, over a trace."""
        self._do(lambda: self._go(self._place_of_step() - 1))

    def run_until(self, condition: str, number: int = 0) -> None:
        """Step until something happens; in a notebook it goes on in the event loop, until `stop`.

        Args:
            condition: "finish", a request ends; "preemption", somebody is preempted; "step", the next one is
                `number`; "end", nothing is left.
        """
        if condition not in UNTIL.values():
            raise ValueError(f"condition is {condition!r}: use one of {', '.join(UNTIL.values())}")
        if self._engine is None:
            self._do(lambda: self._go(self._place_where(condition, number)))
            return
        self._running, steps = True, self._steps(condition, number)
        if self._loop is None:
            self._do(lambda: _exhaust(steps))
        else:
            self._task = self._loop.create_task(self._run_on(steps))

    def stop(self) -> None:
        """Let the step that is under way be the last."""
        self._running = False

    async def _run_on(self, steps: Iterator[None]) -> None:
        self._show_controls()  # at once: the picture comes when the engine's work has paid for it
        while self._running and self._try(lambda: next(steps)):
            await asyncio.sleep(0)  # clicks come in between
        self._running = False
        self.look()

    def _steps(self, condition: str, number: int) -> Iterator[None]:
        """Step by step, until it is over or somebody else comes."""
        engine = self._needed()
        while self._running and engine.has_unfinished_requests():
            if condition == "step" and engine.scheduler.preview().index >= number:
                break
            step = self._one(engine)
            yield
            if (condition == "finish" and step.finished) or (condition == "preemption" and step.preempted):
                break

    def _forward(self) -> None:
        if self._engine is None:
            self._go(self._place_of_step() + 1)
        else:
            step = self._one(self._engine)
            if step.index >= 0:
                self.selection.select(step=step.index)

    def _one(self, engine: Engine) -> Step:
        if engine.scheduler.busy:
            raise NothingToShow(BUSY)
        step = engine.step()
        self.outputs |= {output.request_id: output for output in step.outputs}
        return step

    def _needed(self) -> Engine:
        assert self._engine is not None, "a trace takes no steps"
        return self._engine

    def _budget_moved(self, change: Any) -> None:
        if not self._silent:
            self._do(lambda: setattr(self._needed().scheduler, "token_budget", int(change["new"])))

    def picked(self, what: str) -> None:
        act, _, name = what.partition(":")
        self._do(lambda: self._edit(self._needed().scheduler, act, name))

    def _edit(self, desk: Desk, act: str, name: str) -> None:
        if act == "drop":
            desk.drop(name)
            return
        names = [each.request_id for each in (self._ahead.queue if self._ahead else ())]
        place = names.index(name) if name in names else 0
        desk.move(name, {"first": 0, "up": max(place - 1, 0), "down": place + 1}[act])

    # --- over a trace ---------------------------------------------------------------------------------

    def _go(self, place: int) -> None:
        steps = self.feed["steps"]["step"]
        if not len(steps):
            return
        if not 0 <= place < len(steps):
            raise NothingToShow(f"the trace holds steps {int(steps[0])} to {int(steps[-1])}, and no others")
        self.selection.select(step=int(steps[place]))

    def _place_where(self, condition: str, number: int) -> int:
        """The next step of the trace in which it happens; the last one where it does not."""
        steps, here = self.feed["steps"], self._place_of_step()
        found = {
            "finish": lambda: self._finishes(steps["collected_s"]),
            "preemption": lambda: steps["preempted"] > 0,
            "step": lambda: steps["step"] >= number,
            "end": lambda: np.zeros(len(steps["step"]), np.bool_),
        }[condition]()
        behind = np.flatnonzero(found[here + 1 :])
        return here + 1 + int(behind[0]) if len(behind) else len(found) - 1

    def _finishes(self, collected: Any) -> Any:
        """Whether a request ended with the step: after its tokens were there, and before the next one's."""
        ends = self.feed["requests"]["finished_s"]
        places = np.searchsorted(collected, ends[~np.isnan(ends)], "right") - 1
        found = np.zeros(len(collected), np.bool_)
        found[places[places >= 0]] = True
        return found

    # --- around ---------------------------------------------------------------------------------------

    def _do(self, action: Callable[[], object]) -> None:
        self._try(action)
        self._running = False
        self.look()

    def _try(self, action: Callable[[], object]) -> bool:
        """What goes wrong stands in the widget's place. False also where an iterator has come to its end."""
        self._note = ""
        try:
            action()
        except StopIteration:
            return False
        except NothingToShow as nothing:
            self._note = str(nothing)
        except (RuntimeError, ValueError) as error:
            self._note = str(error)
        except Exception as error:
            logger.exception("the stepper could not do that")
            self._note = f"this could not be done: {error!r}"
        return not self._note

    def close(self) -> None:
        self._running = False
        super().close()


def _exhaust(steps: Iterator[None]) -> None:
    for _ in steps:
        pass


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None

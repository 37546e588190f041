"""What live widgets cost: `generate` in a notebook's cell with all widgets shown above it, and without.

A real kernel runs the cells: pictures are made, serialised, signed and sent as in a notebook, and this
process receives them, as a browser would. Engine and widgets live in the kernel; `Desk` is what the cells
call. One way is to open nothing again: its ratios are the noise. Beside the ratio of the throughputs stand
that of the kernel's processor time, in which other processes do not show, and the part of the time spent on
drawing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm.auto import tqdm

from workbench.bench.pairs import Row, pair, speed, summary
from workbench.bench.provenance import provenance
from workbench.bench.throughput import Load
from workbench.errors import MissingExtra
from workbench.models.zoo.registry import DEFAULT

if TYPE_CHECKING:
    from jupyter_client.blocking.client import BlockingKernelClient

CLOSED = "closed"
MODES = ("closed_again", "open")
KINDS = ("TokenBudget", "Requests", "CacheMap", "Logprobs", "Dashboard")
SHOW = (
    f"from workbench.widgets import {', '.join(KINDS)}, linked\n"
    f"desk.show(linked(desk.llm, {', '.join(KINDS)}))"
)
SHOWN = (
    "mode",
    "round",
    "off_tokens_per_s",
    "out_tokens_per_s",
    "ratio",
    "cpu_ratio",
    "drawing",
    "draws",
    "megabytes",
)
TIMEOUT_S = 600  # of one cell


def measure(model: str | None, load: Load, rounds: int) -> tuple[list[Row], Row]:
    """A row a way and round; every round has new prompts, the same for all its runs.

    Raises:
        MissingExtra: there is no Jupyter to start a kernel.
        RuntimeError: a cell failed.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}: use at least 1")
    name = model or f"zoo/{DEFAULT}"
    rows: list[Row] = []
    with _notebook() as notebook:
        opened = ", ".join(map(repr, (name, load.longest + load.out)))
        device, engine = notebook.run(
            f"from workbench.bench.widgets import Desk\ndesk = Desk({opened})\ndesk.told()"
        )
        origin = provenance(device) | {"model": name, **load._asdict()}
        notebook.run(f"desk.speed({tuple(load)}, 999)")
        for number in tqdm(range(rounds), desc="Measuring", unit="round"):
            turn = number % len(MODES)
            for mode in MODES[turn:] + MODES[:turn]:
                row = pair(CLOSED, mode, number, lambda way: _run(notebook, way, load, number))  # noqa: B023
                rows.append(origin | row | _beside(notebook.told))
    cpu = [{**row, "ratio": row["cpu_ratio"]} for row in rows]
    drawing = max(row["drawing"] for row in rows)
    of_cpu = {f"cpu_{name}": value for name, value in summary(cpu, MODES).items() if name[:3] != "off"}
    found = summary(rows, MODES) | of_cpu | {"most_drawing": drawing}
    return rows, {"engine": engine, "rounds": rounds} | found


def _run(notebook: _Notebook, way: str, load: Load, number: int) -> float:
    notebook.run(SHOW if way == "open" else "desk.clear()")
    draws, sent = notebook.draws, notebook.received
    tokens_per_s, cpu_s, drawing = notebook.run(f"desk.speed({tuple(load)}, {number})")
    notebook.told[way == CLOSED] = Told(cpu_s, drawing, notebook.draws - draws, notebook.received - sent)
    notebook.run("desk.clear()")
    return float(tokens_per_s)


class Told(NamedTuple):
    """What else is known of a run."""

    cpu_s: float
    drawing: float  # part of the time in which pictures were drawn
    draws: int  # pictures that came while the cell ran
    sent: int  # their characters


def _beside(told: dict[bool, Told]) -> Row:
    """`told`: by whether it is the run with nothing open."""
    mine, none = told[False], told[True]
    return {
        "cpu_ratio": round(none.cpu_s / mine.cpu_s, 4),  # as the other: less than 1 is what it costs
        "drawing": round(mine.drawing, 4),
        "draws": mine.draws,
        "megabytes": round(mine.sent / 1e6, 2),
    }


# --- the notebook's side --------------------------------------------------------------------------------


class _Notebook:
    """Runs cells in a kernel and receives whatever they send."""

    def __init__(self, client: BlockingKernelClient) -> None:
        self._client = client
        self.draws = 0  # pictures that came
        self.received = 0  # characters of them
        self.told: dict[bool, Told] = {}  # of the last run with something open or not, and of the one without

    def run(self, code: str) -> Any:
        """What the cell's last expression is; it is told as JSON."""
        self._result: list[str] = []
        *first, last = code.split("\n")
        lines = [*first, "import json", f"print('told', json.dumps({last}))"]
        reply = self._client.execute_interactive("\n".join(lines), output_hook=self._take, timeout=TIMEOUT_S)
        content: Any = reply["content"]
        if content["status"] != "ok":
            raise RuntimeError(f"the cell {code!r} failed: {content['ename']}: {content['evalue']}")
        return json.loads("".join(self._result).partition("told")[2])

    def _take(self, message: dict[str, Any]) -> None:
        content = message["content"]
        if message["msg_type"] == "stream" and content["name"] == "stdout":
            self._result.append(content["text"])
        elif message["msg_type"] == "comm_msg":
            value = content["data"].get("state", {}).get("value")
            if isinstance(value, str) and 'class="wb"' in value:
                self.draws += 1
                self.received += len(value)


@contextmanager
def _notebook() -> Iterator[_Notebook]:
    try:
        from jupyter_client.manager import start_new_kernel
    except ImportError:
        raise MissingExtra(
            "widgets are measured in a notebook's kernel: pip install 'workbench[notebook]'"
        ) from None
    manager, client = start_new_kernel()
    try:
        yield _Notebook(client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


# --- the kernel's side ----------------------------------------------------------------------------------


class Desk:
    """An engine, and the widgets that are shown of it."""

    def __init__(self, model: str, longest: int) -> None:
        from workbench.bench.workloads import MODELS, model_folder
        from workbench.llm import LLM

        with model_folder(model) as folder:
            self.llm = LLM(
                str(folder),
                load_format="dummy" if model in MODELS else "auto",
                skip_tokenizer_init=True,
                max_model_len=longest,
            )
        self._shown: tuple[Any, ...] = ()

    def told(self) -> tuple[str, str]:
        """The device and the engine, in words."""
        return self.llm.config.device_name, repr(self.llm)

    def show(self, widgets: tuple[Any, ...]) -> None:
        """Put them on the page."""
        from IPython.display import display

        self._shown = widgets
        display(*widgets)

    def clear(self) -> None:
        """No widget."""
        for widget in self._shown:
            widget.close()
        self._shown = ()

    def speed(self, load: tuple[int, ...], number: int) -> tuple[float, float, float]:
        """Generated tokens a second, seconds of processor time, and the part of the time spent on drawing."""
        began, spent = time.process_time(), self._spent()
        tokens_per_s = speed(self.llm, Load(*load), number)
        seconds = load[0] * load[3] / tokens_per_s
        return tokens_per_s, time.process_time() - began, (self._spent() - spent) / seconds

    def _spent(self) -> float:
        """Seconds of drawing so far; all widgets of an engine share a feed."""
        return float(self._shown[0].feed.spent) if self._shown else 0.0

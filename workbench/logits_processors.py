"""What logits processors are written against, and how an engine finds them. Knows no engine and no rows.

A processor sees the rows of a step that sample, dense from 0, and its own picture of who they are is kept up
to date by `update_state`. A request that leaves them and comes back (preempted, or left out of a step that
had no budget for it) is removed, and added again with the tokens it has by then.
"""

from __future__ import annotations

import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from functools import partial
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, NamedTuple

from workbench.params import SamplingParams

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from workbench.config import EngineConfig

ENTRY_POINTS = "workbench.logits_processors"
_NEEDED = ("apply", "is_argmax_invariant", "update_state")
_REMEDY = "use a class with __init__(config, device), apply, is_argmax_invariant and update_state"


class MoveDirectionality(Enum):
    UNIDIRECTIONAL = auto()  # from the first row to the second
    SWAP = auto()  # the two trade places


class AddedRequest(NamedTuple):
    """A request that enters, at a row of its own."""

    index: int  # type: ignore[assignment]  # shadows tuple.index, unused here
    params: SamplingParams
    prompt_tok_ids: list[int]
    output_tok_ids: list[int]  # the very list that grows: it always holds what was generated so far


class BatchUpdate(NamedTuple):
    """How the rows differ from those of the step before: removed, then added, then moved, in this order.

    An added request may take the row of one that left, which is not among the removed then. Moves come one
    after the other.
    """

    batch_size: int  # rows after the update; they are 0 .. batch_size - 1
    removed: Sequence[int]
    added: Sequence[AddedRequest]
    moved: Sequence[tuple[int, int, MoveDirectionality]]


class LogitsProcessor(ABC):
    """Changes the logits of all requests of an engine. A class that has these methods need not inherit."""

    @classmethod  # noqa: B027 - most accept whatever comes
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raise ValueError for params (their `extra_args`, say) that this processor cannot serve."""

    @abstractmethod
    def __init__(self, config: EngineConfig, device: torch.device) -> None: ...

    @abstractmethod
    def apply(self, logits: Tensor) -> Tensor:
        """The changed logits, of the same shape; they may be changed in place.

        Args:
            logits: [batch_size, vocab] float32, device.
        """

    @abstractmethod
    def is_argmax_invariant(self) -> bool:
        """Whether it leaves every row's largest logit the largest. Greedy rows do without it then.

        Asked when the engine opens: it says the same for ever.
        """

    @abstractmethod
    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Before each step's `apply`: how the rows changed; None: they are those of the step before."""


class RowsFailed(RuntimeError):
    """Raised by `apply` where it is known which rows are to blame: their requests end, the others go on."""

    def __init__(self, errors: Mapping[int, str]) -> None:
        super().__init__("; ".join(f"row {row}: {error}" for row, error in errors.items()))
        self.errors = dict(errors)  # by row


RequestProcessor = Callable[..., Any]  # (output_tok_ids, logits) or (prompt_tok_ids, output_tok_ids, logits)


class AdapterLogitsProcessor(LogitsProcessor):
    """Wraps callables that belong to one request each: `extra_args={"logits_processor": f}`.

    `f(output_tok_ids, logits)` or `f(prompt_tok_ids, output_tok_ids, logits)` returns the changed logits
    [vocab]. A subclass may make them from other arguments: see `new_req_logits_processor`.
    """

    def __init__(self, config: EngineConfig, device: torch.device) -> None:
        self.req_info: dict[int, partial[Tensor]] = {}  # by row

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        own = (sampling_params.extra_args or {}).get("logits_processor")
        if own is not None and not callable(own):
            raise ValueError(f"extra_args['logits_processor'] is {own!r}: use f(output_tok_ids, logits)")

    def new_req_logits_processor(self, params: SamplingParams) -> RequestProcessor | None:
        """The callable of a request that enters, or None."""
        found: RequestProcessor | None = (params.extra_args or {}).get("logits_processor")
        return found

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        update_rows(self.req_info, batch_update, self._enter)

    def _enter(self, added: AddedRequest) -> partial[Tensor] | None:
        try:
            return self._bound(added)
        except Exception as error:  # noqa: BLE001 - raised where it is told by rows
            return partial(_raise, error)

    def _bound(self, added: AddedRequest) -> partial[Tensor] | None:
        found = self.new_req_logits_processor(added.params)
        if found is None:
            return None
        tokens = [added.prompt_tok_ids, added.output_tok_ids]
        takes_prompt = len(inspect.signature(found).parameters) == 3
        return partial(found, *(tokens if takes_prompt else tokens[1:]))

    def apply(self, logits: Tensor) -> Tensor:
        errors: dict[int, str] = {}
        for row, process in self.req_info.items():
            try:
                changed = process(logits[row])
            except Exception as error:  # noqa: BLE001 - its own request ends with it, and no other
                errors[row] = f"{type(error).__name__}: {error}"
                continue
            if getattr(changed, "shape", None) != logits[row].shape:
                errors[row] = f"it returned {_described(changed)} instead of logits [{logits.shape[1]}]"
            else:
                logits[row] = changed
        if errors:
            raise RowsFailed(errors)
        return logits


def _raise(error: Exception, logits: Tensor) -> Tensor:
    raise error


def update_rows(
    rows: dict[int, Any], update: BatchUpdate | None, enter: Callable[[AddedRequest], Any | None]
) -> None:
    """Bring what a processor keeps by row up to date; `enter` makes it for a request, None: nothing."""
    if update is None:
        return
    for index in update.removed:
        rows.pop(index, None)
    for added in update.added:
        rows.pop(added.index, None)
        if (kept := enter(added)) is not None:
            rows[added.index] = kept
    for first, second, direction in update.moved:
        mine, other = rows.pop(first, None), rows.pop(second, None)
        if mine is not None:
            rows[second] = mine
        if other is not None and direction is MoveDirectionality.SWAP:
            rows[first] = other


def _described(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return f"a {type(value).__name__}" + ("" if shape is None else f" {list(shape)}")


def find(given: Sequence[Any] | None) -> list[type[Any]]:
    """The classes of installed plugins, then those that were given, as classes or as "module:Class".

    Raises:
        TypeError, ValueError: an entry is no such class, or is not found.
        RuntimeError: a plugin or a module cannot be imported.
    """
    if given is not None and (isinstance(given, str | bytes) or not isinstance(given, Sequence)):
        raise TypeError(f"logits_processors is {given!r}: use a list of classes or 'module:Class' strings")
    installed = [_load(repr(point.value), point.load) for point in entry_points(group=ENTRY_POINTS)]
    named = [_named(entry) if isinstance(entry, str) else entry for entry in given or ()]
    return [_checked(entry) for entry in [*installed, *named]]


def _named(name: str) -> Any:
    module, colon, path = name.partition(":")
    if not (module and colon and path):
        raise ValueError(f"logits_processors holds {name!r}: use 'module:Class'")
    found = _load(repr(name), lambda: importlib.import_module(module))
    for part in path.split("."):
        if not hasattr(found, part):
            raise ValueError(f"logits_processors holds {name!r}: there is no {part!r} in {found!r}")
        found = getattr(found, part)
    return found


def _load(what: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:
        raise RuntimeError(f"the logits processor {what} cannot be imported ({error}): correct it") from error


def _checked(entry: Any) -> type[Any]:
    if not isinstance(entry, type):
        raise TypeError(f"logits_processors holds {entry!r}: {_REMEDY}")
    lacking = [name for name in _NEEDED if not callable(getattr(entry, name, None))]
    if lacking:
        raise TypeError(f"the logits processor {entry.__qualname__} lacks {', '.join(lacking)}: {_REMEDY}")
    return entry


def make(found: Sequence[type[Any]], config: EngineConfig, device: torch.device) -> list[Any]:
    """One of each, for one engine."""
    made = []
    for kind in found:
        try:
            made.append(kind(config, device))
        except Exception as error:
            raise RuntimeError(
                f"the logits processor {kind.__qualname__} cannot be made ({error}): {_REMEDY}"
            ) from error
        if not isinstance(invariant := made[-1].is_argmax_invariant(), bool):
            raise TypeError(f"{kind.__qualname__}.is_argmax_invariant() is {invariant!r}: use True or False")
    return made


def validate(found: Sequence[type[Any]], params: SamplingParams) -> None:
    """Raise ValueError or TypeError where a processor refuses a request's params."""
    if params.extra_args and not found:
        raise ValueError(
            "extra_args is for the engine's logits processors, and it has none: give it some, with"
            " LLM(logits_processors=[...]), or leave extra_args out"
        )
    for kind in found:
        if hasattr(kind, "validate_params"):
            kind.validate_params(params)

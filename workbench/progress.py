"""The progress of one call: how much of it is left, and a bar that shows it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from workbench.engine.request import Request
from workbench.parent import Parent

logger = logging.getLogger(__name__)


class Bar:
    """A progress bar, or none; one that fails is set aside, and what it shows goes on."""

    def __init__(self, use_tqdm: bool | Callable[..., Any], total: int, desc: str, unit: str) -> None:
        self._bar: Any = None
        if use_tqdm and total:
            self._bar = self._make(use_tqdm)(total=total, desc=desc, unit=unit)

    @staticmethod
    def _make(use_tqdm: bool | Callable[..., Any]) -> Callable[..., Any]:
        if callable(use_tqdm):
            return use_tqdm
        from tqdm.auto import tqdm

        return tqdm

    def advance(self, note: Callable[[], str] | None = None) -> None:
        """One more is done; `note` is shown beside it."""
        if self._bar is None:
            return
        try:
            if note is not None:
                self._bar.set_postfix_str(note(), refresh=False)
            self._bar.update(1)
        except Exception as error:  # noqa: BLE001 - whatever a bar does, the requests of others go on
            logger.warning("the progress bar %r raised %r and is set aside", self._bar, error)
            self._bar = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


class Progress:
    """Counts requests down as they end; `ended` is their listener."""

    def __init__(self, parents: Sequence[Parent], use_tqdm: bool | Callable[..., Any]) -> None:
        self.remaining = sum(len(parent.children) for parent in parents)
        self._began = time.perf_counter()
        self._tokens_in = self._tokens_out = 0
        self._bar = Bar(use_tqdm, self.remaining, "Generating", "request")

    def ended(self, request: Request) -> None:
        """One request has ended."""
        self.remaining -= 1
        self._tokens_in += request.num_prompt_tokens
        self._tokens_out += len(request.token_ids) - request.num_prompt_tokens
        self._bar.advance(self._speed)

    def _speed(self) -> str:
        seconds = time.perf_counter() - self._began
        return f"{self._tokens_in / seconds:.0f} in, {self._tokens_out / seconds:.0f} out tok/s"

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)

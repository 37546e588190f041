"""The progress of one call: how many of its requests are left, and a bar that shows it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from workbench.engine.request import Request
from workbench.parent import Parent

logger = logging.getLogger(__name__)


class Progress:
    """Counts requests down as they end; `ended` is their listener."""

    def __init__(self, parents: Sequence[Parent], use_tqdm: bool | Callable[..., Any]) -> None:
        self.remaining = sum(len(parent.children) for parent in parents)
        self._bar: Any = None
        self._began = time.perf_counter()
        self._tokens_in = self._tokens_out = 0
        if use_tqdm and parents:
            self._bar = self._make(use_tqdm)(total=self.remaining, desc="Generating", unit="request")

    @staticmethod
    def _make(use_tqdm: bool | Callable[..., Any]) -> Callable[..., Any]:
        if callable(use_tqdm):
            return use_tqdm
        from tqdm.auto import tqdm

        return tqdm

    def ended(self, request: Request) -> None:
        """One request has ended."""
        self.remaining -= 1
        self._tokens_in += request.num_prompt_tokens
        self._tokens_out += len(request.token_ids) - request.num_prompt_tokens
        if self._bar is None:
            return
        try:
            self._show()
        except Exception as error:  # noqa: BLE001 - whatever a bar does, the requests of others go on
            logger.warning("the progress bar %r raised %r and is set aside", self._bar, error)
            self._bar = None

    def _show(self) -> None:
        seconds = time.perf_counter() - self._began
        speed = f"{self._tokens_in / seconds:.0f} in, {self._tokens_out / seconds:.0f} out tok/s"
        self._bar.set_postfix_str(speed, refresh=False)
        self._bar.update(1)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

"""Tiny models, written once a session, and engines over them that are looked through when a test ends."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.llm import tiny
from workbench import LLM

Open = Callable[..., LLM]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny products gain nothing from more, and busy threads slow a shared machine down."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Models:
    """The folders of the tiny models, and transformers' word on them, each computed once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._loaded: dict[str, Any] = {}
        self._greedy: dict[tuple[str, tuple[int, ...], int], list[int]] = {}

    def folder(self, family: str = "llama") -> Path:
        folder = self._root / family
        if not folder.exists():
            tiny.write_model(family, folder)
            tiny.write_tokenizer(folder)
        return folder

    def oracle(self, family: str = "llama") -> Any:
        """The model in transformers."""
        if family not in self._loaded:
            self._loaded[family] = tiny.load(self.folder(family))
        return self._loaded[family]

    def greedy(self, prompt: list[int], count: int, family: str = "llama") -> list[int]:
        """What transformers generates, greedily, from one prompt by itself."""
        key = (family, tuple(prompt), count)
        if key not in self._greedy:
            self._greedy[key] = tiny.greedy(self.oracle(family), prompt, count)
        return self._greedy[key]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    found = Models(tmp_path_factory.mktemp("models"))
    for family in tiny.FAMILIES:
        found.folder(family)
    gc.collect()
    gc.freeze()  # what the imports left: every `close` collects, and would look through all of it
    yield found
    gc.unfreeze()


@pytest.fixture
def open_llm(models: Models) -> Iterator[Open]:
    """Opens engines on the tiny models; at the end of the test each must be idle and hold no block."""
    opened: list[LLM] = []

    def open_one(family: str = "llama", **settings: Any) -> LLM:
        settings.setdefault("max_model_len", 256)
        llm = LLM(str(models.folder(family)), device="cpu", **settings)
        opened.append(llm)
        return llm

    yield open_one
    for llm in opened:
        if not repr(llm).endswith("closed)"):
            check_idle(llm)
            llm.close()


def check_idle(llm: LLM) -> None:
    """Nobody runs or waits, no block is held, and the books balance."""
    with llm._engine.turn:
        llm._engine.drain()
        scheduler = llm._engine.scheduler
        scheduler.check()
        assert scheduler.cache.pool.num_held == 0, "blocks are held and nobody is there"
        assert not scheduler.has_work, "somebody is still in the engine"
        assert not llm._requests._open, "requests are still counted as open"
        assert scheduler.running.num_free_rows == scheduler.limits.max_rows, "a batch row is lost"

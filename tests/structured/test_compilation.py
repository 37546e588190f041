"""Grammars on their way: asked for here, made in one thread, and not made where nobody waits any more."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from workbench import StructuredOutputsParams
from workbench.structured import grammars as module
from workbench.structured.backends import MODULES
from workbench.structured.compilation import CLOSED, Compilation
from workbench.structured.grammar import BYTES, CompiledGrammar, Spec, Vocabulary, token_ids_of
from workbench.structured.grammars import Grammars
from workbench.structured.xgrammar import XGrammar

SECONDS = 20  # a wait that ends only where something is wrong
PREPARING = "workbench-grammars-prepare"


class Gated(XGrammar):
    """Compiles when it is let, and remembers what and where."""

    def __init__(self) -> None:
        super().__init__(BYTES)
        self.gate = threading.Event()
        self.began = threading.Event()
        self.compiled: list[str] = []
        self.threads: set[str] = set()
        self.raises: BaseException | None = None

    def compile(self, spec: Spec) -> CompiledGrammar:
        self.compiled.append(spec.text)
        self.threads.add(threading.current_thread().name)
        self.began.set()
        assert self.gate.wait(SECONDS)
        if self.raises is not None:
            raise self.raises
        return super().compile(spec)


VOCABULARY = Vocabulary(BYTES.tokens, BYTES.eos_token_ids)  # equal, and another


class Checking(XGrammar):
    """Over bytes: as quick as ever, or it checks when it is let."""

    def __init__(self) -> None:
        super().__init__(BYTES)
        self.gate = threading.Event()
        self.gate.set()

    def check(self, spec: Spec) -> None:
        assert self.gate.wait(SECONDS)
        super().check(spec)


@pytest.fixture
def checking() -> Checking:
    return Checking()


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch, checking: Checking) -> Iterator[Gated]:
    backend = Gated()
    monkeypatch.setattr(module, "open_backend", lambda name, over: checking if over is BYTES else backend)
    yield backend
    backend.gate.set()
    checking.gate.set()
    until(lambda: not workers())


def until(happened) -> None:
    deadline = time.monotonic() + SECONDS
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "workbench-grammars"]


def opened() -> Grammars:
    return Grammars("xgrammar", lambda: VOCABULARY)


def regex(pattern: str) -> StructuredOutputsParams:
    return StructuredOutputsParams(regex=pattern)


def test_asking_does_not_wait_and_one_thread_compiles_in_the_order_of_asking(gated: Gated) -> None:
    kept = opened()
    asked = [kept.ask(regex(pattern)) for pattern in "abc"]
    assert not any(one.ready for one in asked)
    assert kept.ask(regex("a")) is asked[0], "who asks for the same waits for the same"
    assert len(workers()) == 1
    gated.gate.set()
    assert [one.grammar() for one in asked] == [kept.compile(regex(pattern)) for pattern in "abc"]
    assert gated.compiled == ["a", "b", "c"]
    assert gated.threads == {"workbench-grammars"}
    until(lambda: not workers())
    assert kept.ask(regex("a")).ready, "what was made is kept"


def test_what_can_be_told_of_bytes_is_refused_without_compiling(gated: Gated) -> None:
    with pytest.raises(ValueError, match="xgrammar cannot compile the regex"):
        opened().ask(regex("(a"))
    assert not gated.compiled
    assert not workers()


def test_what_nobody_waits_for_any_more_is_not_compiled(gated: Gated) -> None:
    kept = opened()
    first, second, third = (kept.ask(regex(pattern)) for pattern in "abc")
    until(gated.began.is_set)
    del second
    gc.collect()
    gated.gate.set()
    assert first.grammar() is not third.grammar()
    assert gated.compiled == ["a", "c"]


@pytest.mark.parametrize("panic", [RuntimeError("lost"), MemoryError("none"), BaseException("panic")])
def test_whatever_a_library_raises_is_the_failure_of_its_own_grammar(
    gated: Gated, panic: BaseException
) -> None:
    kept, gated.raises = opened(), panic
    failed = kept.ask(regex("a"))
    gated.gate.set()
    failed.wait(SECONDS)
    assert failed.ready
    assert str(panic) in str(failed.failure)
    with pytest.raises(ValueError, match=str(panic)):
        kept.ask(regex("a"))  # known by now, and refused before it is queued
    gated.raises = None
    assert kept.compile(regex("b"))


def test_closing_gives_up_what_is_due_and_ends_the_thread(gated: Gated) -> None:
    kept = opened()
    in_hand, due = kept.ask(regex("a")), kept.ask(regex("b"))
    until(gated.began.is_set)
    kept.close()
    assert due.failure == CLOSED
    assert not in_hand.ready
    gated.gate.set()
    until(lambda: not workers())
    assert gated.compiled == ["a"]
    with pytest.raises(ValueError, match=CLOSED):
        kept.ask(regex("c"))


def test_threads_that_ask_for_the_same_share_one_grammar(gated: Gated) -> None:
    kept, found = opened(), list[Compilation]()
    barrier = threading.Barrier(8)

    def ask() -> None:
        barrier.wait(SECONDS)
        found.append(kept.ask(regex("a")))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    gated.gate.set()
    assert len({id(one.grammar()) for one in found}) == 1
    assert gated.compiled == ["a"]


def test_a_check_that_takes_long_is_not_waited_for_and_holds_up_no_other(
    gated: Gated, checking: Checking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUICK", 0.01)
    kept = opened()
    checking.gate.clear()
    slow, bad = kept.ask(regex("a")), kept.ask(regex("(a"))
    assert not slow.ready
    assert not bad.ready
    checking.gate.set()
    bad.wait(SECONDS)
    assert "cannot compile the regex" in str(bad.failure)
    gated.gate.set()
    assert slow.grammar()
    assert gated.compiled == ["a"], "what the check refuses is not compiled"


def test_a_check_does_not_stand_behind_a_grammar_that_takes_long(gated: Gated) -> None:
    kept = opened()
    first = kept.ask(regex("a"))
    until(gated.began.is_set)
    with pytest.raises(ValueError, match="cannot compile the regex"):
        kept.ask(regex("(a"))
    assert not first.ready


@pytest.mark.parametrize("backend", MODULES)
def test_threads_that_ask_for_different_grammars_at_once_get_theirs(backend: str) -> None:
    kept, wrong = Grammars(backend, lambda: VOCABULARY), list[str]()

    def ask(number: int) -> None:
        letters = "abcdefgh"[number : number + 2]
        for count in range(1, 9):
            row = np.zeros(BYTES.words, np.int32)
            kept.compile(regex(f"[{letters}]{{{count}}}")).start().fill(row)
            if bytes(token_ids_of(row)).decode() != letters:
                wrong.append(f"{letters}: {token_ids_of(row)}")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong


def test_a_tag_that_names_a_token_is_left_to_the_vocabulary_that_has_it() -> None:
    larger = Vocabulary((*BYTES.tokens, *[b"%d" % i for i in range(100)]), BYTES.eos_token_ids)
    tag = {"type": "structural_tag", "format": {"type": "token", "token": 300}}
    row = np.zeros(larger.words, np.int32)
    compiled = Grammars("xgrammar", lambda: larger).compile(StructuredOutputsParams(structural_tag=tag))
    compiled.start().fill(row)
    assert token_ids_of(row) == [300]


def test_a_prepared_vocabulary_is_not_read_again_and_its_backend_is_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[str] = []

    def reading() -> Vocabulary:
        read.append(threading.current_thread().name)
        return VOCABULARY

    grammars = Grammars("xgrammar", reading)
    grammars.prepare()
    ended(PREPARING)
    assert read == ["workbench-grammars"]
    opened: list[str] = []
    monkeypatch.setattr(module, "open_backend", lambda name, _: opened.append(name))
    grammars.compile(StructuredOutputsParams(regex="[0-9]+"))
    assert (len(read), opened) == (1, [])


def test_closing_while_preparing_raises_in_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    for refusal in (None, "it has no tokenizer"):
        grammars = Grammars("xgrammar", lambda: VOCABULARY, refusal=refusal)
        grammars.prepare()
        grammars.close()
        ended(PREPARING)
    assert not raised


def ended(name: str) -> None:
    """Wait until no thread of that name runs."""
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join(SECONDS)
            assert not thread.is_alive()

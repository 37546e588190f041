"""Threads that use one engine in every way there is, and hold what comes back against what is due."""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Sequence

from workbench.llm import LLM
from workbench.outputs import RequestOutput
from workbench.soak.cases import INVALID, Case
from workbench.soak.expected import EARLY, Answer, Loras, answers_of, difference

SHOWN = 20  # failures kept word for word; the others are counted


class Tally:
    """What all callers of a round have seen. Threads share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []

    def count(self, name: str, by: int = 1) -> None:
        with self._lock:
            self.counts[name] += by

    def fail(self, what: str) -> None:
        with self._lock:
            self.counts["failures"] += 1
            if len(self.failures) < SHOWN:
                self.failures.append(what)


class Caller:
    """One thread's use of an engine until a moment comes."""

    def __init__(
        self,
        llm: LLM,
        cases: Sequence[tuple[Case, Sequence[Answer]]],
        lora: Loras,
        tally: Tally,
        rng: random.Random,
        faulty: bool,
    ) -> None:
        """`cases` with the answers that are due; `lora` has the adapters they name.

        `faulty`: requests may end with "error" though there is nothing wrong with them.
        """
        self._llm = llm
        self._cases = cases
        self._lora = lora
        self._tally = tally
        self._rng = rng
        self._faulty = faulty

    def run(self, until: float) -> None:
        """Use the engine until time.monotonic() is `until`; whatever is raised is a failure."""
        ways = [self._generate] * 6 + [self._stream] * 3 + [self._abandon] * 2
        ways += [self._refused] * 3 + [self._likelihood, self._reset]
        while time.monotonic() < until:
            try:
                self._rng.choice(ways)()
            except Exception:  # noqa: BLE001 - a crash of any kind is what is looked for
                self._tally.fail(traceback.format_exc())

    def by_hand(self, until: float) -> None:
        """The same by add_request, abort and step; of the threads of an engine one alone may."""
        while time.monotonic() < until:
            try:
                self._by_hand()
            except Exception:  # noqa: BLE001 - as above
                self._tally.fail(traceback.format_exc())

    # --- the ways -------------------------------------------------------------------------------------

    def _generate(self) -> None:
        drawn = [self._draw() for _ in range(self._rng.randrange(1, 6))]
        outputs = self._llm.generate(
            [case.prompt for case, _ in drawn],
            [case.params() for case, _ in drawn],
            use_tqdm=False,
            lora_request=[self._lora[case.adapter] for case, _ in drawn],
            priority=[self._rng.randrange(3) for _ in drawn],
        )
        for (case, due), output in zip(drawn, outputs, strict=True):
            self._check(case, answers_of(output), due)

    def _stream(self) -> None:
        case, due = self._draw()
        told: dict[int, Answer] = {}
        for output in self._llm.stream(case.prompt, case.params(), lora_request=self._lora[case.adapter]):
            for one in output.outputs:
                before = told.get(one.index, Answer((), "", None))
                told[one.index] = Answer(
                    before.token_ids + tuple(one.token_ids), before.text + one.text, one.finish_reason
                )
        self._check(case, [told[index] for index in sorted(told)], due)

    def _abandon(self) -> None:
        """Leave a stream in the middle: its request is aborted."""
        case, _ = self._draw()
        stream = self._llm.stream(case.prompt, case.params(), lora_request=self._lora[case.adapter])
        for _ in range(self._rng.randrange(4)):
            next(stream, None)
        stream.close()  # type: ignore[attr-defined]
        self._tally.count("abandoned")

    def _refused(self) -> None:
        prompt, params = self._rng.choice(INVALID)
        try:
            self._llm.generate(prompt, params(), use_tqdm=False)
        except (ValueError, TypeError):
            self._tally.count("refused")
        else:
            self._tally.fail(f"not refused: {prompt!r:.80}")

    def _likelihood(self) -> None:
        case, _ = self._draw()
        try:
            found = self._llm.loglikelihood(
                [(case.prompt, " one"), (case.prompt, " another")], use_tqdm=False
            )
        except RuntimeError:
            if not self._faulty:
                raise
            self._tally.count("errors")
            return
        if not all(one.logprob <= 0 for one in found):
            self._tally.fail(f"a likelihood above one: {found}")
        self._tally.count("likelihoods")

    def _reset(self) -> None:
        self._llm.reset_prefix_cache()

    def _by_hand(self) -> None:
        llm, rng = self._llm, self._rng
        drawn = [self._draw() for _ in range(rng.randrange(1, 5))]
        open_: dict[str, tuple[Case, Sequence[Answer]]] = {}
        for case, due in drawn:
            name = llm.add_request(
                case.prompt, case.params(), lora_request=self._lora[case.adapter], priority=rng.randrange(3)
            )
            open_[name] = (case, due)
        aborted: set[str] = set()
        latest: dict[str, RequestOutput] = {}
        while any(name not in latest or not latest[name].finished for name in open_):
            if rng.random() < 0.05:
                aborted.add(name := rng.choice(list(open_)))
                llm.abort(name)
            latest |= {output.request_id: output for output in llm.step().outputs}
        for name, (case, due) in open_.items():
            self._check(case, answers_of(latest[name]), due, early=name in aborted)

    # --- what they have in common -----------------------------------------------------------------------

    def _draw(self) -> tuple[Case, Sequence[Answer]]:
        case, due = self._rng.choice(self._cases)
        if case.adapter:
            self._tally.count("with_adapters")
        return case, due

    def _check(self, case: Case, found: Sequence[Answer], due: Sequence[Answer], early: bool = False) -> None:
        self._tally.count("requests")
        self._tally.count("tokens", sum(len(one.token_ids) for one in found))
        for reason in EARLY:
            self._tally.count(reason, sum(one.finish_reason == reason for one in found))
        if wrong := difference(case, found, due, early or self._faulty):
            self._tally.fail(wrong)

"""The demo shows what it promises: chunks, prefix hits, preemption, text, files; the same every time."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from workbench import demo
from workbench.__main__ import main
from workbench.trace import Trace


class Shown(NamedTuple):
    folder: Path
    text: str
    trace: Trace


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    folder = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("workbench.demo.say", lambda *said, to=None: lines.extend(said))
        assert main(["demo", "-o", str(folder)]) == 0
    return Shown(folder, "\n".join(lines), Trace.load(folder))


def test_prompts_share_prefixes_and_differ_in_length() -> None:
    work = demo.prompts()
    assert len(work) == len({prompt.name for prompt in work}) == 24
    texts = sorted(prompt.text for prompt in work)
    assert sum(a[:200] == b[:200] for a, b in pairwise(texts)) >= 12
    assert max(map(len, texts)) > 10 * min(map(len, texts))


def test_every_request_ends_with_text(shown: Shown) -> None:
    requests = shown.trace.columns.requests
    assert sorted(requests["request_id"]) == sorted(prompt.name for prompt in demo.prompts())
    assert set(requests["finish_reason"]) <= {"stop", "length"}
    assert (requests["output_tokens"] > 0).all()
    assert all(name in shown.text for name in requests["request_id"])


def test_prompts_are_computed_in_chunks_under_the_budget(shown: Shown) -> None:
    steps, chunks = shown.trace.columns.steps, shown.trace.columns.step_requests
    assert set(steps["budget"]) == {demo.BUDGET}
    assert (steps["scheduled"] <= demo.BUDGET).all()
    assert (chunks["scheduled"][~chunks["samples"]] > 1).any()  # a chunk that ends before its prompt does


def test_prefixes_are_reused_and_requests_preempted(shown: Shown) -> None:
    run = shown.trace.columns.runs
    assert run["cached_tokens"][0] > run["prompt_tokens"][0] // 4
    assert run["preemptions"][0] >= 1
    first = shown.trace.columns.steps["preempted"].nonzero()[0][0]
    assert first < demo.SHOWN_ROWS, "the table of the first steps shows no preemption"


def test_the_table_of_first_steps_says_what_the_trace_says(shown: Shown) -> None:
    steps = shown.trace.columns.steps
    rows = shown.text[shown.text.index("The first") :].splitlines()[4 : 4 + demo.SHOWN_ROWS]
    told: list[tuple[int, int]] = []
    for row in rows:
        span, tokens = row.split()[:2]
        first, _, last = span.partition("–")
        told += [(step, int(tokens)) for step in range(int(first), int(last or first) + 1)]
    assert told == list(zip(steps["step"].tolist(), steps["scheduled"].tolist(), strict=True))[: len(told)]
    assert len(told) >= demo.SHOWN_ROWS


def test_files_are_left(shown: Shown) -> None:
    names = {path.name for path in shown.folder.iterdir()}
    assert {"steps.csv", "requests.csv", "tokens.csv", "report.html"} <= names
    report = (shown.folder / "report.html").read_text(encoding="utf-8")
    assert all(f">{prompt.name}<" in report for prompt in demo.prompts())


def test_a_folder_that_cannot_be_made_is_told_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["demo", "-o", str(tmp_path / "file" / "out")]) == 2
    assert "loading" not in capsys.readouterr().out

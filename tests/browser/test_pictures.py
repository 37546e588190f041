"""In a real browser: one style sheet serves all pictures, and none of its rules undoes another's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser.lab import Browser
from workbench import LLM, SamplingParams
from workbench.widgets import Logprobs

pytestmark = pytest.mark.browser

COLOURS = "spans => spans.map(span => [span.className, getComputedStyle(span).backgroundColor])"


def test_a_token_has_the_colour_that_the_legend_says(browser: Browser, tmp_path: Path) -> None:
    with LLM("zoo/wren-1m") as llm:
        output = llm.generate("Once", SamplingParams(seed=0, max_tokens=40, logprobs=1), use_tqdm=False)
    (tmp_path / "page.html").write_text(Logprobs(output).static(), encoding="utf-8")
    with browser.page(scripts=False) as shown:
        shown.goto((tmp_path / "page.html").as_uri())
        said = dict(shown.locator(".legend i").evaluate_all(COLOURS))
        tokens = shown.locator(".passage .t > span").evaluate_all(COLOURS)
    assert len({name for name, _ in tokens}) > 2
    assert all(colour == said[name] for name, colour in tokens)

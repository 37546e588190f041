"""In a real browser: notebooks run, widgets follow one another, and nothing is asked of any other machine."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter
from playwright.sync_api import Locator, expect

import workbench.widgets
from tests.browser.lab import Browser, Lab, Notebook, opened, serving

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ("01_quickstart", "02_scheduler", "05_prefix_caching")
KINDS = [name for name in workbench.widgets.__all__ if name not in ("Selection", "linked")]
WIDGETS = [name.lower() for name in KINDS]  # by the names they have in the notebook below
RUN = f"""
from workbench import LLM, SamplingParams
from workbench.widgets import {", ".join(KINDS)}, linked

small = {{"max_num_batched_tokens": 32, "max_num_seqs": 3, "num_gpu_blocks_override": 48}}
llm = LLM("zoo/wren-1m", max_model_len=512, **small)
things = ("a map", "a bell", "a kite", "a drum")
prompts = [f"Write a story about a fox and {{thing}}.\\n\\n" for thing in things]

def run(tokens):
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, logprobs=3)
    llm.generate(prompts, params, use_tqdm=False)

run(24)
for prompt in prompts:
    llm.add_request(prompt, SamplingParams(max_tokens=8))
{", ".join(WIDGETS)} = linked(llm, {", ".join(KINDS)})
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A server over copies of the notebooks, and one with every widget."""
    folder = tmp_path_factory.mktemp("notebooks")
    for name in NOTEBOOKS:
        shutil.copy(ROOT / "notebooks" / f"{name}.ipynb", folder)
    cells = [RUN.strip(), *WIDGETS]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "widgets.ipynb")
    with serving(folder, tmp_path_factory.mktemp("scratch")) as lab:
        yield lab


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_from_end_to_end(lab: Lab, browser: Browser, name: str) -> None:
    with opened(browser, lab, f"{name}.ipynb") as notebook:
        notebook.run()


@pytest.fixture(scope="module")
def every_widget(lab: Lab, browser: Browser) -> Iterator[Notebook]:
    with opened(browser, lab, "widgets.ipynb") as notebook:
        notebook.run()
        yield notebook


def test_every_widget_shows_a_picture(every_widget: Notebook) -> None:
    for name in WIDGETS:
        expect(every_widget.widget(name).locator("svg").first).to_be_visible()
        expect(every_widget.widget(name).locator(".message")).to_have_count(0)


def test_a_click_on_a_step_is_seen_in_the_other_widgets(every_widget: Notebook) -> None:
    budget = every_widget.widget("tokenbudget")
    with every_widget.changing("requests", "cachemap", "dashboard"):
        budget.locator('[data-pick="7"]').click()
    expect(budget.locator("h4", has_text="Step 7:")).to_be_visible()
    expect(every_widget.widget("requests").locator(".here")).to_have_count(1)


def drag(slider: Locator, share: float) -> None:
    """Move a slider's handle to a place of its track, as a hand does."""
    slider.scroll_into_view_if_needed()
    page, track = slider.page, slider.locator(".noUi-base").bounding_box()
    handle = slider.locator(".noUi-handle").first.bounding_box()
    assert track is not None
    assert handle is not None
    height = handle["y"] + handle["height"] / 2
    page.mouse.move(handle["x"] + handle["width"] / 2, height)
    page.mouse.down()
    page.mouse.move(track["x"] + share * track["width"], height, steps=5)
    page.mouse.up()


def test_a_slider_that_is_dragged_moves_the_other_widgets(every_widget: Notebook) -> None:
    budget = every_widget.widget("tokenbudget")
    budget.locator('[data-pick="3"]').click()
    before = budget.locator("h4", has_text="Step 3:")
    expect(before).to_be_visible()
    with every_widget.changing("requests", "dashboard"):
        drag(every_widget.widget("cachemap").locator(".widget-slider", has_text="step").first, 0.9)
    expect(before).to_have_count(0)
    expect(budget.locator("h4", has_text="Step")).to_be_visible()


def test_a_step_that_is_taken_is_seen_in_the_other_widgets(every_widget: Notebook) -> None:
    stepper = every_widget.widget("stepper")
    planned = stepper.locator("h4", has_text="as it will be").inner_text()
    step, tokens = re.fullmatch(r"Step (\d+), as it will be: (\d+) of 32 tokens", planned).groups()  # type: ignore[union-attr]
    with every_widget.changing("requests", "cachemap", "dashboard"):
        stepper.locator("button.widget-button", has_text="step").click()
    taken = every_widget.widget("tokenbudget").locator("h4", has_text=f"Step {step}:")
    expect(taken).to_have_text(f"Step {step}: {tokens} of 32 tokens")
    every_widget.check()


def test_a_prompt_that_is_typed_says_what_it_would_find(every_widget: Notebook) -> None:
    tree = every_widget.widget("prefixtree")
    asked = tree.get_by_placeholder("type a prompt")
    with every_widget.changing("prefixtree"):
        asked.fill("Write a story about a fox and a map.\n\nOnce")
        asked.press("Enter")
    before = tree.locator(".wb").inner_text()
    with every_widget.changing("prefixtree"):
        asked.fill("An owl")
        asked.press("Enter")
    assert tree.locator(".wb").inner_text() != before
    every_widget.check()


def test_the_queue_is_edited_in_its_rows(every_widget: Notebook) -> None:
    stepper = every_widget.widget("stepper")
    rows = stepper.locator("tr", has=every_widget.page.locator("button"))
    count = rows.count()
    assert count
    rows.last.get_by_role("button", name="✕").click()
    expect(rows).to_have_count(count - 1)
    every_widget.check()


def test_the_exported_page_shows_every_widget_without_a_script(
    every_widget: Notebook, lab: Lab, browser: Browser, tmp_path: Path
) -> None:
    every_widget.save()
    page, _ = HTMLExporter(exclude_input=True).from_filename(str(lab.folder / "widgets.ipynb"))
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    with browser.page(scripts=False) as shown:
        shown.goto((tmp_path / "page.html").as_uri())
        outputs = shown.locator(".jp-OutputArea-output .wb")
        expect(outputs).to_have_count(len(WIDGETS))
        for place in range(len(WIDGETS)):
            expect(outputs.nth(place).locator("svg").first).to_be_visible()

"""In a real browser: notebooks run, widgets follow one another, and nothing is asked of any other machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter
from playwright.sync_api import Locator, expect

from tests.browser.lab import Browser, Lab, Notebook, opened, serving

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ("01_quickstart",)
WIDGETS = ("budget", "requests")  # of the notebook below, by the names they have there
RUN = """
from workbench import LLM, SamplingParams
from workbench.widgets import Requests, TokenBudget, linked

llm = LLM("zoo/wren-1m", max_num_batched_tokens=32, max_num_seqs=3, num_gpu_blocks_override=48)
things = ("a map", "a bell", "a kite", "a drum", "a ring")
prompts = [f"Write a story about a fox and {thing}.\\n\\n" for thing in things]

def run():
    llm.generate(prompts, SamplingParams(temperature=0, max_tokens=24, ignore_eos=True), use_tqdm=False)

run()
budget, requests = linked(llm, TokenBudget, Requests)
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
    budget, requests = (every_widget.widget(name) for name in ("budget", "requests"))
    budget.locator('[data-pick="7"]').click()
    expect(budget.locator("h4", has_text="Step 7:")).to_be_visible()
    expect(requests.locator(".here")).to_have_count(1)


def drag(slider: Locator, share: float) -> None:
    """Move a slider's handle to a place of its track, as a hand does."""
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
    budget, requests = (every_widget.widget(name) for name in ("budget", "requests"))
    budget.locator('[data-pick="3"]').click()
    before = budget.locator("h4", has_text="Step 3:")
    expect(before).to_be_visible()
    drag(requests.locator(".widget-slider", has_text="selected"), 0.9)
    expect(before).to_have_count(0)
    expect(budget.locator("h4", has_text="Step")).to_be_visible()


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

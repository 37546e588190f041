"""The browser and the server are there for all tests of this folder; a test that fails leaves photographs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.lab import Browser, browsing

FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed  # type: ignore[attr-defined]
    return report


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with browsing() as browser:
        yield browser


@pytest.fixture(autouse=True)
def _seen_from_outside(request: pytest.FixtureRequest, browser: Browser, tmp_path: Path) -> Iterator[None]:
    """No test asks anything of another machine; of one that fails, the open pages are photographed."""
    browser.asked.clear()
    browser.pictures = tmp_path
    yield
    if request.node.stash.get(FAILED, False):
        browser.photograph()
    assert browser.asked == []

"""JupyterLab on 127.0.0.1, and a browser that reaches nothing else: what the browser tests drive.

Needs Chromium and the Python package playwright, which downloads no browser of its own here. Whatever is
missing is an error that names the remedy, never a skip.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

from playwright.sync_api import Browser as Chromium
from playwright.sync_api import Locator, Page, Route, ViewportSize, expect, sync_playwright

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
HOME = "127.0.0.1"
START_S, RUN_S, CHANGE_S = 240, 900, 180  # a server that starts, a notebook that runs, a picture
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-dev-shm-usage",
    f"--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE {HOME}",
)  # fmt: skip
SETTINGS = {  # all cells stay in the page, also those out of sight; no tips in front of them
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


def chromium() -> str:
    """Where the browser is."""
    for name in CHROMIUM:
        if (found := shutil.which(name)) is not None:
            return found
    raise RuntimeError(
        f"none of {', '.join(CHROMIUM)} is installed, and browser tests are never skipped: `apt-get install"
        " chromium` as root, or do not ask for `-m browser`"
    )


@dataclass
class Lab:
    """A server that serves one folder."""

    folder: Path
    url: str
    token: str

    def address_of(self, notebook: str) -> str:
        return f"{self.url}/lab/tree/{notebook}?reset&token={self.token}"


@contextmanager
def serving(folder: Path, scratch: Path) -> Iterator[Lab]:
    """JupyterLab over `folder`; what it writes for itself goes into `scratch`, and so does its log."""
    lab = Lab(folder, f"http://{HOME}:{_free_port()}", secrets.token_hex(16))
    _write_settings(scratch / "settings")
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.ip={HOME}",
        f"--ServerApp.port={urlsplit(lab.url).port}", "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={lab.token}", f"--ServerApp.root_dir={folder}",
        "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    with (scratch / "lab.log").open("wb") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=_environment(scratch), cwd=folder
        )
        try:
            _wait_for(server, lab, scratch / "lab.log")
            yield lab
        finally:
            server.terminate()  # its kernels end with it
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _environment(scratch: Path) -> dict[str, str]:
    """Nothing of the user's own settings, and no way out for the server either."""
    nowhere = f"http://{HOME}:9"
    own = {
        "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }  # fmt: skip
    return (
        os.environ
        | {name: str(scratch / folder) for name, folder in own.items()}
        | {"http_proxy": nowhere, "https_proxy": nowhere, "no_proxy": HOME, "HF_HUB_OFFLINE": "1"}
    )


def _write_settings(folder: Path) -> None:
    for plugin, values in SETTINGS.items():
        path = folder / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values), encoding="utf-8")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOME, 0))
        return int(probe.getsockname()[1])


def _wait_for(server: subprocess.Popen[bytes], lab: Lab, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urlopen(f"{lab.url}/api/status?token={lab.token}", timeout=5):
                return
        except OSError:
            time.sleep(0.1)  # nothing tells when a port opens
    raise RuntimeError(f"JupyterLab did not answer:\n{log.read_text(encoding='utf-8')[-3000:]}")


class Browser:
    """A browser whose requests are written down, and go nowhere but to 127.0.0.1."""

    def __init__(self, chromium: Chromium) -> None:
        self._chromium = chromium
        self.asked: list[str] = []  # addresses elsewhere
        self.pictures = Path(tempfile.gettempdir())  # until a test says its own
        self._open: list[Page] = []

    @contextmanager
    def page(self, *, scripts: bool = True) -> Iterator[Page]:
        """A page of its own, with no memory of others."""
        screen: ViewportSize = {"width": 1280, "height": 1600}
        with self._chromium.new_context(viewport=screen, java_script_enabled=scripts) as context:
            context.set_default_timeout(1000 * CHANGE_S)
            context.route("**/*", self._judge)
            page = context.new_page()
            page.on("websocket", lambda socket: self._note(socket.url))
            self._open.append(page)
            try:
                yield page
            except BaseException:
                self.photograph()
                raise
            finally:
                self._open.remove(page)

    def photograph(self) -> None:
        """Pictures of the open pages, into the folder of the test that failed."""
        for number, page in enumerate(self._open):
            path = self.pictures / f"page-{number}.png"
            page.screenshot(path=path, full_page=True)
            print(f"what the browser showed: {path}")  # noqa: T201 - pytest shows it beside the failure

    def _judge(self, route: Route) -> None:
        if self._note(route.request.url):
            route.continue_()
        else:
            route.abort()

    def _note(self, url: str) -> bool:
        parts = urlsplit(url)
        here = parts.scheme in ("data", "blob", "about", "file") or parts.hostname == HOME
        if not here:
            self.asked.append(url)
        return here


@contextmanager
def browsing() -> Iterator[Browser]:
    expect.set_options(timeout=1000 * CHANGE_S)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        try:
            yield Browser(launched)
        finally:
            launched.close()


# --- a notebook in JupyterLab ---------------------------------------------------------------------------

_IDLE = """() => {
  const panel = window.jupyterapp?.shell?.currentWidget;
  return panel?.sessionContext?.session?.kernel?.status === 'idle';
}"""
_STATE = """() => jupyterapp.shell.currentWidget.content.widgets
  .filter(cell => cell.model.type === 'code')
  .map(cell => ({
    count: cell.model.executionCount,
    errors: cell.model.outputs.toJSON()
      .map(o => o.evalue ?? (o.name === 'stderr' ? o.text : ''))
      .filter((text, place) => cell.model.outputs.get(place).type === 'error' || /Traceback/.test(text)),
  }))"""


class Notebook:
    """A notebook that is open in the browser."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def run(self) -> None:
        """Run every cell."""
        self.page.evaluate("() => jupyterapp.commands.execute('notebook:run-all-cells')")
        self.page.wait_for_function(_IDLE, timeout=1000 * RUN_S)
        cells = self.check()
        assert cells, "the notebook has no cell with code"
        assert all(cell["count"] for cell in cells), "a cell has not run"

    def check(self) -> Sequence[dict[str, Any]]:
        """No cell has raised or complained; what is known of each."""
        cells: Sequence[dict[str, Any]] = self.page.evaluate(_STATE)
        errors = [error for cell in cells for error in cell["errors"]]
        assert not errors, errors
        return cells

    def cell(self, code: str) -> Locator:
        """The cell whose code is nothing but this."""
        line = self.page.locator(".jp-InputArea").get_by_text(code, exact=True)
        return self.page.locator(".jp-CodeCell").filter(has=line)

    def widget(self, name: str) -> Locator:
        """What stands below the cell whose code is nothing but this name."""
        return self.cell(name).locator(".wb-widget")

    @contextmanager
    def changing(self, *names: str) -> Iterator[None]:
        """What is done in the block changes the pictures of these widgets."""
        before = {name: self.widget(name).locator(".wb").inner_html() for name in names}
        yield
        for name, html in before.items():
            self.page.wait_for_function(  # a picture is replaced as a whole, the widget around it stays
                "([widget, html]) => widget.querySelector('.wb').innerHTML !== html",
                arg=[self.widget(name).element_handle(), html],
            )

    def save(self) -> None:
        self.page.evaluate("() => jupyterapp.commands.execute('docmanager:save')")


@contextmanager
def opened(browser: Browser, lab: Lab, notebook: str) -> Iterator[Notebook]:
    """A notebook with a fresh kernel."""
    with browser.page() as page:
        page.goto(lab.address_of(notebook))
        page.wait_for_function(_IDLE, timeout=1000 * START_S)
        yield Notebook(page)
        page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.shutdown()")

"""`workbench lab`: JupyterLab on a copy of the notebooks. Knows where they are, not what is in them."""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from workbench.console import say
from workbench.errors import MissingExtra

FIRST = "01_quickstart.ipynb"


def main(argv: Sequence[str]) -> int:
    """Copy what is not there yet, and run JupyterLab until it ends; its exit status."""
    options, rest = _parser().parse_known_args(argv)
    if importlib.util.find_spec("jupyterlab") is None:
        raise MissingExtra("workbench lab needs JupyterLab: pip install 'workbench[notebook]'")
    folder = options.output.resolve()
    copied = copy_notebooks(folder)
    say(f"{copied} notebooks copied into {folder}; those that were there are as you left them")
    return _serve(folder, rest)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="workbench lab",
        description="Open JupyterLab on a copy of the notebooks. Other options go to JupyterLab.",
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("workbench-notebooks"), metavar="DIR")
    return parser


def notebooks() -> list[Path]:
    """Those that came with the package, or that stand beside it in a checkout.

    Raises:
        FileNotFoundError: there are none.
    """
    package = Path(__file__).parent
    for folder in (package / "notebooks", package.parent / "notebooks"):
        if (folder / FIRST).is_file():
            return sorted(folder.glob("*.ipynb"))
    raise FileNotFoundError(f"no notebooks came with {package}: install workbench again, or from a checkout")


def copy_notebooks(folder: Path) -> int:
    """Copy those that are not in `folder`, whose own it leaves alone; how many."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [source for source in notebooks() if not (folder / source.name).exists()]
    for source in missing:
        shutil.copyfile(source, folder / source.name)
    return len(missing)


def _serve(folder: Path, rest: Sequence[str]) -> int:
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={folder}"]
    command += [f"--LabApp.default_url=/lab/tree/{FIRST}", *rest]
    server = subprocess.Popen(command)
    while True:
        try:
            return server.wait()
        except KeyboardInterrupt:  # JupyterLab heard it too, and asks whether it is meant
            continue

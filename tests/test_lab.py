"""`workbench lab`: the notebooks are copied once, and JupyterLab is asked to open them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from workbench import lab
from workbench.__main__ import main

ROOT = Path(__file__).parents[1]


def test_what_somebody_changed_is_not_copied_over(tmp_path: Path) -> None:
    names = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
    (tmp_path / names[1]).write_text("mine")
    assert lab.copy_notebooks(tmp_path) == len(names) - 1
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert (tmp_path / names[1]).read_text() == "mine"
    assert (tmp_path / names[0]).read_bytes() == (ROOT / "notebooks" / names[0]).read_bytes()
    assert lab.copy_notebooks(tmp_path) == 0


def test_jupyterlab_opens_the_copy_and_gets_the_other_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = tmp_path / "said.json"
    script = f"import json, sys; json.dump(sys.argv[1:], open({str(said)!r}, 'w')); sys.exit(7)"
    popen = subprocess.Popen
    monkeypatch.setattr(
        lab.subprocess, "Popen", lambda command: popen([sys.executable, "-c", script, *command])
    )
    assert main(["lab", "-o", str(tmp_path / "own"), "--no-browser", "--port=9001"]) == 7
    _, dash_m, module, *options = json.loads(said.read_text())
    assert (dash_m, module) == ("-m", "jupyterlab")
    assert f"--ServerApp.root_dir={tmp_path / 'own'}" in options
    assert options[-2:] == ["--no-browser", "--port=9001"]
    assert (tmp_path / "own" / lab.FIRST).is_file()


def test_without_jupyterlab_the_remedy_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab.importlib.util, "find_spec", lambda name: None)
        assert main(["lab", "-o", str(tmp_path / "own")]) == 2
    assert (
        capsys.readouterr().err
        == "workbench: workbench lab needs JupyterLab: pip install 'workbench[notebook]'\n"
    )
    assert not (tmp_path / "own").exists()


def test_a_package_without_notebooks_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab, "__file__", str(tmp_path / "workbench" / "lab.py"))
    assert main(["lab", "-o", str(tmp_path / "own")]) == 2
    assert "install workbench again" in capsys.readouterr().err


def test_the_wheel_has_the_notebooks() -> None:
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '"notebooks" = "workbench/notebooks"' in settings

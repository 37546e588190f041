"""What someone meets first: the two commands, the import, the command line."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import workbench
from workbench.__main__ import main
from workbench.errors import MissingExtra

ROOT = Path(__file__).parents[1]
SUITE = 'pip install -e ".[dev]" && pytest'
DEMO = 'pip install -e ".[notebook]" && workbench demo'
IMPORT_BUDGET_S = 0.2


def python(code: str) -> str:
    """Standard output of a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout


def test_the_readme_opens_with_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^pip install .*$", text, flags=re.MULTILINE)
    assert commands[:2] == [DEMO, SUITE]
    assert text.index(SUITE) < 800


def test_the_examples_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    monkeypatch.chdir(tmp_path)  # they write files
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert (tmp_path / "my-run" / "report.html").is_file()


def test_ci_installs_as_the_readme_says_and_runs_the_whole_suite_in_two_parts() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    install, suite = SUITE.split(" && ")
    assert suite == "pytest"
    assert f"    {install} ||" in script
    pytest_options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]
    selected = re.findall(r"-m '(.*)'", pytest_options["ini_options"]["addopts"])
    assert re.findall(r'pytest -n .* -m "(.*)"', script) == [f"{selected[0]} and not alone"]
    assert "    pytest -m alone tests ||" in script


def test_the_version_is_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == workbench.__version__
    assert f"[{workbench.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", workbench.__all__)
def test_every_public_name_loads_and_is_listed(name: str) -> None:
    assert getattr(workbench, name) is not None
    assert name in dir(workbench)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no 'Engine'.*LLM"):
        workbench.Engine  # noqa: B018


@pytest.mark.parametrize("module", ["workbench", "workbench.engine", "workbench.trace", "workbench.__main__"])
def test_an_import_loads_neither_torch_nor_pandas(module: str) -> None:
    loaded = python(f"import sys, {module}; print(*sys.modules)").split()
    assert {"torch", "pandas", "transformers", "triton"} & set(loaded) == set()


def test_import_is_quick() -> None:
    code = "import time; t = time.process_time(); import workbench; print(time.process_time() - t)"
    assert min(float(python(code)) for _ in range(3)) < IMPORT_BUDGET_S


def modules() -> list[str]:
    paths = sorted((ROOT / "workbench").rglob("*.py"))
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths)
    return [name.removesuffix(".__init__") for name in names]


# What stands on a library of an extra that the suite does without.
OF_AN_EXTRA = {
    "workbench.bench.harness": "lm_eval",
    "workbench.evals.inspect_provider": "inspect_ai",
    "workbench.evals.lm_eval_model": "lm_eval",
}


@pytest.mark.parametrize("module", modules())
def test_every_module_imports_or_names_the_extra_it_needs(module: str) -> None:
    library = OF_AN_EXTRA.get(module)
    if library is None or importlib.util.find_spec(library) is not None:
        importlib.import_module(module)
        return
    with pytest.raises(MissingExtra, match=rf"{library}.*pip install 'workbench\[harnesses\]'"):
        importlib.import_module(module)


def test_the_front_door_opens_without_triton() -> None:
    # macOS and Windows have no triton; None in sys.modules makes its import fail as if it were not installed.
    python("import sys; sys.modules['triton'] = None; from workbench import LLM")


# --- the command line -----------------------------------------------------------------------------------


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"workbench {workbench.__version__}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(command in shown for command in ("demo", "bench", "eval", "zoo", "report", "lab"))


def test_an_error_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["report", str(tmp_path / "nothing")]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("workbench: ")
    assert "nothing" in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--version"], 0, f"workbench {workbench.__version__}"),
        ([], 2, "COMMAND"),
        (["report", "nothing"], 2, "workbench: nothing holds no trace"),
        (["bench", "--help"], 0, "usage: workbench bench"),
        (["eval", "--help"], 0, "usage: workbench eval"),
        (["eval", "zoo", "wren-0"], 2, "workbench: no embedded model 'wren-0'"),
        (["zoo", "--help"], 0, "usage: workbench zoo"),
        (["lab", "--help"], 0, "usage: workbench lab"),
    ],
)
def test_a_fresh_process_ends_with_a_status_and_no_traceback(
    arguments: list[str], status: int, says: str
) -> None:
    command = [sys.executable, "-m", "workbench", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == status
    assert says in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "unbuffered"), [("--help", ""), ("zoo list", ""), ("zoo list", "1"), ("demo", "")]
)
def test_output_nobody_reads_ends_a_command_without_a_word(
    arguments: str, unbuffered: str, tmp_path: Path
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "workbench", *arguments.split()]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(
        command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, cwd=tmp_path, env=environment
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_an_interrupt_is_status_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(output: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("workbench.demo.run", interrupted)
    assert main(["demo"]) == 130


def test_a_command_that_does_not_exist_is_refused_with_those_that_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["dmeo"])
    assert "demo" in capsys.readouterr().err

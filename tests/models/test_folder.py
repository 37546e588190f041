"""What a user calls a model becomes a folder, or an error that says where it was looked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from workbench.models.folder import resolve


def test_an_existing_folder_is_itself(tmp_path: Path) -> None:
    assert resolve(str(tmp_path)) == resolve(tmp_path) == tmp_path


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(NotADirectoryError, match=r"config\.json is a file: give the folder"):
        resolve(tmp_path / "config.json")


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nowhere", "../nowhere", "~/nowhere/at/all", "a/b/c"])
def test_a_path_that_is_not_there_is_not_asked_of_the_hub(name: str) -> None:
    with pytest.raises(FileNotFoundError, match="no folder at .*check the path"):
        resolve(name)


def in_a_process_offline(code: str, cache: Path) -> subprocess.CompletedProcess[str]:
    # The hub's client reads its environment once, when it is imported.
    return subprocess.run(
        [sys.executable, "-c", f"from workbench.models.folder import resolve\n{code}"],
        env={"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache), "PATH": "", "HOME": str(cache)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_hub_id_in_the_cache_needs_no_network(tmp_path: Path) -> None:
    repository = tmp_path / "models--someone--tiny"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    done = in_a_process_offline("import sys; sys.stdout.write(str(resolve('someone/tiny')))", tmp_path)
    assert done.stdout == str(snapshot), done.stderr


def test_a_hub_id_that_is_nowhere_says_so(tmp_path: Path) -> None:
    done = in_a_process_offline("resolve('someone/tiny')", tmp_path)
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith(
        "FileNotFoundError: 'someone/tiny' is neither a folder here nor a model the hub gave"
    )
    assert "HF_HUB_OFFLINE" in error

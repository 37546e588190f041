"""Where the kernels run here. tests/conftest.py switches the interpreter on, before triton is imported."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

# Kernels are a matter of Linux: where triton is not a dependency, there is nothing here to collect.
collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["test_*.py"]


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU if there is one; else a CPU, on which kernels are interpreted."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    from triton.runtime.interpreter import InterpretedFunction
    from workbench.kernels.rms_norm import kernel

    assert isinstance(kernel._rms_norm, InterpretedFunction), "triton was imported before TRITON_INTERPRET=1"
    return torch.device("cpu")


@pytest.fixture(autouse=True)
def _as_it_is_in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """There each line and token of padding costs as much as any other, and nothing is gained by them."""
    from workbench.runtime import graphs

    if not torch.cuda.is_available():
        monkeypatch.setattr(graphs, "CHUNKED", 0)


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Engines that compute by kernels on a GPU, where there is one, are tests of it."""
    if torch.cuda.is_available():
        for item in items:
            if "kernels_everywhere" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.gpu)


@pytest.fixture
def kernels_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines compute by kernels on a CPU, too."""
    from workbench.models import backend

    monkeypatch.setattr(backend, "has_kernels", lambda device: True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of each family."""
    from tests.llm import tiny

    root = tmp_path_factory.mktemp("models")
    return {family: tiny.write_model(family, root / family) for family in tiny.FAMILIES}

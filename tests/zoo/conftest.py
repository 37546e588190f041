"""What the zoo's tests share: one torch thread, and one toy model trained once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from workbench.models.zoo import config, train
from workbench.models.zoo.config import TrainConfig


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads that wait for each other on shared cores cost tenfold."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def toy() -> TrainConfig:
    """The toy with fewer rows a step: fifty steps in seconds."""
    return replace(config.load("toy"), rows=4)


@pytest.fixture(scope="session")
def trained(toy: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a toy after its fifty steps."""
    return train.train(toy, tmp_path_factory.mktemp("zoo") / "toy", device="cpu")

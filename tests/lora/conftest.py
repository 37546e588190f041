"""What the tests of adapters share: each file has models and adapters of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.lora.home import (
    Home,
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Home(tmp_path_factory.mktemp("adapters"))
    torch.set_num_threads(before)

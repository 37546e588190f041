"""A tap sees every activation it is promised, and changes nothing unless it returns something else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.models.checkpoints import build, saved, tokens
from tests.models.dense_attend import DenseAttend
from workbench.models.decoder import Decoder, Tap
from workbench.models.loading import load_model
from workbench.models.spec import read_spec

LENGTH = 10


@pytest.fixture
def model(tmp_path: Path) -> Decoder:
    folder = saved(build("llama"), tmp_path)
    return load_model(folder, read_spec(folder), "cpu", torch.float32)


def hidden(model: Decoder, tap: Tap | None = None) -> Tensor:
    positions = torch.arange(LENGTH)
    with torch.inference_mode():
        return model.forward(tokens(LENGTH), positions, DenseAttend(model).at(positions), tap=tap)


def test_a_tap_that_only_looks_changes_no_bit(model: Decoder) -> None:
    seen: dict[str, Tensor] = {}

    def look(name: str, value: Tensor) -> Tensor:
        return seen.setdefault(name, value)

    assert torch.equal(hidden(model, look), hidden(model))
    blocks = [f"layers.{layer}.{part}" for layer in range(3) for part in ("attention", "mlp")]
    assert list(seen) == ["embed", *blocks, "norm"]
    assert torch.equal(seen["norm"], hidden(model))
    # embed and what the blocks added are the residual stream, which the final norm is of
    stream = sum(seen[name] for name in ("embed", *blocks))
    normed = stream / (stream.pow(2).mean(-1, keepdim=True) + model.spec.rms_norm_eps).sqrt() * model.norm
    torch.testing.assert_close(normed, seen["norm"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["embed", "layers.1.attention", "layers.2.mlp", "norm"])
def test_what_a_tap_returns_is_what_the_model_goes_on_with(model: Decoder, name: str) -> None:
    def silence_the_last(found: str, value: Tensor) -> Tensor:
        if found != name:
            return value
        value = value.clone()
        value[-1] = 0.0
        return value

    changed, before = hidden(model, silence_the_last), hidden(model)
    assert not torch.allclose(changed[-1], before[-1])
    torch.testing.assert_close(changed[:-1], before[:-1], atol=1e-5, rtol=0)  # the past sees no future

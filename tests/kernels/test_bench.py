"""`workbench bench kernels`: what it measures on a GPU, and what it says without one."""

from __future__ import annotations

import json

import pytest
import torch

from workbench.bench import kernels
from workbench.bench.cli import main


def test_without_a_gpu_it_says_what_it_needs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="CUDA device"):
        kernels.measure(None)


@pytest.mark.gpu
def test_an_unknown_operation_is_answered_with_those_there_are():
    with pytest.raises(ValueError, match=r"'nothing'.*rms_norm"):
        kernels.measure("nothing")


@pytest.mark.gpu
def test_a_kernel_stays_below_the_ceilings_and_above_nothing(capsys):
    assert main(["kernels", "--op", "silu_mul", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert found["copy_tb_per_s"] > 0.1
    for row in found["rows"]:
        assert 0 < row["of_copy"] < 1.2
        assert row["us"] > 0

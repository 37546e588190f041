"""Logits processors are found by class, by name and by entry point; what is none is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.llm.conftest import Open
from tests.llm.processors import (
    Bias,
    Identity,
    tokens_of,
)
from workbench import SamplingParams
from workbench.logits_processors import AdapterLogitsProcessor


@pytest.mark.parametrize(
    "given", [[Bias], ["tests.llm.processors:Bias"], (Bias,)], ids=["class", "string", "tuple"]
)
def test_processors_are_given_as_classes_or_by_name(open_llm: Open, given: Any) -> None:
    llm = open_llm(logits_processors=given)
    assert llm.config.logits_processors == ("Bias",)
    params = SamplingParams(temperature=0, max_tokens=2, extra_args={"bias": {77: 100.0}})
    assert tokens_of(llm.generate(["a"], params, use_tqdm=False)) == [[77, 77]]


PLUGIN = """
class Always:
    def __init__(self, config, device):
        assert config.block_size == 16 and device.type == "cpu"
    def apply(self, logits):
        logits[:, 77] = 100.0
        return logits
    def is_argmax_invariant(self):
        return False
    def update_state(self, batch_update):
        pass
"""


def install(folder: Path, target: str) -> None:
    """An installed distribution with an entry point, as pip leaves it."""
    (folder / "always_plugin.py").write_text(PLUGIN)
    info = folder / "always_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: always-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[workbench.logits_processors]\nalways = {target}\n")


def test_installed_plugins_are_found(open_llm: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "always_plugin:Always")
    assert open_llm().config.logits_processors == ()
    monkeypatch.syspath_prepend(tmp_path)
    llm = open_llm(logits_processors=[Identity])
    assert llm.config.logits_processors == ("Always", "Identity")
    params = SamplingParams(temperature=0, max_tokens=2)
    assert tokens_of(llm.generate(["a"], params, use_tqdm=False)) == [[77, 77]]


def test_a_plugin_that_is_not_there_says_so(
    open_llm: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "always_plugin:Gone")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match=r"'always_plugin:Gone' cannot be imported .*Gone"):
        open_llm()


class Lacking:
    def __init__(self, config: Any, device: Any) -> None: ...
    def apply(self, logits: Tensor) -> Tensor:
        return logits


class Unsure(Identity):
    invariant = None


class Unmakeable(Identity):
    def __init__(self) -> None: ...


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        (Bias, TypeError, "use a list of classes or 'module:Class' strings"),
        ("tests.llm.processors:Bias", TypeError, "use a list of classes"),
        ([Lacking], TypeError, "Lacking lacks is_argmax_invariant, update_state: use a class with"),
        ([lambda logits: logits], TypeError, "logits_processors holds .*lambda.*use a class with"),
        (["tests.llm.processors.Bias"], ValueError, "'tests.llm.processors.Bias': use 'module:Class'"),
        (["tests.llm.processors:Bais"], ValueError, "there is no 'Bais' in"),
        (["tests.llm.nowhere:Bias"], RuntimeError, "'tests.llm.nowhere:Bias' cannot be imported .*nowhere"),
        ([Unsure], TypeError, r"is_argmax_invariant\(\) is None: use True or False"),
        ([Unmakeable], RuntimeError, "Unmakeable cannot be made .*positional.*use a class with __init__"),
    ],
)
def test_what_is_no_processor_is_refused_with_the_remedy(
    open_llm: Open, given: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        open_llm(logits_processors=given)


def test_params_that_a_processor_refuses_are_named_before_any_work(open_llm: Open) -> None:
    llm = open_llm(logits_processors=[Bias, AdapterLogitsProcessor])
    good = SamplingParams(extra_args={"bias": {}})
    for args, says in [({"bias": 3}, "bias is a dict"), ({"logits_processor": 5}, "is 5: use f")]:
        with pytest.raises(ValueError, match=f"prompt 1 of 2: .*{says}"):
            llm.generate(["a", "b"], [good, SamplingParams(extra_args=args)], use_tqdm=False)
    assert len(llm.trace.requests) == 0


def test_arguments_for_processors_are_refused_where_there_are_none(open_llm: Open) -> None:
    with pytest.raises(ValueError, match=r"extra_args is for .*LLM\(logits_processors"):
        open_llm().generate(["a"], SamplingParams(extra_args={"bias": {}}), use_tqdm=False)

"""What `bench serving` runs, as plain data: two models by their dimensions, seven workloads, figures to beat.

Knows no engine. Prompts are random token ids, the same for the same workload, seed and scale.
"""

from __future__ import annotations

import json
import math
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from workbench.models.folder import resolve
from workbench.models.zoo import registry

Unit = Literal["ms/token", "out tok/s", "in tok/s", "s"]
LOWER_IS_BETTER: tuple[Unit, ...] = ("ms/token", "s")
ALL = "all"


# --- models ---------------------------------------------------------------------------------------------

_COMMON = {"hidden_act": "silu", "attention_bias": False, "dtype": "bfloat16"}

# Dimensions only: the weights are random, and a step takes no less time for what they say.
MODELS: MappingProxyType[str, dict[str, Any]] = MappingProxyType(
    {
        "qwen3-0.6b": _COMMON
        | {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151_936,
            "tie_word_embeddings": True,
            "max_position_embeddings": 40_960,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1_000_000.0,
        },
        "llama-8b": _COMMON
        | {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 128_256,
            "tie_word_embeddings": False,
            "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500_000.0,
        },
    }
)


@contextmanager
def model_folder(model: str) -> Iterator[Path]:
    """A folder with the config.json of `model`: one of MODELS, a folder, or zoo/<name>.

    Raises:
        ValueError: there is no such model; the message says which there are.
    """
    if model in MODELS:
        with tempfile.TemporaryDirectory(prefix="workbench-") as name:
            (Path(name) / "config.json").write_text(json.dumps(MODELS[model]), encoding="utf-8")
            yield Path(name)
        return
    if not model.startswith("zoo/") and not Path(model).is_dir():
        zoo = (f"zoo/{name}" for name in registry.names())
        raise ValueError(f"no model {model!r}: choose among {', '.join((*MODELS, *zoo))}, or give a folder")
    yield resolve(model)


# --- lengths --------------------------------------------------------------------------------------------


class Fixed(NamedTuple):
    """Every request has so many tokens."""

    tokens: int

    @property
    def longest(self) -> int:
        return self.tokens

    def draw(self, rng: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
        return np.full(count, self.tokens, np.int64)

    def scaled(self, scale: float) -> Fixed:
        return Fixed(_scaled(self.tokens, scale))


class Uniform(NamedTuple):
    """Any number of tokens from `low` to `high`, both included, is as likely as another."""

    low: int
    high: int

    @property
    def longest(self) -> int:
        return self.high

    def draw(self, rng: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
        return rng.integers(self.low, self.high + 1, count)

    def scaled(self, scale: float) -> Uniform:
        return Uniform(_scaled(self.low, scale), _scaled(self.high, scale))


class LogNormal(NamedTuple):
    """The logarithm of the number of tokens is normal; what falls outside [low, high] becomes the bound."""

    mean: float  # of the natural logarithm
    sigma: float
    low: int
    high: int

    @property
    def longest(self) -> int:
        return self.high

    def draw(self, rng: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
        drawn = np.rint(rng.lognormal(self.mean, self.sigma, count)).astype(np.int64)
        return np.clip(drawn, self.low, self.high)

    def scaled(self, scale: float) -> LogNormal:
        low, high = _scaled(self.low, scale), _scaled(self.high, scale)
        return LogNormal(self.mean + math.log(scale), self.sigma, low, high)


Length = Fixed | Uniform | LogNormal


def _scaled(tokens: int, scale: float) -> int:
    """At least 2 where it was more than 1: a time between tokens needs two of them."""
    return max(min(tokens, 2), round(tokens * scale))


# --- workloads ------------------------------------------------------------------------------------------


class Workload(NamedTuple):
    """Requests that all arrive at once."""

    name: str
    requests: int
    prompt: Length  # of each request's own
    out: Length  # tokens generated, no more and no less
    unit: Unit
    shared: int = 0  # tokens ahead of the prompt, the same in all of them
    warm_cache: bool = False  # a first pass, not timed, leaves the prompts in the prefix cache

    @property
    def longest(self) -> int:
        """Tokens of the longest request there can be."""
        return self.shared + self.prompt.longest + self.out.longest

    def scaled(self, scale: float) -> Workload:
        """Fewer requests, and shorter ones, in the same proportions; for a try on a small machine."""
        if scale == 1:
            return self
        return self._replace(
            requests=max(1, round(self.requests * scale)),
            prompt=self.prompt.scaled(scale),
            out=self.out.scaled(scale),
            shared=round(self.shared * scale),
        )


WORKLOADS: MappingProxyType[str, Workload] = MappingProxyType(
    {
        workload.name: workload
        for workload in (
            Workload("single", 1, Fixed(128), Fixed(256), "ms/token"),
            Workload("mixed256", 256, Uniform(100, 1024), Uniform(100, 1024), "out tok/s"),
            Workload("many1024", 1024, Fixed(32), Fixed(256), "out tok/s"),
            Workload(
                "chat1000", 1000, LogNormal(4.7, 1.2, 4, 2048), LogNormal(4.9, 0.9, 4, 1024), "out tok/s"
            ),
            Workload("prefix4k", 256, Fixed(64), Fixed(32), "s", shared=4096),
            Workload("prefill8k", 32, Fixed(8192), Fixed(1), "in tok/s"),
            Workload("long32x16k", 32, Fixed(16_384), Fixed(128), "out tok/s", warm_cache=True),
        )
    }
)


class Asked(NamedTuple):
    """What one round sends: prompts, and how many tokens each is to generate."""

    prompts: list[list[int]]
    outs: list[int]


def draw(workload: Workload, vocab_size: int, seed: int) -> Asked:
    """The requests of one round; every token id of the vocabulary is as likely as another."""
    rng = np.random.default_rng([seed, zlib.crc32(workload.name.encode())])
    lengths = workload.prompt.draw(rng, workload.requests)
    outs = workload.out.draw(rng, workload.requests)
    shared = rng.integers(0, vocab_size, workload.shared).tolist()
    prompts = [shared + rng.integers(0, vocab_size, length).tolist() for length in lengths]
    return Asked(prompts, outs.tolist())


# --- figures to beat ------------------------------------------------------------------------------------

TARGET_GPU = "H200"  # the targets were measured on one, and are held against no other device
BYTES_PER_S = 4.28e12  # a copy there, bytes read and bytes written
FLOPS_PER_S = 790e12  # a product of bfloat16 matrices there


class Target(NamedTuple):
    """Figures on one H200, in bfloat16, random weights; measured in November 2026."""

    vllm: float  # vLLM 0.26.0 with its defaults and max_num_seqs 1024, its best run
    reach: float


TARGETS: MappingProxyType[tuple[str, str, str], Target] = MappingProxyType(
    {  # model, workload, what the KV cache holds
        ("qwen3-0.6b", "single", "bf16"): Target(1.98, 1.1),
        ("qwen3-0.6b", "mixed256", "bf16"): Target(20_700, 25_000),
        ("qwen3-0.6b", "many1024", "bf16"): Target(20_700, 90_000),
        ("qwen3-0.6b", "chat1000", "bf16"): Target(16_700, 40_000),
        ("qwen3-0.6b", "prefix4k", "bf16"): Target(1.17, 0.60),
        ("llama-8b", "single", "bf16"): Target(4.94, 4.5),
        ("llama-8b", "mixed256", "bf16"): Target(10_400, 11_000),
        ("llama-8b", "chat1000", "bf16"): Target(10_500, 12_500),
        ("llama-8b", "prefix4k", "bf16"): Target(2.00, 1.4),
        ("llama-8b", "prefill8k", "bf16"): Target(38_300, 38_000),
        ("llama-8b", "long32x16k", "bf16"): Target(1_400, 1_450),
        ("llama-8b", "long32x16k", "fp8"): Target(1_660, 2_100),
    }
)


def is_met(unit: Unit, figure: float, reach: float) -> bool:
    """Whether a figure reaches what was to be reached."""
    return figure <= reach if unit in LOWER_IS_BETTER else figure >= reach


def best(unit: Unit, figures: Sequence[float]) -> float:
    """The best of several rounds."""
    return min(figures) if unit in LOWER_IS_BETTER else max(figures)


def chosen(model: str, names: Sequence[str], max_positions: int, scale: float = 1.0) -> list[Workload]:
    """The workloads of these names; "all": those with a target, for another model those that it can hold.

    Raises:
        ValueError: no such name, or a scale out of range; or nothing fits.
    """
    if not 0 < scale <= 1:
        raise ValueError(f"scale is {scale}: use more than 0, and at most 1")
    if unknown := [name for name in names if name not in (*WORKLOADS, ALL)]:
        raise ValueError(f"no workload {unknown[0]!r}: choose among {', '.join((*WORKLOADS, ALL))}")
    if ALL not in names:
        return [WORKLOADS[name].scaled(scale) for name in dict.fromkeys(names)]
    scaled = [workload.scaled(scale) for workload in WORKLOADS.values()]
    if model in MODELS:
        return [workload for workload in scaled if (model, workload.name, "bf16") in TARGETS]
    fitting = [workload for workload in scaled if workload.longest <= max_positions]
    if not fitting:
        raise ValueError(f"{model} holds {max_positions} positions, less than any workload: lower --scale")
    return fitting

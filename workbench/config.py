"""Settings: what was asked for, checked, and what the engine will run with. Imports no torch.

`None` in a setting means "chosen from the device and the model"; a resolved config has no None left where
the engine needs a value.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from workbench.cache.hashing import HashAlgorithm, hash_function
from workbench.checks import at_least, integer, within
from workbench.engine.policies import Policy, policy_named
from workbench.errors import check_names
from workbench.models.spec import ModelSpec
from workbench.params import SamplingParams
from workbench.speculate.config import SpeculativeConfig, read_speculative_config
from workbench.structured.backends import AUTO, backends_for

GIB = 1 << 30
CPU_POOL = GIB  # most bytes of KV cache taken on a CPU without being told
BIG_GPU = 70 * GIB

_REMOVED = {
    "best_of": "use SamplingParams(n=...), and pick the best by cumulative_logprob",
    "swap_space": "preempted requests are recomputed, never swapped: leave it out",
    "cpu_offload_gb": "weights are not offloaded: leave it out",
    "enable_chunked_prefill": "prefill is always chunked: set max_num_batched_tokens instead",
    "max_seq_len_to_capture": "leave it out",
    "disable_log_stats": "leave it out; llm.trace records, and costs nothing that can be measured",
    "guided_decoding_backend": "use structured_outputs_config={'backend': ...}",
    "use_v2_block_manager": "there is one block manager: leave it out",
    "num_scheduler_steps": "use async_scheduling",
    "quantization": "quantised weights are not available yet",
    "worker_cls": "the engine runs in this process: leave it out",
    "distributed_executor_backend": "the engine runs in this process: leave it out",
    "revision": "download the revision and pass its folder",
    "embed": "embeddings are not available yet",
}
# Each capability deletes its own line when it comes.
_LATER = {
    "tensor_parallel_size": (1, "tensor parallelism"),
}
PER_TOKEN_HEAD = "fp8_per_token_head"
KV_CACHE_DTYPES = ("auto", "fp8", "fp8_e4m3", "fp8_e5m2", PER_TOKEN_HEAD)
SLIDING = ("sliding", "sliding_window")
_PER_REQUEST = "it belongs to a request: StructuredOutputsParams({}=...)"
_NOT_STRUCTURED = {
    "disable_any_whitespace": _PER_REQUEST.format("disable_any_whitespace"),
    "disable_fallback": "name one backend instead of 'auto'",
    "disable_additional_properties": "write additionalProperties: false into the schema",
    "reasoning_parser": "reasoning is not told from content: leave it out",
}
# Known from SamplingParams, and given to the engine by mistake.
_ELSEWHERE = {
    field.name: f"it belongs to a request: SamplingParams({field.name}=...)"
    for field in fields(SamplingParams)
}
_SWITCHES = (
    "enable_prefix_caching",
    "enforce_eager",
    "skip_tokenizer_init",
    "trust_remote_code",
    "async_scheduling",
    "calculate_kv_scales",
    "enable_lora",
)
_AT_LEAST = {
    "block_size": 1,
    "long_prefill_token_threshold": 0,
    "max_logprobs": -1,
    "seed": 0,
    "max_loras": 1,
}
MOST_RANK = 256  # of a LoRA adapter
_AT_LEAST_OR_OPEN = {
    "max_model_len": 2,  # a prompt of one token, and the answer to it
    "max_num_seqs": 1,
    "max_num_batched_tokens": 1,
    "num_gpu_blocks_override": 1,
    "kv_cache_memory_bytes": 1,
    "max_cpu_loras": 1,
}
LOGPROBS_MODES = ("raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits")


@dataclass(frozen=True, slots=True)
class Settings:
    """What `LLM(...)` was given; names, defaults and meanings are vLLM's."""

    model: str | None = None  # a folder, a hub id, "zoo/<name>"; None: the embedded default model
    dtype: str = "auto"
    max_model_len: int | None = None
    seed: int = 0
    gpu_memory_utilization: float = 0.9
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    block_size: int = 16
    enable_prefix_caching: bool = True
    prefix_caching_hash_algo: HashAlgorithm = "sha256"
    kv_cache_dtype: str = "auto"
    kv_cache_dtype_skip_layers: list[str | int] | None = None
    calculate_kv_scales: bool = False
    kv_cache_memory_bytes: int | None = None
    num_gpu_blocks_override: int | None = None
    enforce_eager: bool = False
    load_format: Literal["auto", "safetensors", "dummy"] = "auto"
    skip_tokenizer_init: bool = False
    tokenizer: str | None = None
    trust_remote_code: bool = False
    scheduling_policy: str | Policy = "fcfs"
    long_prefill_token_threshold: int = 0
    async_scheduling: bool | None = None
    max_logprobs: int = 20
    logprobs_mode: Literal["raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"] = (
        "raw_logprobs"
    )
    logits_processors: list[Any] | None = None
    speculative_config: dict[str, Any] | None = None
    enable_lora: bool = False
    max_loras: int = 1
    max_lora_rank: int = 16
    max_cpu_loras: int | None = None
    structured_outputs_config: dict[str, Any] | None = None
    tensor_parallel_size: int = 1
    hf_overrides: dict[str, Any] | None = None
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class Device:
    """Where the engine runs."""

    kind: str  # "cpu" or "cuda"
    name: str
    memory: int  # bytes of a GPU; 0 on a CPU


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What the engine runs with; `llm.config`. Shown, and written into every trace."""

    model: str
    architecture: str
    device: str
    device_name: str
    dtype: str
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    num_blocks: int
    num_kv_groups: int  # layers by layout; a token takes a block's place in each
    kv_windows: tuple[int | None, ...]  # of each group, tokens that its layers attend to; None: all
    kv_cache_bytes: int
    enable_prefix_caching: bool
    prefix_caching_hash_algo: HashAlgorithm
    scheduling_policy: str
    long_prefill_token_threshold: int
    async_scheduling: bool
    logprobs_mode: str
    max_logprobs: int
    seed: int
    structured_outputs_backend: str  # "auto": the first of those installed that enforces a constraint
    speculation: SpeculativeConfig | None = None  # None: nothing is drafted
    logits_processors: tuple[str, ...] = ()  # names of their classes
    kv_cache_dtype: str = ""  # of the keys and values, and of layers that are stored otherwise
    kv_scales: str = ""  # where an FP8 cache has its scales from
    enable_lora: bool = False
    max_loras: int = 1  # adapters on the device at once
    max_lora_rank: int = 16
    max_cpu_loras: int = 1  # adapters whose weights are kept on the host

    @property
    def num_cache_tokens(self) -> int:
        """Tokens the KV cache holds."""
        return self.num_blocks // self.num_kv_groups * self.block_size

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def read_settings(given: Mapping[str, Any]) -> Settings:
    """Check what was given, as far as that needs neither model nor device."""
    check_environment(os.environ)
    check_names("LLM", given, frozenset(field.name for field in fields(Settings)), _ELSEWHERE | _REMOVED)
    settings = _checked(Settings(**given))
    for name, (off, what) in _LATER.items():
        value = getattr(settings, name)
        if value != off and not (off is None and not value):
            raise ValueError(f"{name}={value!r}: {what} is not available yet; leave it out")
    return settings


def check_environment(environment: Mapping[str, str]) -> None:
    """Refuse variables that ask for an engine that does not exist."""
    if environment.get("VLLM_USE_V1") == "0":
        raise ValueError("VLLM_USE_V1=0 asks for another engine; there is only one here: unset VLLM_USE_V1")


def _checked(s: Settings) -> Settings:
    """Every value brought to its plain type, or refused. What needs model or device is checked later."""
    for name in _SWITCHES:
        value = getattr(s, name)
        if not isinstance(value, bool) and not (name == "async_scheduling" and value is None):
            raise TypeError(f"{name} is {value!r}: use True or False")
    if s.logprobs_mode not in LOGPROBS_MODES:
        raise ValueError(
            f"logprobs_mode={s.logprobs_mode!r} is unknown: use one of {', '.join(LOGPROBS_MODES)}"
        )
    hash_function(s.prefix_caching_hash_algo)
    policy_named(s.scheduling_policy)
    _check_structured_outputs(s.structured_outputs_config)
    _check_kv_cache(s)
    read_speculative_config(s.speculative_config)
    numbers: dict[str, Any] = {name: at_least(name, getattr(s, name), low) for name, low in _AT_LEAST.items()}
    for name, low in _AT_LEAST_OR_OPEN.items():
        value = getattr(s, name)
        numbers[name] = None if value is None else at_least(name, value, low)
    numbers["max_lora_rank"] = int(
        within("max_lora_rank", integer("max_lora_rank", s.max_lora_rank), 1, MOST_RANK)
    )
    numbers["gpu_memory_utilization"] = within("gpu_memory_utilization", s.gpu_memory_utilization, 0.0, 1.0)
    checked = replace(
        s, model=_place("model", s.model), tokenizer=_place("tokenizer", s.tokenizer), **numbers
    )
    _check_together(checked)
    return checked


def _check_structured_outputs(given: object) -> None:
    if given is None:
        return
    if not isinstance(given, dict):
        raise TypeError(f"structured_outputs_config is {given!r}: use a dict such as {{'backend': 'auto'}}")
    check_names("structured_outputs_config", given, frozenset(("backend",)), _NOT_STRUCTURED)
    backend = given.get("backend", AUTO)
    if not isinstance(backend, str):
        raise TypeError(f"structured_outputs_config: the backend is {backend!r}: use a str such as 'auto'")
    backends_for(backend)


def _check_kv_cache(s: Settings) -> None:
    if s.kv_cache_dtype not in KV_CACHE_DTYPES:
        raise ValueError(
            f"kv_cache_dtype={s.kv_cache_dtype!r} is unknown: use one of {', '.join(KV_CACHE_DTYPES)}"
        )
    skipped = s.kv_cache_dtype_skip_layers
    if skipped is not None and not isinstance(skipped, list | tuple):
        raise TypeError(f"kv_cache_dtype_skip_layers is {skipped!r}: use a list such as ['0', 'sliding']")
    for entry in skipped or ():
        if isinstance(entry, bool) or not (str(entry).isdecimal() or entry in SLIDING):
            raise ValueError(
                f"kv_cache_dtype_skip_layers has {entry!r}: use numbers of layers, from 0, or 'sliding'"
            )
    asked = {"kv_cache_dtype_skip_layers": bool(skipped), "calculate_kv_scales": s.calculate_kv_scales}
    for name, is_asked in asked.items():
        if is_asked and fp8_name(s.kv_cache_dtype) is None:
            raise ValueError(f"{name} is about an FP8 cache: set kv_cache_dtype='fp8', or leave it out")
    if s.calculate_kv_scales and s.kv_cache_dtype == PER_TOKEN_HEAD:
        raise ValueError(
            f"calculate_kv_scales: with kv_cache_dtype={PER_TOKEN_HEAD!r} every token's head has a scale of"
            " its own: leave it out"
        )


def fp8_name(kv_cache_dtype: str) -> str | None:
    """The FP8 format behind a kv_cache_dtype, in full; None: it is none."""
    if kv_cache_dtype == "auto":
        return None
    return "fp8_e4m3" if kv_cache_dtype == "fp8" else kv_cache_dtype


def _check_together(s: Settings) -> None:
    if s.seed >= 1 << 64:
        raise ValueError(f"seed is {s.seed}: use less than 2**64")
    if s.max_num_seqs and s.max_num_batched_tokens and s.max_num_batched_tokens < s.max_num_seqs:
        raise ValueError(
            f"max_num_batched_tokens is {s.max_num_batched_tokens}, less than max_num_seqs {s.max_num_seqs}:"
            " a step must hold a token for each running request; raise the one or lower the other"
        )

    if s.max_cpu_loras is not None and s.max_cpu_loras < s.max_loras:
        raise ValueError(
            f"max_cpu_loras is {s.max_cpu_loras}, less than max_loras {s.max_loras}: what is on the device"
            " is kept on the host too; raise the one or lower the other"
        )


def _place(name: str, value: object) -> str | None:
    """A folder or a name, as a str."""
    if value is None:
        return None
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} is {value!r}: use a folder, a hub id, or leave it out")
    place = os.fspath(value)
    if not place or not isinstance(place, str):
        raise ValueError(f"{name} is {value!r}: use a folder, a hub id, or leave it out")
    return place


def step_limits(s: Settings, device: Device) -> tuple[int, int]:
    """(max_num_seqs, max_num_batched_tokens), chosen where they were left open."""
    if device.kind == "cpu":
        seqs, tokens = 256, 2048  # larger steps outgrow the caches of a CPU and fault in fresh pages
    elif device.memory >= BIG_GPU:
        seqs, tokens = 1024, 16_384
    else:
        seqs, tokens = 256, 8192
    tokens = s.max_num_batched_tokens or max(tokens, s.max_num_seqs or 0)
    return s.max_num_seqs or min(seqs, tokens), tokens


def model_length(s: Settings, spec: ModelSpec) -> int:
    """The longest request the model admits."""
    longest = spec.max_position_embeddings
    if s.max_model_len is not None and s.max_model_len > longest:
        raise ValueError(
            f"max_model_len is {s.max_model_len}, the model was built for {longest} positions: lower it, or"
            " extend the model with hf_overrides={'rope_parameters': ..., 'max_position_embeddings': ...}"
        )
    return s.max_model_len or longest


def fit_length(s: Settings, length: int, num_blocks: int, num_groups: int, remedy: str) -> int:
    """The longest request that also fits into the cache; ValueError where one was asked for that does not."""
    fits = num_blocks // num_groups * s.block_size
    if fits >= length:
        return length
    if s.max_model_len is None and fits > 1:
        return fits
    shorter = f", or lower max_model_len to {fits}, the most that fits" if fits > 1 else ""
    raise ValueError(
        f"one request of max_model_len {length} needs {-(-length // s.block_size) * num_groups} KV blocks and"
        f" there are {num_blocks}: {remedy}{shorter}"
    )

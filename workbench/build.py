"""Puts an engine together from settings: model, memory, cache, scheduler, runner. Decides nothing itself."""

from __future__ import annotations

import gc
import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from workbench.cache.hashing import hash_function
from workbench.cache.manager import CacheManager, KVGroup
from workbench.cache.pool import BlockPool
from workbench.config import Device, EngineConfig, Settings, fit_length, model_length, step_limits
from workbench.engine.books import Limits
from workbench.engine.clock import Clock
from workbench.engine.events import Emitter
from workbench.engine.loop import Engine
from workbench.engine.policies import policy_named
from workbench.engine.scheduler import Scheduler
from workbench.logits_processors import find, make
from workbench.lora.adapter_file import read_adapter
from workbench.lora.adapters import Adapters
from workbench.models import backend
from workbench.models.decoder import Decoder
from workbench.models.folder import resolve, resolve_adapter
from workbench.models.loading import load_model
from workbench.models.rotary import build_rotary
from workbench.models.spec import ModelSpec, read_spec
from workbench.runtime.adapter_weights import load_weights
from workbench.runtime.assembly import make_runner, scratch_bytes
from workbench.runtime.device import num_kv_blocks, pick_device, pick_dtype
from workbench.runtime.draft_loading import load_draft
from workbench.runtime.kv_formats import Stored, described, pick_storage
from workbench.runtime.kv_store import KVStore, bytes_per_block, kv_groups
from workbench.runtime.memory import MemoryBudget, gib, measure
from workbench.speculate.assembly import make_speculator
from workbench.speculate.config import read_speculative_config
from workbench.speculate.speculator import Speculator
from workbench.structured.backends import AUTO
from workbench.structured.grammars import Grammars
from workbench.structured.vocabulary import read_vocabulary
from workbench.tokenizer import load_tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Built:
    """An engine and what the front door needs to know of it."""

    engine: Engine[Any]
    config: EngineConfig
    spec: ModelSpec
    folder: Path
    tokenizer: Any | None
    memory: str  # what the device's memory goes to: a table for people
    processors: tuple[type[Any], ...]  # classes of its logits processors
    store: KVStore
    grammars: Grammars
    adapters: Adapters | None  # None: LoRA is not enabled


def build(settings: Settings, clock: Clock, emit: Emitter) -> Built:
    """Load the model and set up everything around it.

    Raises:
        ValueError, OSError: a setting, a file or the memory is wrong; the message says what to do.
    """
    from workbench.models.zoo.registry import DEFAULT

    found = find(settings.logits_processors)
    name = settings.model or f"zoo/{DEFAULT}"
    folder = resolve(name)
    spec = read_spec(folder, settings.hf_overrides)
    device, place = pick_device(settings.device)
    dtype = pick_dtype(settings.dtype, spec.dtype, device)
    stored = pick_storage(settings, folder, spec, dtype)

    def load(max_positions: int) -> Decoder:
        return load_model(
            folder, spec, device, dtype, settings.load_format, settings.seed, max_positions=max_positions
        )

    draft = load_draft(settings, folder, spec, device, dtype)
    drafted = 0 if draft is None else draft.block_bytes(settings.block_size)
    model = budget = None
    if device.type == "cuda" and settings.num_gpu_blocks_override is None:
        # What is left for the cache shows when the weights are there and a step has run.
        length = model_length(settings, spec)
        model = load(length)
        if settings.kv_cache_memory_bytes is None:
            budget = _measure(model, settings, place, length)
    config, groups = _plan_memory(settings, name, spec, device, place, dtype, stored, budget, drafted)
    if model is None:
        model = load(config.max_model_len)
    elif len(model.rotary.cos_sin) != config.max_model_len:  # some scalings depend on the length served
        model = replace(model, rotary=build_rotary(spec, config.max_model_len, device))
    config = replace(_with_adapters(config, settings), logits_processors=tuple(k.__qualname__ for k in found))
    processors = make(found, config, device)
    tokenizer = _tokenizer(settings, folder)
    grammars = _grammars(config.structured_outputs_backend, tokenizer, spec)
    if backend.has_kernels(device):
        grammars.prepare()  # while the runner compiles and captures
    adapters = _adapters(config, spec, dtype) if config.enable_lora else None
    try:
        size = (config.num_blocks, config.block_size)
        store = KVStore(spec, groups, *size, stored.formats, device, stored.scales)
        runner = make_runner(
            model, groups, store, config, settings.logprobs_mode, clock, settings.enforce_eager,
            grammars.compile, processors, adapters, None if draft is None else draft.drafter(config),
        )  # fmt: skip
    except (RuntimeError, MemoryError) as error:
        if not _lacks_memory(error):
            raise  # a kernel failed, say: no size would help
        raise ValueError(_no_memory(config, budget, error)) from error
    store.scales_due = settings.calculate_kv_scales
    speculator = make_speculator(config)
    scheduler = _scheduler(settings, config, groups, clock, emit, speculator, adapters)
    engine = Engine(scheduler, runner, int(config.async_scheduling))
    memory = _memory_table(config, budget)
    logger.info("%s", memory)
    return Built(engine, config, spec, folder, tokenizer, memory, tuple(found), store, grammars, adapters)


def _tokenizer(s: Settings, folder: Path) -> Any | None:
    if s.skip_tokenizer_init:
        return None
    return load_tokenizer(s.tokenizer or folder, trust_remote_code=s.trust_remote_code)


def _with_adapters(config: EngineConfig, s: Settings) -> EngineConfig:
    return replace(
        config,
        enable_lora=s.enable_lora,
        max_loras=s.max_loras,
        max_lora_rank=s.max_lora_rank,
        max_cpu_loras=s.max_cpu_loras or s.max_loras,
    )


def _adapters(config: EngineConfig, spec: ModelSpec, dtype: torch.dtype) -> Adapters:
    return Adapters(
        resolve_adapter,
        lambda folder: read_adapter(folder, spec, config.max_lora_rank),
        lambda file: load_weights(file, spec, dtype),
        config.max_loras,
        config.max_cpu_loras,
    )


def adapters_of(built: Built) -> Adapters:
    """Of an engine that has adapters; ValueError where it has none."""
    if built.adapters is None:
        raise ValueError("the engine has no adapters: open the LLM with enable_lora=True")
    return built.adapters


def give_memory_back(device: str) -> None:
    """What an engine held that nobody refers to any more."""
    gc.collect()
    if device == "cuda":
        with suppress(RuntimeError):  # of a device that was lost
            torch.cuda.empty_cache()


def _grammars(backend: str, tokenizer: Any | None, spec: ModelSpec) -> Grammars:
    """The vocabulary is read when the first one is asked for."""
    eos = [token_id for token_id in spec.eos_token_ids if 0 <= token_id < spec.vocab_size]
    refusal = None
    if tokenizer is None:
        refusal = "structured_outputs need a tokenizer (skip_tokenizer_init): open the engine with one"
    elif not eos:
        refusal = (
            "structured_outputs end with an EOS token, and the model's config names none: give it one with"
            " hf_overrides={'eos_token_id': ...}"
        )
    return Grammars(backend, lambda: read_vocabulary(tokenizer, spec.vocab_size, eos), refusal=refusal)


def _measure(model: Decoder, s: Settings, described: Device, length: int) -> MemoryBudget:
    rows, tokens = step_limits(s, described)
    scratch = 0
    if backend.has_kernels(model.device):
        wanted = read_speculative_config(s.speculative_config)
        lines = rows + (0 if wanted is None else wanted.room(rows).all)
        scratch = scratch_bytes(model.spec, lines, tokens, length, s.block_size, model.dtype)
        if s.enable_lora:
            from workbench.runtime.kernel_adapters import adapter_bytes

            scratch += adapter_bytes(model.spec, s.max_loras, s.max_lora_rank, tokens, model.dtype)
    return measure(model, s, tokens, rows, scratch)


def _memory_table(config: EngineConfig, budget: MemoryBudget | None) -> str:
    tokens = f"{config.num_blocks} blocks of {config.block_size}, {config.num_cache_tokens} tokens"
    scales = f", scales: {config.kv_scales}" if config.kv_scales else ""
    lines = [
        *(budget.lines() if budget else ()),
        f"{'KV cache taken':<28}{gib(config.kv_cache_bytes):>9} GiB: {tokens}",
        f"{'':<28}{'':>9}      stored as {config.kv_cache_dtype}{scales}",
    ]
    return "\n".join(lines)


def _lacks_memory(error: BaseException) -> bool:
    """torch has a type of its own for a GPU's memory only, and not for what CUDA's libraries allocate."""
    told = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
    return isinstance(error, MemoryError) or any(words in str(error) for words in told)


def _no_memory(config: EngineConfig, budget: MemoryBudget | None, error: BaseException) -> str:
    """What to do when memory runs out while the engine is set up."""
    what = (
        f"no memory for {config.num_blocks} KV blocks ({config.kv_cache_bytes} bytes) and"
        f" {config.max_num_seqs} rows of {config.max_model_len} tokens"
    )
    if budget is None:
        return f"{what}: lower num_gpu_blocks_override, kv_cache_memory_bytes or max_num_seqs ({error})"
    table = "\n  ".join(budget.lines())
    return (
        f"{what}: the warm-up with max_num_seqs={config.max_num_seqs} requests found too little beside the"
        f" cache. Lower gpu_memory_utilization (to {max(0.1, budget.utilization - 0.05):.2f}, say) or"
        f" max_num_seqs (to {max(1, config.max_num_seqs // 2)}).\n  {table}\n({error})"
    )


def _plan_memory(
    s: Settings,
    name: str,
    spec: ModelSpec,
    device: torch.device,
    place: Device,
    dtype: torch.dtype,
    stored: Stored,
    budget: MemoryBudget | None,
    drafted: int,
) -> tuple[EngineConfig, tuple[KVGroup, ...]]:
    groups = kv_groups(spec)
    seqs, tokens = step_limits(s, place)
    length = model_length(s, spec)
    block_bytes = bytes_per_block(spec, groups, s.block_size, stored.formats) + drafted
    needed = -(-length // s.block_size) * len(groups)
    num_blocks = num_kv_blocks(s, block_bytes, seqs * needed, budget.kv_cache if budget else None)
    remedy = f"raise kv_cache_memory_bytes to {needed * block_bytes}"
    if s.num_gpu_blocks_override is not None:
        remedy = f"raise num_gpu_blocks_override to {needed}"
    elif device.type == "cuda" and s.kv_cache_memory_bytes is None:
        assert budget is not None, "a GPU's cache is sized by what is left"
        needs = gib(needed * block_bytes)
        remedy = f"raise gpu_memory_utilization ({needs} GiB needed, {gib(budget.kv_cache)} GiB left)"
    fitting = fit_length(s, length, num_blocks, len(groups), remedy)
    if fitting < length:
        logger.warning(
            "max_model_len is %d, not %d: the KV cache holds no more (%s)", fitting, length, remedy
        )
    config = EngineConfig(
        model=name,
        architecture=spec.architecture,
        device=place.kind,
        device_name=place.name,
        dtype=str(dtype).removeprefix("torch."),
        max_model_len=fitting,
        max_num_seqs=seqs,
        max_num_batched_tokens=tokens,
        block_size=s.block_size,
        num_blocks=num_blocks,
        num_kv_groups=len(groups),
        kv_windows=tuple(group.window for group in groups),
        kv_cache_bytes=num_blocks * block_bytes,
        kv_cache_dtype=described(stored.formats),
        kv_scales=stored.source,
        enable_prefix_caching=s.enable_prefix_caching,
        prefix_caching_hash_algo=s.prefix_caching_hash_algo,
        scheduling_policy=s.scheduling_policy
        if isinstance(s.scheduling_policy, str)
        else repr(s.scheduling_policy),
        long_prefill_token_threshold=s.long_prefill_token_threshold,
        # On a CPU a launch computes the step itself: running ahead would only compute tokens for nobody.
        async_scheduling=place.kind == "cuda" if s.async_scheduling is None else s.async_scheduling,
        logprobs_mode=s.logprobs_mode,
        max_logprobs=s.max_logprobs,
        seed=s.seed,
        structured_outputs_backend=(s.structured_outputs_config or {}).get("backend", AUTO),
        speculation=read_speculative_config(s.speculative_config),
    )
    return config, groups


def _scheduler(
    s: Settings,
    config: EngineConfig,
    groups: tuple[KVGroup, ...],
    clock: Clock,
    emit: Emitter,
    speculator: Speculator | None,
    adapters: Adapters | None,
) -> Scheduler:
    digest = hash_function(config.prefix_caching_hash_algo)
    cache = CacheManager(
        BlockPool(config.num_blocks), groups, config.block_size, digest, caching=config.enable_prefix_caching
    )
    limits = Limits(
        config.max_num_batched_tokens,
        config.max_num_seqs,
        config.max_model_len,
        s.long_prefill_token_threshold,
    )
    return Scheduler(limits, cache, policy_named(s.scheduling_policy), clock, emit, speculator, adapters)

"""Puts a runner together for a device: the project's kernels where they run, plain torch elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from workbench.cache.manager import KVGroup
from workbench.config import EngineConfig
from workbench.engine.clock import Clock
from workbench.engine.loop import Runner
from workbench.lora.adapters import Adapters
from workbench.models import backend
from workbench.models.decoder import Decoder
from workbench.models.spec import ModelSpec
from workbench.runtime.constraints import Compile, Constraints
from workbench.runtime.kv_store import KVStore, kv_groups
from workbench.runtime.processing import Processors
from workbench.runtime.sampler import LogprobsMode, Sampler
from workbench.runtime.step_drafter import StepDrafter

if TYPE_CHECKING:
    from workbench.runtime.device_batch import DeviceBatch
    from workbench.runtime.graphs import StepGraphs
    from workbench.runtime.kernel_adapters import KernelAdapters
    from workbench.runtime.kernel_step import KernelStep

# On a GPU a step in which some row computes several tokens may have to run launch by launch (many rows,
# adapters), at several times the cost of a graph. Chosen when all such steps did; not measured since.
LEAST_FORCED = 8


def make_runner(
    model: Decoder,
    groups: tuple[KVGroup, ...],
    store: KVStore,
    config: EngineConfig,
    mode: LogprobsMode,
    clock: Clock,
    eager: bool,
    compile_grammar: Compile,
    processors: Sequence[Any] = (),
    adapters: Adapters | None = None,
    drafter: StepDrafter | None = None,
) -> Runner:
    """What computes plans on the model's device. `eager`: no graphs; `drafter`: one in the step."""
    constraints = Constraints(
        compile_grammar, model.spec.vocab_size, _least_forced(model, config, processors)
    )
    rows, tokens = config.max_num_seqs, config.max_num_batched_tokens
    layouts = store.layouts(model.spec, groups)
    sampler = Sampler(mode, Processors(processors) if processors else None)
    if not backend.has_kernels(model.device) or (store.is_fp8 and not backend.has_fp8(model.device)):
        from workbench.runtime.batch import Batch
        from workbench.runtime.runner import TorchRunner
        from workbench.runtime.torch_adapters import TorchAdapters

        plain = Batch(rows, config.max_model_len, layouts, model.device)
        slots = None if adapters is None else TorchAdapters(model, adapters.weights, rows)
        return TorchRunner(model, groups, store, plain, sampler, constraints, clock, slots, drafter)
    from workbench.runtime.device_batch import DeviceBatch
    from workbench.runtime.kernel_adapters import ANYTHING, ATTENTION
    from workbench.runtime.kernel_runner import IN_FLIGHT, KernelRunner
    from workbench.runtime.kernel_step import KernelStep
    from workbench.runtime.pinned import Pinned
    from workbench.runtime.step_arrays import Staging
    from workbench.runtime.warmup import warm_plans

    pinned = Pinned(model.device, IN_FLIGHT)
    batch = DeviceBatch(rows, config.max_model_len, layouts, model.spec.vocab_size, pinned)
    drafts, drafted = (0, 0) if config.speculation is None else config.speculation.room(rows)
    staging = Staging(rows + drafted, len(groups), model.device, IN_FLIGHT)
    most_tokens, most_lines = max(tokens, rows + drafted), rows + drafted
    gpu_slots = None if adapters is None else _slots_on_gpu(model, adapters, config, most_tokens)
    shown = drafter is not None and drafter.wants_hidden
    step = KernelStep(
        model, groups, store, batch, staging.memory, most_tokens, most_lines, gpu_slots, drafts > 0, shown
    )
    graphs = _captured(step, batch, config, eager, () if adapters is None else (ATTENTION, ANYTHING))
    drawer = sampler if processors else None
    runner = KernelRunner(step, batch, staging, mode, graphs, constraints, clock, drawer, gpu_slots, drafter)
    if model.device.type == "cuda":
        for adapted in (False, True)[: 1 if adapters is None else 2]:
            runner.warm(
                warm_plans(rows, tokens, config.max_model_len, config.block_size, len(groups), adapted)
            )
    return runner


def _captured(
    step: KernelStep, batch: DeviceBatch, config: EngineConfig, eager: bool, changes: Sequence[int]
) -> StepGraphs:
    """The graphs there are to be; `changes`: of what adapters may change."""
    from workbench.runtime.device_batch import SHARING_ROWS
    from workbench.runtime.graphs import StepGraphs, recorder_for

    rows, tokens = config.max_num_seqs, config.max_num_batched_tokens
    drafts, drafted = (0, 0) if config.speculation is None else config.speculation.room(rows)
    shares = config.enable_prefix_caching and batch.can_share and rows >= SHARING_ROWS
    graphs = StepGraphs(
        step,
        min(rows, tokens),
        config.max_model_len,
        recorder_for(batch.device, eager),
        SHARING_ROWS if shares else None,
        changes,
        drafts,
        rows + drafted,
        tokens,
    )
    with torch.inference_mode():
        graphs.capture()
    return graphs


def _slots_on_gpu(model: Decoder, adapters: Adapters, config: EngineConfig, tokens: int) -> KernelAdapters:
    """`tokens`: most of a step."""
    from workbench.runtime.kernel_adapters import KernelAdapters
    from workbench.runtime.kernel_runner import IN_FLIGHT

    most, rank, rows = config.max_loras, config.max_lora_rank, config.max_num_seqs
    return KernelAdapters(model, adapters.weights, most, rank, rows, tokens, IN_FLIGHT)


def _least_forced(model: Decoder, config: EngineConfig, processors: Sequence[Any]) -> int | None:
    """Tokens without an alternative that are computed together, at the least: see `Constraints`."""
    # Overlapped, the next step is planned before it is known; and processors see the logits of every token.
    if config.async_scheduling or processors:
        return None
    return 1 if model.device.type == "cpu" else LEAST_FORCED


def scratch_bytes(
    spec: ModelSpec, rows: int, tokens: int, length: int, block_size: int, dtype: torch.dtype
) -> int:
    """Device memory a runner takes for itself, beside weights, activations and KV blocks.

    More is taken when it is needed: 12 bytes a token of the vocabulary for each row that changes its logits,
    and for each draft such rows verify in a step; a step's hidden states, where a drafter wants them.
    """
    from workbench.kernels.attention.kernel import space_bytes
    from workbench.kernels.sample.kernel import CANDIDATES, GROUP, MAX_PARTS
    from workbench.runtime.device_batch import line_widths

    attention = space_bytes(rows, tokens, spec.num_heads, spec.num_kv_heads, spec.head_dim)
    logits = rows * spec.vocab_size * dtype.itemsize
    sampling = rows * (4 * 3 * MAX_PARTS + 8 * -(-spec.vocab_size // GROUP) + 8 * CANDIDATES)
    groups = len(kv_groups(spec))
    width, blocks = line_widths(length, block_size)
    batch = 4 * rows * (width + groups * blocks)
    return attention + logits + sampling + batch + 8 * (2 + groups) * tokens

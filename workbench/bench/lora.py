"""What adapters cost: milliseconds of a decode step with LoRA, as a ratio to a base engine in the same run.

Two engines of one model stand side by side, one of them with LoRA enabled. Every round runs a mixture of
adapters on it right behind the base engine, with the same prompts, so that what else the machine does falls
on both; the median ratio counts. Adapters are random, which changes no time. Knows the public API and the
trace, nothing below.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from tqdm.auto import tqdm

from workbench.bench.provenance import provenance
from workbench.bench.workloads import MODELS, TARGET_GPU, model_folder
from workbench.llm import LLM
from workbench.lora.adapter_file import CONFIG, WEIGHTS
from workbench.lora.modules import LM_HEAD, module_sizes
from workbench.models.spec import ModelSpec, read_spec
from workbench.params import LoRARequest, SamplingParams

Row = dict[str, Any]

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
BLOCK = 16  # tokens of a KV block
# Adapters in the batch -> ratio to reach on one H200, llama-8b, rank 16 on q, k, v and o, 64 and 256
# requests; 0: LoRA is enabled, and nobody has an adapter.
REACH = {0: 1.03, 1: 1.10, 8: 1.20, 32: 1.30}
REACH_ON_CPU = {2: 1.4}  # the embedded model
SHOWN = ("model", "requests", "adapters", "rank", "base_ms", "lora_ms", "ratio", "reach")


class Load(NamedTuple):
    """What each request is."""

    tokens: int = 128  # of the prompt
    out: int = 64


class Bench(NamedTuple):
    """Two engines, and the adapters of one of them."""

    model: str
    base: LLM
    lora: LLM
    adapters: list[LoRARequest]
    rank: int
    vocab: int
    load: Load


def measure(
    model: str, requests: Sequence[int], adapters: Sequence[int], rank: int, load: Load, rounds: int
) -> tuple[list[Row], Row]:
    """A row for each number of requests and of adapters.

    Raises:
        ValueError: a number that cannot be; the message says which can.
    """
    for name, least, value in (
        ("rounds", 1, rounds), ("rank", 1, rank), ("out", 3, load.out), ("requests", 1, min(requests)),
        ("adapters", 0, min(adapters)),
    ):  # fmt: skip
        if value < least:
            raise ValueError(f"{name} is {value}: use at least {least}")
    with _open(model, requests, adapters, rank, load) as bench:
        origin = provenance(bench.lora.config.device_name)
        rows = []
        pairs = [(count, mixed) for count in requests for mixed in adapters]
        for count, mixed in tqdm(pairs, desc="Measuring", unit="mixture"):
            rows.append(origin | _mixture(bench, count, mixed, rounds))
        return rows, {"engine": repr(bench.lora)}


@contextmanager
def _open(
    model: str, requests: Sequence[int], adapters: Sequence[int], rank: int, load: Load
) -> Iterator[Bench]:
    with ExitStack() as stack:
        folder = stack.enter_context(model_folder(model))
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="workbench-")))
        spec = read_spec(folder)
        most, blocks = max(requests), -(-sum(load) // BLOCK) + 1
        settings: Row = {
            "max_num_seqs": most,
            "max_num_batched_tokens": max(2048, most),
            "max_model_len": min(spec.max_position_embeddings, sum(load) + 1),
            "num_gpu_blocks_override": most * blocks,  # so that two engines fit
            "block_size": BLOCK,
            "enable_prefix_caching": False,
            "skip_tokenizer_init": True,
            "load_format": "dummy" if model in MODELS else "auto",
        }
        written = [
            LoRARequest(f"random-{n}", n + 1, str(write_adapter(place / str(n), spec, rank, n)))
            for n in range(max(adapters))
        ]
        slots: Row = {"enable_lora": True, "max_loras": max(1, *adapters), "max_lora_rank": rank}
        base = stack.enter_context(LLM(str(folder), **settings))
        lora = stack.enter_context(LLM(str(folder), **settings, **slots))
        yield Bench(model, base, lora, written, rank, spec.vocab_size, load)


def write_adapter(
    folder: Path, spec: ModelSpec, rank: int, seed: int, targets: Sequence[str] = TARGETS
) -> Path:
    """A random adapter on the linear modules `targets`, as PEFT writes it, in bfloat16; the folder."""
    folder.mkdir(parents=True)
    dice, tensors = torch.Generator().manual_seed(seed), {}
    for module, (n_out, n_in) in module_sizes(spec).items():
        if module.rpartition(".")[2] in targets:
            name = f"base_model.model.{module if module == LM_HEAD else f'model.{module}'}"
            for part, shape in (("lora_A", (rank, n_in)), ("lora_B", (n_out, rank))):
                drawn = torch.empty(shape, dtype=torch.bfloat16).normal_(0.0, 0.02, generator=dice)
                tensors[f"{name}.{part}.weight"] = drawn
    save_file(tensors, folder / WEIGHTS)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": list(targets)}
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


def _mixture(bench: Bench, count: int, mixed: int, rounds: int) -> Row:
    """Times of a batch of `count` requests with so many adapters, and of the base engine."""
    _run(bench, bench.base, count, 0, 0)  # what is set up for the first batch of this size
    _run(bench, bench.lora, count, mixed, 0)
    times = [
        (_run(bench, bench.base, count, 0, number), _run(bench, bench.lora, count, mixed, number))
        for number in range(1, rounds + 1)
    ]
    ratios = [lora / base for base, lora in times]
    return {
        "model": bench.model,
        "requests": count,
        "adapters": mixed,
        "rank": bench.rank,
        "tokens": bench.load.tokens,
        "out": bench.load.out,
        "rounds": rounds,
        "base_ms": round(statistics.median(base for base, _ in times), 3),
        "lora_ms": round(statistics.median(lora for _, lora in times), 3),
        "ratio": round(statistics.median(ratios), 3),
        "all_ratios": " ".join(f"{ratio:.3f}" for ratio in ratios),
        "reach": _reach(bench, mixed),
    }


def _reach(bench: Bench, mixed: int) -> float | str:
    device = bench.lora.config.device_name
    if bench.lora.config.device == "cpu":
        return REACH_ON_CPU.get(mixed, "")
    at_target = TARGET_GPU in device and bench.model == "llama-8b" and bench.rank == 16
    return REACH.get(mixed, "") if at_target else ""


def _run(bench: Bench, llm: LLM, count: int, mixed: int, seed: int) -> float:
    """Milliseconds of a step in which all decode."""
    load = bench.load
    prompts = np.random.default_rng(seed).integers(3, bench.vocab, (count, load.tokens)).tolist()
    params = SamplingParams(temperature=0.0, max_tokens=load.out, ignore_eos=True, detokenize=False)
    asked = [bench.adapters[place % mixed] if mixed else None for place in range(count)]
    with llm.trace.record() as trace:
        llm.generate(prompts, params, use_tqdm=False, lora_request=asked if mixed else None)
    steps = trace.columns.steps
    together = (np.asarray(steps["prefill"]) == 0) & (np.asarray(steps["requests"]) == count)
    ended = np.asarray(steps["collected_s"])[together]
    if len(ended) < 2:
        raise ValueError(f"{load.out} tokens are too few: no two steps in which all {count} requests decode")
    return float(ended[-1] - ended[0]) / (len(ended) - 1) * 1e3

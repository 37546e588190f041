"""Several engines in one process, and the memory they give back."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc

import torch

from tests.llm.asking import collect, greedy, is_right, prompts
from tests.llm.conftest import Models, Open
from workbench import LLM, RequestOutput


def test_two_engines_do_not_notice_each_other(models: Models, open_llm: Open) -> None:
    one, two = open_llm("llama", block_size=4), open_llm("qwen2", async_scheduling=True)
    for prompt in prompts():
        for llm in (one, two):
            llm.add_request(prompt, greedy())
    last: dict[tuple[int, str], RequestOutput] = {}
    while one.has_unfinished_requests() or two.has_unfinished_requests():
        for index, llm in enumerate((one, two)):
            last |= {(index, output.request_id): output for output in llm.step().outputs}
    for (index, _), output in last.items():
        family = ("llama", "qwen2")[index]
        assert is_right(models, list(output.prompt_token_ids), list(output.outputs[0].token_ids), family)
    assert len(last) == 2 * len(prompts())
    one.close()
    (output,) = two.generate([prompts()[0]], greedy(), use_tqdm=False)
    assert is_right(models, prompts()[0], list(output.outputs[0].token_ids), "qwen2")


def tensor_bytes() -> int:
    gc.collect()
    return sum(t.nbytes for t in gc.get_objects() if isinstance(t, torch.Tensor) and not t.is_meta)


def test_ten_rounds_leave_memory_where_it_was(models: Models) -> None:
    def one_round() -> None:
        with LLM(str(models.folder()), device="cpu", max_model_len=256) as llm:
            kept.append(llm.generate(prompts(), greedy(logprobs=3), use_tqdm=False)[0])
            kept.append(next(llm.stream(prompts()[0], greedy())))
            asyncio.run(collect(llm, prompts()[0], greedy()))
            kept.append(llm.trace.steps)

    kept: list[object] = []
    one_round()  # what is made once and kept: caches of torch, transformers, pandas
    kept.clear()
    before = tensor_bytes()
    tracemalloc.start()
    try:
        sizes = []
        for _ in range(10):
            one_round()
            kept.clear()
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert tensor_bytes() <= before, "tensors are left"
    slope = (sizes[9] - sizes[2]) / 7  # bytes a round; a tiny engine's Python objects alone take 2 MB
    assert slope < 20_000, f"{slope:.0f} bytes a round are left: {sizes}"


def test_what_an_engine_gave_out_does_not_keep_it_alive(models: Models) -> None:
    before = tensor_bytes()
    llm = LLM(str(models.folder()), device="cpu", max_model_len=256)
    kept = [
        llm.generate(prompts(), greedy(logprobs=3), use_tqdm=False),
        next(llm.stream(prompts()[0], greedy())),
        llm.trace,
        llm.config,
        llm.get_tokenizer(),
    ]
    held = tensor_bytes() - before
    llm.close()
    assert held > 1_000_000, "the measure sees an engine"
    assert tensor_bytes() <= before + 10_000, "more is held than the results that the trace keeps"
    assert len(kept[2].steps) > 0, "the trace can still be read"
    assert kept[0][0].outputs[0].logprobs[0], "so can logprobs"


def test_an_engine_nobody_holds_gives_its_memory_back(models: Models) -> None:
    before = tensor_bytes()
    llm = LLM(str(models.folder()), device="cpu", max_model_len=256)
    llm.generate(prompts(), greedy(), use_tqdm=False)
    del llm
    assert tensor_bytes() <= before

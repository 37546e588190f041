"""`add_request`, `step`, `abort`: what a step tells adds up, and the tokens are generate's."""

from __future__ import annotations

import random

import pytest

from tests.llm import tiny
from tests.llm.conftest import Models, Open, check_idle
from workbench import LLM, RequestOutput, SamplingParams
from workbench.step import Step

COUNT = 8


def prompts(count: int = 5, seed: int = 2) -> list[list[int]]:
    dice = random.Random(seed)
    return [[dice.randrange(3, tiny.VOCAB) for _ in range(7 + 11 * i)] for i in range(count)]


def greedy(**options) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_tokens": COUNT, "ignore_eos": True} | options)


def run(llm: LLM) -> tuple[list[Step], dict[str, RequestOutput]]:
    """Every step until nothing is left, and the last output of each request."""
    steps: list[Step] = []
    last: dict[str, RequestOutput] = {}
    while llm.has_unfinished_requests():
        steps.append(llm.step())
        last |= {output.request_id: output for output in steps[-1].outputs}
        llm._engine.scheduler.check()
    return steps, last


@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize("budget", [16, 64, 512])
def test_steps_by_hand_give_the_tokens_of_transformers(
    models: Models, open_llm: Open, budget: int, overlapped: bool
) -> None:
    llm = open_llm(max_num_batched_tokens=budget, max_num_seqs=4, async_scheduling=overlapped)
    names = [llm.add_request(prompt, greedy()) for prompt in prompts()]
    steps, last = run(llm)
    for name, prompt in zip(names, prompts(), strict=True):
        expected = models.greedy(prompt, COUNT)
        assert list(last[name].outputs[0].token_ids)[: len(expected)] == expected
    assert all(step.total_num_scheduled_tokens <= step.budget == budget for step in steps)
    assert all(len(step.num_scheduled_tokens) <= 4 for step in steps)
    assert [step.index for step in steps] == list(range(len(steps)))


def test_the_tokens_of_all_steps_add_up(open_llm: Open) -> None:
    """Scheduled = prompts - cached + outputs - 1, each request once, when nobody is preempted or stopped."""
    llm = open_llm(max_num_batched_tokens=32, max_num_seqs=4)
    given = [*prompts(), prompts()[4]]
    names = [llm.add_request(prompt, greedy()) for prompt in given]
    steps, last = run(llm)
    cached = {name: count for step in steps for name, count in step.cached.items()}
    assert set(cached) == set(names)
    for name, prompt in zip(names, given, strict=True):
        total = sum(step.num_scheduled_tokens.get(name, 0) for step in steps)
        assert total == len(prompt) - cached[name] + COUNT - 1
        assert last[name].num_cached_tokens == cached[name]
        assert [name in step.finished for step in steps].count(True) == 1
    assert cached[names[5]] == (len(given[5]) - 1) // 16 * 16
    assert not any(step.preempted for step in steps)


def test_preempted_requests_are_told_and_come_back(models: Models, open_llm: Open) -> None:
    llm = open_llm(block_size=4, max_model_len=64, num_gpu_blocks_override=16, max_num_seqs=4)
    given = prompts(4)
    names = [llm.add_request(prompt, greedy(max_tokens=20)) for prompt in given]
    steps, last = run(llm)
    preempted = [name for step in steps for name in step.preempted]
    assert preempted
    for name, prompt in zip(names, given, strict=True):
        expected = models.greedy(prompt, 20)
        assert list(last[name].outputs[0].token_ids)[: len(expected)] == expected
        assert last[name].metrics.num_preemptions == preempted.count(name)


def test_the_children_of_n_are_named_after_their_parent(open_llm: Open) -> None:
    llm = open_llm()
    llm.add_request(prompts()[2], greedy(n=3), request_id="mine")
    steps, last = run(llm)
    assert list(steps[0].num_scheduled_tokens) == ["0_mine", "1_mine", "2_mine"]
    assert steps[0].cached == {"0_mine": 0, "1_mine": 16, "2_mine": 16}
    assert sorted(steps[-1].finished) == ["0_mine", "1_mine", "2_mine"]
    assert [child.index for child in last["mine"].outputs] == [0, 1, 2]


def test_a_step_with_nothing_to_do_says_so(open_llm: Open) -> None:
    llm = open_llm()
    for _ in range(2):
        step = llm.step()
        assert (step.index, step.num_scheduled_tokens, step.outputs) == (-1, {}, [])
        assert repr(step) == "Step(nothing to do)"
    assert not llm.has_unfinished_requests()
    llm.generate([prompts()[0]], greedy(), use_tqdm=False)
    assert llm.step().index == -1


def test_generate_and_steps_share_one_engine(models: Models, open_llm: Open) -> None:
    """generate drives what was added by hand along with its own; the next step tells what ended meanwhile."""
    llm = open_llm(max_num_seqs=4)
    given = prompts()
    name = llm.add_request(given[1], greedy())
    llm.step()
    (output,) = llm.generate([given[2]], greedy(max_tokens=COUNT + 4), use_tqdm=False)
    expected = models.greedy(given[2], COUNT + 4)
    assert list(output.outputs[0].token_ids)[: len(expected)] == expected
    assert llm.has_unfinished_requests(), "its end has not been told yet"
    (told,) = llm.step().outputs
    assert (told.request_id, told.finished) == (name, True)
    assert len(told.outputs[0].token_ids) == COUNT
    assert not llm.has_unfinished_requests()


def test_a_duplicate_id_is_refused_and_disturbs_nobody(models: Models, open_llm: Open) -> None:
    llm = open_llm()
    given = prompts()
    llm.add_request(given[0], greedy(), request_id="a")
    llm.add_request(given[0], greedy(n=2), request_id="b")
    for taken in ("a", "b", "0_b", "1_b"):
        with pytest.raises(ValueError, match=f"'{taken}' is in use.*another"):
            llm.add_request(given[1], greedy(), request_id=taken)
    assert len(llm._engine.scheduler.waiting) == 3
    _, last = run(llm)
    assert sorted(last) == ["a", "b"]
    expected = models.greedy(given[0], COUNT)
    assert list(last["a"].outputs[0].token_ids)[: len(expected)] == expected
    llm.add_request(given[1], greedy(), request_id="a")  # free again
    assert list(run(llm)[1]) == ["a"]


def test_an_end_that_was_not_told_keeps_its_id(open_llm: Open) -> None:
    llm = open_llm()
    llm.add_request(prompts()[0], greedy(max_tokens=1), request_id="a")
    llm.generate([prompts()[1]], greedy(), use_tqdm=False)  # drives "a" to its end, too
    with pytest.raises(ValueError, match="'a' is in use"):
        llm.add_request(prompts()[0], greedy(), request_id="a")
    assert [output.request_id for output in llm.step().outputs] == ["a"]


def test_ids_people_choose_never_collide_with_counted_ones(open_llm: Open) -> None:
    llm = open_llm()
    chosen = [str(i) for i in range(2, 9)] + ["0_10", "1_11"]
    for name in chosen:
        llm.add_request(prompts()[0], greedy(max_tokens=30), request_id=name)
    outputs = llm.generate([prompts()[1]] * 6, greedy(n=2), use_tqdm=False)
    assert len(list(llm.stream(prompts()[1], greedy()))) == COUNT
    names = [output.request_id for output in outputs]
    assert len(set(names)) == 6
    assert not set(names) & {*chosen, "10", "11"}
    assert sorted(run(llm)[1]) == sorted(chosen)


# --- abort --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize("when", ["waiting", "mid-chunk", "running"])
def test_an_abort_leaves_the_others_alone_and_holds_nothing(
    models: Models, open_llm: Open, when: str, overlapped: bool
) -> None:
    llm = open_llm(
        max_num_batched_tokens=16,
        max_num_seqs=1 if when == "waiting" else 3,
        async_scheduling=overlapped,
        block_size=4,
    )
    given = prompts(3)  # 7, 18 and 29 tokens: the second and third are cut into chunks
    names = [llm.add_request(prompt, greedy(), request_id=f"r{i}") for i, prompt in enumerate(given)]
    victim = llm._requests._open["r1"].requests[0]
    if when == "mid-chunk":
        step = llm.step()
        assert 0 < step.num_scheduled_tokens["r1"] < 18
    if when == "running":
        while not len(llm._engine.scheduler.tokens_of(victim)) > 18:
            llm.step()
    had = llm._engine.scheduler.tokens_of(victim).tolist()[18:]
    llm.abort(["r1", "nobody"])
    llm._engine.scheduler.check()
    assert victim.finished
    assert not victim.tables.blocks[0]
    _, last = run(llm)
    assert (last["r1"].finished, last["r1"].outputs[0].finish_reason) == (True, "abort")
    assert list(last["r1"].outputs[0].token_ids) == had
    for i in (0, 2):
        expected = models.greedy(given[i], COUNT)
        assert list(last[names[i]].outputs[0].token_ids)[: len(expected)] == expected
    check_idle(llm)
    llm.abort("r1")  # ended long ago: left alone
    (again,) = llm.generate([given[1]], greedy(), use_tqdm=False)
    expected = models.greedy(given[1], COUNT)
    assert list(again.outputs[0].token_ids)[: len(expected)] == expected


def test_an_abort_ends_all_children(open_llm: Open) -> None:
    llm = open_llm()
    name = llm.add_request(prompts()[2], greedy(n=3))
    llm.step()
    llm.abort(name)
    (output,) = llm.step().outputs
    assert [child.finish_reason for child in output.outputs] == ["abort"] * 3


# --- priorities and the prefix cache ------------------------------------------------------------------


def test_the_urgent_go_first(open_llm: Open) -> None:
    llm = open_llm(scheduling_policy="priority", max_num_seqs=1)
    given = prompts(4)
    for name, priority in (("late", 5), ("soon", 1), ("late too", 5), ("now", -3)):
        llm.add_request(given[0], greedy(), request_id=name, priority=priority)
    steps, _ = run(llm)
    assert [name for step in steps for name in step.finished] == ["now", "soon", "late", "late too"]

    outputs = llm.generate(given, greedy(), priority=[3, 2, 1, 0], use_tqdm=False)
    first = [output.metrics.first_token_ts for output in outputs]
    assert first == sorted(first, reverse=True)


def test_the_least_urgent_is_preempted(models: Models, open_llm: Open) -> None:
    llm = open_llm(
        scheduling_policy="priority",
        block_size=4,
        max_model_len=64,
        num_gpu_blocks_override=16,
        max_num_seqs=4,
    )
    given = prompts(4)
    outputs = llm.generate(given, greedy(max_tokens=20), priority=[9, 0, 1, 2], use_tqdm=False)
    preemptions = [output.metrics.num_preemptions for output in outputs]
    assert preemptions[1] == 0, "the most urgent one is never preempted"
    assert preemptions[0] > 0, "the least urgent one is, although it came first"
    for output, prompt in zip(outputs, given, strict=True):
        expected = models.greedy(prompt, 20)
        assert list(output.outputs[0].token_ids)[: len(expected)] == expected


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("length", [1, 15, 16, 17, 32, 33, 48])
def test_a_full_hit_is_all_whole_blocks_but_the_last_token(open_llm: Open, family: str, length: int) -> None:
    llm = open_llm(family)
    prompt = prompts()[4][:length]
    cold, warm = (llm.generate([prompt], greedy(), use_tqdm=False)[0] for _ in range(2))
    assert cold.num_cached_tokens == 0
    assert warm.num_cached_tokens == (length - 1) // 16 * 16
    assert list(warm.outputs[0].token_ids) == list(cold.outputs[0].token_ids)


def test_generated_tokens_are_found_as_well(models: Models, open_llm: Open) -> None:
    llm = open_llm()
    prompt = prompts()[2]
    (first,) = llm.generate([prompt], greedy(max_tokens=20), use_tqdm=False)
    longer = [*prompt, *first.outputs[0].token_ids]
    (second,) = llm.generate([longer], greedy(), use_tqdm=False)
    assert second.num_cached_tokens == (len(longer) - 1) // 16 * 16
    expected = models.greedy(longer, COUNT)
    assert list(second.outputs[0].token_ids)[: len(expected)] == expected


def test_a_salt_separates_what_is_shared(open_llm: Open) -> None:
    llm = open_llm()
    prompt = prompts()[4]

    def cached(salt: str | None) -> int:
        given = {"prompt_token_ids": prompt} | ({"cache_salt": salt} if salt else {})
        return llm.generate([given], greedy(), use_tqdm=False)[0].num_cached_tokens

    assert [cached(salt) for salt in (None, "a", "b", "a", None, "b")] == [0, 0, 0, 48, 48, 48]


def test_reading_the_cache_can_be_skipped_and_it_is_written_all_the_same(open_llm: Open) -> None:
    llm = open_llm()
    prompt, skip = prompts()[4], greedy(skip_reading_prefix_cache=True)
    found = [llm.generate([prompt], p, use_tqdm=False)[0].num_cached_tokens for p in (skip, skip, greedy())]
    assert found == [0, 0, 48]


def test_without_caching_nothing_is_found(open_llm: Open) -> None:
    llm = open_llm(enable_prefix_caching=False)
    found = [llm.generate([prompts()[4]], greedy(), use_tqdm=False)[0].num_cached_tokens for _ in range(2)]
    assert found == [0, 0]


def test_a_reset_forgets_and_waits_for_nobody_to_hold_a_block(open_llm: Open) -> None:
    llm = open_llm()
    prompt = prompts()[4]
    llm.add_request(prompt, greedy())
    llm.step()
    assert llm.reset_prefix_cache() is False
    run(llm)
    assert llm.generate([prompt], greedy(), use_tqdm=False)[0].num_cached_tokens == 48
    assert llm.reset_prefix_cache() is True
    assert llm.generate([prompt], greedy(), use_tqdm=False)[0].num_cached_tokens == 0


def test_metrics_count_what_happened(open_llm: Open) -> None:
    llm = open_llm()
    for _ in range(2):
        llm.generate(prompts(), greedy(), use_tqdm=False)
    values = {(metric.name, *metric.labels): metric.value for metric in llm.get_metrics()}
    lengths = [len(prompt) for prompt in prompts()]
    assert values[("vllm:prompt_tokens",)] == 2 * sum(lengths)
    assert values[("vllm:generation_tokens",)] == 2 * 5 * COUNT
    assert values[("vllm:prefix_cache_queries",)] == 2 * sum(lengths)
    assert values[("vllm:prefix_cache_hits",)] == sum((n - 1) // 16 * 16 for n in lengths)
    assert values[("vllm:request_success", ("finished_reason", "length"))] == 10
    assert values[("vllm:num_requests_running",)] == values[("vllm:kv_cache_usage_perc",)] == 0

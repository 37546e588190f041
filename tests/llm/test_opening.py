"""What an engine chooses where nothing was asked for; dtypes, defaults, bare configs."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.llm import tiny
from tests.llm.conftest import Models, Open
from workbench import LLM, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


def prompt(count: int = 30) -> list[int]:
    dice = random.Random(8)
    return [dice.randrange(3, tiny.VOCAB) for _ in range(count)]


def test_what_was_left_open_is_chosen_and_shown(models: Models) -> None:
    with LLM(str(models.folder()), device="cpu") as llm:
        config = llm.config
    assert (config.device, config.dtype, config.max_model_len) == ("cpu", "float32", tiny.LENGTH)
    assert (config.max_num_seqs, config.max_num_batched_tokens) == (256, 2048)
    assert config.num_blocks == 256 * tiny.LENGTH // 16, (
        "what 256 requests of full length need: less than 1 GiB"
    )
    assert (
        config.kv_cache_bytes == config.num_blocks * 16 * 2 * 2 * 2 * 8 * 4
    )  # layers, k and v, heads, dim, bytes
    # speculation: nobody asked for any
    assert [name for name, value in config.to_dict().items() if value is None] == ["speculation"]


@pytest.mark.parametrize(
    ("settings", "chosen"),
    [
        ({"max_num_seqs": 5000}, (5000, 5000)),
        ({"max_num_batched_tokens": 16}, (16, 16)),
        ({"max_num_batched_tokens": 300}, (256, 300)),
        ({"max_num_seqs": 3, "max_num_batched_tokens": 64}, (3, 64)),
    ],
)
def test_a_step_holds_a_token_for_each_running_request(
    open_llm: Open, settings: dict, chosen: tuple[int, int]
) -> None:
    config = open_llm(max_model_len=32, **settings).config
    assert (config.max_num_seqs, config.max_num_batched_tokens) == chosen


def test_a_length_that_was_left_open_is_what_the_cache_holds(
    open_llm: Open, caplog: pytest.LogCaptureFixture
) -> None:
    llm = open_llm(max_model_len=None, num_gpu_blocks_override=10)
    assert llm.config.max_model_len == 160
    assert any("max_model_len is 160, not 2048" in record.message for record in caplog.records)
    (output,) = llm.generate([prompt()], SamplingParams(max_tokens=None, ignore_eos=True), use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 130


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_bfloat16_logits_are_as_near_to_float32_as_those_of_transformers(
    models: Models, open_llm: Open, family: str
) -> None:
    llm = open_llm(
        family, dtype="bfloat16", logprobs_mode="raw_logits", max_num_batched_tokens=32, max_num_seqs=4
    )
    asked = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=20)
    (output,) = llm.generate([prompt()], asked, use_tqdm=False)
    child = output.outputs[0]
    tokens = [*output.prompt_token_ids, *child.token_ids]
    half = AutoModelForCausalLM.from_pretrained(models.folder(family), dtype=torch.bfloat16).eval()
    place = slice(len(output.prompt_token_ids) - 1, -1)
    exact = tiny.logits(models.oracle(family), tokens)[place]
    theirs = tiny.logits(half, tokens)[place].float()
    rows = [list(entry.items()) for entry in child.logprobs]
    ours = [(row, i, value.logprob) for row, entry in enumerate(rows) for i, value in entry]
    our_error = sum(abs(value - float(exact[row, i])) for row, i, value in ours) / len(ours)
    their_error = sum(abs(float(theirs[row, i]) - float(exact[row, i])) for row, i, _ in ours) / len(ours)
    assert 0 < our_error < 1.5 * their_error


def test_defaults_of_the_model_are_used_where_no_params_are_given(models: Models, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(models.folder(), folder)
    generation = {
        "temperature": 0.0,
        "top_k": 7,
        "max_new_tokens": 3,
        "do_sample": True,
        "eos_token_id": None,
    }
    (folder / "generation_config.json").write_text(json.dumps(generation))
    with LLM(str(folder), device="cpu", max_model_len=64) as llm:
        params = llm.get_default_sampling_params()
        assert (params.temperature, params.top_k, params.max_tokens, params.top_p) == (0.0, 7, 3, 1.0)
        outputs = [*llm.generate([prompt()], use_tqdm=False), *llm.stream(prompt())]
        assert len(outputs[0].outputs[0].token_ids) == 3
        assert len(outputs) == 4


def test_dummy_weights_need_a_config_only_and_follow_the_seed(models: Models, tmp_path: Path) -> None:
    shutil.copy(models.folder() / "config.json", tmp_path)

    def tokens(seed: int) -> list[int]:
        settings = {"load_format": "dummy", "skip_tokenizer_init": True, "max_model_len": 64}
        with LLM(str(tmp_path), device="cpu", seed=seed, **settings) as llm:
            (output,) = llm.generate([prompt()], GREEDY, use_tqdm=False)
        return list(output.outputs[0].token_ids)

    assert tokens(1) == tokens(1) != tokens(2)


def test_a_tokenizer_can_come_from_elsewhere(models: Models, tmp_path: Path) -> None:
    folder = tiny.write_spaced_tokenizer(tmp_path / "tokenizer")
    with LLM(str(models.folder()), tokenizer=folder, device="cpu", max_model_len=64) as llm:
        (output,) = llm.generate(["the bird"], GREEDY, use_tqdm=False)
        assert llm.get_tokenizer().decode(output.prompt_token_ids) == "the bird"
    own = AutoTokenizer.from_pretrained(models.folder())
    assert output.prompt_token_ids != own.encode("the bird")


def test_a_policy_of_ones_own_orders_requests(open_llm: Open) -> None:
    class LongestFirst:
        def key(self, request) -> tuple[int, int]:
            return (-request.num_prompt_tokens, request.arrival)

    llm = open_llm(scheduling_policy=LongestFirst(), max_num_seqs=1)
    outputs = llm.generate([prompt(4), prompt(20), prompt(9)], GREEDY, use_tqdm=False)
    first = [output.metrics.first_token_ts for output in outputs]
    assert first[1] < first[2] < first[0]


def test_times_follow_each_other(open_llm: Open) -> None:
    llm = open_llm(max_num_seqs=2)
    for output in llm.generate([prompt(5 + i) for i in range(6)], GREEDY, use_tqdm=False):
        m = output.metrics
        assert m.queued_ts <= m.scheduled_ts < m.first_token_ts < m.last_token_ts

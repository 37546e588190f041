"""Tables against a real engine's outputs: several a prompt, aborts, preemption, shared prefixes."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.llm import tiny
from workbench import LLM, RequestOutput, SamplingParams
from workbench.sim.replay import replay
from workbench.trace import Trace


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "llama"
    tiny.write_model("llama", folder)
    tiny.write_tokenizer(folder)
    return folder


def run(llm: LLM, dice: Random) -> dict[str, RequestOutput]:
    """Random requests that come while others run; some are aborted. Their last outputs, by id."""
    stem, latest, names = [dice.randrange(3, tiny.VOCAB) for _ in range(17)], {}, []
    for number in range(40):
        if number % 2 == 0 and number < 24:
            own = [dice.randrange(3, tiny.VOCAB) for _ in range(dice.randrange(1, 20))]
            params = SamplingParams(
                n=dice.choice((1, 1, 2, 3)), temperature=1, max_tokens=dice.randrange(1, 24), seed=number
            )
            names.append(llm.add_request(stem[: dice.choice((0, 8, 17))] + own, params))
        for output in llm.step().outputs:
            latest[output.request_id] = output
        if number in (9, 21):
            llm.abort(names[-1])
    while llm.has_unfinished_requests():
        for output in llm.step().outputs:
            latest[output.request_id] = output
    return latest


@pytest.mark.parametrize("seed", range(4))
def test_tables_and_outputs_say_the_same(folder: Path, seed: int) -> None:
    with LLM(
        str(folder), device="cpu", max_model_len=64, num_gpu_blocks_override=11, block_size=8,
        max_num_batched_tokens=24, max_num_seqs=24,
    ) as llm:  # fmt: skip
        with llm.trace.record() as t:
            outputs = run(llm, Random(seed))
        tokenizer = llm.get_tokenizer()
        metrics = {metric.name: metric for metric in llm.get_metrics()}
    r, s, tokens, b = t.requests.set_index("request_id"), t.steps, t.tokens, t.blocks
    seen = 0
    for name, output in outputs.items():
        for completion in output.outputs:
            child = name if len(output.outputs) == 1 else f"{completion.index}_{name}"
            seen += 1
            row, mine = r.loc[child], tokens[tokens.request_id == child]
            assert mine.token_id.tolist() == list(completion.token_ids)
            assert mine["index"].tolist() == list(range(len(completion.token_ids)))
            assert row.output_tokens == len(completion.token_ids)
            assert row.finish_reason == completion.finish_reason
            assert row.prompt_tokens == len(output.prompt_token_ids)
            assert row.output == tokenizer.decode(completion.token_ids)
    assert seen == len(r)
    assert r.preemptions.sum() > 0, "this workload preempts nobody"
    assert (r.finish_reason == "abort").any(), "this workload aborts nobody"
    assert metrics["vllm:num_preemptions"].value == r.preemptions.sum()
    assert (
        metrics["vllm:generation_tokens"].value == r.output_tokens.sum() == s.sampled.sum() + s.forced.sum()
    )
    looked = t.events[t.events.kind == "prefix_looked_up"]
    admitted = t.events[t.events.kind == "request_admitted"]
    assert set(zip(admitted.step, admitted.request_id, strict=True)) <= set(
        zip(looked.step, looked.request_id, strict=True)
    )
    assert 8 * (b.event == "reused").sum() == s.cached.sum() > 0
    taken = b.event.isin(["reserved", "reused"]) & (b.holders == 1)
    freed = b.event.isin(["released"]) & (b.holders == 0)
    change = taken.astype(int) - freed.astype(int)
    held = change.groupby(b.step).sum().reindex(s.step, fill_value=0).cumsum()
    assert held.tolist() == s.blocks_held.tolist()


def test_steps_by_hand_are_on_disk_before_anybody_looks(folder: Path, tmp_path: Path) -> None:
    with (
        LLM(str(folder), device="cpu", max_model_len=64) as llm,
        llm.trace.record(tmp_path),
    ):
        llm.add_request([5, 6, 7], SamplingParams(max_tokens=9, ignore_eos=True))
        for number in range(3):
            llm.step()
            there = Trace.load(tmp_path)  # as a kill would leave it
            assert there.steps.status.tolist() == ["committed"] * (number + 1)
            assert there.tokens.token_id.tolist() == llm.trace.tokens.token_id.tolist()


@pytest.mark.parametrize("family", ["mistral", "qwen2"])
def test_an_engine_s_recording_replays_with_its_windows_and_salts(
    family: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One group with a window, and two groups of which one has it; two tenants share a prompt."""
    folder = tmp_path_factory.mktemp(family)
    tiny.write_model(family, folder)
    stem = [7] * 40
    with LLM(
        str(folder), device="cpu", max_model_len=96, num_gpu_blocks_override=160, block_size=8,
        max_num_batched_tokens=32, skip_tokenizer_init=True,
    ) as llm:  # fmt: skip
        with llm.trace.record(folder / "trace"):
            for salt in ("one", "another", "one", None):
                prompts = [
                    {"prompt_token_ids": stem + [own] * own} | ({"cache_salt": salt} if salt else {})
                    for own in (3, 9, 14)
                ]
                llm.generate(
                    prompts, SamplingParams(max_tokens=20, ignore_eos=True, temperature=0), use_tqdm=False
                )
        assert tiny.WINDOW in llm.config.kv_windows
    recorded = Trace.load(folder / "trace")
    first = recorded.requests.groupby(
        recorded.requests.cache_root.fillna(""), sort=False
    ).cached_tokens.first()
    assert first.tolist() == [0, 0, 0]
    assert (recorded.requests.cached_tokens[6:9] > 0).all()
    assert (recorded.blocks.reason == "out of the window").any()
    assert str(Trace.diff(recorded, replay(recorded))) == "no difference: both runs decided alike"

"""Adapters in the trace: who has which and when it came; a look ahead and a replay see the same."""

from __future__ import annotations

import json

from tests.lora.home import (
    Home,
    mixed,
    open_llm,
    prompts,
)
from workbench import SamplingParams
from workbench.sim.replay import replay
from workbench.trace import Trace


def test_the_trace_tells_who_has_which_adapter_and_when_it_came(home: Home) -> None:
    names = mixed(4)
    greedy = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    with open_llm(home.base("llama"), max_loras=1) as llm:
        asked = [home.request("llama", name) for name in names]
        llm.generate(prompts(4), greedy, lora_request=asked, use_tqdm=False)
        trace = llm.trace
        assert [name if isinstance(name, str) else None for name in trace.requests.adapter] == names
        by_id = dict(zip(trace.requests.request_id, trace.requests.adapter.fillna(""), strict=True))
        lines = trace.step_requests
        assert lines.adapter.fillna("").tolist() == [by_id[name] for name in lines.request_id]
        kinds = trace.events.kind.value_counts()
    assert (kinds["adapter_loaded"], kinds["adapter_evicted"]) == (3, 2)


def test_a_look_at_the_next_step_changes_nothing_and_says_who_is_let_in(home: Home) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    found = []
    for looks in (False, True):
        with open_llm(home.base("llama"), max_loras=1) as llm:
            for place, name in enumerate(mixed(6)):
                llm.add_request(prompts(6)[place], greedy, str(place), home.request("llama", name))
            steps = []
            while llm.has_unfinished_requests():
                expected = llm.scheduler.preview().num_scheduled_tokens if looks else None
                step = llm.step()
                assert expected in (None, step.num_scheduled_tokens)
                steps.append(step.num_scheduled_tokens)
            found.append(steps)
    assert found[0] == found[1]


def test_a_recording_with_adapters_replays(home: Home) -> None:
    """Also where some of them were there before it began, and others make room."""
    greedy = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    with open_llm(home.base("llama"), max_loras=2, enable_prefix_caching=False) as llm:
        llm.generate([[5]], greedy, lora_request=home.request("llama", "large"), use_tqdm=False)
        with llm.trace.record() as trace:
            asked = [home.request("llama", name) for name in mixed(8)]
            llm.generate(prompts(8), greedy, lora_request=asked, use_tqdm=False)
    assert {"adapter_loaded", "adapter_evicted"} <= set(trace.events.kind)
    again = replay(trace)
    assert str(Trace.diff(trace, again)) == "no difference: both runs decided alike"
    assert again.requests.adapter.fillna("").tolist() == trace.requests.adapter.fillna("").tolist()
    wide = replay(trace, max_loras=3)
    assert len(wide.steps) < len(trace.steps), "nobody waits for a slot"


def test_a_recording_tells_who_was_pinned_and_removed_and_replays(home: Home) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    with open_llm(home.base("llama"), max_loras=2, enable_prefix_caching=False) as llm:
        large, small = home.request("llama", "large"), home.request("llama", "small")
        llm.add_lora(large)
        with llm.trace.record() as trace:
            assert llm.pin_lora(large.lora_int_id)
            for _ in range(2):
                asked = [home.request("llama", name) for name in mixed(8)]
                llm.generate(prompts(8), greedy, lora_request=asked, use_tqdm=False)
            assert llm.remove_lora(large.lora_int_id)
            assert not llm.remove_lora(large.lora_int_id)
            llm.generate(prompts(3), greedy, lora_request=[small, large, None], use_tqdm=False)
    lines = trace.events[trace.events.kind.isin(["adapter_pinned", "adapter_removed"])]
    assert lines.kind.tolist() == ["adapter_pinned", "adapter_removed"]
    assert [json.loads(detail)["adapter"] for detail in lines.detail] == ["large", "large"]
    assert str(Trace.diff(trace, replay(trace))) == "no difference: both runs decided alike"

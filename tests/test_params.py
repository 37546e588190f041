"""Sampling parameters: what is taken as given, what is brought to one form, what is refused and how."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import pickle

import numpy as np
import pytest

from workbench import (
    BeamSearchParams,
    LoRARequest,
    RequestOutputKind,
    SamplingParams,
    StructuredOutputsParams,
)
from workbench.params import check_against


def test_defaults_are_those_people_know() -> None:
    p = SamplingParams()
    assert (p.n, p.temperature, p.top_p, p.top_k, p.min_p) == (1, 1.0, 1.0, 0, 0.0)
    assert (p.presence_penalty, p.frequency_penalty, p.repetition_penalty) == (0.0, 0.0, 1.0)
    assert (p.max_tokens, p.min_tokens, p.ignore_eos, p.seed) == (16, 0, False, None)
    assert (p.logprobs, p.prompt_logprobs, p.logprob_token_ids) == (None, None, None)
    assert (p.detokenize, p.skip_special_tokens, p.spaces_between_special_tokens) == (True, True, True)
    assert (p.include_stop_str_in_output, p.output_kind) == (False, RequestOutputKind.CUMULATIVE)
    assert (p.logit_bias, p.allowed_token_ids, p.bad_words, p.structured_outputs) == (None, None, None, None)
    assert (p.extra_args, p.skip_reading_prefix_cache) == (None, None)
    assert (p.stop, p.stop_token_ids) == ([], [])


@pytest.mark.parametrize(
    ("given", "name", "kept"),
    [
        ({"stop": "."}, "stop", ["."]),
        ({"stop": [".", "!"]}, "stop", [".", "!"]),
        ({"stop_token_ids": (3, 4)}, "stop_token_ids", [3, 4]),
        ({"top_k": -1}, "top_k", 0),
        ({"seed": -1}, "seed", None),
        ({"seed": np.int64(7)}, "seed", 7),
        ({"temperature": 1}, "temperature", 1.0),
        ({"temperature": np.float32(0.5)}, "temperature", 0.5),
        ({"max_tokens": None}, "max_tokens", None),
        ({"logprobs": True}, "logprobs", 1),
        ({"logit_bias": {"7": 2}}, "logit_bias", {7: 2.0}),
        ({"logit_bias": {7: -math.inf}}, "logit_bias", {7: -math.inf}),
    ],
)
def test_a_value_is_brought_to_one_form(given: dict[str, object], name: str, kept: object) -> None:
    value = getattr(SamplingParams(**given), name)
    assert value == kept
    assert type(value) is type(kept)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"temperature": -1}, "temperature is -1.*0 is greedy"),
        ({"temperature": math.nan}, "temperature is nan.*finite"),
        ({"temperature": 2.1}, "temperature is 2.1.*0 to 2"),
        ({"top_p": 0}, "top_p is 0.*1 turns it off"),
        ({"top_p": 1.1}, "top_p is 1.1.*at most 1"),
        ({"top_k": -2}, "top_k is -2.*turns it off"),
        ({"min_p": 1.5}, "min_p is 1.5.*0 to 1"),
        ({"n": 0}, "n is 0.*1 or more"),
        ({"n": 10**9}, "n is 1000000000: use 16384 at most"),
        ({"temperature": 10**400}, "temperature is beyond.*finite"),
        ({"presence_penalty": -(10**400)}, "presence_penalty is beyond.*finite"),
        ({"max_tokens": 0}, "max_tokens is 0.*max_model_len"),
        ({"min_tokens": -1}, "min_tokens is -1"),
        ({"min_tokens": 17}, "min_tokens is 17, max_tokens 16: raise max_tokens or lower min_tokens"),
        ({"presence_penalty": 2.5}, "presence_penalty is 2.5.*-2 to 2"),
        ({"frequency_penalty": -2.5}, "frequency_penalty is -2.5.*-2 to 2"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0.*1 turns it off"),
        ({"repetition_penalty": math.inf}, "repetition_penalty is inf"),
        ({"logprobs": -2}, "logprobs is -2.*-1 the whole vocabulary"),
        ({"stop": ["a", ""]}, "stop holds an empty string"),
        ({"stop": ".", "detokenize": False}, "stop strings need text.*stop_token_ids"),
        ({"stop_token_ids": [-3]}, "a token id in stop_token_ids is -3"),
        ({"logit_bias": {3: 101}}, r"logit_bias\[3\] is 101.*-100 to 100"),
        ({"logit_bias": {3: math.inf}}, r"logit_bias\[3\] is inf"),
        ({"allowed_token_ids": []}, "allowed_token_ids is empty.*None allows every token"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_value_and_the_remedy(
    given: dict[str, object], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        SamplingParams(**given)


@pytest.mark.parametrize(
    "given",
    [
        {"n": 1.5}, {"n": True}, {"max_tokens": "16"}, {"temperature": "hot"}, {"temperature": False},
        {"seed": 1.0}, {"ignore_eos": 1}, {"stop": [3]}, {"stop_token_ids": "3"}, {"output_kind": "DELTA"},
        {"logit_bias": [3]}, {"allowed_token_ids": 3}, {"extra_args": 3},
        {"structured_outputs": {"regex": "a"}}, {"stop": 5}, {"stop": b"a"},
        {"skip_reading_prefix_cache": np.array([1, 2])}, {"skip_reading_prefix_cache": 1},
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_kind_is_a_type_error(given: dict[str, object]) -> None:
    with pytest.raises(TypeError, match=next(iter(given))):
        SamplingParams(**given)


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("best_of", "use n.*cumulative_logprob"),
        ("logits_processors", "LLM"),
        ("use_beam_search", "beam_search"),
        ("guided_json", "StructuredOutputsParams.json="),
        ("guided_regex", "StructuredOutputsParams.regex="),
        ("guided_choice", "StructuredOutputsParams.choice="),
        ("guided_grammar", "StructuredOutputsParams.grammar="),
        ("guided_decoding_backend", "structured_outputs_config"),
        ("max_new_tokens", "use max_tokens"),
        ("temprature", "did you mean 'temperature'"),
        ("stop_token_id", "did you mean 'stop_token_ids'"),
        ("zzzz", "it takes .*temperature"),
    ],
)
def test_a_name_that_is_not_a_field_is_refused_with_what_to_use_instead(name: str, instead: str) -> None:
    with pytest.raises(TypeError, match=f"no '{name}'.*{instead}"):
        SamplingParams(**{name: 1})
    with pytest.raises(TypeError, match=f"no '{name}'"):
        setattr(SamplingParams(), name, 1)


def test_fields_assigned_later_are_checked_by_validate() -> None:
    p = SamplingParams()
    p.max_tokens = 64
    p.stop = "."
    p.validate()
    assert (p.max_tokens, p.stop) == (64, ["."])
    p.temperature = -1
    with pytest.raises(ValueError, match="temperature is -1"):
        p.validate()


@pytest.mark.parametrize(("temperature", "greedy"), [(0, True), (9e-6, True), (1.1e-5, False), (1, False)])
def test_a_temperature_under_1e5th_is_greedy(temperature: float, greedy: bool) -> None:
    assert SamplingParams(temperature=temperature).is_greedy is greedy


def test_greedy_allows_several_outputs() -> None:
    assert SamplingParams(n=3, temperature=0).n == 3


def test_a_clone_shares_nothing_that_can_change() -> None:
    p = SamplingParams(stop=["a"], logit_bias={1: 2.0})
    q = p.clone()
    assert q == p
    q.stop.append("b")
    q.logit_bias[3] = 1.0
    assert (p.stop, p.logit_bias) == (["a"], {1: 2.0})


def test_params_survive_the_usual_copies() -> None:
    p = SamplingParams(n=2, stop="x", seed=3)
    assert pickle.loads(pickle.dumps(p)) == copy.deepcopy(p) == dataclasses.replace(p) == p
    assert dataclasses.replace(p, seed=4).seed == 4


def test_repr_and_signature_are_readable() -> None:
    assert repr(SamplingParams(temperature=0, stop=".")) == "SamplingParams(temperature=0.0, stop=['.'])"
    assert list(inspect.signature(SamplingParams).parameters)[:2] == ["n", "presence_penalty"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"logprobs": 21}, "logprobs is 21, the engine gives 20 at most: raise max_logprobs"),
        ({"logprobs": 11}, "logprobs is 11, the vocabulary has 10 tokens: ask for fewer"),
        ({"prompt_logprobs": 21}, "prompt_logprobs is 21, the engine gives 20 at most: raise max_logprobs"),
        ({"logprob_token_ids": [3, 10]}, "logprob_token_ids holds token id 10, the vocabulary ends at 9"),
        ({"logit_bias": {10: 1}}, "logit_bias holds token id 10, the vocabulary ends at 9"),
        ({"allowed_token_ids": [10]}, "allowed_token_ids holds token id 10"),
        ({"stop_token_ids": [10]}, "stop_token_ids holds token id 10"),
    ],
)
def test_more_than_the_engine_has_is_refused(given: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_against(SamplingParams(**given), vocab_size=10, max_logprobs=20)


def test_structured_outputs_take_exactly_one_constraint() -> None:
    assert StructuredOutputsParams(json={}).json == {}
    with pytest.raises(ValueError, match="exactly one.*got none"):
        StructuredOutputsParams()
    with pytest.raises(ValueError, match="exactly one.*got json and regex"):
        StructuredOutputsParams(json={}, regex="a")
    with pytest.raises(ValueError, match="choice is empty"):
        StructuredOutputsParams(choice=[])
    with pytest.raises(TypeError, match="no 'backend'.*structured_outputs_config"):
        StructuredOutputsParams(json={}, backend="xgrammar")


def test_beams_and_adapters_are_checked() -> None:
    assert BeamSearchParams(4, 16).beam_width == 4
    with pytest.raises(ValueError, match="beam_width is 0"):
        BeamSearchParams(0, 16)
    with pytest.raises(ValueError, match="length_penalty is 51: use -50 to 50"):
        BeamSearchParams(4, 16, length_penalty=51)
    with pytest.raises(TypeError, match="include_stop_str_in_output is 1: use True or False"):
        BeamSearchParams(4, 16, include_stop_str_in_output=1)
    with pytest.raises(TypeError, match="no 'n': use beam_width"):
        BeamSearchParams(4, 16, n=2)
    assert LoRARequest("a", 1, "folder").lora_int_id == 1
    with pytest.raises(ValueError, match="lora_int_id is 0.*from 1"):
        LoRARequest("a", 0, "folder")
    with pytest.raises(ValueError, match="lora_path is empty"):
        LoRARequest("a", 1, "")

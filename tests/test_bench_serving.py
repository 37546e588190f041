"""The serving benchmark: workloads as they are defined, honest counts, and a profile that adds up."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from workbench.bench import breakdown, serving, startup, workloads
from workbench.bench.cli import main
from workbench.bench.provenance import UNKNOWN, commit
from workbench.bench.rows import append
from workbench.models.spec import ModelSpec, read_spec

VOCAB = 320
TINY = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCAB,
    "max_position_embeddings": 512,
    "dtype": "bfloat16",
}
NAMES = ("single", "mixed256", "many1024", "chat1000", "prefix4k", "prefill8k", "long32x16k")
SMALL = "0.01"


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    """A folder with a config and no weights."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY))
    return str(folder)


def spec_of(model: str) -> ModelSpec:
    with workloads.model_folder(model) as folder:
        return read_spec(folder)


def last_line(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


# --- the workloads --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "requests", "prompt", "out"),
    [
        ("single", 1, (128, 128), (256, 256)),
        ("mixed256", 256, (100, 1024), (100, 1024)),
        ("many1024", 1024, (32, 32), (256, 256)),
        ("chat1000", 1000, (4, 2048), (4, 1024)),
        ("prefix4k", 256, (4160, 4160), (32, 32)),
        ("prefill8k", 32, (8192, 8192), (1, 1)),
        ("long32x16k", 32, (16_384, 16_384), (128, 128)),
    ],
)
def test_a_workload_has_the_requests_and_lengths_of_its_definition(name, requests, prompt, out):
    asked = workloads.draw(workloads.WORKLOADS[name], VOCAB, 1)
    lengths = list(map(len, asked.prompts))
    assert len(lengths) == len(asked.outs) == requests
    for drawn, (low, high) in ((lengths, prompt), (asked.outs, out)):
        assert low <= min(drawn) <= max(drawn) <= high
        if low < high:  # both ends are within reach: of 256 uniform draws the extreme ones are near them
            assert min(drawn) < low + 0.05 * (high - low)
            assert max(drawn) > high - 0.05 * (high - low)


def test_chat_lengths_are_log_normal():
    asked = workloads.draw(workloads.WORKLOADS["chat1000"], VOCAB, 1)
    for drawn, mean, sigma in ((list(map(len, asked.prompts)), 4.7, 1.2), (asked.outs, 4.9, 0.9)):
        low, middle, high = np.log(np.percentile(drawn, [15.87, 50, 84.13]))  # one sigma to either side
        slack = 4 * 1.6 * sigma / np.sqrt(len(drawn))  # four standard errors of such a percentile
        assert middle == pytest.approx(mean, abs=slack)
        assert (high - low) / 2 == pytest.approx(sigma, abs=slack)


def test_only_the_prefix_is_shared():
    prompts = workloads.draw(workloads.WORKLOADS["prefix4k"], 151_936, 1).prompts
    assert len({tuple(prompt[:4096]) for prompt in prompts}) == 1
    assert len({tuple(prompt[4096:]) for prompt in prompts}) == 256


def test_requests_are_those_of_their_seed_and_no_other():
    workload = workloads.WORKLOADS["mixed256"]
    first, again, other = (workloads.draw(workload, VOCAB, seed) for seed in (1, 1, 2))
    assert first == again
    assert first.outs != other.outs
    assert first.prompts != other.prompts
    ids = {token for prompt in first.prompts for token in prompt}
    assert ids == set(range(VOCAB))


def test_a_smaller_scale_has_fewer_and_shorter_requests():
    small = workloads.WORKLOADS["mixed256"].scaled(0.125)
    assert (small.requests, small.prompt, small.out) == (
        32,
        workloads.Uniform(12, 128),
        workloads.Uniform(12, 128),
    )
    assert workloads.WORKLOADS["single"].scaled(1e-6).out == workloads.Fixed(2)
    assert workloads.WORKLOADS["prefill8k"].scaled(1e-6).out == workloads.Fixed(1)


def test_all_are_those_with_a_target_and_for_other_models_those_that_fit():
    names = {
        model: [workload.name for workload in workloads.chosen(model, ["all"], longest)]
        for model, longest in (("qwen3-0.6b", 40_960), ("llama-8b", 131_072), ("other", 2048))
    }
    assert names == {
        "qwen3-0.6b": ["single", "mixed256", "many1024", "chat1000", "prefix4k"],
        "llama-8b": ["single", "mixed256", "chat1000", "prefix4k", "prefill8k", "long32x16k"],
        "other": ["single", "mixed256", "many1024"],
    }


def test_the_models_have_the_dimensions_of_their_names():
    qwen, llama = spec_of("qwen3-0.6b"), spec_of("llama-8b")
    shapes = [
        (s.hidden_size, s.intermediate_size, s.num_layers, s.num_heads, s.num_kv_heads, s.head_dim)
        for s in (qwen, llama)
    ]
    assert shapes == [(1024, 3072, 28, 16, 8, 128), (4096, 14_336, 32, 32, 8, 128)]
    assert (qwen.vocab_size, qwen.tie_word_embeddings, qwen.qk_norm) == (151_936, True, True)
    assert (llama.vocab_size, llama.tie_word_embeddings, llama.qk_norm) == (128_256, False, False)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": "qwen3-0.7b"}, "'qwen3-0.7b': choose among qwen3-0.6b, llama-8b, zoo/wren"),
        ({"model": "zoo/wren-0"}, "no embedded model 'wren-0': choose one of wren"),
        ({"workloads": ["mixed"]}, f"no workload 'mixed': choose among {', '.join(NAMES)}, all"),
        ({"rounds": 0}, "rounds is 0: use at least 1"),
        ({"scale": 0.0}, "scale is 0.0"),
        ({"scale": 2.0}, "scale is 2.0"),
        ({"scale": 0.5, "workloads": ["all"]}, "lower --scale"),
        ({"kv_cache_dtype": "int3"}, "kv_cache_dtype"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_what_can(tiny, options, says):
    if "lower --scale" in says:
        config = TINY | {"max_position_embeddings": 64}
        (Path(tiny) / "config.json").write_text(json.dumps(config))
    given = {"model": tiny, "workloads": ["single"], "scale": 0.01} | options
    with pytest.raises(ValueError, match=says):
        serving.measure(serving.Options(**given))


# --- a run ----------------------------------------------------------------------------------------------


def test_every_workload_runs_and_counts_its_tokens(tiny, tmp_path, capsys):
    file = tmp_path / "rows.csv"
    arguments = ["serving", "--model", tiny, "--workload", "all", "--scale", SMALL, "--rounds", "2"]
    assert main([*arguments, "--json", "-o", str(file)]) == 0
    rows = {row["workload"]: row for row in last_line(capsys)["rows"]}
    assert tuple(rows) == NAMES
    for name, row in rows.items():
        workload = workloads.WORKLOADS[name].scaled(float(SMALL))
        rounds = [workloads.draw(workload, VOCAB, seed) for seed in (1, 2)]  # 0 is the warm-up's
        counts = [(sum(map(len, asked.prompts)), sum(asked.outs)) for asked in rounds]
        assert (row["in_tokens"], row["out_tokens"]) in counts
        assert row["steps"] >= max(map(min, (asked.outs for asked in rounds)))
        assert row["step_ms"] == pytest.approx(row["seconds"] / row["steps"] * 1e3, rel=1e-3)
        assert 0 < row["host_ms"] < row["step_ms"]
        assert 0 < row["ttft_ms"] <= row["seconds"] * 1e3
    with file.open() as handle:
        assert [row["workload"] for row in csv.DictReader(handle)] == list(NAMES)


def test_figures_follow_from_the_counts_of_the_best_round(tiny):
    names = ["single", "mixed256", "prefix4k", "prefill8k"]
    rows, _ = serving.measure(serving.Options(tiny, names, rounds=3, scale=0.01))
    for row in rows:
        figures = [float(figure) for figure in row["all_figures"].split()]
        assert len(figures) == row["rounds"] == 3
        seconds, ms_past_first = row["seconds"], row["seconds"] * 1e3 - row["ttft_ms"]
        expected, better = {
            "ms/token": (ms_past_first / max(1, row["out_tokens"] - 1), min),
            "out tok/s": (row["out_tokens"] / seconds, max),
            "in tok/s": (row["in_tokens"] / seconds, max),
            "s": (seconds, min),
        }[row["unit"]]
        assert row["figure"] == pytest.approx(expected, rel=1e-3)
        assert row["figure"] == better(figures)


def test_only_what_is_meant_to_be_cached_is(tiny):
    names = ["single", "prefix4k", "long32x16k"]
    options = serving.Options(tiny, names, rounds=2, scale=0.02, seed=5)
    rows = {row["workload"]: row for row in serving.measure(options)[0]}
    assert rows["single"]["cached_tokens"] == 0
    prefix = workloads.WORKLOADS["prefix4k"].scaled(0.02)
    blocks = prefix.shared // 16 * 16
    assert rows["prefix4k"]["cached_tokens"] == (prefix.requests - 1) * blocks
    context = workloads.WORKLOADS["long32x16k"].scaled(0.02)
    prompt = context.prompt.longest
    assert rows["long32x16k"]["cached_tokens"] == context.requests * ((prompt - 1) // 16 * 16)


def test_targets_are_held_against_the_whole_workload_on_their_gpu_only(tiny):
    rows, _ = serving.measure(serving.Options(tiny, ["single"], rounds=1, scale=0.01))
    assert [rows[0][name] for name in ("vllm", "reach", "met")] == ["", "", ""]
    assert workloads.is_met("ms/token", 1.0, 1.1)
    assert not workloads.is_met("s", 0.7, 0.6)
    assert workloads.is_met("out tok/s", 25_000, 25_000)
    assert not workloads.is_met("in tok/s", 37_999, 38_000)


@pytest.mark.parametrize("key", workloads.TARGETS)
def test_a_target_belongs_to_a_model_and_a_workload_that_exist(key):
    model, name, kv = key
    assert model in workloads.MODELS
    assert name in workloads.WORKLOADS
    assert kv in ("bf16", "fp8")


def test_a_profile_needs_a_gpu(tiny):
    with pytest.raises(ValueError, match="CUDA device"):
        serving.profile(serving.Options(tiny, ["single"], scale=0.01))


# --- breakdown ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("_attend", "attention"),
        ("_attend_shared", "attention"),
        ("void pytorch_flash::flash_fwd_kernel<Traits<cutlass::bfloat16_t>>", "attention"),
        ("nvjet_tst_128x64_64x8_2x1_v_bz_TNT", "gemm"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm>", "gemm"),
        ("void cublasLt::splitKreduce_kernel<32, 16>", "gemm"),
        ("_vector", "gemm"),
        ("_tile", "gemm"),
        ("_scan", "sampling"),
        ("_finish", "sampling"),
        ("_rms_norm", "other"),
        ("void at::native::vectorized_elementwise_kernel<4, FillFunctor>", "other"),
    ],
)
def test_a_kernel_belongs_to_the_part_its_name_tells(name, part):
    assert breakdown.part_of(name) == part


def event(name: str, start: float, end: float, category: str = "kernel") -> dict:
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": end - start}


def test_overlapping_kernels_are_charged_once_to_the_first():
    events = [
        event("_rms_norm", 9.0, 14.0),  # started early, while the product runs
        event("_tile", 0.0, 10.0),
        event("_tile", 20.0, 21.0),
        event("Memcpy HtoD", 20.5, 23.0, "gpu_memcpy"),
        event("_scan", 20.6, 20.9),  # all in the shadow of others
        event("cudaLaunchKernel", 0.0, 99.0, "cuda_runtime"),
        {"ph": "i", "name": "marker"},
    ]
    parts = breakdown.by_part(breakdown.charge(breakdown.spans_of(events)))
    assert {part: (round(share.seconds * 1e6, 6), share.calls) for part, share in parts.items()} == {
        "gemm": (11.0, 2),
        "attention": (0.0, 0),
        "other": (4.0, 1),
        "sampling": (0.0, 1),
        "copies": (2.0, 1),
    }


def test_the_parts_of_a_profile_and_the_idle_time_make_up_the_round(tiny):
    with serving._open(serving.Options(tiny, ["single"], scale=0.02)) as bench:
        found = serving.timed(bench.llm, serving.prepare(bench, bench.workloads[0], 1))
    assert found.steps == 5
    found = found._replace(seconds=40e-6)
    spans = breakdown.spans_of([event("_tile", 0, 10), event("_attend", 12, 20), event("_tile", 30, 33)])
    rows = serving.profile_rows(found, spans, {"gemm": 5e-6})
    parts = {row["part"]: row for row in rows if not row["kernel"]}
    assert parts["idle"]["ms_per_step"] == pytest.approx(19e-3 / 5)
    total = parts.pop("total")
    assert sum(row["ms_per_step"] for row in parts.values()) == pytest.approx(total["ms_per_step"])
    assert parts["gemm"]["bound_ms"] == total["bound_ms"] == pytest.approx(5e-3 / 5)
    assert [(row["kernel"], row["calls_per_step"]) for row in rows if row["kernel"]] == [
        ("_tile", 0.4),
        ("_attend", 0.2),
    ]


# --- around ---------------------------------------------------------------------------------------------


def test_a_file_with_other_columns_is_refused_and_left_alone(tmp_path):
    file = tmp_path / "rows.csv"
    append(file, [{"a": 1, "b": 2}])
    before = file.read_text()
    with pytest.raises(ValueError, match="rows.csv has the columns a,b and the rows have b,c"):
        append(file, [{"b": 1, "c": 2}])
    assert file.read_text() == before


def test_the_commit_is_that_of_the_checkout_and_says_when_files_differ(tmp_path):
    assert commit(tmp_path) == UNKNOWN
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    (tmp_path / "file").write_text("one")
    for command in (["init", "-q"], ["add", "file"], [*identity, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    clean = commit(tmp_path)
    head = subprocess.run(
        ["git", "-C", str(tmp_path), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    assert len(clean) >= 12
    assert head.stdout.startswith(clean)
    (tmp_path / "file").write_text("two")
    assert commit(tmp_path) == f"{clean}-dirty"


def test_startup_of_a_model_times_a_cold_start_and_warm_ones(tiny, capsys):
    assert main(["startup", "--model", tiny, "--rounds", "1", "--json"]) == 0
    found = last_line(capsys)
    assert [row["triton_cache"] for row in found["rows"]] == ["cold", "warm"]
    for row in found["rows"]:
        assert 0 < row["import_torch_s"] < row["open_s"] < row["first_token_s"]
        assert row["past_import_s"] == pytest.approx(row["first_token_s"] - row["import_torch_s"], abs=2e-3)
    assert found["first_token_s"] == found["rows"][1]["first_token_s"]


def test_a_start_that_fails_says_what_the_process_said(tiny):
    (Path(tiny) / "config.json").write_text("{}")
    with pytest.raises(RuntimeError, match="names no architecture"):
        startup.measure_model(tiny, 1)

"""What other tools read: Chrome trace JSON with slices that nest, and Prometheus text that is valid."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pytest

from tests.trace.house import House, build
from workbench.trace import Trace


def busy(depth: int) -> House:
    house = build(budget=12, blocks=14, depth=depth)
    for number in range(8):
        house.add([1] * 8 + [2 + number] * (number + 1), max_tokens=6, ignore_eos=True)
    for _ in range(3):
        house.engine.advance()
    house.engine.abort(house.requests[7:])
    return house.run()


@pytest.fixture(scope="module", params=[0, 1])
def house(request: pytest.FixtureRequest) -> House:
    return busy(request.param)


# --- Perfetto -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def events(house: House, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    path = house.trace.to_perfetto(tmp_path_factory.mktemp("perfetto") / "new" / "trace.json")
    text = path.read_text(encoding="utf-8")
    said = json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    assert said["displayTimeUnit"] == "ms"
    return said["traceEvents"]


def names(events: list[dict], pid: int) -> dict[int, str]:
    return {
        e["tid"]: e["args"]["name"]
        for e in events if e["ph"] == "M" and e["name"] == "thread_name" and e["pid"] == pid
    }  # fmt: skip


def slices(events: list[dict], pid: int) -> dict[str, list[dict]]:
    """By the name of the track."""
    found: dict[str, list[dict]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X" and event["pid"] == pid:
            found[names(events, pid)[event["tid"]]].append(event)
    return found


def test_every_event_has_what_its_kind_needs(events: list[dict]) -> None:
    processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert processes == {1: "engine", 2: "requests"}
    for event in events:
        assert event["ph"] in ("M", "X", "C")
        assert event["pid"] in processes
        assert isinstance(event["tid"], int)
        assert isinstance(event["name"], str)
        if event["ph"] != "M":
            assert event["ts"] >= 0
        if event["ph"] == "X":
            assert event["dur"] >= 0
            assert event["tid"] in names(events, event["pid"])
        if event["ph"] == "C":
            assert all(isinstance(value, int) for value in event["args"].values())


def test_slices_of_a_track_do_not_overlap(events: list[dict]) -> None:
    for pid in (1, 2):
        for track, mine in slices(events, pid).items():
            mine = sorted(mine, key=lambda e: e["ts"])
            for before, after in pairwise(mine):
                assert before["ts"] + before["dur"] <= after["ts"] + 1e-3, track


def test_every_step_is_a_slice_with_its_row(house: House, events: list[dict]) -> None:
    found = {e["args"]["step"]: e for track in slices(events, 1).values() for e in track}
    steps = house.trace.steps
    assert sorted(found) == steps.step.tolist()
    for step in steps.itertuples():
        event = found[step.step]
        assert event["name"] == f"step {step.step}"
        assert event["ts"] == pytest.approx(step.launched_s * 1e6, abs=1e-3)
        assert event["ts"] + event["dur"] == pytest.approx(step.collected_s * 1e6, abs=2e-3)
        assert event["args"]["scheduled"] == step.scheduled
        assert event["args"]["status"] == "committed"


def test_every_request_has_a_track_that_accounts_for_its_tokens(house: House, events: list[dict]) -> None:
    tracks = slices(events, 2)
    assert list(names(events, 2).values()) == house.trace.requests.request_id.tolist()
    for request in house.trace.requests.itertuples():
        mine = tracks[request.request_id]
        assert mine[0]["name"] == "waiting"
        assert mine[0]["ts"] == pytest.approx(request.arrived_s * 1e6, abs=1e-3)
        assert mine[-1]["ts"] + mine[-1]["dur"] <= request.finished_s * 1e6 + 1e-2
        kinds = {e["name"] for e in mine}
        assert kinds <= {"waiting", "prefill", "decode", "preempted", "dropped"}
        if request.finish_reason == "length":
            assert sum(e["args"].get("tokens", 0) for e in mine) == request.computed_tokens
            assert sum(e["name"] == "preempted" for e in mine) == request.preemptions


def test_counters_are_the_steps_columns(house: House, events: list[dict]) -> None:
    steps = house.trace.steps
    counters: dict[str, list[dict]] = defaultdict(list)
    for event in events:
        if event["ph"] == "C":
            counters[event["name"]].append(event["args"])
    assert [args["held"] for args in counters["KV blocks"]] == steps.blocks_held.tolist()
    assert [args["free"] for args in counters["KV blocks"]] == steps.blocks_free.tolist()
    assert [args["requests"] for args in counters["running"]] == steps.running.tolist()
    assert [args["requests"] for args in counters["waiting"]] == steps.waiting.tolist()


def test_a_trace_of_nothing_and_one_in_flight_can_be_drawn(tmp_path: Path) -> None:
    assert json.loads(Trace().to_perfetto(tmp_path / "empty.json").read_text())["traceEvents"]
    house = build(depth=1)
    house.add([1, 2, 3])
    house.engine.advance()
    events = json.loads(house.trace.to_perfetto(tmp_path / "a.json").read_text())["traceEvents"]
    assert [e["name"] for e in events if e["ph"] == "X"] == ["waiting"]


# --- Prometheus -----------------------------------------------------------------------------------------

SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\{(.*)\} (\S+)")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(?:,|$)')
Family = tuple[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]]


def parse(text: str) -> dict[str, Family]:
    """Exposition format 0.0.4, strictly: family -> (type, samples)."""
    assert text.endswith("\n")
    families: dict[str, Family] = {}
    name = kind = ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            name = line.split(" ", 3)[2]
            assert name not in families, "a family is told once"
            assert line.split(" ", 3)[3]
        elif line.startswith("# TYPE "):
            _, _, typed, kind = line.split(" ")
            assert typed == name
            assert kind in ("counter", "gauge", "histogram")
            families[name] = (kind, {})
        else:
            sample, labels, value = SAMPLE.fullmatch(line).groups()
            suffixes = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
            assert sample in [name + suffix for suffix in suffixes]
            pairs = LABEL.findall(labels)
            assert "".join(f'{key}="{said}",' for key, said in pairs)[:-1] == labels
            assert len({key for key, _ in pairs}) == len(pairs)
            key = (sample.removeprefix(name), tuple(pairs))
            assert key not in families[name][1], "a sample is told once"
            families[name][1][key] = float(value)
    for name, (kind, samples) in families.items():
        assert samples, name
        if kind == "counter":
            assert name.endswith("_total")
            assert min(samples.values()) >= 0
        if kind == "histogram":
            check_histogram(samples)
    return families


def check_histogram(samples: dict) -> None:
    buckets = [
        (float(dict(labels)["le"]), n) for (suffix, labels), n in samples.items() if suffix == "_bucket"
    ]
    assert buckets == sorted(buckets)
    assert [n for _, n in buckets] == sorted(n for _, n in buckets)
    assert buckets[-1][0] == math.inf
    assert buckets[-1][1] == next(n for (suffix, _), n in samples.items() if suffix == "_count")


def one(families: dict[str, Family], name: str, suffix: str = "", **labels: str) -> float:
    found = [
        value for (end, said), value in families[name][1].items()
        if end == suffix and labels.items() <= dict(said).items()
    ]  # fmt: skip
    assert len(found) == 1, (name, suffix, labels)
    return found[0]


def test_prometheus_says_what_the_tables_say(house: House) -> None:
    families = parse(house.trace.to_prometheus())
    r, s, t = house.trace.requests, house.trace.steps, house.trace.tokens
    assert one(families, "vllm:num_requests_running", model_name="fake", engine="0") == s.running.iloc[-1]
    assert one(families, "vllm:num_requests_waiting") == s.waiting.iloc[-1]
    held, free = s.blocks_held.iloc[-1], s.blocks_free.iloc[-1]
    assert one(families, "vllm:kv_cache_usage_perc") == pytest.approx(held / (held + free))
    assert one(families, "vllm:prompt_tokens_total") == r.prompt_tokens[r.scheduled_s.notna()].sum()
    assert one(families, "vllm:prefix_cache_queries_total") == r.queried_tokens.sum() > 0
    assert one(families, "vllm:prefix_cache_hits_total") == r.cached_tokens.sum() > 0
    assert one(families, "vllm:generation_tokens_total") == len(t)
    assert one(families, "vllm:num_preemptions_total") == r.preemptions.sum() > 0
    ends = [request.finish_reason for request in house.requests]
    assert len(set(ends)) == 3
    for reason in ("length", "abort", "stop", "error"):
        count = one(families, "vllm:request_success_total", finished_reason=reason)
        assert count == ends.count(reason)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("vllm:time_to_first_token_seconds", lambda trace: trace.requests.ttft_s.dropna()),
        (
            "vllm:inter_token_latency_seconds",
            lambda trace: trace.tokens.sort_values("at_s").groupby("request_id").at_s.diff().dropna(),
        ),
        ("vllm:e2e_request_latency_seconds", lambda trace: trace.requests.e2e_s.dropna()),
        ("vllm:request_queue_time_seconds", lambda trace: trace.requests.queue_s.dropna()),
        ("vllm:request_time_per_output_token_seconds", lambda trace: trace.requests.tpot_s.dropna()),
        ("vllm:request_prompt_tokens", lambda trace: trace.requests.prompt_tokens[:-1]),  # the last never ran
        ("vllm:iteration_tokens_total", lambda trace: trace.steps.scheduled),
    ],
)  # fmt: skip
def test_histograms_hold_every_value(house: House, name: str, values) -> None:  # type: ignore[no-untyped-def]
    families = parse(house.trace.to_prometheus())
    expected = values(house.trace)
    assert one(families, name, "_count") == len(expected) > 0
    assert one(families, name, "_sum") == pytest.approx(expected.sum())
    for (suffix, labels), count in families[name][1].items():
        if suffix == "_bucket":
            assert count == (expected <= float(dict(labels)["le"])).sum()


def test_a_model_s_name_is_escaped() -> None:
    house = busy(0)
    house.trace.columns.runs["model"][0] = 'a "b"\\c\nd'
    families = parse(house.trace.to_prometheus())
    ((_, labels),) = families["vllm:num_requests_running"][1]
    assert dict(labels)["model_name"] == r"a \"b\"\\c\nd"


def test_a_trace_of_nothing_is_valid_too() -> None:
    families = parse(Trace().to_prometheus())
    assert one(families, "vllm:generation_tokens_total") == 0
    assert one(families, "vllm:time_to_first_token_seconds", "_count") == 0


@pytest.mark.parametrize("write", ["to_perfetto", "to_report"])
def test_a_file_that_cannot_be_written_is_named_with_the_remedy(
    house: House, tmp_path: Path, write: str
) -> None:
    (tmp_path / "mine").write_text("mine")
    for place in (tmp_path, tmp_path / "mine" / "trace", Path("/proc/none/trace")):
        with pytest.raises(OSError, match=rf"{place} cannot be written \(.+\): name another file"):
            getattr(house.trace, write)(place)
    assert (tmp_path / "mine").read_text() == "mine"

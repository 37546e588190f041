"""`workbench bench NAME`: runs a benchmark, shows a table, leaves rows (-o) and one JSON object (--json)."""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from workbench.console import format_table, say
from workbench.models.zoo.registry import DEFAULT

Row = dict[str, Any]


class Result(NamedTuple):
    """What a benchmark found."""

    title: str
    rows: list[Row]  # a line each of the table and of the CSV
    summary: dict[str, Any]  # beside the rows in the JSON object
    shown: Sequence[str] | None = None  # columns of the table, where the rows have more; None: all


def main(argv: Sequence[str]) -> int:
    """Run one benchmark; 0 when it ran to its end."""
    arguments = _parser().parse_args(argv)
    result: Result = arguments.run(arguments)
    shown = list(result.shown or result.rows[0])
    say(result.title, *format_table(shown, [[row[name] for name in shown] for row in result.rows]))
    say(*(f"{name} = {value}" for name, value in result.summary.items()))
    if arguments.json:
        say(json.dumps({"rows": result.rows, **result.summary}))
    if arguments.output:  # last: whatever is wrong with the file, the figures have been told
        append(arguments.output, result.rows)
    return 0


def _parser() -> argparse.ArgumentParser:
    from workbench.bench import harness_commands  # which knows Result

    parser = argparse.ArgumentParser(prog="workbench bench", description="Measure the engine here.")
    commands = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    _add(commands, "scheduler", "plan + commit with no model behind them", _scheduler, _scheduler_options)
    _add(commands, "throughput", "many requests, against transformers", _throughput, _throughput_options)
    _add(commands, "serving", "whole workloads, against the figures to beat", _serving, _serving_options)
    _add(
        commands,
        "load",
        "requests at their own times: random, or of a trace",
        _load,
        _load_options,
    )
    _add(commands, "kernels", "every kernel against this GPU's ceilings", _kernels, _kernels_options)
    _add(commands, "sampling", "a decode step by option, as a ratio to greedy", _sampling, _sampling_options)
    _add(commands, "speculation", "with and without drafts, in one run", _speculation, _speculation_options)
    _add(commands, "lora", "a decode step with adapters, as a ratio to the base model", _lora, _lora_options)
    _add(commands, "tracing", "what observing costs: off, ring, record, to disk", _tracing, _tracing_options)
    _add(
        commands,
        "widgets",
        "what live widgets cost: shown above the cell that generates",
        _widgets,
        _widgets_options,
    )
    for name, help_, run, options in harness_commands.COMMANDS:
        _add(commands, name, help_, run, options)
    _add(commands, "startup", "from process start to the first token", _startup, _startup_options)
    return parser


def _add(
    commands: Any,
    name: str,
    help_: str,
    run: Callable[[argparse.Namespace], Result],
    options: Callable[[argparse.ArgumentParser], None],
) -> None:
    command = commands.add_parser(name, help=help_, description=help_)
    options(command)
    command.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    command.add_argument("-o", "--output", type=Path, metavar="FILE", help="append the rows to a CSV file")
    command.set_defaults(run=run)


def _scheduler_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--running", type=int, nargs="+", default=[1, 64, 256, 1024], metavar="N")
    parser.add_argument(
        "--steps", type=int, default=320, help="steps at each size, rounded up to rounds of 64"
    )
    parser.add_argument("--hash", choices=["sha256", "xxhash"], default="sha256")


def _scheduler(arguments: argparse.Namespace) -> Result:
    from workbench.bench import scheduler

    steps = max(64, arguments.steps)
    costs = scheduler.measure(tuple(arguments.running), steps, arguments.hash)
    rows = [{name: round(value, 2) for name, value in cost._asdict().items()} for cost in costs]
    summary = {"add_us": scheduler.measure_add(), "admission_us": scheduler.measure_admission()}
    title = "Scheduler: microseconds a step (plan + commit), and to add and to admit a request of 512 tokens"
    return Result(title, rows, {name: round(value, 2) for name, value in summary.items()})


def _throughput_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=None, help="a folder or zoo/<name>; the embedded model by default")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--min-tokens", type=int, default=32, help="shortest prompt")
    parser.add_argument("--max-tokens", type=int, default=256, help="longest prompt")
    parser.add_argument("--out", type=int, default=64, help="tokens generated by each request")
    parser.add_argument("--shared-prefix", type=int, default=0, help="tokens that all prompts begin with")
    parser.add_argument("--rounds", type=int, default=3, help="every engine in turn, so many times")
    parser.add_argument("--engines", nargs="+", default=None, help="workbench, generate, generate_batch")


def _throughput(arguments: argparse.Namespace) -> Result:
    from workbench.bench import throughput

    load = throughput.Load(
        arguments.requests, arguments.min_tokens, arguments.max_tokens, arguments.out, arguments.shared_prefix
    )
    engines = tuple(arguments.engines or throughput.ENGINES)
    rows, summary = throughput.measure(arguments.model, load, arguments.rounds, engines)
    return Result("Throughput on the CPU: greedy, float32, output tokens a second", rows, summary)


def _kernels_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--op", default=None, metavar="NAME", help="only operations whose name contains this")


def _kernels(arguments: argparse.Namespace) -> Result:
    from workbench.bench import kernels

    rows, summary = kernels.measure(arguments.op)
    return Result(
        "Kernels: a call in a graph, inputs beyond the cache; torch_us: as torch launches it", rows, summary
    )


def _serving_options(parser: argparse.ArgumentParser) -> None:
    _serving_model(parser, "qwen3-0.6b")
    parser.add_argument(
        "--workload", nargs="+", default=["all"], metavar="NAME",
        help="single, mixed256, many1024, chat1000, prefix4k, prefill8k, long32x16k, or all",
    )  # fmt: skip
    parser.add_argument("--kv-cache-dtype", default="auto", metavar="DTYPE", help="as LLM takes it")
    parser.add_argument("--rounds", type=int, default=2, help="that count, behind one to warm up")
    parser.add_argument("--scale", type=float, default=1.0, help="less than 1: fewer and shorter requests")
    parser.add_argument("--max-num-seqs", type=int, default=1024, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="of the warm-up; the rounds count on from it")
    parser.add_argument("--profile", action="store_true", help="milliseconds a step by part and by kernel")


def _serving_model(parser: argparse.ArgumentParser, default: str | None) -> None:
    text = "qwen3-0.6b, llama-8b, a folder or zoo/<name>; the weights are random"
    parser.add_argument("--model", default=default, help=text)


def _serving(arguments: argparse.Namespace) -> Result:
    from workbench.bench import serving

    options = serving.Options(
        model=arguments.model,
        workloads=arguments.workload,
        rounds=arguments.rounds,
        scale=arguments.scale,
        kv_cache_dtype=arguments.kv_cache_dtype,
        max_num_seqs=arguments.max_num_seqs,
        seed=arguments.seed,
    )
    if arguments.profile:
        rows, summary = serving.profile(options)
        title = (
            "Serving: milliseconds a step by part, then by kernel; bound_ms: bytes and flops of the shapes"
        )
        return Result(title, rows, summary, serving.SHOWN_PROFILE)
    rows, summary = serving.measure(options)
    title = "Serving: the best round of each workload; vllm, reach: on one H200"
    return Result(title, rows, of_origin(rows[0]) | summary, serving.SHOWN)


def of_origin(row: Row) -> Row:
    """Where and with what a row was measured."""
    return {name: row[name] for name in ("date", "device", "torch", "triton", "workbench", "commit")}


def _sampling_options(parser: argparse.ArgumentParser) -> None:
    _serving_model(parser, f"zoo/{DEFAULT}")
    parser.add_argument("--requests", type=int, nargs="+", default=[64, 256], metavar="N")
    parser.add_argument("--options", nargs="+", default=None, metavar="NAME", help="all, unless named")
    parser.add_argument("--tokens", type=int, default=128, help="of a prompt")
    parser.add_argument("--out", type=int, default=128, help="tokens generated by each request")
    parser.add_argument("--rounds", type=int, default=3, help="of each option, beside greedy")


def _sampling(arguments: argparse.Namespace) -> Result:
    from workbench.bench import sampling

    load = sampling.Load(arguments.tokens, arguments.out)
    options = arguments.options or [*sampling.OPTIONS, sampling.PROMPTS]
    rows, summary = sampling.measure(arguments.model, arguments.requests, options, load, arguments.rounds)
    title = (
        "Sampling: milliseconds of a step in which all requests decode (of the whole call for"
        " prompt_logprobs); first_s: what the first run took more"
    )
    return Result(title, rows, of_origin(rows[0]) | summary, sampling.SHOWN)


def _speculation_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=f"zoo/{DEFAULT}", help="zoo/<name>, or one trained like it")
    parser.add_argument("--tasks", nargs="+", default=["copying", "stories"], metavar="NAME")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 256], metavar="N")
    parser.add_argument("--out", type=int, default=256, help="tokens generated by each request, at most")
    parser.add_argument("--rounds", type=int, default=3, help="of either engine")
    parser.add_argument("--method", default="ngram")
    parser.add_argument("--draft-model", default="zoo/wren-1m", help="that of --method draft_model")
    parser.add_argument("--drafts", type=int, default=5, metavar="K", help="num_speculative_tokens")
    parser.add_argument("--not-adaptive", action="store_true", help="always K drafts")


def _speculation(arguments: argparse.Namespace) -> Result:
    from workbench.bench import speculation

    config = {
        "method": arguments.method,
        "num_speculative_tokens": arguments.drafts,
        "adaptive": not arguments.not_adaptive,
    }
    if arguments.method == "draft_model":
        config["model"] = arguments.draft_model
    options = speculation.Options(
        arguments.model, arguments.tasks, arguments.requests, arguments.out, arguments.rounds, config
    )
    rows, summary = speculation.measure(options)
    title = "Speculation: output tokens a second without and with drafts; same: part of the outputs"
    return Result(title, rows, of_origin(rows[0]) | summary, speculation.SHOWN)


def _lora_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=f"zoo/{DEFAULT}", help="llama-8b, qwen3-0.6b, or a folder")
    parser.add_argument("--requests", type=int, nargs="+", default=[64], metavar="N")
    parser.add_argument("--adapters", type=int, nargs="+", default=[0, 1, 2], help="in one batch; 0: unused")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128, help="of a prompt")
    parser.add_argument("--out", type=int, default=64, help="tokens generated by each request")
    parser.add_argument("--rounds", type=int, default=3)


def _lora(arguments: argparse.Namespace) -> Result:
    from workbench.bench import lora

    load = lora.Load(arguments.tokens, arguments.out)
    rows, summary = lora.measure(
        arguments.model, arguments.requests, arguments.adapters, arguments.rank, load, arguments.rounds
    )
    title = "LoRA: milliseconds of a decode step on q, k, v and o, as a ratio to an engine without"
    return Result(title, rows, summary, lora.SHOWN)


def _tracing_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default=None,
        help="qwen3-0.6b, llama-8b (random weights), a folder or zoo/<name>; the embedded model by default",
    )  # fmt: skip
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32, help="of a prompt")
    parser.add_argument("--out", type=int, default=32, help="tokens generated by each request")
    parser.add_argument("--rounds", type=int, default=40, help="every way beside none, so many times")
    parser.add_argument("--running", type=int, nargs="*", default=[1, 64, 1024], metavar="N",
                        help="requests of the steps without a model")  # fmt: skip


def _tracing(arguments: argparse.Namespace) -> Result:
    from workbench.bench import tracing

    load = tracing.Load(arguments.requests, arguments.tokens, arguments.tokens, arguments.out, 0)
    rows, summary = tracing.measure(arguments.model, load, arguments.rounds)
    summary |= tracing.measure_host(arguments.running, arguments.rounds)
    title = "Tracing: throughput by what observes; ratio: to the run beside it that nobody observes"
    return Result(title, rows, of_origin(rows[0]) | summary, tracing.SHOWN)


def _load_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=f"zoo/{DEFAULT}", help="a folder or zoo/<name>")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="replay Azure's .csv or Mooncake's .jsonl")
    parser.add_argument("--seconds", type=float, help="of the trace, from its beginning; default: all of it")
    parser.add_argument("--speed", type=float, default=1.0, help="the trace's times, so many times as fast")
    parser.add_argument("--requests", type=int, default=100, help="without a trace: so many, at random times")
    parser.add_argument("--rate", type=float, help="of them a second on average; default: all at once")
    parser.add_argument("--tokens", type=int, default=128, help="of a prompt on average (log-normal)")
    parser.add_argument("--out", type=int, default=32, help="tokens generated by each on average")
    parser.add_argument("--shared", type=int, default=0, help="tokens all prompts begin with")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, metavar="DIR", help="keep the run, for BenchmarkResult.load")


def _load(arguments: argparse.Namespace) -> Result:
    from workbench.bench import load_command

    rows, summary = load_command.measure(arguments)
    title = "Load: seconds by metric; queue, ttft, tpot and e2e of requests, itl of gaps between tokens"
    return Result(title, rows, summary, load_command.SHOWN)


def _widgets_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default=None,
        help="qwen3-0.6b, llama-8b (random weights), a folder or zoo/<name>; the embedded model by default",
    )  # fmt: skip
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=32, help="of a prompt")
    parser.add_argument("--out", type=int, default=256, help="tokens generated by each request")
    parser.add_argument("--rounds", type=int, default=20, help="every way beside none, so many times")


def _widgets(arguments: argparse.Namespace) -> Result:
    from workbench.bench import widgets

    load = widgets.Load(arguments.requests, arguments.tokens, arguments.tokens, arguments.out, 0)
    rows, summary = widgets.measure(arguments.model, load, arguments.rounds)
    title = "Widgets: throughput in a notebook with all of them open; ratio: to the run beside it with none"
    return Result(title, rows, of_origin(rows[0]) | summary, widgets.SHOWN)


def _startup_options(parser: argparse.ArgumentParser) -> None:
    _serving_model(parser, None)
    parser.add_argument("--rounds", type=int, default=5)


def _startup(arguments: argparse.Namespace) -> Result:
    from workbench.bench import startup

    if arguments.model is not None:
        rows, summary = startup.measure_model(arguments.model, arguments.rounds)
        return Result("Start: seconds from process start to the first token (disk cache warm)", rows, summary)
    rows, summary = startup.measure(arguments.rounds)
    return Result("Start: seconds from process start (disk cache warm)", rows, summary)


def append(file: Path, rows: Sequence[Row]) -> None:
    """Add rows to a CSV file, with a header when it is new.

    Raises:
        ValueError: the file has other columns than the rows.
    """
    columns = list(rows[0])
    found = _header(file)
    if found and found != columns:
        raise ValueError(
            f"{file} has the columns {','.join(found)} and the rows have {','.join(columns)}:"
            " give another file with -o"
        )
    with file.open("a", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, columns)
        if not found:
            writer.writeheader()
        writer.writerows(rows)


def _header(file: Path) -> list[str]:
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as handle:
        return next(csv.reader(handle), [])

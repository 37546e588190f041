"""One page about a trace: settings, figures, pictures, tables, texts. It opens offline and runs no script.

Knows the tables; neither events nor pandas.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence, Sized
from html import escape
from pathlib import Path

import numpy as np

from workbench.trace.charts import block_chart, cache_chart
from workbench.trace.pictures import cache_map, dashboard, gantt, logprobs, theme, token_budget
from workbench.trace.pictures.stretches import Work
from workbench.trace.schema import Table, Tables

MOST_STEPS = 200  # lines of the steps table on the page; the CSV has them all
MOST_REQUESTS = 300
MOST_LANES = 120
MOST_LIKELIHOODS = 4  # requests whose tokens are coloured
MOST_TOKENS = 400  # of each
LONGEST_TEXT = 4000  # characters of a prompt or output on the page

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # nothing is fetched and nothing runs


def page(tables: Tables) -> str:
    """The whole page as HTML text."""
    run = {name: column[0] for name, column in tables.runs.items()}
    title = f"Workbench trace: {run['model'] or 'an engine'}"
    style = theme.style() + Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    sections = (
        _figures(tables),
        _section("At a glance", (), _at_a_glance(tables)),
        _section("Tokens per step", (), _token_budget(tables)),
        _section(
            f"Requests{_cut(tables.requests['request_id'], MOST_LANES)}", (), _requests_over_time(tables)
        ),
        _section("Prefix cache", (("found", "found"), ("prefill", "computed")), cache_chart(tables.requests)),
        _section(
            "KV blocks", (("held", "held"), ("cached", "findable by prefix")), block_chart(tables.steps)
        ),
        _section("KV cache, block by block", (), cache_map.picture(tables)),
        _section(
            f"Each request{_cut(tables.requests['request_id'], MOST_REQUESTS)}",
            (),
            _request_table(tables.requests),
        ),
        _section(f"Steps{_cut(tables.steps['step'], MOST_STEPS)}", (), _step_table(tables.steps)),
        _section(f"Texts{_cut(tables.requests['request_id'], MOST_REQUESTS)}", (), _texts(tables.requests)),
        _likelihoods(tables),
        _section("Settings", (), _settings(str(run["config"]))),
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body class=wb><main>"
        f"<h1>{escape(title)}</h1><p class=note>Workbench {run['workbench_version']}, device "
        f"{escape(str(run['device'] or 'unknown'))}. Hover over a picture for the numbers behind it.</p>"
        f"{_dropped(int(run['dropped_steps']))}{''.join(sections)}</main></body></html>\n"
    )


def _at_a_glance(tables: Tables) -> str:
    return dashboard.draw(dashboard.rows(tables.steps)) if len(tables.steps["step"]) else ""


def _token_budget(tables: Tables) -> str:
    if not len(tables.steps["step"]):
        return ""
    return token_budget.draw(token_budget.bars(tables.steps, tables.step_requests))


def _requests_over_time(tables: Tables) -> str:
    if not len(tables.steps["step"]):
        return ""
    requests, steps = tables.requests, tables.steps
    found = gantt.gantt(requests, steps, Work().take(requests, steps, tables.step_requests))
    lanes = gantt.alive(found, requests)[:MOST_LANES]
    if not len(lanes):
        return ""
    return gantt.draw(gantt.close_up(found, requests, lanes), requests, lanes) + gantt.legend_of(found)


def _likelihoods(tables: Tables) -> str:
    """How likely tokens were, where the trace knows it."""
    tokens, mode = tables.tokens, str(json.loads(str(tables.runs["config"][0])).get("logprobs_mode", ""))
    names = list(dict.fromkeys(tokens["request_id"][~np.isnan(tokens["rank"])]))
    if not names:
        return ""
    texts = dict(zip(tokens["token_id"].tolist(), tokens["text"], strict=True))
    body = ""
    for name in names[:MOST_LIKELIHOODS]:
        lines = np.flatnonzero(tokens["request_id"] == name)
        lines = lines[: 1 + np.argmin(np.append(np.diff(tokens["index"][lines]), 0) == 1)]  # an id may return
        run = logprobs.of_lines(tokens, name, lines, texts.get, mode)
        within = logprobs.span([run])[:MOST_TOKENS]
        body += logprobs.head([run], within) + logprobs.draw([run], "logprob", within)
    return _section(f"How likely the tokens were{_cut(names, MOST_LIKELIHOODS)}", (), body)


def _dropped(steps: int) -> str:
    if not steps:
        return ""
    return f"<p class=note>The {steps} oldest steps were let go by the ring; this page begins in mid-run.</p>"


def _section(title: str, legend: Sequence[tuple[str, str]], body: str) -> str:
    content = body or "<p>nothing happened</p>"
    return f"<section><h2>{escape(title)}</h2>{theme.legend(*legend) if legend else ''}{content}</section>"


def _cut(column: Sized, most: int) -> str:
    return f" (the first {most} of {len(column)})" if len(column) > most else ""


# --- figures --------------------------------------------------------------------------------------------


def _figures(tables: Tables) -> str:
    run = {name: column[0] for name, column in tables.runs.items()}
    steps, wall = tables.steps, float(run["wall_s"])
    budget = int(steps["budget"].sum())
    figures = (
        (f"{run['requests']}", "requests"),
        (f"{run['steps']}", "steps"),
        (_seconds(wall), "from the first plan to the end"),
        (f"{run['prompt_tokens']}", "prompt tokens"),
        (_share(run["cached_tokens"], run["prompt_tokens"]), "of them found in the prefix cache"),
        (f"{run['output_tokens']}", "tokens generated"),
        (f"{run['output_tokens'] / wall:,.0f} /s" if wall else "–", "generated tokens a second"),
        (_share(run["scheduled_tokens"], budget), "of the token budget used"),
        (f"{run['preemptions']}", "preemptions"),
        (f"{run['recomputed_tokens']}", "tokens recomputed"),
        (f"{run['overshoot_tokens']}", "tokens computed for nobody"),
        (_seconds(_mean(tables.requests["ttft_s"].tolist())), "mean time to first token"),
    )
    return (
        "<section><dl class=figures>"
        + "".join(f"<div><dd>{value}</dd><dt>{label}</dt></div>" for value, label in figures)
        + "</dl></section>"
    )


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "–"


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _seconds(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms"


# --- tables ---------------------------------------------------------------------------------------------


def _request_table(requests: Table) -> str:
    counts = (
        "prompt_tokens", "cached_tokens", "output_tokens", "computed_tokens", "recomputed_tokens",
        "preemptions",
    )  # fmt: skip
    times = ("queue_s", "ttft_s", "tpot_s", "e2e_s")
    header = ["request", *(name.removesuffix("_tokens") for name in counts)]
    header += [name.removesuffix("_s") for name in times] + ["ended by"]
    rows = [
        [
            requests["request_id"][line],
            *(requests[name][line] for name in counts),
            *(_seconds(float(requests[name][line])) for name in times),
            requests["finish_reason"][line] or "running",
        ]
        for line in range(min(len(requests["request_id"]), MOST_REQUESTS))
    ]
    return _table(header, rows)


def _step_table(steps: Table) -> str:
    counts = (
        "step", "scheduled", "budget", "prefill", "decode", "cached", "recomputed", "overshoot", "requests",
        "running", "waiting", "admitted", "preempted", "blocks_held", "blocks_free",
    )  # fmt: skip
    times = ("host_s", "device_s", "gap_s")
    header = [name.replace("_", " ") for name in counts] + [name.removesuffix("_s") for name in times]
    rows = [
        [*(steps[name][line] for name in counts), *(_seconds(float(steps[name][line])) for name in times)]
        for line in range(min(len(steps["step"]), MOST_STEPS))
    ]
    return _table(header, rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


# --- texts and settings ---------------------------------------------------------------------------------


def _texts(requests: Table) -> str:
    count = min(len(requests["request_id"]), MOST_REQUESTS)
    return "".join(_exchange(requests, line) for line in range(count))


def _exchange(requests: Table, line: int) -> str:
    cached, prompt = int(requests["cached_tokens"][line]), int(requests["prompt_tokens"][line])
    summary = f"{requests['request_id'][line]}: {prompt} prompt tokens, {cached} of them cached"
    return (
        f"<details open><summary>{escape(summary)}</summary><p class=text><span class=prompt>"
        f"{_clipped(requests['prompt'][line])}</span><mark>{_clipped(requests['output'][line])}</mark></p></details>"
    )


def _clipped(text: str | None) -> str:
    if text is None:
        return "(no text)"
    return escape(text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + " …")


def _settings(config: str) -> str:
    settings = json.loads(config)
    return _table(("setting", "value"), [(name, json.dumps(value)) for name, value in settings.items()])

"""The tables of a trace: their columns, kinds and meanings. Knows neither how they are filled nor pandas.

Times end in `_s` and are seconds since the engine started, by the engine's clock; durations are seconds.
Counts of tokens are whole numbers. A value that does not exist (yet) is NaN, in a text column missing. Lists
are JSON texts, which every file format and every version of pandas holds and compares alike. Logprobs are
there where the request asked for them, or `record(logprobs=k)` did.

A trace that begins in mid-run, as a ring does that has turned over, holds only what came later of requests
that ran before (`runs.mid_run`). What it cannot know of them is missing: when the first token came, and with
it ttft_s and tpot_s, and the text. Their counts of tokens computed are of the steps it holds.

The sum rule, over requests that ran to their end, where the trace holds all their steps::

    steps.scheduled = Σ (prompt_tokens - cached_tokens) + Σ (output_tokens - 1)
                      + recomputed + rejected + overshoot

Of the drafts that requests verify, those they went on from are accepted, the others rejected, but for the
drafts of a step nobody took, which are overshoot: draft = accepted + rejected + (draft of dropped chunks).

What can happen to a block: it is *reserved* (taken off the free list, to be written), *reused* (a prefix was
found in it), *cached* (full, and findable by its key from now on), *evicted* (its key is forgotten, because
it is taken for something else), *released* (a holder less; with none left it is free, and findable as long as
it has a key), *withdrawn* (its key is forgotten, because its content is not to be found). From step to step::

    Δ blocks_held   = reserved + (reused, now with 1 holder) - (released, now with 0 holders)
    Δ blocks_cached = cached - evicted - withdrawn
    blocks_free     = all blocks - blocks_held
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

SCHEMA_VERSION = 9

Kind = Literal["int", "float", "bool", "text"]
Table = dict[str, npt.NDArray[Any]]  # name -> one value a row; text columns hold str or None

DTYPES: dict[Kind, type] = {"int": np.int64, "float": np.float64, "bool": np.bool_, "text": np.object_}


class Column(NamedTuple):
    """One column of a table."""

    name: str
    kind: Kind
    meaning: str


class Tables(NamedTuple):
    """All tables of a trace, as columns."""

    runs: Table
    requests: Table
    steps: Table
    step_requests: Table
    tokens: Table
    blocks: Table
    events: Table


RUNS = (
    Column("schema_version", "int", "of these tables"),
    Column("workbench_version", "text", "that recorded them"),
    Column("model", "text", "as it was named"),
    Column("device", "text", "that computed"),
    Column("config", "text", "JSON: the settings as resolved"),
    Column("wall_s", "float", "from the beginning of the first plan to the last event"),
    Column("steps", "int", "recorded"),
    Column("dropped_steps", "int", "older ones that the ring let go"),
    Column("mid_run", "bool", "steps were let go, or somebody ran before: not all requests are whole"),
    Column("requests", "int", "recorded"),
    Column("prompt_tokens", "int", "of all requests"),
    Column("cached_tokens", "int", "found in the prefix cache when first scheduled"),
    Column("output_tokens", "int", "generated in the steps recorded"),
    Column("scheduled_tokens", "int", "computed by all steps"),
    Column("recomputed_tokens", "int", "of them, computed again after a preemption"),
    Column("overshoot_tokens", "int", "of them, computed for nobody"),
    Column("rejected_tokens", "int", "of them, drafts that did not become output"),
    Column("preemptions", "int", "of all requests"),
)

REQUESTS = (
    Column("request_id", "text", "with n > 1 the children: 0_ID, 1_ID"),
    Column("priority", "int", "smaller is more urgent"),
    Column("adapter", "text", "name of its LoRA adapter; missing for the base model"),
    Column("prompt_tokens", "int", "length of the prompt"),
    Column("max_tokens", "int", "most it may generate"),
    Column(
        "cache_root",
        "text",
        "hex: blocks are shared only where it is the same; missing without adapter and salt",
    ),
    Column("queried_tokens", "int", "of the prompt, looked up in the prefix cache when first scheduled"),
    Column("cached_tokens", "int", "of those, found"),
    Column(
        "forgone_tokens",
        "int",
        "of the prompt, cached beyond that and computed all the same, where its logprobs were not known",
    ),
    Column("output_tokens", "int", "generated, in steps that are not in the trace too"),
    Column("computed_tokens", "int", "what all its chunks in the trace add up to"),
    Column(
        "recomputed_tokens",
        "int",
        "of them, computed again; less what a resumption found beyond its own work",
    ),
    Column("overshoot_tokens", "int", "of them, computed and dropped"),
    Column("preemptions", "int", "times it gave its blocks back"),
    Column("accepted_drafts", "int", "of the output, drafts it went on from, in the steps of the trace"),
    Column("rejected_drafts", "int", "of computed_tokens, drafts that did not become output"),
    Column("arrived_s", "float", "it joined the waiting queue"),
    Column("scheduled_s", "float", "it was first given tokens"),
    Column("first_token_s", "float", "its first token was on the host; NaN where the trace began later"),
    Column("last_token_s", "float", "its last one was"),
    Column("finished_s", "float", "it ended"),
    Column("queue_s", "float", "scheduled - arrived"),
    Column(
        "grammar_s",
        "float",
        "from its arrival until its grammar was compiled, or it ended; 0 where it had not to wait for one",
    ),
    Column("ttft_s", "float", "first token - arrived"),
    Column("tpot_s", "float", "(last token - first token) / (output_tokens - 1)"),
    Column("e2e_s", "float", "finished - arrived"),
    Column("finish_reason", "text", "stop, length, abort or error; missing while it runs"),
    Column("stop_reason", "text", "the string or token id that stopped it; missing for EOS"),
    Column("prompt_token_ids", "text", "JSON list: the prompt; missing where the trace began later"),
    Column("prompt", "text", "the prompt as text, where there is a tokenizer"),
    Column("output", "text", "what was generated, as text; missing where first_token_s is for that"),
)

STEPS = (
    Column("step", "int", "index, 0 is the engine's first"),
    Column("status", "text", "committed, failed, or in flight when the trace was read"),
    Column("budget", "int", "most tokens a step may hold"),
    Column("scheduled", "int", "tokens computed: prefill + decode"),
    Column("prefill", "int", "of prompts, and whatever is computed again"),
    Column("decode", "int", "generated tokens computed for the first time"),
    Column("draft", "int", "of decode, drafts to be verified"),
    Column("accepted", "int", "of draft, those that requests went on from"),
    Column("rejected", "int", "of draft, those that they did not; one that ended its request is among them"),
    Column("recomputed", "int", "computed before, ahead of a preemption; see requests.recomputed_tokens"),
    Column(
        "overshoot", "int", "computed for requests that had ended or been preempted, or in a step that failed"
    ),
    Column("cached", "int", "tokens that requests admitted in this step found in the prefix cache"),
    Column("requests", "int", "that got tokens"),
    Column("admitted", "int", "that left the waiting queue"),
    Column("preempted", "int", "that went back to it"),
    Column("sampled", "int", "tokens that were sampled and that requests took"),
    Column("forced", "int", "tokens that requests took unsampled behind those: a grammar left no choice"),
    Column("running", "int", "requests with a batch row"),
    Column("waiting", "int", "requests in the queue"),
    Column("blocks_free", "int", "nobody holds; some are still findable"),
    Column("blocks_held", "int", "by running requests"),
    Column("blocks_cached", "int", "findable by their key, held or free"),
    Column("planned_s", "float", "the plan was complete"),
    Column("launched_s", "float", "the runner took it"),
    Column("collected_s", "float", "its tokens were on the host"),
    Column("host_s", "float", "planning + committing"),
    Column("device_s", "float", "the device computed"),
    Column("gap_s", "float", "from the previous step's collection to this launch; 0 where they overlap"),
)

STEP_REQUESTS = (
    Column("step", "int", "index"),
    Column("request_id", "text", "who"),
    Column("adapter", "text", "as in requests"),
    Column("row", "int", "batch row"),
    Column("start", "int", "position of the first token computed"),
    Column("scheduled", "int", "tokens computed: prefill + decode"),
    Column("prefill", "int", "as in steps"),
    Column("decode", "int", "as in steps"),
    Column("draft", "int", "as in steps"),
    Column("accepted", "int", "as in steps"),
    Column("rejected", "int", "as in steps"),
    Column("recomputed", "int", "as in steps"),
    Column("cached", "int", "found in the prefix cache, if it was admitted in this step"),
    Column("samples", "bool", "the last position yields a new token"),
    Column("dropped", "bool", "nobody wanted the outcome: overshoot"),
)

TOKENS = (
    Column("request_id", "text", "whose"),
    Column("index", "int", "0 is the first generated"),
    Column("position", "int", "in the request, prompt included"),
    Column("step", "int", "that sampled it"),
    Column("at_s", "float", "it was on the host"),
    Column("token_id", "int", "what it is"),
    Column("text", "text", "on its own; a piece of a character is shown as �"),
    Column("drafted", "bool", "a draft stood in its place"),
    Column("accepted", "bool", "and was it, and the request went on from it"),
    Column("forced", "bool", "taken unsampled behind the token that the step sampled: no choice was left"),
    Column("masked", "float", "part of the vocabulary that a constraint ruled out; NaN: unconstrained"),
    Column("logprob", "float", "natural log, where logprobs were asked for"),
    Column("rank", "float", "1 is the likeliest token, where logprobs were asked for"),
    Column("entropy", "float", "of the distribution the logprobs are of, in nats, where they were asked for"),
    Column(
        "top_ids",
        "text",
        "JSON list: the k likeliest tokens, best first, where k logprobs were asked for; of -1 none",
    ),
    Column("top_logprobs", "text", "JSON list: their logprobs; null for one that cannot be sampled"),
)

BLOCKS = (
    Column("step", "int", "the first plan that finds it so; one past the last where no plan came after"),
    Column("at_s", "float", "when it was told: with that plan, or at an end"),
    Column("block", "int", "number, 1 is the first"),
    Column("group", "int", "KV group"),
    Column("event", "text", "reserved, reused, cached, evicted, released or withdrawn; see below"),
    Column("request_id", "text", "on whose behalf; missing for withdrawn"),
    Column("holders", "int", "requests that hold it afterwards"),
    Column("position", "float", "in the request of its first token; NaN where the trace began later"),
    Column("key", "text", "how its key begins, as hex; missing where it has none"),
    Column("reason", "text", "why"),
)

EVENTS = (
    Column("at_s", "float", "when"),
    Column("kind", "text", "what: request_arrived, step_planned ..."),
    Column("step", "float", "index, where it belongs to a step"),
    Column("request_id", "text", "where it is about one request"),
    Column("detail", "text", "JSON: what else is known"),
)

SCHEMA = Tables._fields
COLUMNS: dict[str, tuple[Column, ...]] = {
    "runs": RUNS,
    "requests": REQUESTS,
    "steps": STEPS,
    "step_requests": STEP_REQUESTS,
    "tokens": TOKENS,
    "blocks": BLOCKS,
    "events": EVENTS,
}


def complete(table: str, columns: dict[str, Any]) -> Table:
    """The columns in the schema's order and dtypes; a column too many or too few is a mistake of ours."""
    expected = [column.name for column in COLUMNS[table]]
    assert sorted(columns) == sorted(expected), f"{table}: {set(columns) ^ set(expected)}"
    return {column.name: _array(columns[column.name], column.kind) for column in COLUMNS[table]}


def _array(values: Any, kind: Kind) -> npt.NDArray[Any]:
    if kind != "text":
        return np.asarray(values, dtype=DTYPES[kind])
    array = np.empty(len(values), dtype=np.object_)
    array[:] = values
    return array

"""What the prefix tree says a prompt would find is what the engine then reuses; and the tree adds up."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.trace.house import BLOCK_SIZE, House, build
from tests.trace.test_blocks import FULL_AND_SLIDING
from tests.widgets.test_speed import UPDATE_S, best_of_three
from workbench import LLM, SamplingParams
from workbench.cache.hashing import hash_function, root_key
from workbench.cache.manager import KVGroup
from workbench.trace import Trace
from workbench.trace.pictures.prefix_log import NOT_ASKED, ROOT, Findable, PrefixLog
from workbench.trace.pictures.prefix_runs import Runs, rows, runs
from workbench.trace.pictures.prefix_tree import BEGIN, END, NAME, _axis, picture
from workbench.trace.pictures.svg import Scale
from workbench.widgets import PrefixTree, linked


def salted(salt: str) -> bytes:
    return root_key(hash_function("sha256"), ("salt", salt) if salt else ())


def some_prompt(house: House, chance: random.Random) -> list[int]:
    """One that begins as others do, or goes on as one of them did."""
    if house.requests and chance.random() < 0.3:
        known = chance.choice(house.requests).token_ids.tolist()
        return known[: chance.randint(1, 60)]
    return [1] * chance.randint(0, 12) + [chance.randint(2, 3) for _ in range(chance.randint(1, 25))]


@pytest.mark.parametrize("seed", range(8))
def test_what_it_says_would_be_found_is_what_the_engine_reuses(seed: int) -> None:
    chance, windowed = random.Random(seed), seed % 3 == 0
    groups = FULL_AND_SLIDING if windowed else (KVGroup((0,)),)
    house = build(budget=24, blocks=chance.choice([30, 60]) * (1 + windowed), groups=groups)
    house.add([1] * 9, 3)
    house.run()
    tree = PrefixTree(house.trace)
    for number in range(25):
        prompt, salt = some_prompt(house, chance), chance.choice(["", "", "a"])
        if number == 12:
            assert house.engine.scheduler.forget_prefixes()
        answer = tree.ask(prompt, salt)
        request = house.add(prompt, chance.randint(1, 20), cache_root=salted(salt), ignore_eos=True)
        house.run()
        assert answer.num_cached_tokens == request.num_cached_tokens, (number, answer)


@pytest.mark.parametrize("caching", [True, False])
def test_the_cache_is_asked_only_where_there_is_one(caching: bool) -> None:
    house = build(caching=caching)
    for _ in range(2):
        house.add([1] * 20, 1)
        house.run()
    answer = PrefixTree(house.trace).ask([1] * 20)
    assert answer.num_cached_tokens == house.requests[1].num_cached_tokens == (16 if caching else 0)
    assert answer.why == ("all" if caching else "off")


def test_it_says_why_no_more_was_found() -> None:
    house = build(blocks=12)
    house.add([*range(1, 11)], 1)  # two full blocks and a half
    house.add([*range(1, 9), 30, 31, 32, 33, 34], 1, cache_root=salted("mine"))
    house.run()
    tree = PrefixTree(house.trace)
    words = {
        "token": ([*range(1, 7), 40, 41, 42], "", "A different token at position 6"),
        "not full": ([*range(1, 15)], "", "its last block is not full"),
        "elsewhere": ([*range(1, 9), 30, 31, 32, 33, 35], "", "which has another salt"),
        "all": ([*range(1, 9), 9], "", "the last token is always computed"),
        "new": ([40] * 9, "nobody", "Nothing in the cache begins like this"),
    }
    for why, (prompt, salt, said) in words.items():
        answer = tree.ask(prompt, salt)
        assert answer.why == why
        tree.prompt.value, tree.salt.value = " ".join(map(str, prompt)), salt
        assert said in tree.static()
    answer = tree.ask([*range(1, 7), 40, 41, 42])
    assert (answer.num_cached_tokens, answer.parts_at, answer.there) == (4, 6, 7)
    assert tree.ask([*range(1, 15)]).parts_at == 10


def test_it_says_when_a_prefix_was_evicted_and_finds_it_in_the_steps_before() -> None:
    house = build(blocks=6)
    house.add([1, 2, 3, 4, 5], 1)
    house.run()
    house.add([9] * 23, 1)  # needs every block
    house.run()
    tree = PrefixTree(house.trace)
    steps = house.trace.columns.blocks
    (line,) = np.flatnonzero(steps["event"] == "evicted")
    answer = tree.ask([1, 2, 3, 4, 6])
    assert (answer.why, answer.step, answer.who) == ("evicted", steps["step"][line], "1")
    tree.prompt.value = "1 2 3 4 6"
    assert f"evicted at step {answer.step}, taken by request 1" in tree.static()
    tree.selection.select(step=0)
    assert tree.ask([1, 2, 3, 4, 6]).num_cached_tokens == 4
    assert "in step 0" in tree.static()
    assert house.engine.scheduler.forget_prefixes()
    tree.selection.select(step=None)
    assert tree.ask([9] * 9).why == "withdrawn"
    assert tree.ask([9] * 9).reason == "cache reset"


def crowded() -> House:
    house = build(budget=40, blocks=400, rows=12)
    for number in range(60):
        house.add([1] * 8 + [2 + number % 5] * 8 + [10 + number % 12] * 6, 3, ignore_eos=True)
        house.run()
    return house


def tree_of(house: House) -> tuple[PrefixTree, Findable, Runs]:
    tree = PrefixTree(house.trace)
    cache = tree._cache(None)
    found = tree._log.findable()
    parents = tree._log.parents(found.keys, tree._sequences, cache.chains)
    return tree, found, runs(found, parents, tree._log.depths(found.lines, BLOCK_SIZE))


def test_runs_hold_every_findable_block_and_every_hit() -> None:
    house = crowded()
    tree, found, grown = tree_of(house)
    blocks = house.trace.columns.blocks
    assert grown.blocks.sum() == house.engine.scheduler.cache.pool.num_cached
    assert found.hits.sum() == (blocks["event"] == "reused").sum()
    top = grown.parent == -1
    assert grown.below[top].sum() == grown.blocks.sum()
    assert grown.found[top].sum() == found.hits.sum()
    for line, parent in enumerate(grown.parent.tolist()):
        begin = 0 if parent == -1 else grown.begin[parent] + grown.blocks[parent]
        assert grown.begin[line] == begin
    assert grown.hits.tolist() == sorted(grown.hits.tolist(), reverse=True)  # a tail never more than its head
    for most in (1, 5, 1000):
        drawn = rows(grown, most)
        assert sum(row.blocks for row in drawn) == grown.blocks.sum()
        assert sum(row.run is not None for row in drawn) == min(most, len(grown.first))
    assert "60" not in repr(tree)  # its words are of blocks


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("every", [1, 40])
def test_parents_by_the_order_of_the_lines_are_those_of_the_tokens_hashes(
    seed: int, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    groups = FULL_AND_SLIDING if seed == 3 else (KVGroup((0,)),)
    house = build(budget=24, blocks=50 * len(groups), rows=6, depth=seed % 2, groups=groups)
    tree = PrefixTree(house.trace)
    for number in range(60):
        house.add(some_prompt(house, chance), chance.randint(1, 20), cache_root=salted("a" * (number % 2)))
        house.engine.advance()
        if number % every == 0:
            tree.refresh()  # what is told so far is followed
    house.run()
    tree.refresh()
    log, chains = tree._log, tree._cache(None).chains
    keys = np.flatnonzero(log._groups == 0)
    followed = log.parents(keys, tree._sequences, chains)
    monkeypatch.setattr(PrefixLog, "_follow", lambda *_: None)
    log._parents[:] = NOT_ASKED
    hashed = log.parents(keys, tree._sequences, chains)
    assert (followed >= 0).sum() > 20
    assert (followed == ROOT).any()
    assert followed.tolist() == hashed.tolist()


def test_texts_from_the_root_on_are_the_prompts() -> None:
    house = crowded()
    tree, _, grown = tree_of(house)
    prompts = [request.token_ids.tolist() for request in house.requests]
    for line in range(len(grown.first)):
        place, position = tree._log.writer(int(grown.last[line]), tree._sequences)
        tokens = tree._sequences.of(place)[: position + BLOCK_SIZE].tolist()
        assert any(prompt[: len(tokens)] == tokens for prompt in prompts)
    text = " ".join(["t1"] * 8)
    assert text in tree.static()


def test_a_click_shows_what_goes_on_from_a_run() -> None:
    tree, _, grown = tree_of(crowded())
    whole = tree.static()
    child = int(grown.first[grown.parent == 0][0])
    tree._pick.value = f"run:{child}"
    part = tree.static()
    assert part.count("data-pick") < whole.count("data-pick")
    assert f'data-pick="run:{child}"' in part
    tree.all.click()
    assert tree.static() == whole


def test_what_is_behind_an_evicted_prefix_is_told_apart() -> None:
    found = Findable(np.array([4, 7, 9]), np.array([1, 1, 0]), np.zeros(3, np.int64))
    grown = runs(found, np.array([-1, 5, 7]), np.array([0, 2, 3]))
    assert grown.parent.tolist() == [-1, -2, 1]
    assert [row.run for row in rows(grown, 9)] == [0, 1, 2]


def test_texts_and_typed_prompts_are_escaped() -> None:
    house = build()
    house.trace._decode = lambda ids: "<img src=x>" * len(ids)
    house.add([1] * 9, 2)
    house.run()
    tree = PrefixTree(house.trace)
    tree.prompt.value = "1 1 1 1 2 2"
    assert "<img" not in tree.static()
    assert "&lt;img" in tree.static()
    tree.prompt.value = "<b>no ids</b>"
    assert "<b>" not in tree.static()
    assert "this trace has no tokenizer: type token ids" in tree.static()
    tree.prompt.value = "-1 5000000000000"
    assert 'class="message"' in tree.static()


@pytest.mark.parametrize("size", [1, 9, 99, 100, 105, 999, 1000, 16384, 100_000])
def test_no_value_of_the_axis_runs_into_what_it_is_called(size: int) -> None:
    marks = re.findall(r'class="tick" x="([\d.]+)" y="11">([^<]+)<', _axis(Scale(0, size, BEGIN, END), 40))
    assert marks
    assert all(float(x) + 3.5 * len(text) < NAME for x, text in marks)  # 11 px digits are under 7 px wide


def test_half_of_a_surrogate_pair_is_refused_in_words_that_can_be_shown() -> None:
    with LLM("zoo/wren-1m", max_model_len=128) as llm:
        llm.generate("Once", SamplingParams(max_tokens=1), use_tqdm=False)
        tree = PrefixTree(llm)
        tree.prompt.value = "Once \ud800"
        assert "half of a surrogate pair" in tree.static()
        assert tree.static().encode()
        tree.prompt.value, tree.salt.value = "Once", "\ud800"
        assert "0 of 2 tokens would be reused" in tree.static()


def test_a_trace_that_does_not_say_how_keys_are_made_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    house = crowded()
    tree = PrefixTree(house.trace)
    monkeypatch.setattr(type(tree.feed), "config", property(lambda feed: {}))
    tree.refresh()
    assert "does not say how keys are made" in tree.static()
    with pytest.raises(ValueError, match="does not say how keys are made"):
        tree.ask([1, 2])


def test_a_trace_that_began_later_says_how_many_blocks_it_knows_nothing_of() -> None:
    house = build(blocks=60)
    house.add([1] * 17, 1)
    house.run()
    with house.trace.record() as later:
        house.add([2] * 9, 1)
        house.run()
        house.add([3] * 3, 1)
        house.run()
    assert "4 blocks can be found of which it says nothing" in PrefixTree(later).static()
    assert "of which it says nothing" not in PrefixTree(house.trace).static()


def test_the_pages_picture_is_the_widgets() -> None:
    trace = crowded().trace
    assert picture(trace.columns, trace.decode) in PrefixTree(trace).static()
    assert picture(Trace().columns) == ""


def test_100000_findable_blocks_are_drawn_within_50_ms() -> None:
    blocks = np.arange(100_000)
    depths = blocks % 20  # 5,000 chains, which share their first two blocks by hundreds
    parents = np.where(depths, blocks - 1, -1)
    parents[depths == 2] = blocks[depths == 2] // 2_000 * 2_000 + 1
    found = Findable(blocks, (20 - depths) // 5, blocks)
    grown = runs(found, parents, depths)
    assert grown.blocks.sum() == len(blocks)
    assert best_of_three(lambda: rows(runs(found, parents, depths), 20)) < UPDATE_S


# --- on a real engine -----------------------------------------------------------------------------------

STEM = "Write a story about a young owl named Ella who lives in an old barn at the edge of the forest. "


def test_on_an_engine_text_and_salts_are_found_as_it_says_and_on_its_recording_too(tmp_path: Path) -> None:
    params, why = SamplingParams(max_tokens=6), Counter[str]()
    chance = random.Random(5)
    with LLM("zoo/wren-1m", block_size=4, num_gpu_blocks_override=36, max_model_len=128) as llm:
        tree = PrefixTree(llm)
        with llm.trace.record(tmp_path / "run") as recorded:
            for number in range(24):
                if number % 4 != 3:  # else the same again
                    text = STEM[: chance.randint(0, len(STEM))] + chance.choice(["One day", "At night"])
                salt = chance.choice(["", "", "alice"])
                prompt = {"prompt": text, "cache_salt": salt} if salt else text
                if number:
                    answer = tree.ask(text, salt)
                    why[answer.why] += 1
                (output,) = llm.generate([prompt], params, use_tqdm=False)
                if number:
                    assert answer.num_cached_tokens == output.num_cached_tokens, (number, answer)
        tokenizer = llm.get_tokenizer()
        now = tree.ask(STEM)
    assert why.keys() >= {"all", "token", "evicted"}
    assert recorded.cut_off is None
    saved = PrefixTree(Trace.load(tmp_path / "run"), tokenizer=tokenizer)
    assert saved.ask(STEM).num_cached_tokens == now.num_cached_tokens > 0
    assert "young owl" in saved.static()
    (alone,) = linked(Trace.load(tmp_path / "run"), PrefixTree)
    alone.prompt.value = STEM
    assert "this trace has no tokenizer" in alone.static()

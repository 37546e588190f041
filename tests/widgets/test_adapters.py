"""Colours and questions by LoRA adapter: they add up, are alike everywhere, and say what the engine does."""

from __future__ import annotations

import random
import re
from collections import Counter
from html import unescape

import numpy as np
import pytest

from tests.trace.house import House, build
from workbench.cache.hashing import hash_function, root_key
from workbench.trace import Trace
from workbench.trace.pictures import cache_cells, cache_map, theme, token_budget
from workbench.trace.pictures.adapter_colours import FURTHER, Colours, colours_of
from workbench.trace.pictures.block_history import FREE, BlockHistory
from workbench.trace.pictures.cache_cells import Cells
from workbench.widgets import CacheMap, PrefixTree, TokenBudget, linked

NAMES = ("poet", "<thief>", "cook")
BLOCKS = 60


def root_of(adapter: int | None, salt: str = "") -> bytes:
    extra = (("salt", salt) if salt else ()) + (() if adapter is None else ("adapter", adapter))
    return root_key(hash_function("sha256"), extra)


def busy(requests: int = 24, adapters: tuple[str, ...] = NAMES) -> House:
    house = build(budget=14, blocks=BLOCKS, adapters=adapters, max_loras=2)
    for place in range(requests):
        adapter = (None, *range(len(adapters)))[place % (len(adapters) + 1)]
        house.add([1] * 9 + [place] * (place % 7), 9, adapter=adapter, cache_root=root_of(adapter))
    return house


@pytest.mark.parametrize("most", [token_budget.MOST_BARS, 7])
def test_bars_by_adapter_add_up(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_budget, "MOST_BARS", most)
    tables = busy().run().trace.columns
    colours = colours_of(tables.requests)
    assert colours is not None
    window = slice(3, 30)
    found = token_budget.bars(tables.steps, tables.step_requests, window, colours)
    shown = np.isin(tables.step_requests["step"], tables.steps["step"][window])
    sizes = found.last - found.first + 1
    for name, kind in colours.classes.items():
        mine = shown & (tables.step_requests["adapter"] == name)
        expected = tables.step_requests["scheduled"][mine].sum()
        assert expected > 0
        assert np.isclose((found.tokens[kind] * sizes).sum(), expected)
        if found.by_request:
            drawn = sum(s.tokens for segments in found.segments for s in segments if s.colour == kind)
            assert drawn == expected
    svg = token_budget.draw(found)
    assert "prefill" not in re.sub(r"<title>.*?</title>", "", svg, flags=re.S)


def test_a_blocks_colour_is_its_holders_adapter() -> None:
    house = busy(8)
    for _ in range(4):
        house.engine.advance()
    tables = house.trace.columns
    history = BlockHistory()
    history.take(tables.blocks, tables.steps)
    found = cache_cells.cells(history.at())
    colours = colours_of(tables.requests)
    assert colours is not None
    owned = cache_cells.owners(found, tables.blocks, tables.requests, colours)
    said, seen = owned.by_label(len(found.first)), set()
    for request in house.requests:
        for block in request.tables.blocks[0]:
            name = None if request.adapter is None else NAMES[request.adapter]
            assert said[int(block) - 1] == {name or "base model": 1}
            seen.add(name)
    assert len(seen) > 2
    svg = cache_map.draw(found, tables.blocks, owned=owned)
    assert all(f'<path class="{colours.classes[name]}"' in svg for name in seen)
    assert 'class="held"' not in svg


def in_cells(house: House, size: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Cells, Colours, str]:
    """The map of a house's blocks by adapter, with so many blocks in a cell."""
    monkeypatch.setattr(cache_cells, "MOST_CELLS", BLOCKS // size)
    tables, history = house.trace.columns, BlockHistory()
    history.take(tables.blocks, tables.steps)
    found, colours = cache_cells.cells(history.at()), colours_of(tables.requests)
    assert colours is not None
    owned = cache_cells.owners(found, tables.blocks, tables.requests, colours)
    return found, colours, cache_map.draw(found, tables.blocks, owned=owned)


def hover_texts(svg: str) -> list[tuple[int, Counter[str], Counter[str]]]:
    """Of each cell: its blocks, those of each kind, and those of each adapter."""
    read = []
    for first, last, kinds, whose in re.findall(
        r"<title>blocks (\d+) to (\d+): (.*?)(?:; adapters: (.*?))?</title>", svg
    ):
        kinds = re.sub(r", (?=and)|, \d+ evicted.*| \(.*?\)", "", kinds)
        read.append((int(last) - int(first) + 1, _counted(kinds), _counted(whose)))
    return read


def _counted(said: str) -> Counter[str]:
    return Counter({name: int(count) for count, name in re.findall(r"(\d+) ([^,]+)", unescape(said))})


@pytest.mark.parametrize("size", [2, 5, 10])
@pytest.mark.parametrize("steps", [4, 30, None])
def test_counts_by_adapter_add_up_to_the_blocks_of_the_cell(
    size: int, steps: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = busy(24)
    if steps is None:
        house.run()
    for _ in range(steps or 0):
        house.engine.advance()
    found, _, svg = in_cells(house, size, monkeypatch)
    read, names = hover_texts(svg), house.trace.columns.blocks["request_id"]
    assert len(read) == BLOCKS // size
    for place, (blocks, kinds, whose) in enumerate(read):
        assert kinds.total() == blocks == size
        assert whose.total() == blocks - kinds["free"]
        expected = Counter[str]()
        for block in range(place * size, (place + 1) * size):
            if found.states.codes[block] != FREE:
                request = house.requests[int(names[found.states.lines[block]])]
                expected["base model" if request.adapter is None else NAMES[request.adapter]] += 1
        assert whose == expected
    assert max(len(whose) for _, _, whose in read) > 1


def strips(svg: str, kind: str) -> dict[tuple[float, float], tuple[float, float]]:
    """Width and height of what is drawn in this class, by its left and lower edge."""
    shape = r"M([\d.]+) ([\d.]+)h([\d.]+)v([\d.]+)"
    paths = "".join(re.findall(rf'<path class="{kind}"[^>]* d="([^"]+)"', svg))
    drawn = [tuple(map(float, each)) for each in re.findall(shape, paths)]
    return {(x, round(y + height, 1)): (width, height) for x, y, width, height in drawn}


@pytest.mark.parametrize("size", [2, 5])
def test_a_cell_is_its_adapters_colour_and_split_where_there_are_several(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, colours, svg = in_cells(busy(24).run(), size, monkeypatch)
    classes = {name or "base model": kind for name, kind in colours.classes.items()}
    drawn = {kind: strips(svg, kind) for kind in colours.kinds}
    frames = strips(svg, "frame")
    pure = mixed = 0
    for ((left, foot), (room, _)), (blocks, _, whose) in zip(frames.items(), hover_texts(svg), strict=True):
        mine = {
            kind: size
            for kind, cells in drawn.items()
            for (x, y), size in cells.items()
            if left - 0.05 <= x < left + room and abs(y - foot) < 0.2
        }
        assert mine.keys() == {classes[name] for name in whose}
        pure, mixed = pure + (len(whose) == 1), mixed + (len(whose) > 1)
        for name, count in whose.items():
            width, height = mine[classes[name]]
            assert width == pytest.approx(room * count / whose.total(), abs=0.1)
            assert height == pytest.approx(room * whose.total() / blocks, abs=0.1)
    assert pure > 1
    assert mixed > 2
    assert 'class="stripes"' in svg  # findable ones
    assert found.counts[:, cache_cells.CACHED_KIND].any()


def test_a_cell_with_more_adapters_than_colours_names_some_and_counts_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = tuple(f"a{number}" for number in range(9))
    house = busy(20, names).run()
    _, colours, svg = in_cells(house, BLOCKS, monkeypatch)
    said = re.search(r"; adapters: (.*?)</title>", svg)
    assert said is not None
    shown = [int(count) for count in re.findall(r"(\d+) (?:a\d|base model|of \d+ more)", said[1])]
    assert len(shown) == cache_map.MOST_NAMED + 1
    assert re.search(r" of [3-6] more$", said[1])
    ((blocks, kinds, _),) = hover_texts(svg)
    assert sum(shown) == blocks - kinds["free"]
    monkeypatch.setattr(cache_map, "MOST_NAMED", 99)
    ((_, _, whose),) = hover_texts(in_cells(house, BLOCKS, monkeypatch)[2])
    further = sum(count for name, count in whose.items() if colours.classes.get(name) == FURTHER)
    ((width, _),) = strips(svg, FURTHER).values()
    ((room, _),) = strips(svg, "frame").values()
    assert further > 7
    assert width == pytest.approx(room * further / whose.total(), abs=1)


def test_whose_blocks_are_that_were_given_before_the_trace_began_is_not_told() -> None:
    house = busy(24)
    for _ in range(6):
        house.engine.advance()
    with house.trace.record() as later:
        house.run()
    first, last = later.columns.steps["step"][[0, -1]].tolist()
    widget = CacheMap(later)
    widget.colour.choice.value = "adapter"
    assert "not told" not in widget.static()
    widget.selection.select(step=first)
    assert ", adapter not told</title>" in widget.static()
    assert re.search(r'"untold"></i>the trace does not say whose: [1-9]', widget.static())
    assert strips(widget.static(), "untold")
    widget.selection.select(step=last)
    assert "not told" not in widget.static()


def test_an_adapter_has_one_colour_in_all_widgets_and_names_are_escaped() -> None:
    budget, blocks = linked(busy().run().trace, TokenBudget, CacheMap)
    for widget in (budget, blocks):
        assert widget.colour.control.layout.display is None
        plain = widget.static()
        widget.colour.choice.value = "adapter"
        said = dict(re.findall(r'<i class="(adapter\d|base)"></i>(.*?)</span>', widget.static()))
        assert not re.search(r'class="(held|cached|prefill|decode)\b', widget.static()), (
            "another kind's colour"
        )
        assert said == {
            "base": "base model", "adapter0": "poet", "adapter1": "&lt;thief&gt;", "adapter2": "cook",
        }  # fmt: skip
        widget.colour.choice.value = "kind"
        assert widget.static() == plain


def test_adapters_beyond_the_sixth_share_a_colour() -> None:
    names = tuple(f"a{number}" for number in range(9))
    colours = colours_of(busy(20, names).run().trace.columns.requests)
    assert colours is not None
    assert len(set(colours.kinds)) == 8
    assert colours.legend[-1] == ("further", "3 further adapters")


@pytest.mark.parametrize("colours", [theme.LIGHT, theme.DARK], ids=["light", "dark"])
def test_no_two_adapters_look_alike(colours: dict[str, str]) -> None:
    """To readers who see one colour less, too: by distance in what is left (Viénot et al. 1999)."""
    kinds = ("base", *theme.ADAPTERS)
    values = np.array([[int(colours[kind][at : at + 2], 16) / 255 for at in (1, 3, 5)] for kind in kinds])
    linear = values**2.2
    for seen in (np.eye(3), *DICHROMATS):
        values = np.clip(linear @ np.array(seen).T, 0, 1) ** (1 / 2.2)
        apart = np.linalg.norm(values[:, None] - values[None], axis=-1)
        assert apart[np.triu_indices(len(kinds), 1)].min() > 0.1


# Of linear RGB to what protanopes and deuteranopes tell apart: Viénot, Brettel and Mollon (1999), table 2's
# matrices multiplied out.
DICHROMATS = (
    [[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]],
    [[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]],
)


@pytest.mark.parametrize("seed", range(3))
def test_what_the_tree_says_an_adapter_would_find_is_what_the_engine_reuses(seed: int) -> None:
    chance = random.Random(seed)
    house = build(budget=24, blocks=60, adapters=NAMES, max_loras=2)
    for adapter in (None, 0, 1, 2):
        house.add([1] * 9, 2, adapter=adapter, cache_root=root_of(adapter))
    house.run()
    tree = PrefixTree(house.trace)
    for number in range(15):
        adapter, salt = chance.choice([None, 0, 1, 2]), chance.choice(["", "", "mine"])
        prompt = [1] * chance.randint(3, 12) + [2] * chance.randint(0, 9)
        answer = tree.ask(prompt, salt, None if adapter is None else NAMES[adapter])
        request = house.add(prompt, 2, adapter=adapter, cache_root=root_of(adapter, salt))
        house.run()
        assert answer.num_cached_tokens == request.num_cached_tokens, (number, answer)


def test_the_tree_says_that_another_adapter_has_it() -> None:
    house = build(adapters=NAMES)
    house.add([1] * 12, 1, adapter=0, cache_root=root_of(0))
    house.add([2] * 12, 1, adapter=1, cache_root=root_of(1))
    house.run()
    tree = PrefixTree(house.trace)
    tree.prompt.value = "1 " * 12
    assert "not without a salt:" in tree.static()
    tree.adapter.choice.value = "<thief>"
    assert "not without a salt, for the adapter &lt;thief&gt;:" in tree.static()
    tree.adapter.choice.value = "poet"
    assert "8 of 12 tokens would be reused" in tree.static()
    with pytest.raises(ValueError, match="no request of the trace has the adapter 'cook': there are poet"):
        tree.ask([1], adapter="cook")


def test_without_adapters_nothing_is_asked_about_them() -> None:
    house = build()
    house.add([1] * 9)
    trace: Trace = house.run().trace
    for widget in linked(trace, TokenBudget, CacheMap):
        assert widget.colour.control.layout.display == "none"
        widget.colour.choice.value = "adapter"
        assert "<svg" in widget.static()
    assert PrefixTree(trace).adapter.control.layout.display == "none"

"""What commands write: aligned tables, a block redrawn in place on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io

import pytest

from workbench.console import Live, format_table, say


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_numbers_stand_to_the_right_and_words_to_the_left() -> None:
    assert format_table(("name", "n"), [("a", 5), ("long", 1200)]) == [
        "name     n",
        "────  ────",
        "a        5",
        "long  1200",
    ]


def test_a_table_without_rows_is_its_header() -> None:
    assert format_table(("a", "bb"), []) == ["a  bb", "─  ──"]


def test_a_terminal_block_is_redrawn_over_itself() -> None:
    stream = Terminal()
    with Live(stream) as live:
        live.show(["one", "two"], plain="plain")
        first = stream.getvalue()
        live.show(["three"], plain="plain")
    second = stream.getvalue().removeprefix(first)
    assert "\x1b[2A" not in first
    assert second.startswith("\x1b[2A")  # up over the two lines
    assert second.endswith("three\n\x1b[J")  # and what is left of them is erased
    assert "plain" not in stream.getvalue()


def test_a_block_is_cut_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("LINES", "10")
    stream = Terminal()
    live = Live(stream)
    live.show(["x" * 100] * 30)
    assert stream.getvalue().count("x") == 19 * 9
    live.show(["y"])
    assert "\x1b[9A" in stream.getvalue()


def test_without_a_terminal_there_are_plain_lines_only() -> None:
    stream = io.StringIO()
    with Live(stream) as live:
        live.show(["block"], plain="now")
        live.show(["block"])
    assert stream.getvalue() == "now\n"


def test_lines_go_where_they_are_sent(capsys: pytest.CaptureFixture[str]) -> None:
    say("a", "b")
    stream = io.StringIO()
    say("c", to=stream)
    assert (capsys.readouterr().out, stream.getvalue()) == ("a\nb\n", "c\n")

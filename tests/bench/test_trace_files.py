"""Traces in their own formats: read to the letter, refused with the place, scaled in proportion."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from workbench.bench.trace_files import Logged, prompts_of, read_trace, scale_into

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def azure(folder: Path, *lines: str) -> Path:
    path = folder / "t.csv"
    path.write_text(AZURE + "\n".join(lines) + "\n")
    return path


def mooncake(folder: Path, *entries: object) -> Path:
    path = folder / "t.jsonl"
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in entries) + "\n")
    return path


def entry(at_ms: int, length: int, out: int, blocks: list[int]) -> dict[str, object]:
    return {"timestamp": at_ms, "input_length": length, "output_length": out, "hash_ids": blocks}


def test_azures_times_count_from_the_first_request(tmp_path: Path) -> None:
    path = azure(tmp_path, "2023-11-16 18:15:46.6805900,374,44", "2023-11-16 18:15:50.9951690,396,109")
    first, second = read_trace(path)
    assert first == Logged(0.0, 374, 44, None)
    assert second.at_s == pytest.approx(4.314579, abs=1e-6)
    assert (second.prompt_tokens, second.output_tokens) == (396, 109)


def test_mooncakes_blocks_come_with_their_requests(tmp_path: Path) -> None:
    path = mooncake(tmp_path, entry(2000, 513, 5, [0, 1]), entry(1000, 512, 0, [0]))
    assert read_trace(path) == [Logged(0.0, 512, 1, (0,)), Logged(1.0, 513, 5, (0, 1))]


def test_only_the_first_seconds_are_read_where_asked_for(tmp_path: Path) -> None:
    path = mooncake(tmp_path, *(entry(1000 * n, 10, 1, [n]) for n in range(5)))
    assert len(read_trace(path, seconds=3)) == 3


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("yesterday,1,2", "line 3.*yesterday"),
        ("2023-11-16 18:15:46.68,many,2", "line 3.*many"),
        ("2023-11-16 18:15:46.68,0,2", "line 3.*0 prompt"),
        ("2023-11-16 18:15:46.68,4", "line 3"),
    ],
)
def test_a_malformed_line_of_azures_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = azure(tmp_path, "2023-11-16 18:15:46.6805900,374,44", line)
    with pytest.raises(ValueError, match=said):
        read_trace(path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2"),
        ("[1]", "line 2.*timestamp, input_length"),
        ({"timestamp": 1}, "line 2.*timestamp, input_length"),
        (entry(1, 512, 1, [1, 2]), "line 2.*2 hash_ids for 512 tokens"),
        (entry(1, -4, 1, []), "line 2"),
        (entry(1, 4, -1, [1]), "line 2.*-1 output"),
    ],
)
def test_a_malformed_line_of_mooncakes_is_named(tmp_path: Path, line: object, said: str) -> None:
    path = mooncake(tmp_path, entry(0, 10, 1, [0]), line)
    with pytest.raises(ValueError, match=said):
        read_trace(path)


def test_unknown_columns_endings_and_empty_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "none.csv").write_text(AZURE)
    (tmp_path / "t.parquet").write_text("")
    for name, said in (("other.csv", "columns"), ("none.csv", "no request"), ("t.parquet", "Azure")):
        with pytest.raises(ValueError, match=said):
            read_trace(tmp_path / name)
    with pytest.raises(OSError, match="gone"):
        read_trace(tmp_path / "gone.csv")


def test_scaled_requests_fit_and_keep_their_proportions() -> None:
    logged = [Logged(0, 6000, 2000, None), Logged(1, 3000, 1000, None), Logged(2, 1, 1, None)]
    scaled = scale_into(logged, 1000)
    assert all(one.prompt_tokens + one.output_tokens <= 1000 for one in scaled.requests)
    assert scaled.requests[0].prompt_tokens == pytest.approx(2 * scaled.requests[1].prompt_tokens, abs=1)
    assert scaled.requests[2][1:3] == (1, 1)
    assert scale_into(logged, 100_000).factor == 1


def test_prompts_share_exactly_the_blocks_that_the_trace_says_they_share() -> None:
    logged = [Logged(0, 1300, 5, (7, 8, 9)), Logged(1, 1400, 5, (7, 8, 4)), Logged(2, 600, 5, (3, 8))]
    scaled = scale_into(logged, 200)
    first, second, third = prompts_of(scaled, 50_000)
    block = scaled.block_tokens
    assert first[: 2 * block] == second[: 2 * block]
    assert first[2 * block] != second[2 * block]
    assert third[:block] != first[:block]
    assert third[block:] == first[block : block + len(third) - block]  # block 8, as far as it goes
    assert [len(prompt) for prompt in (first, second, third)] == [
        request.prompt_tokens for request in scaled.requests
    ]


def test_a_context_too_small_even_for_one_token_a_block_is_refused() -> None:
    with pytest.raises(ValueError, match="max_model_len is 20"):
        scale_into([Logged(0, 512 * 40, 1, tuple(range(40)))], 20)

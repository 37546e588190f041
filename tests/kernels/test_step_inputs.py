"""A step's inputs on the device: the kernels and their references against plain Python loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from workbench.kernels.step_inputs import kernel, reference

BLOCK_SIZE = 8
POISON = -77


class Scene:
    """A batch of 12 rows of up to 64 tokens in two KV groups, some of which take part in a step."""

    def __init__(self, counts: list[int], padding_requests: int, num_tokens: int) -> None:
        rng = np.random.default_rng(sum(counts) + num_tokens)
        used = len(counts)
        self.rows = np.r_[rng.permutation(12)[:used], [-1] * padding_requests].astype(np.int32)
        self.counts = np.r_[counts, [0] * padding_requests].astype(np.int32)
        self.starts = np.array([rng.integers(0, 64 - c + 1) for c in self.counts], np.int32)
        self.begins = np.r_[0, np.cumsum(self.counts)].astype(np.int32)
        self.tokens = rng.integers(1, 1000, (12, 64), dtype=np.int32)
        self.tables = tuple(rng.integers(1, 99, (12, 8), dtype=np.int32) for _ in range(2))
        self.num_tokens = num_tokens

    def run(self, lay_out, device) -> list[list[int]]:
        def put(array):
            return torch.from_numpy(array).to(device)

        out = [torch.full((self.num_tokens,), POISON, dtype=torch.int64, device=device) for _ in range(4)]
        lay_out(
            put(self.rows),
            put(self.starts),
            put(self.begins),
            put(self.tokens),
            tuple(put(t) for t in self.tables),
            BLOCK_SIZE,
            out[0],
            out[1],
            (out[2], out[3]),
        )
        return [column.tolist() for column in out]

    def expected(self) -> list[list[int]]:
        lines = []
        for row, start, count in zip(self.rows, self.starts, self.counts, strict=True):
            for position in range(start, start + count):
                slots = [int(t[row, position // 8]) * 8 + position % 8 for t in self.tables]
                lines.append([int(self.tokens[row, position]), int(position), *slots])
        lines += [[0, 0, 0, 0]] * (self.num_tokens - len(lines))
        return [list(column) for column in zip(*lines, strict=True)]


@pytest.mark.parametrize("lay_out", [kernel.lay_out, reference.lay_out], ids=["kernel", "reference"])
@pytest.mark.parametrize(
    ("counts", "padding", "num_tokens"),
    [
        ([1], 0, 1),
        ([1] * 5, 3, 8),
        ([3, 1, 40, 7], 0, 51),
        ([64, 64, 64], 5, 200),
        ([2, 5], 6, 300),
        ([], 4, 9),
    ],
)
def test_a_step_is_laid_out_request_after_request_and_padded_with_the_null_block(
    lay_out, counts, padding, num_tokens, device
):
    scene = Scene(counts, padding, num_tokens)
    assert scene.run(lay_out, device) == scene.expected()


@pytest.mark.parametrize("append", [kernel.append, reference.append], ids=["kernel", "reference"])
def test_sampled_tokens_are_written_at_their_rows_lengths_and_negative_rows_are_skipped(append, device):
    tokens = torch.full((200, 9), POISON, dtype=torch.int32, device=device)
    rows = torch.randperm(200)[:150].to(torch.int32)
    rows[::7] = -1
    lengths, ids = torch.randint(0, 9, (150,), dtype=torch.int32), torch.randint(0, 2**17, (150,))
    append(tokens, rows.to(device), lengths.to(device), ids.to(device))
    expected = torch.full((200, 9), POISON, dtype=torch.int32)
    for row, length, token in zip(rows.tolist(), lengths.tolist(), ids.tolist(), strict=True):
        if row >= 0:
            expected[row, length] = token
    assert torch.equal(tokens.cpu(), expected)


@pytest.mark.parametrize("grow", [kernel.apply_growth, reference.apply_growth], ids=["kernel", "reference"])
def test_growth_lands_in_its_groups_table_and_negative_rows_are_skipped(grow, device):
    tables = tuple(torch.full((150, 6), POISON, dtype=torch.int32, device=device) for _ in range(2))
    rows = torch.stack([torch.randperm(150)[:140] for _ in tables]).to(torch.int32)
    rows[0, 100:] = -1
    rows[1, ::3] = -1
    places, blocks = (torch.randint(0, high, (2, 140), dtype=torch.int32) for high in (6, 10_000))
    grow(tables, rows.to(device), places.to(device), blocks.to(device))
    for group, table in enumerate(tables):
        expected = torch.full((150, 6), POISON, dtype=torch.int32)
        for row, place, block in zip(*(c[group].tolist() for c in (rows, places, blocks)), strict=True):
            if row >= 0:
                expected[row, place] = block
        assert torch.equal(table.cpu(), expected)


def test_tables_of_different_shapes_are_refused():
    one, two = (torch.zeros((2, n), dtype=torch.int32) for n in (3, 4))
    with pytest.raises(ValueError, match=r"\(2, 3\), \(2, 4\)"):
        kernel.lay_out(one[0], one[0], one[0], one, (one, two), 8, one[0], one[0], (one[0], one[0]))

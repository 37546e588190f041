"""Sampling: survivors and draws are the reference's, whatever the mix of rows, the ties and the room."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from workbench.kernels.sample import adjust, kernel, reference
from workbench.kernels.sample.reference import IN_PROMPT, Adjusted, Adjustments, Options
from workbench.kernels.sample.spec import KINDS

VOCAB = 700
NEVER = float("-inf")


def make_options(rows: int, device: torch.device, seed: int = 0, **columns: object) -> Options:
    """Temperature 0.9 and no cut-offs, but for the columns given: numbers, lists or tensors."""
    generator = torch.Generator().manual_seed(seed)
    seeds = torch.randint(-(2**62), 2**62, (rows,), generator=generator)
    positions = torch.randint(0, 10**6, (rows,), generator=generator)
    values = {
        "temperature": 0.9,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "seeds": seeds,
        "positions": positions,
    }
    whole = ("top_k", "seeds", "positions")

    def column(name: str, value: object) -> Tensor:
        dtype = torch.int64 if name in whole else torch.float32
        return torch.as_tensor(value, dtype=dtype).expand(rows).contiguous().to(device)

    return Options(**{name: column(name, value) for name, value in (values | columns).items()})


def make_logits(rows: int, device: torch.device, spread: float = 2.0, dtype=torch.float16) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    return (torch.randn(rows, VOCAB, generator=generator) * spread).to(device, dtype)


def expected(logits: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """Shaped logits and draws of the reference, in float64."""
    shaped = reference.shape_logits(logits.double(), options)
    return shaped, reference.draw(shaped, options)


def check(logits: Tensor, options: Options, candidates: int = kernel.CANDIDATES) -> None:
    workspace = kernel.make_workspace(*logits.shape, logits.device, candidates)
    drawn = kernel.sample(logits, options, workspace=workspace)
    lines = torch.arange(len(logits), device=logits.device)
    found = adjust.shape_rows(logits, options, lines, workspace.bounds)
    shaped, wanted = expected(logits, options)
    kept, stays = found > NEVER, shaped > NEVER
    assert torch.equal(kept, stays), f"{(kept != stays).sum(-1).tolist()} survivors differ, by row"
    torch.testing.assert_close(found[kept].double(), shaped[kept], rtol=1e-5, atol=1e-6)
    assert drawn.tolist() == wanted.tolist()


@pytest.mark.parametrize("candidates", [kernel.CANDIDATES, 16], ids=["room", "no room"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_survivors_and_draws_are_the_references(dtype: torch.dtype, candidates: int, device: torch.device):
    options = make_options(
        10,
        device,
        temperature=[0.9, 0.0, 0.9, 1.5, 0.3, 0.9, 0.9, 1.0, 0.9, 1.0],
        top_k=[0, 0, 1, 7, 300, 0, 0, 40, 10**6, 699],
        top_p=[1, 0.5, 1, 0.9, 0.5, 0.95, 0.3, 0.999, 0.8, 1],
        min_p=[0, 0.5, 0, 0, 0.01, 0, 0.05, 0.2, 0, 0],
    )
    check(make_logits(10, device, dtype=dtype), options, candidates)


@pytest.mark.parametrize("candidates", [kernel.CANDIDATES, 16], ids=["room", "no room"])
def test_of_tokens_that_tie_at_a_cut_the_lowest_ids_stay(candidates: int, device: torch.device):
    logits = (make_logits(8, device, spread=1.0) * 2).round() / 2  # a dozen values, zeros of both signs too
    options = make_options(
        8, device, top_k=[3, 50, 400, 0, 0, 0, 60, 5], top_p=[1, 1, 1, 0.9, 0.4, 0.05, 0.7, 0.7]
    )
    check(logits, options, candidates)


def test_a_row_of_one_value_keeps_the_first_tokens(device: torch.device):
    check(
        torch.ones(3, VOCAB, device=device).half(),
        make_options(3, device, top_k=[5, 0, 100], top_p=[1, 0.2525, 0.505]),
    )


def test_masked_tokens_are_never_drawn(device: torch.device):
    logits = make_logits(6, device)
    logits[:, 2:] = NEVER
    logits[3:, 0] = NEVER  # one token left
    options = make_options(6, device, top_k=[0, 5, 0, 0, 5, 0], top_p=[1, 0.9, 0.9, 1, 1, 0.9])
    check(logits, options)
    assert kernel.sample(logits, options)[3:].tolist() == [1, 1, 1]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of the interpreter
@pytest.mark.parametrize("nothing", [float("nan"), NEVER])
def test_a_row_without_a_winner_still_gives_a_token_of_the_vocabulary(nothing: float, device: torch.device):
    logits = torch.full((5, VOCAB), nothing, device=device)
    cuts = {"temperature": [0.0, 0.9, 0.9, 0.9, 0.9], "top_k": [0, 0, 5, 0, 0], "min_p": [0, 0, 0, 0, 0.1]}
    options = make_options(5, device, top_p=[1, 1, 1, 0.9, 1], **cuts)
    assert all(0 <= token < VOCAB for token in kernel.sample(logits, options).tolist())


def test_the_sharpest_cuts_leave_the_largest_logit(device: torch.device):
    logits = make_logits(4, device)
    options = make_options(4, device, top_k=[1, 0, 0, 0], top_p=[1, 0, 1e-6, 1], min_p=[0, 0, 0, 1])
    assert kernel.sample(logits, options).tolist() == logits.argmax(-1).tolist()


def test_a_winner_that_the_first_pass_did_not_single_out_is_found(device: torch.device):
    """With few likely tokens, noise near its end is bounded badly: many rows have to be raced again."""
    logits = make_logits(60, device)
    logits[:, 60:] = -30
    options = make_options(60, device, temperature=4.0)
    _, wanted = expected(logits, options)
    assert kernel.sample(logits, options).tolist() == wanted.tolist()


def test_of_equal_logits_a_greedy_row_takes_the_first(device: torch.device):
    logits = torch.zeros(3, 5000, device=device).half()
    logits[0, [4999, 77, 2100]] = 1
    logits[1, [4999, 4998]] = 1
    assert kernel.sample(logits, make_options(3, device, temperature=0.0)).tolist() == [77, 4998, 0]


def test_a_draw_does_not_depend_on_the_other_rows(device: torch.device):
    logits = make_logits(9, device)
    options = KINDS["mixed"](9, torch.Generator(device).manual_seed(3), device)
    together = kernel.sample(logits, options)
    alone = [kernel.sample(logits[i : i + 1], Options(*(c[i : i + 1] for c in options))) for i in range(9)]
    assert together.tolist() == torch.cat(alone).tolist()


def test_strided_rows_and_a_given_output_are_as_good(device: torch.device):
    wide = torch.randn(4, 2 * VOCAB, device=device)
    options = make_options(4, device, top_k=[0, 9, 0, 0], top_p=[1, 1, 0.6, 1])
    out = torch.full((4,), -1, device=device)
    assert kernel.sample(wide[:, :VOCAB], options, out=out) is out
    assert out.tolist() == kernel.sample(wide[:, :VOCAB].contiguous(), options).tolist()


def test_draws_of_the_reference_are_distributed_as_the_softmax():
    """Chi-square over 40,000 places of one request; 1 in 10,000 fair draws of 30 outcomes exceed 64.0."""
    cpu, count = torch.device("cpu"), 40_000
    logits = torch.randn(1, 30, generator=torch.Generator().manual_seed(5))
    options = make_options(count, cpu, temperature=1.3, seeds=12345, positions=torch.arange(count))
    shaped = reference.shape_logits(logits.expand(count, -1), options)
    found = torch.bincount(reference.draw(shaped, options), minlength=30).double()
    wanted = count * (logits[0].double() / 1.3).softmax(-1)
    assert ((found - wanted) ** 2 / wanted).sum() < 64.0


def make_adjustments(device: torch.device) -> Adjustments:
    """Six rows: all at once, nothing, penalties, offsets, stops, a row whose stops may be drawn again."""
    generator = torch.Generator().manual_seed(1)
    counts = torch.randint(0, 3, (3, VOCAB), generator=generator)
    counts |= IN_PROMPT * torch.randint(0, 2, (3, VOCAB), generator=generator)
    offsets = torch.randn(2, VOCAB, generator=generator)
    offsets[1, 50:] = NEVER
    columns = {
        "slots": [3, -1, 0, 2, 1, 4],
        "count_slots": [2, -1, 0, -1, -1, 1],
        "offset_slots": [0, -1, -1, 1, -1, -1],
        "stops_until": [9, 99, 0, 0, 9, 5],
    }
    whole = {name: torch.tensor(c, dtype=torch.int32, device=device) for name, c in columns.items()}
    return Adjustments(
        **whole,
        counts=counts.to(device, torch.int32),
        offsets=offsets.to(device),
        repetition=torch.tensor([1.2, 1, 0.8, 1, 1, 1.5], device=device),
        frequency=torch.tensor([0.5, 0, 0, 0, 0, -0.2], device=device),
        presence=torch.tensor([0.1, 0, 0.4, 0, 0, 1.5], device=device),
        stops=torch.tensor([[3, 4, -1]] * 6, dtype=torch.int32, device=device),
    )


def test_adjusted_logits_are_the_references_and_the_logits_stay(device: torch.device):
    logits = make_logits(6, device)
    before = logits.clone()
    positions = torch.full((6,), 6, device=device)
    adjustments = make_adjustments(device)
    found, wanted = (torch.full((5, VOCAB), float("nan"), device=device) for _ in range(2))
    adjust.adjust(logits, positions, adjustments, found)
    reference.adjust(logits, positions, adjustments, wanted)
    assert not found.isnan().any()
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    assert torch.equal(logits, before)
    assert (found[[3, 1]][:, [3, 4]] == NEVER).all(), "stops held back"
    assert (found[4, [3, 4]] > NEVER).all(), "stops may be drawn from their position on"


def test_adjusted_rows_are_drawn_from_their_float32_logits(device: torch.device):
    logits, adjustments = make_logits(6, device), make_adjustments(device)
    values = torch.empty(5, VOCAB, device=device)
    options = make_options(
        6, device, temperature=[1, 1, 1, 1, 0, 1], top_k=[0, 20, 30, 0, 0, 0], top_p=[1, 1, 0.8, 0.9, 1, 0.5]
    )
    adjusted = adjust.adjust(logits, options.positions, adjustments, values)
    workspace = kernel.make_workspace(6, VOCAB, device)
    drawn = kernel.sample(logits, options, adjusted=adjusted, workspace=workspace)
    full = logits.float()
    for row, slot in enumerate(adjustments.slots.tolist()):
        full[row] = values[slot] if slot >= 0 else full[row]
    shaped, wanted = expected(full, options)
    assert drawn.tolist() == wanted.tolist()
    lines = torch.tensor([4, 2, 0], device=device)
    found = adjust.shape_rows(logits, options, lines, workspace.bounds, adjusted=adjusted)
    torch.testing.assert_close(found.double(), shaped[lines], rtol=1e-5, atol=1e-5)


def test_rows_without_a_slot_leave_the_adjusted_logits_alone(device: torch.device):
    values = torch.full((2, VOCAB), 7.0, device=device)
    nobody = make_adjustments(device)._replace(slots=torch.full((6,), -1, dtype=torch.int32, device=device))
    options = make_options(6, device)
    adjusted = adjust.adjust(make_logits(6, device), options.positions, nobody, values)
    assert isinstance(adjusted, Adjusted)
    assert (values == 7).all()
    plain = kernel.sample(make_logits(6, device), options)
    assert kernel.sample(make_logits(6, device), options, adjusted=adjusted).tolist() == plain.tolist()


def test_counts_start_from_the_tokens_and_follow_the_draws(device: torch.device):
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(0, VOCAB, (10, 300), generator=generator, dtype=torch.int32)
    tokens[:, ::3] = 7  # often
    counts = torch.full((4, VOCAB), 99, dtype=torch.int32, device=device)
    entering = {"slots": [2, 0, 3], "rows": [1, 5, 9], "prompts": [30, 4, 10], "lengths": [60, 290, 10]}
    columns = {name: torch.tensor(c, dtype=torch.int32, device=device) for name, c in entering.items()}
    adjust.start_counts(counts, tokens=tokens.to(device), **columns)
    drawn = torch.tensor([5, 6, 7], device=device)
    adjust.count(counts, torch.tensor([0, -1, 2], dtype=torch.int32, device=device), drawn)
    for slot, row, prompt, length in zip(*entering.values(), strict=True):
        wanted = torch.bincount(tokens[row, prompt:length], minlength=VOCAB)
        wanted[tokens[row, :prompt].long().unique()] += IN_PROMPT
        for at, token in ((0, 5), (2, 7)):
            wanted[token] += slot == at
        assert counts[slot].tolist() == wanted.tolist()
    assert (counts[1] == 99).all()

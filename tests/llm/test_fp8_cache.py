"""An FP8 KV cache: what is written is torch's cast, and tokens depend on nothing but their own prompt."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache
from workbench.kernels.attention import fp8
from workbench.kernels.attention.reference import (
    Layout,
    attend,
    make_bucket,
    make_places,
    workspace,
    write_kv,
)

from tests.llm import tiny
from tests.llm.conftest import Models, Open
from workbench import LLM, SamplingParams

FORMATS = ["fp8", "fp8_e5m2", "fp8_per_token_head"]
COUNT = 8
# Blocks of 8 that hold the longest request, and not all that want to run.
SCARCE = {"llama": 12, "mistral": 9, "qwen2": 18, "qwen3": 12}
GREEDY = SamplingParams(temperature=0, max_tokens=COUNT, ignore_eos=True, logprobs=3)


def every_number(dtype: torch.dtype) -> torch.Tensor:
    """All bit patterns of a 16-bit format."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def prompts(count: int = 5) -> list[list[int]]:
    dice = random.Random(5)
    shared = [dice.randrange(3, tiny.VOCAB) for _ in range(24)]
    return [shared + [dice.randrange(3, tiny.VOCAB) for _ in range(1 + 9 * i)] for i in range(count)]


Answers = list[tuple[list[int], list[dict[int, float]]]]


def answers(llm: LLM, given: list[list[int]]) -> Answers:
    outputs = llm.generate(given, GREEDY, use_tqdm=False)
    return [
        (
            list(output.outputs[0].token_ids),
            [{i: v.logprob for i, v in line.items()} for line in output.outputs[0].logprobs],
        )
        for output in outputs
    ]


def assert_same(found: Answers, expected: Answers) -> None:
    """The same tokens, and logprobs that differ by float32's roundings alone: one FP8 step is 1e-2."""
    for (ids, lines), (expected_ids, expected_lines) in zip(found, expected, strict=True):
        assert ids == expected_ids
        for line, expected_line in zip(lines, expected_lines, strict=True):
            assert line == pytest.approx(expected_line, abs=1e-4)


# --- numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", fp8.FORMATS)
def test_what_is_written_is_torchs_cast_of_every_number_and_saturates(
    source: torch.dtype, dtype: torch.dtype
) -> None:
    numbers = every_number(source)
    finite = numbers.isfinite()
    stored = fp8.quantise(numbers, torch.tensor(1.0), dtype)
    within = finite & (numbers.float().abs() <= fp8.largest(dtype))
    assert torch.equal(stored[within].view(torch.uint8), numbers[within].to(dtype).view(torch.uint8))
    beyond = stored[~within & ~numbers.isnan()].float()
    assert torch.equal(
        beyond, fp8.largest(dtype) * numbers[~within & ~numbers.isnan()].float().sign()
    )  # infinities too
    assert stored[numbers.isnan()].float().isnan().all()


@pytest.mark.parametrize("dtype", fp8.FORMATS)
def test_a_power_of_two_is_the_least_that_brings_a_number_into_range(dtype: torch.dtype) -> None:
    edges = fp8.largest(dtype) * torch.tensor([2.0**e for e in range(-60, 60)])
    numbers = torch.cat((edges, edges.nextafter(torch.tensor(torch.inf)), torch.logspace(-15, 15, 999)))
    scales = fp8.power(fp8.exponents(numbers, dtype)).double()
    assert (numbers.double() / scales <= fp8.largest(dtype)).all()
    assert (numbers.double() / (scales / 2) > fp8.largest(dtype)).all()
    assert fp8.power(fp8.exponents(torch.tensor([0.0, torch.inf]), dtype)).isfinite().all()


def test_scales_of_a_power_of_two_lose_nothing_but_the_one_rounding() -> None:
    """Divided and multiplied, a number is what it would be in an FP8 format of another bias."""
    numbers = torch.randn(4096) * torch.logspace(-3, 3, 4096)
    for exponent in (-20, -3, 0, 7):
        scale = fp8.power(torch.tensor(exponent))
        back = fp8.quantise(numbers, scale, torch.float8_e4m3fn).float() * scale
        assert torch.equal(back, back.bfloat16().float()), "a scaled FP8 number is a bfloat16 number"
        exact = fp8.quantise(numbers.double() * 2.0**-exponent, torch.tensor(1.0), torch.float8_e4m3fn)
        assert torch.equal(back.double(), exact.double() * 2.0**exponent)


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("window", [None, 7])
def test_attention_over_fp8_is_that_over_the_numbers_it_reads(per_head: bool, window: int | None) -> None:
    """In float64, position by position, over numbers read off the store by hand."""
    torch.manual_seed(0)
    layout = Layout(heads=4, kv_heads=2, num_blocks=9, block_size=4, window=window)
    cache = torch.full((2, 2, 9, 4, 8), float("nan")).to(torch.float8_e4m3fn)
    cache[:, :, 0] = 0
    scales = torch.zeros(2, 2, 9, 4, dtype=torch.uint8) if per_head else torch.tensor([0.5, 0.013])
    blocks = torch.tensor([[3, 1, 5], [2, 7, 0]])
    lengths = [11, 6]
    slots = torch.cat(
        [blocks[r, torch.arange(n) // 4] * 4 + torch.arange(n) % 4 for r, n in enumerate(lengths)]
    )
    keys, values = torch.randn(2, len(slots), 2, 8) * torch.tensor([8.0, 0.1]).view(2, 1, 1, 1)
    lines = write_kv(cache, make_places(slots, layout), keys, values, scales)
    count = 2
    query = torch.randn(2 * count, 4, 8)
    bucket = make_bucket(0, [n - count for n in lengths], count, blocks, layout)
    out = torch.full((2 * count, 32), float("nan"))
    attend(query, cache, [bucket], 0.4, workspace([bucket], cache, query.dtype), out, scales)
    factor = fp8.head_scales(scales).double() if per_head else scales.double().view(2, 1, 1, 1, 1)
    read = (cache.double() * factor).view(2, 2, -1, 8)
    assert torch.equal(
        lines.view(len(slots), 2, 2, 8).double(), read[:, :, slots].permute(2, 0, 1, 3).float()
    )
    for line in range(2 * count):
        request, position = line // count, lengths[line // count] - count + line % count
        first = 0 if window is None else max(0, position - window + 1)
        mine = [int(blocks[request, p // 4]) * 4 + p % 4 for p in range(first, position + 1)]
        for head in range(4):
            k, v = read[:, head // 2, mine]
            weights = (query[line, head].double() @ k.T * 0.4).softmax(-1)
            torch.testing.assert_close(
                out[line, head * 8 : head * 8 + 8].double(), weights @ v, rtol=1e-5, atol=1e-6
            )


# --- engines ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("name", FORMATS)
def test_tokens_do_not_depend_on_chunks_the_cache_or_the_company(
    open_llm: Open, family: str, name: str
) -> None:
    given = prompts()
    settings = {"kv_cache_dtype": name, "block_size": 8, "max_model_len": 96, "max_num_seqs": 8}
    llm = open_llm(family, **settings)
    together = answers(llm, given)
    cached = answers(llm, given)
    assert llm.trace.requests["cached_tokens"].iloc[-1] > 0
    assert_same(cached, together)
    llm.reset_prefix_cache()
    alone = [answers(llm, [prompt])[0] for prompt in given]
    assert_same(alone, together)
    for budget, overlapped in product([8, 24], [False, True]):
        chunked = open_llm(family, max_num_batched_tokens=budget, async_scheduling=overlapped, **settings)
        assert_same(answers(chunked, given), together)
    scarce = {"max_model_len": 72, "num_gpu_blocks_override": SCARCE[family]}
    tight = open_llm(family, **settings | scarce)
    assert_same(answers(tight, given), together)
    assert tight.trace.requests["preemptions"].sum() > 0


class Rounding(DynamicCache):
    """transformers' cache, whose keys and values go through torch's FP8 cast whenever they are read."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def update(self, *args, **options) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = super().update(*args, **options)
        return self._rounded(keys), self._rounded(values)

    def _rounded(self, x: torch.Tensor) -> torch.Tensor:
        if self._name != "fp8_per_token_head":
            return x.to(torch.float8_e5m2 if "e5m2" in self._name else torch.float8_e4m3fn).float()
        scale = torch.exp2((x.abs().amax(-1, keepdim=True) / 448).log2().ceil())
        return (x / scale).to(torch.float8_e4m3fn).float() * scale


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("name", FORMATS)
def test_logprobs_are_those_of_transformers_over_rounded_keys_and_values(
    models: Models, open_llm: Open, family: str, name: str
) -> None:
    given = prompts()
    found = answers(open_llm(family, kv_cache_dtype=name, max_num_batched_tokens=16, max_num_seqs=4), given)
    for prompt, (ids, lines) in zip(given, found, strict=True):
        with torch.inference_mode():
            tokens = torch.tensor([[*prompt, *ids]])
            logits = models.oracle(family)(tokens, past_key_values=Rounding(name), use_cache=True).logits[0]
        rows = logits[len(prompt) - 1 : -1].log_softmax(-1)
        assert ids == rows.argmax(-1).tolist()
        for line, row in zip(lines, rows, strict=True):
            # A number near the middle of two may go either way: once, 3e-4. Unrounded keys: up to 1.4.
            assert line == pytest.approx({i: float(row[i]) for i in line}, abs=2e-3)


@pytest.mark.parametrize("name", FORMATS)
def test_what_others_left_behind_does_not_spread(open_llm: Open, name: str) -> None:
    """Every block that nobody holds is full of NaN, as after a request whose activations overflowed."""
    expected = answers(open_llm("qwen2", kv_cache_dtype=name), prompts())
    llm = open_llm("qwen2", kv_cache_dtype=name)
    for tensor in llm._parts.store._tensors:
        tensor.view(torch.uint8)[:, :, 1:] = 0x7F
    assert_same(answers(llm, prompts()), expected)


def test_the_same_memory_holds_twice_the_tokens(open_llm: Open) -> None:
    memory = 1 << 20
    plain = open_llm(dtype="bfloat16", kv_cache_memory_bytes=memory, max_num_seqs=8)
    halved = open_llm(dtype="bfloat16", kv_cache_memory_bytes=memory, max_num_seqs=8, kv_cache_dtype="fp8")
    assert halved.config.num_cache_tokens == 2 * plain.config.num_cache_tokens
    for llm in (plain, halved):
        held = sum(t.numel() * t.element_size() for t in llm._parts.store._tensors)
        blocks = llm.config.num_blocks
        assert held * blocks // (blocks + 1) == llm.config.kv_cache_bytes == memory


def test_memory_says_what_is_stored_how(open_llm: Open) -> None:
    assert "stored as float32" in open_llm().memory
    llm = open_llm(kv_cache_dtype="fp8", kv_cache_dtype_skip_layers=["1"])
    assert "stored as fp8_e4m3; layers 1: float32, scales: 1.0" in llm.memory
    assert (llm.config.kv_cache_dtype, llm.config.kv_scales) == ("fp8_e4m3; layers 1: float32", "1.0")


# --- layers and scales --------------------------------------------------------------------------------


@pytest.mark.parametrize("skipped", [["sliding"], [1]], ids=["sliding", "by number"])
def test_a_layer_that_is_skipped_keeps_its_numbers(open_llm: Open, skipped: list) -> None:
    """Of qwen2's two layers the second has a window."""
    llm = open_llm("qwen2", kv_cache_dtype="fp8", kv_cache_dtype_skip_layers=skipped)
    store = llm._parts.store
    assert [one.dtype for one in store.formats] == [torch.float8_e4m3fn, torch.float32]
    answers(llm, prompts())
    keys = store.layer(1)[0].flatten(0, -2)
    used = keys[keys.abs().sum(-1) > 0]
    assert len(used) > 0
    assert not torch.equal(used, used.to(torch.float8_e4m3fn).float())


def test_scales_of_the_first_step_are_those_of_its_keys_and_values(open_llm: Open) -> None:
    given = prompts()
    plain = open_llm()
    largest = plain._parts.store.watch()
    plain.generate(given, SamplingParams(temperature=0, max_tokens=1), use_tqdm=False)
    llm = open_llm(kv_cache_dtype="fp8", calculate_kv_scales=True)
    assert llm.config.kv_scales == "the first step"
    first = answers(llm, given)
    scales = torch.stack([llm._parts.store.scales(layer) for layer in range(2)])
    # Layer 0 sees the same activations; the next one those behind an attention that was quantised.
    room = 448.0 * scales / largest
    assert (room[0] >= 2).all()
    assert (room[0] < 4).all()
    assert (room[1] > 1.5).all()
    assert (room[1] < 5).all()
    assert_same(answers(llm, given), first)  # and they stay


Break = Callable[[dict], None]


@pytest.fixture
def calibrated(models: Models, tmp_path: Path) -> Path:
    import shutil

    from workbench.calibration import calibrate, save

    folder = tmp_path / "model"
    shutil.copytree(models.folder(), folder)
    save(calibrate(folder, "the bird sang in the old tree " * 40, tokens=200, device="cpu"))
    return folder


def test_a_calibration_is_found_beside_its_model_and_covers_what_it_saw(calibrated: Path) -> None:
    from workbench.calibration import calibrate

    found = calibrate(calibrated, "the bird sang in the old tree " * 40, tokens=200, device="cpu")
    with LLM(str(calibrated), device="cpu", kv_cache_dtype="fp8", max_model_len=256) as llm:
        assert llm.config.kv_scales == "kv_scales.json"
        for number, layer in enumerate(found.layers):
            scales = llm._parts.store.scales(number).tolist()
            assert scales == list(layer.scales)
            for largest, scale in zip((layer.largest_key, layer.largest_value), scales, strict=True):
                assert 2 <= 448 * scale / largest < 4
        answers(llm, prompts())
    with LLM(str(calibrated), device="cpu", kv_cache_dtype="fp8_e5m2", max_model_len=256) as llm:
        assert 2 <= 57344 * float(llm._parts.store.scales(0)[0]) / found.layers[0].largest_key < 4


def test_the_checkpoints_own_scales_are_used_and_named(models: Models, tmp_path: Path) -> None:
    folder = with_scales(models, tmp_path, lambda layer, part: 0.25 + layer + (part == "v"))
    with LLM(str(folder), device="cpu", kv_cache_dtype="fp8", max_model_len=256) as llm:
        assert llm.config.kv_scales == "the checkpoint"
        assert [llm._parts.store.scales(layer).tolist() for layer in (0, 1)] == [[0.25, 1.25], [1.25, 2.25]]
        answers(llm, prompts())


def with_scales(models: Models, root: Path, value: Callable[[int, str], float | None]) -> Path:
    """A copy of the model whose checkpoint has scales, as compressed-tensors writes them."""
    import shutil

    from safetensors.torch import load_file, save_file

    folder = root / "scaled"
    shutil.copytree(models.folder(), folder)
    tensors = load_file(folder / "model.safetensors")
    for layer in range(2):
        for part in "kv":
            if (scale := value(layer, part)) is not None:
                tensors[f"model.layers.{layer}.self_attn.{part}_scale"] = torch.tensor([scale])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


# --- bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_no_number_above_zero_is_refused(
    models: Models, tmp_path: Path, value: float
) -> None:
    folder = with_scales(models, tmp_path, lambda layer, part: value if (layer, part) == (1, "v") else 1.0)
    with pytest.raises(
        ValueError, match=r"layer 1: the value scale is .*: run `workbench calibrate .*scaled`"
    ):
        LLM(str(folder), device="cpu", kv_cache_dtype="fp8")
    LLM(str(folder), device="cpu", max_model_len=64).close()  # nobody needs them


def test_scales_of_some_layers_are_refused(models: Models, tmp_path: Path) -> None:
    folder = with_scales(models, tmp_path, lambda layer, part: None if layer else 1.0)
    with pytest.raises(ValueError, match="no k_scale of layer 1: run `workbench calibrate"):
        LLM(str(folder), device="cpu", kv_cache_dtype="fp8")


FILES: dict[str, tuple[Break, str]] = {
    "other weights": (
        lambda text: text["model"].update(weights="0" * 64),
        "of another model, whose weights is 0000",
    ),
    "other layers": (lambda text: text["model"].update(layers=7), "of another model, whose layers is 7 and"),
    "a zero": (lambda text: text["scales"][0].update(key=0), "layer 0: the key scale is 0.0, not a number"),
    "a NaN": (lambda text: text["scales"][1].update(value=float("nan")), "layer 1: the value scale is nan"),
    "a layer less": (lambda text: text["scales"].pop(), "has scales of 1 of 2 layers"),
    "no scales": (lambda text: text.pop("scales"), "not what `workbench calibrate` writes"),
    "an unknown format": (lambda text: text.update(kv_cache_dtype="int4"), "for a cache of 'int4'"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_broken_file_of_scales_is_refused(calibrated: Path, case: str) -> None:
    import json

    spoil, message = FILES[case]
    file = calibrated / "kv_scales.json"
    text = json.loads(file.read_text())
    spoil(text)
    file.write_text(json.dumps(text))
    with pytest.raises(ValueError, match=message + ".*run `workbench calibrate .*` again, or take"):
        LLM(str(calibrated), device="cpu", kv_cache_dtype="fp8")


def test_a_file_that_is_no_json_is_refused(calibrated: Path) -> None:
    (calibrated / "kv_scales.json").write_text("{")
    with pytest.raises(ValueError, match="not what `workbench calibrate` writes"):
        LLM(str(calibrated), device="cpu", kv_cache_dtype="fp8")


SETTINGS: dict[str, tuple[dict, type[Exception], str]] = {
    "an unknown format": (
        {"kv_cache_dtype": "int8"},
        ValueError,
        "kv_cache_dtype='int8' is unknown: use one of",
    ),
    "no such layer": (
        {"kv_cache_dtype": "fp8", "kv_cache_dtype_skip_layers": ["2"]},
        ValueError,
        "layer 2, and the model has layers 0 to 1",
    ),
    "no window": (
        {"kv_cache_dtype": "fp8", "kv_cache_dtype_skip_layers": ["sliding"]},
        ValueError,
        "no layer of this model has a window: leave it out",
    ),
    "all layers": (
        {"kv_cache_dtype": "fp8", "kv_cache_dtype_skip_layers": [0, 1]},
        ValueError,
        "skips all 2 layers",
    ),
    "a layer in words": (
        {"kv_cache_dtype": "fp8", "kv_cache_dtype_skip_layers": ["first"]},
        ValueError,
        "'first': use numbers of layers, from 0, or 'sliding'",
    ),
    "layers in a str": (
        {"kv_cache_dtype": "fp8", "kv_cache_dtype_skip_layers": "0"},
        TypeError,
        "is '0': use a list",
    ),
    "scales of nothing": ({"calculate_kv_scales": True}, ValueError, "set kv_cache_dtype='fp8', or leave it"),
    "two kinds of scales": (
        {"kv_cache_dtype": "fp8_per_token_head", "calculate_kv_scales": True},
        ValueError,
        "a scale of its own: leave it out",
    ),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_bad_setting_is_named(models: Models, case: str) -> None:
    settings, error, message = SETTINGS[case]
    with pytest.raises(error, match=message):
        LLM(str(models.folder()), device="cpu", **settings)


def test_calibration_refuses_what_it_cannot_run_or_save(models: Models, tmp_path: Path) -> None:
    from workbench.calibration import calibrate, check_writable

    with pytest.raises(ValueError, match="tokens is 1: use at least 2"):
        calibrate(models.folder(), tokens=1)
    with pytest.raises(ValueError, match="the text has no tokens"):
        calibrate(models.folder(), "", device="cpu")
    with pytest.raises(OSError, match="copy the model, and calibrate the copy"):
        check_writable(tmp_path / "nowhere")

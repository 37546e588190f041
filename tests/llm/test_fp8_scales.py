"""Scales of an FP8 cache: where they come from, which layers have none, and which are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.llm.conftest import Models, Open
from tests.llm.fp8_answers import answers, assert_same, prompts
from workbench import LLM, SamplingParams


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

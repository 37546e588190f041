"""What of PEFT's format is read, and that everything else is refused with the module and the remedy."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.llm import tiny
from tests.lora.adapters import EVERY, write_adapter
from workbench.lora.adapter_file import CONFIG, WEIGHTS, read_adapter
from workbench.lora.modules import Place
from workbench.models.spec import read_spec
from workbench.runtime.adapter_weights import load_weights

Q = "layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model("llama", tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter", tiny.load(base), 4, (*EVERY, "embed_tokens", "lm_head"))


def read(base: Path, adapter: Path, max_rank: int = 16):
    return read_adapter(adapter, read_spec(base), max_rank)


def configure(adapter: Path, **values: object) -> None:
    path = adapter / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def rewrite(adapter: Path, change) -> None:  # type: ignore[no-untyped-def]
    tensors = load_file(adapter / WEIGHTS)
    change(tensors)
    save_file(tensors, adapter / WEIGHTS)


def test_every_module_is_found_and_products_add_up(base: Path, adapter: Path) -> None:
    spec = read_spec(base)
    file = read(base, adapter)
    assert len(file.changes) == 7 * spec.num_layers + 2
    assert file.rank == 4
    weights = load_weights(file, spec, torch.float32)
    stored = load_file(adapter / WEIGHTS)
    qkv = weights[Place(0, "qkv")]
    whole = torch.zeros((4 + 2 * 2) * 8, 32)
    begin = 0
    for column, rank, expand in qkv.blocks:
        whole[column : column + len(expand)] += expand @ qkv.shrink[begin : begin + rank]
        begin += rank
    expected = [
        stored[f"base_model.model.model.layers.0.self_attn.{name}.lora_B.weight"]
        @ stored[f"base_model.model.model.layers.0.self_attn.{name}.lora_A.weight"]
        * 4  # alpha 16 / rank 4
        for name in ("q_proj", "k_proj", "v_proj")
    ]
    torch.testing.assert_close(whole, torch.cat(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, 16 / 4),
        ({"use_rslora": True}, 16 / math.sqrt(4)),
        ({"alpha_pattern": {"q_proj": 2}}, 2 / 4),
        ({"alpha_pattern": {"layers.0.self_attn.q_proj": 2}}, 2 / 4),
        ({"alpha_pattern": {r".*\.layers\.0\..*": 8}}, 8 / 4),
        ({"alpha_pattern": {"k_proj": 2, "layers.1.self_attn.q_proj": 3}}, 16 / 4),
        ({"r": 8, "rank_pattern": {"": 4, r".*": 4}}, 16 / 4),
    ],
)
def test_the_scale_is_that_of_peft(base: Path, adapter: Path, config: dict, expected: float) -> None:
    configure(adapter, **config)
    assert read(base, adapter).changes[Q].scale == pytest.approx(expected)


def test_names_of_a_model_without_its_head_are_known(base: Path, adapter: Path) -> None:
    tensors = load_file(adapter / WEIGHTS)
    renamed = {name.replace("base_model.model.model.", "base_model.model."): t for name, t in tensors.items()}
    save_file(renamed, adapter / WEIGHTS)
    assert Q in read(base, adapter).changes


def test_copies_of_the_models_tables_are_passed_over_where_they_fit(base: Path, adapter: Path) -> None:
    name = "base_model.model.model.embed_tokens.base_layer.weight"
    rewrite(adapter, lambda tensors: tensors.update({name: torch.zeros(tiny.VOCAB, 32)}))
    assert "embed_tokens" in read(base, adapter).changes
    rewrite(adapter, lambda tensors: tensors.update({name: torch.zeros(tiny.VOCAB + 1, 32)}))
    with pytest.raises(ValueError, match="another vocabulary"):
        read(base, adapter)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"use_dora": True}, "use_dora is True: DoRA is not supported.*merge it into the model"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3': only LORA"),
        ({"bias": "all"}, "bias is 'all': biases .* not supported"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]: whole modules"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"target_parameters": ["mlp.experts"]}, "target_parameters"),
        ({"layer_replication": [[0, 1], [0, 2]]}, "layer_replication"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'.*convert"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"lora_alpha": "much"}, "lora_alpha is 'much': use a number"),
        ({"lora_alpha": 0}, "lora_alpha is 0: use more than 0"),
        ({"r": 8}, "says that '.*' has rank 8, its weights have 4"),
    ],
    ids=str,
)
def test_other_kinds_are_refused_with_the_remedy(base: Path, adapter: Path, config: dict, says: str) -> None:
    configure(adapter, **config)
    with pytest.raises(ValueError, match=says):
        read(base, adapter)


def drop(name: str):  # type: ignore[no-untyped-def]
    return lambda tensors: tensors.pop(f"base_model.model.model.{name}")


def put(name: str, *shape: int, dtype: torch.dtype = torch.float32):  # type: ignore[no-untyped-def]
    return lambda tensors: tensors.update({f"base_model.model.model.{name}": torch.ones(shape, dtype=dtype)})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (drop(f"{Q}.lora_B.weight"), f"lacks lora_B of '{Q}': download it again"),
        (drop(f"{Q}.lora_A.weight"), f"lacks lora_A of '{Q}'"),
        (put(f"{Q}.lora_A.weight", 4, 31), r"q_proj.lora_A.weight' has shape \[4, 31\].* \[4, 32\]"),
        (put(f"{Q}.lora_B.weight", 32, 3), r"q_proj.lora_B.weight' has shape \[32, 3\].*\[32, 4\]"),
        (put(f"{Q}.lora_A.weight", 0, 32), r"has shape \[0, 32\].*'rank', 32"),
        (put(f"{Q}.lora_A.weight", 4, 32, dtype=torch.int8), "stored as I8: save it in F32"),
        (put("layers.9.self_attn.q_proj.lora_A.weight", 4, 32), "changes 'layers.9.*layers 0 to 1"),
        (put("layers.0.mlp.router.lora_A.weight", 4, 32), "changes 'layers.0.mlp.router'.*: q_proj"),
        (put(f"{Q}.lora_magnitude_vector.weight", 32), "q_proj.lora_magnitude_vector.weight', which is no"),
        (lambda tensors: (tensors.clear(), tensors.update({})), "holds no LoRA weights"),
    ],
    ids=range(10),
)
def test_weights_that_do_not_fit_are_refused_by_name(base: Path, adapter: Path, change, says: str) -> None:  # type: ignore[no-untyped-def]
    rewrite(adapter, change)
    with pytest.raises(ValueError, match=says):
        read(base, adapter)


def test_a_rank_above_the_most_names_the_module_and_the_setting(base: Path, adapter: Path) -> None:
    with pytest.raises(ValueError, match="has rank 4, and max_lora_rank is 3: .* with max_lora_rank=4"):
        read(base, adapter, max_rank=3)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(base: Path, adapter: Path, name: str) -> None:
    (adapter / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {name}.*PEFT's save_pretrained"):
        read(base, adapter)


def test_a_truncated_file_is_named(base: Path, adapter: Path) -> None:
    path = adapter / WEIGHTS
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=f"{WEIGHTS} has .* bytes, its header tells of .*download it again"):
        read(base, adapter)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_config_that_is_none_is_named(base: Path, adapter: Path, text: str) -> None:
    (adapter / CONFIG).write_text(text)
    with pytest.raises(ValueError, match=f"{CONFIG} .*download it again"):
        read(base, adapter)


def test_a_folder_that_is_not_there_is_named(base: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder at .*nowhere: check lora_path"):
        read(base, tmp_path / "nowhere")

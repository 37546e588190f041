"""Weights arrive whole, in place and in the right dtype; what is wrong with a folder is said beforehand."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.checkpoints import SIZES, build, expected, rewrite, saved, tokens, torch_threads
from tests.models.dense_attend import logits
from workbench.models import packing
from workbench.models.decoder import Decoder
from workbench.models.destinations import destinations
from workbench.models.loading import load_model
from workbench.models.spec import read_spec

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def load(folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Decoder:
    return load_model(folder, read_spec(folder), "cpu", dtype, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved(build("llama"), tmp_path / "llama")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = saved(build("llama"), tmp_path / "sharded", max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def edit_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace tensors, or remove them with None; names with __ for dots."""
    tensors = load_file(folder / WEIGHTS)
    for name, tensor in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if tensor is not None:
            tensors[name.replace("__", ".")] = tensor
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def test_sharded_and_single_files_give_the_same_model(folder: Path, sharded: Path) -> None:
    one, several = destinations(load(folder)), destinations(load(sharded))
    assert one.keys() == several.keys()
    assert all(torch.equal(one[name], several[name]) for name in one)


def test_every_weight_is_the_stored_one(folder: Path) -> None:
    stored = load_file(folder / WEIGHTS)
    places = destinations(load(folder))
    named = {name if name == "lm_head.weight" else f"model.{name}": place for name, place in places.items()}
    assert named.keys() == stored.keys()
    assert all(torch.equal(named[name], stored[name]) for name in stored)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_converted_on_the_way(folder: Path, dtype: torch.dtype) -> None:
    model = load(folder, dtype)
    stored = load_file(folder / WEIGHTS)["model.layers.1.self_attn.k_proj.weight"]
    place = destinations(model)["layers.1.self_attn.k_proj.weight"]
    assert model.dtype == place.dtype == dtype
    assert torch.equal(place, stored.to(dtype))


def test_a_base_model_without_prefix_loads(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    before = logits(load(folder), tokens(5))
    save_file({name.removeprefix("model."): t for name, t in tensors.items()}, folder / WEIGHTS)
    assert torch.equal(logits(load(folder), tokens(5)), before)


def test_tensors_nobody_needs_are_left_alone(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = logits(load(folder), tokens(5))
    edit_weights(folder, model__layers__0__self_attn__rotary_emb__inv_freq=torch.zeros(4))
    assert torch.equal(logits(load(folder), tokens(5)), before)
    assert not caplog.records


@pytest.mark.parametrize(
    ("values", "changes", "name"),
    [
        ({"num_hidden_layers": 2}, {}, r"9 tensors .*'model\.layers\.2\.[a-z_.]*weight'"),
        ({}, {"model__layers__0__self_attn__q_proj__bias": torch.ones(48)}, "1 tensors .*q_proj.bias'"),
    ],
)
def test_weights_nobody_asked_for_are_told_of(
    folder: Path, caplog: pytest.LogCaptureFixture, values: dict, changes: dict, name: str
) -> None:
    rewrite(folder, **values)
    edit_weights(folder, **changes)
    load(folder)
    (record,) = caplog.records
    assert re.search(f"{folder}: {name}: .*describes another model", record.getMessage())


def test_a_tied_table_is_held_once(tmp_path: Path) -> None:
    model = load(saved(build("llama", tie_word_embeddings=True), tmp_path))
    assert model.lm_head.weight.data_ptr() == model.embedding.data_ptr()


@pytest.mark.parametrize("stored_as", ["lm_head", "both", "both, different"])
def test_tied_tables_under_either_name(stored_as: str, tmp_path: Path) -> None:
    """Where a checkpoint that says tied has two different tables, both are used, as in transformers."""
    folder = saved(build("llama", tie_word_embeddings=True), tmp_path)
    table = load_file(folder / WEIGHTS)["model.embed_tokens.weight"]
    other = table.flip(0).contiguous() if stored_as == "both, different" else table
    edit_weights(folder, lm_head__weight=other)
    if stored_as == "lm_head":
        edit_weights(folder, model__embed_tokens__weight=None)
    from transformers import AutoModelForCausalLM

    oracle = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    found = logits(load(folder), tokens(9))
    torch.testing.assert_close(found, expected(oracle, tokens(9)), atol=1e-4, rtol=0)


def test_weights_too_large_to_hold_twice_are_held_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch_threads(2):
        packed = load(folder)
        monkeypatch.setattr(packing, "MOST_BYTES", 1)
        plain = load(folder)
    assert packed.lm_head.packed is not None
    assert plain.lm_head.packed is None
    torch.testing.assert_close(logits(packed, tokens(20)), logits(plain, tokens(20)), atol=1e-5, rtol=0)


class TestDummy:
    def test_a_bare_config_is_enough(self, tmp_path: Path) -> None:
        values = {name: value for name, value in SIZES.items() if name != "max_position_embeddings"}
        (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Qwen3ForCausalLM"], **values}))
        assert logits(load(tmp_path, load_format="dummy"), tokens(5)).shape == (5, SIZES["vocab_size"])

    def test_the_seed_decides(self, folder: Path) -> None:
        first, again, other = (load(folder, load_format="dummy", seed=seed) for seed in (1, 1, 2))
        assert torch.equal(logits(first, tokens(9)), logits(again, tokens(9)))
        assert not torch.equal(logits(first, tokens(9)), logits(other, tokens(9)))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_nothing_overflows_in_a_deep_model(self, dtype: torch.dtype, folder: Path) -> None:
        rewrite(folder, num_hidden_layers=64, hidden_size=96, head_dim=8)
        found = logits(load(folder, dtype, load_format="dummy"), tokens(9))
        assert found.isfinite().all()
        assert found.std() > 0


class TestErrors:
    """Each names what is wrong and what to do."""

    def test_truncated_weights(self, folder: Path) -> None:
        path = folder / WEIGHTS
        size = path.stat().st_size
        os.truncate(path, size - 100)
        with pytest.raises(ValueError, match=rf"{path} has {size - 100} bytes.*{size}: download it again"):
            load(folder)

    @pytest.mark.parametrize("size", [0, 5, 300])
    def test_weights_cut_within_the_header(self, folder: Path, size: int) -> None:
        os.truncate(folder / WEIGHTS, size)
        with pytest.raises(ValueError, match=rf"{WEIGHTS} has {size} bytes, expected.*download"):
            load(folder)

    def test_a_truncated_shard(self, sharded: Path) -> None:
        path = sorted(sharded.glob("*.safetensors"))[1]
        os.truncate(path, path.stat().st_size - 1)
        with pytest.raises(ValueError, match=rf"{path.name} has .* bytes.*download it again"):
            load(sharded)

    def test_a_pointer_of_git_lfs(self, folder: Path) -> None:
        (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        with pytest.raises(ValueError, match="Git LFS pointer.*git lfs pull"):
            load(folder)

    def test_a_header_that_is_no_json(self, folder: Path) -> None:
        (folder / WEIGHTS).write_bytes((8).to_bytes(8, "little") + b"notjson!")
        with pytest.raises(ValueError, match=f"{WEIGHTS} has no readable header.*download it again"):
            load(folder)

    def test_a_missing_tensor(self, folder: Path) -> None:
        edit_weights(folder, model__layers__2__mlp__up_proj__weight=None)
        with pytest.raises(ValueError, match=r"no tensor 'model\.layers\.2\.mlp\.up_proj\.weight'"):
            load(folder)

    def test_an_untied_model_without_its_output_projection(self, folder: Path) -> None:
        edit_weights(folder, lm_head__weight=None)
        with pytest.raises(ValueError, match=r"no tensor 'lm_head\.weight'"):
            load(folder)

    def test_another_shape(self, folder: Path) -> None:
        edit_weights(folder, model__norm__weight=torch.ones(50))
        with pytest.raises(ValueError, match=r"'model\.norm\.weight' has shape \[50\].*asks for \[48\]"):
            load(folder)

    def test_quantized_weights(self, folder: Path) -> None:
        edit_weights(folder, model__norm__weight=torch.ones(48, dtype=torch.int8))
        with pytest.raises(ValueError, match=r"'model\.norm\.weight' is stored as I8.*not quantized"):
            load(folder)

    def test_a_missing_shard(self, sharded: Path) -> None:
        gone = sorted(sharded.glob("*.safetensors"))[1]
        gone.unlink()
        with pytest.raises(FileNotFoundError, match=f"lacks {gone.name}.*download"):
            load(sharded)

    def test_an_index_that_is_none(self, sharded: Path) -> None:
        (sharded / INDEX).write_text("[]")
        with pytest.raises(ValueError, match=f"{INDEX} is not an index.*download it again"):
            load(sharded)

    def test_no_weights(self, folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
        with pytest.raises(FileNotFoundError, match=r"neither.*pytorch_model\.bin.*save_pretrained"):
            load(folder)

    def test_no_config(self, folder: Path) -> None:
        (folder / "config.json").unlink()
        with pytest.raises(FileNotFoundError, match=r"no config\.json"):
            load(folder)

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="no folder at .*nowhere"):
            load(tmp_path / "nowhere")

    def test_an_unknown_load_format(self, folder: Path) -> None:
        with pytest.raises(ValueError, match="load_format is 'pt': use auto, safetensors, dummy"):
            load(folder, load_format="pt")

    def test_nothing_is_read_before_everything_is_checked(self, sharded: Path) -> None:
        """The error names the last layer's tensor although its file is read last."""
        shutil.copy(sharded / INDEX, sharded / "copy.json")
        rewrite(sharded, num_hidden_layers=4)
        with pytest.raises(ValueError, match=r"no tensor 'model\.layers\.3\..*lacks 8 more"):
            load(sharded)


def test_loading_imports_no_transformers(folder: Path) -> None:
    """The first token of a process waits for every import on this path."""
    code = (
        "import sys, torch; from pathlib import Path; from workbench.models.spec import read_spec\n"
        f"from workbench.models.loading import load_model\nfolder = Path({str(folder)!r})\n"
        "load_model(folder, read_spec(folder), 'cpu', torch.float32)\n"
        "assert not {'transformers', 'huggingface_hub', 'pandas', 'triton'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_reading_a_spec_imports_no_torch(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from workbench.models.spec import read_spec\n"
        f"read_spec(Path({str(folder)!r}))\nassert not {{'torch', 'numpy'}} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])

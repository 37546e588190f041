"""A mapped file gives the tensors that were stored, and reading leaves nothing behind."""

from __future__ import annotations

import gc
import itertools
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from workbench.models.mapped_file import MappedFile
from workbench.models.weight_files import tensors_of

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture
def stored() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"table": (300, 40), "vector": (7,), "scale": (), "nothing": (0, 8)}
    return {
        f"{name}.{dtype}": torch.randn(shape, generator=generator).to(dtype)
        for name, shape in shapes.items()
        for dtype in DTYPES
    }


@pytest.fixture
def path(stored: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    save_file(stored, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def edit_header(path: Path, name: str, **values: object) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header[name] |= values
    new = json.dumps(header).encode()
    path.write_bytes(len(new).to_bytes(8, "little") + new + data[8 + length :])


def check(path: Path, stored: dict[str, torch.Tensor]) -> None:
    file, found = MappedFile(path), tensors_of(path)
    assert found.keys() == stored.keys()
    for name, tensor in stored.items():
        read = file.read(found[name])
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor)


def test_tensors_are_those_that_were_stored(path: Path, stored: dict[str, torch.Tensor]) -> None:
    check(path, stored)


@pytest.mark.parametrize("spaces", range(1, 8))
def test_a_header_of_any_length_will_do(spaces: int, path: Path, stored: dict[str, torch.Tensor]) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    longer = (length + spaces).to_bytes(8, "little") + data[8 : 8 + length] + b" " * spaces
    path.write_bytes(longer + data[8 + length :])
    check(path, stored)


def test_tensors_outlive_the_file(path: Path, stored: dict[str, torch.Tensor]) -> None:
    name = f"table.{torch.bfloat16}"
    read = MappedFile(path).read(tensors_of(path)[name])
    gc.collect()
    path.unlink()
    assert torch.equal(read, stored[name])


def test_reading_leaves_nothing_behind(path: Path, stored: dict[str, torch.Tensor]) -> None:
    found = tensors_of(path)

    def held_after(rounds: int) -> int:
        for _ in range(rounds):
            file = MappedFile(path)
            for tensor in found.values():
                file.read(tensor)
        del file
        gc.collect()
        return sys.getallocatedblocks()

    held = [held_after(20) for _ in range(10)]
    more = [after - before for before, after in itertools.pairwise(held)]
    # What is left behind, every window leaves; what the interpreter or another thread fills once, a few.
    assert min(more) < 20, f"every 20 files leave blocks behind: {more}"


def test_what_a_header_gets_wrong_is_told_with_the_remedy(path: Path) -> None:
    edit_header(path, f"vector.{torch.float16}", shape=[8])
    with pytest.raises(ValueError, match=r"has 14 bytes, its shape \[8\] needs 16: download"):
        MappedFile(path).read(tensors_of(path)[f"vector.{torch.float16}"])
    edit_header(path, f"vector.{torch.float16}", dtype="I16")
    with pytest.raises(ValueError, match=r"is stored as I16: use F64, F32, F16, BF16"):
        MappedFile(path).read(tensors_of(path)[f"vector.{torch.float16}"])

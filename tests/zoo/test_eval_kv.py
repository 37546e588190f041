"""What an FP8 cache costs is measured against the model's own, and is little."""

from __future__ import annotations

import csv
import json
import math
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from workbench import LLM, SamplingParams
from workbench.__main__ import main
from workbench.bench.provenance import provenance
from workbench.bench.rows import ORIGIN
from workbench.evals import kv
from workbench.models.zoo import registry

TEXT = "Once there was a young owl named Ella. She lived in an old tree by the river and was afraid. " * 6


@pytest.fixture(scope="module")
def found() -> list[kv.Comparison]:
    return kv.compare(
        registry.path("wren-1m"), ["fp8", "fp8_e5m2"], texts=6, questions=1, device="cpu", bar=False
    )


def test_a_cache_beside_itself_differs_in_nothing(found: list[kv.Comparison]) -> None:
    base = found[0]
    assert base.kv == "auto"
    assert base.told.kl.max() < 1e-9
    assert np.array_equal(base.told.logprob, base.told.base_logprob)
    assert base.told.same_best.all()
    assert all(beginning.parted is None for beginning in base.beginnings)


def test_calibrated_scales_keep_perplexity_within_half_a_percent_and_e5m2_is_coarser(
    found: list[kv.Comparison],
) -> None:
    _, e4m3, e5m2 = found
    for one in (e4m3, e5m2):
        assert len(one.told.position) > 1000
        assert (one.told.kl >= 0).all()
        assert one.told.kl.mean() > 1e-7, "eight bits leave a trace"
    ratio = math.exp(float(np.mean(e4m3.told.base_logprob - e4m3.told.logprob)))
    assert abs(ratio - 1) < 0.005
    assert e5m2.told.kl.mean() > 2 * e4m3.told.kl.mean(), "one bit less of mantissa is twice the error"


def test_rows_add_up_over_contexts(found: list[kv.Comparison]) -> None:
    lines = kv.rows(found)
    for name in ("auto", "fp8", "fp8_e5m2"):
        *parts, whole = [line for line in lines if line["kv"] == name]
        for column in ("tokens", "beginnings", "parted", "questions"):
            assert sum(part[column] for part in parts) == whole[column]
        kept = [part for part in parts if part["tokens"]]
        mean = sum(part["kl"] * part["tokens"] for part in kept) / whole["tokens"]
        assert whole["kl"] == pytest.approx(mean, rel=1e-3, abs=1e-12)
        right = sum(part["accuracy"] * part["questions"] for part in parts if part["questions"])
        assert whole["accuracy"] == pytest.approx(right / whole["questions"], rel=1e-3)


def test_what_is_told_of_a_text_is_what_the_engine_says_of_it() -> None:
    folder = registry.path("wren-1m")
    (_, one) = kv.compare(folder, ["fp8_e5m2"], texts=1, questions=0, text=TEXT, device="cpu", bar=False)
    asked = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    for cache, told in (("auto", one.told.base_logprob), ("fp8_e5m2", one.told.logprob)):
        with LLM(str(folder), device="cpu", kv_cache_dtype=cache, max_num_batched_tokens=64) as llm:
            ids = llm.get_tokenizer().encode(TEXT)
            (output,) = llm.generate([ids], asked, use_tqdm=False)
            values = [entry[i].logprob for i, entry in zip(ids[1:], output.prompt_logprobs[1:], strict=True)]
        assert told.tolist() == pytest.approx(values, abs=2e-2)
        assert told.mean() == pytest.approx(np.mean(values), abs=1e-3)


def test_the_command_writes_rows_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, table, picture = tmp_path / "text.txt", tmp_path / "rows.csv", tmp_path / "kl.svg"
    text.write_text(TEXT)
    where = ["--text", str(text), "-o", str(table), "--plot", str(picture)]
    began = datetime.now(UTC).replace(microsecond=0)
    status = main(["eval", "kv", "wren-1m", "--texts", "1", "-n", "0", "--device", "cpu", "--json", *where])
    assert status == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    with table.open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [line["kv"] for line in written] == [line["kv"] for line in told["rows"]]
    assert list(written[0]) == [*ORIGIN, "model", "seed", *kv.COLUMNS]
    with LLM("zoo/wren-1m", device="cpu") as llm:
        device = llm.config.device_name
    for line in written:
        assert {name: line[name] for name in ORIGIN} == provenance(device) | {"date": line["date"]}
        assert datetime.fromisoformat(line["date"]) >= began
        assert (line["model"], line["seed"]) == ("wren-1m", "0")
    assert {"auto", "fp8"} == {line["kv"] for line in written}
    assert "fp8" in picture.read_text()


def test_a_file_with_other_columns_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv, "compare", lambda *given, **named: pytest.fail("it was measured all the same"))
    old = tmp_path / "rows.csv"
    old.write_text(",".join(("model", "seed", *kv.COLUMNS)) + "\n")
    assert main(["eval", "kv", "wren-1m", "--device", "cpu", "-o", str(old)]) == 2
    assert "has other columns" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kv", "int4"], "kv_cache_dtype='int4' is unknown"),
        (["--texts", "0"], "texts is 0: use at least 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "kv", "wren-1m", "-n", "0", "--device", "cpu", *arguments]) == 2
    assert message in capsys.readouterr().err

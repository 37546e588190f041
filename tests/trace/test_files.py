"""Tables as folders of files: they come back as they were, and damage is noticed, whatever the format."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trace.house import House, build
from workbench.trace import Trace
from workbench.trace.schema import COLUMNS, SCHEMA, SCHEMA_VERSION

FORMATS = ("csv", "jsonl", "parquet")


@pytest.fixture(scope="module")
def busy() -> House:
    """A run with shared prefixes, chunks, preemptions, an abort, and texts that need care in any format."""
    house = build(budget=12, blocks=14)
    house.trace._decode = lambda ids: ",\n".join(f'<"t{token_id}é\\' for token_id in ids)
    for number in range(8):
        house.add([1] * 8 + [2 + number] * (number + 1), max_tokens=6, ignore_eos=True)
    for _ in range(3):
        house.engine.advance()
    house.engine.abort(house.requests[:1])
    return house.run()


def same(a: Trace, b: Trace) -> bool:
    for name in SCHEMA:
        for column in COLUMNS[name]:
            x, y = getattr(a.columns, name)[column.name], getattr(b.columns, name)[column.name]
            if not np.array_equal(x, y, equal_nan=column.kind == "float"):
                return False
    return True


def write(trace: Trace, form: str, folder: Path) -> list[Path]:
    return getattr(trace, f"to_{form}")(folder)


@pytest.mark.parametrize("form", FORMATS)
def test_a_trace_comes_back_as_it_was(busy: House, tmp_path: Path, form: str) -> None:
    written = write(busy.trace, form, tmp_path / "a" / "b")
    assert [path.name for path in written] == [*(f"{name}.{form}" for name in SCHEMA), "trace.json"]
    loaded = Trace.load(tmp_path / "a" / "b")
    assert same(loaded, busy.trace)
    assert loaded.steps.equals(busy.trace.steps)
    assert loaded.cut_off is None


@pytest.mark.parametrize("form", FORMATS)
def test_a_trace_of_nothing_comes_back(tmp_path: Path, form: str) -> None:
    write(Trace(), form, tmp_path)
    assert same(Trace.load(tmp_path), Trace())


@pytest.mark.parametrize(
    ("form", "read"),
    [
        ("csv", pd.read_csv),
        ("jsonl", lambda path: pd.read_json(path, lines=True)),
        ("parquet", pd.read_parquet),
    ],
)
def test_pandas_reads_the_files(busy: House, tmp_path: Path, form: str, read) -> None:
    write(busy.trace, form, tmp_path)
    steps = read(tmp_path / f"steps.{form}")
    assert steps.scheduled.tolist() == busy.trace.steps.scheduled.tolist()
    assert list(steps.columns) == [column.name for column in COLUMNS["steps"]]


def test_infinite_logprobs_survive_json(busy: House, tmp_path: Path) -> None:
    busy.trace.to_csv(tmp_path / "a")
    odd = Trace.load(tmp_path / "a")
    odd.columns.tokens["logprob"][:3] = [-np.inf, np.inf, np.nan]
    odd.to_jsonl(tmp_path / "b")
    assert same(Trace.load(tmp_path / "b"), odd)
    for line in (tmp_path / "b" / "tokens.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))


def test_a_folder_without_a_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no trace, neither runs\.csv.*to_csv.*record\(path\)"):
        Trace.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="not-there"):
        Trace.load(tmp_path / "not-there")


@pytest.mark.parametrize("form", FORMATS)
def test_a_place_that_cannot_be_written_is_named(busy: House, tmp_path: Path, form: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=r"file/trace cannot be written \(Not a directory\): name another"):
        write(busy.trace, form, tmp_path / "file" / "trace")


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_that_was_broken_off_is_refused(busy: House, tmp_path: Path, form: str) -> None:
    write(busy.trace, form, tmp_path)
    (tmp_path / "trace.json").unlink()  # written last
    with pytest.raises(FileNotFoundError, match=r"no trace\.json: the trace was not written to its end"):
        Trace.load(tmp_path)
    write(busy.trace, form, tmp_path)
    (tmp_path / f"tokens.{form}").unlink()
    with pytest.raises(FileNotFoundError, match=rf"no whole trace, tokens\.{form} missing.*to_{form}"):
        Trace.load(tmp_path)


@pytest.mark.parametrize("form", FORMATS)
def test_another_schema_is_refused(busy: House, tmp_path: Path, form: str) -> None:
    write(busy.trace, form, tmp_path)
    path = tmp_path / "trace.json"
    said = json.loads(path.read_text())
    for version, remedy in ((SCHEMA_VERSION + 1, "upgrade workbench"), (0, "the version that wrote it")):
        path.write_text(json.dumps(said | {"schema_version": version}))
        with pytest.raises(
            ValueError, match=f"schema {version}, this version reads {SCHEMA_VERSION}: .*{remedy}"
        ):
            Trace.load(tmp_path)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match=r"trace\.json is damaged"):
        Trace.load(tmp_path)


@pytest.mark.parametrize(
    ("form", "name", "old", "new", "says"),
    [
        ("csv", "runs", f"\n{SCHEMA_VERSION},", "\n99,", "schema 99.*upgrade"),
        ("csv", "steps", "scheduled", "planned", "has the columns"),
        ("csv", "steps", "committed", "committed,7", "fields in record 2.*damaged"),
        ("csv", "requests", "length", "length,", "fields in record .*damaged"),
        ("csv", "step_requests", "false", "no", "'no' in record .*damaged"),
        (
            "jsonl",
            "runs",
            f'"schema_version": {SCHEMA_VERSION}',
            '"schema_version": 99',
            "schema 99.*upgrade",
        ),
        ("jsonl", "steps", '"scheduled"', '"planned"', "has the columns"),
        ("jsonl", "steps", '"budget": 12', '"budget": 12.5', "12.5 in record 1.*damaged"),
        ("jsonl", "steps", '"budget": 12', '"budget": "12"', "'12' in record 1.*damaged"),
        ("jsonl", "step_requests", "false", "null", "None in record .*damaged"),
        ("jsonl", "tokens", "{", "[", "no JSON in line 1"),
    ],
)
def test_a_damaged_trace_is_refused(
    busy: House, tmp_path: Path, form: str, name: str, old: str, new: str, says: str
) -> None:
    write(busy.trace, form, tmp_path)
    path = tmp_path / f"{name}.{form}"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=says):
        Trace.load(tmp_path)


@pytest.mark.parametrize("form", FORMATS)
def test_a_prompt_of_any_length_comes_back_and_the_process_is_left_alone(tmp_path: Path, form: str) -> None:
    house = build()
    house.trace._decode = lambda ids: '"long", \n' * 40_000
    house.add([1, 2, 3])
    house.run()
    limit = csv.field_size_limit()
    write(house.trace, form, tmp_path)
    assert same(Trace.load(tmp_path), house.trace)
    assert csv.field_size_limit() == limit < len(house.trace.requests.prompt[0])


TEXTS = st.text(st.characters(codec="utf-8"), max_size=20) | st.text('",\n\r é', max_size=8)


@settings(max_examples=25)
@given(texts=st.lists(TEXTS.filter(bool), min_size=3, max_size=3))
@pytest.mark.parametrize("form", FORMATS)
def test_any_text_comes_back(form: str, texts: list[str]) -> None:
    house = build()
    house.trace._decode = lambda ids: texts[len(ids) % 3]
    house.add([1, 2, 3])
    house.run()
    with TemporaryDirectory() as folder:
        write(house.trace, form, Path(folder))
        assert same(Trace.load(folder), house.trace)


@pytest.mark.parametrize("second", FORMATS)
@pytest.mark.parametrize("first", FORMATS)
def test_what_was_written_last_is_read(busy: House, tmp_path: Path, first: str, second: str) -> None:
    other = build()
    other.add([1, 2, 3])
    write(busy.trace, first, tmp_path)
    write(other.run().trace, second, tmp_path)
    assert same(Trace.load(tmp_path), other.trace)


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_goes_into_no_recording(busy: House, tmp_path: Path, form: str) -> None:
    house = build()
    with house.trace.record(tmp_path):
        house.add([1, 2, 3])
        house.run()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(FileExistsError, match="holds a recording.*name another folder"):
        write(busy.trace, form, tmp_path)
    assert sorted(tmp_path.iterdir()) == before
    assert len(Trace.load(tmp_path).requests) == 1


@pytest.mark.parametrize(
    ("form", "name", "change"),
    [
        ("csv", "tokens", lambda data: data[:500] + b"\xff\xfe" + data[500:]),
        ("csv", "runs", lambda data: b"\xef\xbb\xbf" + data),
        ("csv", "steps", lambda data: data.replace(b"\r\n0,", b"\r\n99999999999999999999999,", 1)),
        ("csv", "runs", lambda data: data + b'"' + b"x" * 200_000 + b'"\n'),
        ("csv", "runs", lambda data: data + b'"'),
        ("csv", "runs", lambda data: data + b'a"b,"c\n'),
        ("csv", "steps", lambda data: b""),
        ("csv", "steps", lambda data: data + b"\0\n"),
        ("jsonl", "tokens", lambda data: data[:500] + b"\xff\xfe" + data[500:]),
        ("jsonl", "steps", lambda data: data.replace(b'"step": 0', b'"step": 99999999999999999999999', 1)),
        ("jsonl", "steps", lambda data: b"[" * 100_000),
        ("jsonl", "runs", lambda data: b"\xef\xbb\xbf" + data),
        ("parquet", "steps", lambda data: b"PAR1"),
    ],
)
def test_whatever_stands_in_a_file_the_error_names_it(
    busy: House, tmp_path: Path, form: str, name: str, change: Callable[[bytes], bytes]
) -> None:
    write(busy.trace, form, tmp_path)
    path = tmp_path / f"{name}.{form}"
    data = path.read_bytes()
    path.write_bytes(change(data))
    assert path.read_bytes() != data
    with pytest.raises(ValueError, match=rf"{name}\.{form}"):
        Trace.load(tmp_path)


NO_TABLES = json.dumps({"schema_version": SCHEMA_VERSION, "rows": {}})


@pytest.mark.parametrize("text", ["[1, 2]", "{}", "7", "[" * 100_000, NO_TABLES])
def test_another_manifest_is_refused(busy: House, tmp_path: Path, text: str) -> None:
    busy.trace.to_csv(tmp_path)
    (tmp_path / "trace.json").write_text(text)
    with pytest.raises(ValueError, match=r"trace\.json is damaged.*: write the trace again"):
        Trace.load(tmp_path)


@pytest.mark.parametrize("name", SCHEMA[1:])
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_file_cut_at_the_end_of_a_row_is_refused(busy: House, tmp_path: Path, form: str, name: str) -> None:
    write(busy.trace, form, tmp_path)
    path = tmp_path / f"{name}.{form}"
    if form == "jsonl":
        whole = path.read_bytes()
        path.write_bytes(whole[: whole[:-1].rindex(b"\n") + 1])
    else:
        pd.read_csv(path, dtype="string").iloc[:-1].to_csv(path, index=False)
    with pytest.raises(ValueError, match=rf"{name}\.{form} holds \d+ rows, not \d+: it was cut short"):
        Trace.load(tmp_path)


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_cut_within_a_row_is_refused(busy: House, tmp_path: Path, form: str) -> None:
    write(busy.trace, form, tmp_path)
    path = tmp_path / f"steps.{form}"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=rf"steps\.{form}.*(damaged|cut short)"):
        Trace.load(tmp_path)


def test_parquet_without_pyarrow_says_what_to_install(
    busy: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy.trace.to_parquet(tmp_path / "a")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(RuntimeError, match=r"pip install 'workbench\[parquet\]'"):
        busy.trace.to_parquet(tmp_path / "b")
    assert not (tmp_path / "b").exists()
    with pytest.raises(RuntimeError, match=r"pip install 'workbench\[parquet\]'"):
        Trace.load(tmp_path / "a")

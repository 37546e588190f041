"""Events as bytes come back as they were, and nothing else is made of bytes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from workbench.cache.kv_events import KVEvent
from workbench.engine.result import LogprobColumns
from workbench.params import RequestOutputKind, SamplingParams, StructuredOutputsParams
from workbench.trace.codec import Unknown, decode, encode
from workbench.trace.frames import frame, read_frame


def equal(a: object, b: object) -> bool:
    """Whether two values are the same, with their types, and arrays with their dtypes."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    if dataclasses.is_dataclass(a):
        return all(equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return a == b


@pytest.mark.parametrize(
    "value",
    [
        SamplingParams(),
        SamplingParams(
            n=3, seed=5, stop=["a"], stop_token_ids=[1], logit_bias={2: -1.0}, allowed_token_ids=[1, 2],
            output_kind=RequestOutputKind.DELTA,
            structured_outputs=StructuredOutputsParams(json={"type": "object", "@": [1, {"a": None}]}),
        ),
        SamplingParams(extra_args={"a": (1, 2.5, None), "b": {"c": b"\x00\xff"}}),
        LogprobColumns(
            np.array([-0.5, -np.inf], np.float32), np.array([1, 2], np.int32),
            np.zeros((2, 0), np.int32), np.zeros((2, 3), np.float32), np.ones(2, np.float32),
        ),
        (("a", "b", "c", "d"), ["a", "b"], (), ("a", 1, 2.0, None, "b"), [1, 2, True, 4], (0, 1, 2, 1 << 70)),
        {"nan": [True, 1, "1", 1e300]},
        KVEvent("cached", "full", (3, 4), (0,), (), (1,), (b"", b"\x00\xff"), ("a", "b")),
        np.array([["a", None], [(1, 2), 3.5]], np.object_),
    ],
)  # fmt: skip
def test_values_come_back_with_their_types(value: object) -> None:
    for values in ([value], [value, value], [value, "another", value]):
        found = read_frame(encode(values), 0)  # type: ignore[arg-type]
        assert found is not None
        assert equal(decode(found), values)


def test_what_is_the_same_again_is_written_once() -> None:
    rows, names = np.arange(1000, dtype=np.int32), tuple(str(number) for number in range(1000))
    once = len(encode([(rows, names)]))  # type: ignore[list-item]
    again = encode([(rows, names), (rows.copy(), names)])  # type: ignore[list-item]
    assert len(again) < once + 100
    other = encode([(rows, names), (rows + 1, names)])  # type: ignore[list-item]
    assert len(other) > once + rows.nbytes
    found = read_frame(other, 0)
    assert found is not None
    assert equal(decode(found)[1], (rows + 1, names))


@dataclasses.dataclass
class Mine:
    """Somebody's own class; what stands in it is not ours to write."""

    value: int = 1


@pytest.mark.parametrize("mine", [object(), Mine()])
def test_an_object_of_the_users_own_does_not_stop_the_recording(mine: object) -> None:
    found = read_frame(encode([SamplingParams(extra_args={"mine": mine})]), 0)  # type: ignore[list-item]
    assert found is not None
    assert decode(found) == [SamplingParams(extra_args={"mine": None})]


def test_nothing_but_the_package_s_own_types_is_made_from_a_file() -> None:
    for name in ("os.system", "Popen", "Path", "Emitter", "type"):
        found = read_frame(frame(f'[1,["record","{name}",{{}}]]'.encode()), 0)
        assert found is not None
        with pytest.raises(Unknown, match=name):
            decode(found)

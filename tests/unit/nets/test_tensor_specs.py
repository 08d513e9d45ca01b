"""The bytes of the tensors of a request, and of its answer."""

import numpy as np
import pytest

from dist_net.nets.tensor_specs import TensorSpec, from_bytes, record_of, to_bytes

SPECS = (TensorSpec("a", "FP32", (2,)), TensorSpec("b", "INT64", ()), TensorSpec("c", "BOOL", (1,)))
FREE = (
    TensorSpec("a", "FP16", (-1, 2)),
    TensorSpec("b", "UINT8", ()),
    TensorSpec("c", "BOOL", (-1,)),
)


def test_rows_of_several_tensors_are_records_that_can_be_joined() -> None:
    tensors = {
        "c": np.array([[True], [False]]),
        "a": np.arange(4, dtype=np.float32).reshape(2, 2),
        "b": np.array([7, -7]),
    }
    payload = bytes(to_bytes(tensors, SPECS, is_batched=True))
    assert len(payload) == 2 * record_of(SPECS).itemsize == 2 * (8 + 8 + 1)
    joined = from_bytes(payload + payload[:17], SPECS, is_batched=True)
    for name, array in tensors.items():
        assert np.array_equal(joined[name], np.concatenate([array, array[:1]]))


def test_a_single_tensor_is_its_own_bytes() -> None:
    rows = np.arange(6, dtype="<f4").reshape(3, 2)
    assert bytes(to_bytes({"a": rows}, SPECS[:1], is_batched=True)) == rows.tobytes()


@pytest.mark.parametrize("count", [0, 1, 3])
def test_tensors_of_any_size_follow_their_shapes(count: int) -> None:
    tensors = {
        "a": np.ones((count, 2), np.float16),
        "b": np.array(9, np.uint8),
        "c": np.ones(count, bool),
    }
    payload = to_bytes(tensors, FREE, is_batched=False)
    found = from_bytes(payload, FREE, is_batched=False)
    for name, array in tensors.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert np.array_equal(found[name], array)


def test_damaged_payloads_are_refused() -> None:
    tensors = {"a": np.ones((2, 2)), "b": np.array(9), "c": np.ones(5, bool)}
    payload = bytes(to_bytes(tensors, FREE, is_batched=False))
    for damaged in (
        b"",
        payload[:-1],
        payload + bytes(8),
        (2**62).to_bytes(8, "little") + payload[8:],
        payload.replace(b"F16", b"F32"),
        payload.replace(b"[2,2]", b"[2,9]"),
        bytes(to_bytes(tensors, FREE[:2], is_batched=False)),
    ):
        with pytest.raises(ValueError, match=r"damaged|tensors of"):
            from_bytes(damaged, FREE, is_batched=False)


@pytest.mark.parametrize("values", [[1, "FP32", []], ["a", "BYTES", []], ["a", "FP32", [-2]]])
def test_a_spec_from_json_is_checked(values: list[object]) -> None:
    with pytest.raises(ValueError, match="tensor"):
        TensorSpec.parsed(values)

"""What a dataset is made of, and what it refuses."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dist_net.data import AugmentedSamples, Dataset, Samples
from dist_net.data.samples import SampleIndices, chunks_of, samples_of
from dist_net.errors import DatasetError
from dist_net.nn import Weighted
from dist_net.nn.losses import TargetMeaning
from naming import naming


class Squares:
    """Samples that lie nowhere: the square of each index."""

    shape = (2,)
    dtype = np.dtype(np.float32)

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def read(self, indices: SampleIndices, out: NDArray[Any]) -> None:
        out[...] = (indices**2)[:, np.newaxis]


def classes_of(**changes: Any) -> Dataset:
    good = Dataset(
        "toy",
        train_inputs=np.zeros((4, 2, 2), np.uint8),
        train_targets=np.array([0, 1, 1, 0]),
        test_inputs=np.zeros((3, 2, 2), np.uint8),
        test_targets=np.zeros(3, int),
        class_names=("no", "yes"),
    )
    return dataclasses.replace(good, **changes)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int64, np.uint64, ">i4"])
def test_classes_are_integers_of_any_dtype(dtype: str) -> None:
    targets = np.arange(1000).astype(dtype)
    names = tuple(map(str, range(1000)))
    inputs = np.zeros((1000, 3))
    dataset = Dataset("many", inputs, targets, inputs, targets, names)
    assert dataset.input_shape == (3,)
    dataset.require_labels(TargetMeaning(1000).require)
    with pytest.raises(DatasetError, match=naming("train target 999", "index 999", "0 to 998")):
        dataset.require_labels(TargetMeaning(999).require)


@pytest.mark.parametrize("part", ["train", "test"])
def test_labels_that_a_loss_ignores_are_valid_for_it_alone(part: str) -> None:
    inputs, labels = np.zeros((2, 3)), np.array([[0, 1, 1], [1, -1, -1]])
    others = {"train_targets": labels * 0, "test_targets": labels * 0, f"{part}_targets": labels}
    dataset = Dataset(
        "tokens", train_inputs=inputs, test_inputs=inputs, **others, class_names=("a", "b")
    )
    dataset.require_labels(TargetMeaning(2, weighted=Weighted("cross_entropy_of_logits")).require)
    with pytest.raises(DatasetError, match=naming(f"{part} target -1", "index 1", "0 to 1")):
        dataset.require_labels(TargetMeaning(2).require)


def test_targets_without_classes_are_floats_of_any_shape() -> None:
    inputs, targets = np.zeros((4, 5), np.int16), np.zeros((4, 2, 3))
    assert Dataset("regression", inputs, targets, inputs, targets).class_names == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_inputs": [[1, 2]]}, "list"),
        ({"test_inputs": np.array(3.0)}, "test inputs without an axis"),
        ({"train_inputs": np.array(["cat"] * 4)}, "<U3"),
        ({"test_targets": np.zeros(3)}, r"int64\[\].*float64\[\]"),
        ({"train_targets": np.zeros(5, int)}, "5 .*4 inputs"),
        ({"test_inputs": np.zeros((3, 2, 3), np.uint8)}, r"\[2, 2\].*uint8\[2, 3"),
        ({"class_names": ()}, "int64.*0 names"),
        ({"test_inputs": np.zeros((0, 2, 2), np.uint8)}, "no test inputs"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DatasetError, match=f"dataset toy: .*{words}"):
        classes_of(**changes)


def test_floats_with_names_and_numbers_that_are_none_are_refused() -> None:
    inputs, targets = np.zeros((4, 2)), np.array([0, 1, np.nan, 2])
    with pytest.raises(DatasetError, match=naming("nan", "index 2")):
        Dataset("toy", inputs, targets, inputs, targets)
    with pytest.raises(DatasetError, match=naming("float64", 1)):
        Dataset("toy", inputs, targets, inputs, targets, ("only",))


def test_an_object_that_reads_samples_stands_in_for_an_array() -> None:
    inputs, targets = Squares(5), np.zeros(5)
    assert isinstance(inputs, Samples)
    assert not isinstance(inputs, AugmentedSamples)
    dataset = Dataset("squares", inputs, targets, inputs, targets)
    array = np.arange(5, dtype=np.float32)[:, np.newaxis].repeat(2, 1) ** 2
    assert dataset.digest() == Dataset("array", array, targets, array, targets).digest()
    assert dataset.digest() != dataclasses.replace(dataset, train_inputs=array + 1).digest()


def test_samples_of_a_file_are_read_in_the_byte_order_of_the_machine(tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "file", ">f4", "w+", shape=(10, 3))
    mapped[:] = np.arange(30).reshape(10, 3)
    samples = samples_of(mapped)
    out = np.empty((2, 3), samples.dtype)
    samples.read(np.array([7, 2]), out)
    np.testing.assert_array_equal(out, [[21, 22, 23], [6, 7, 8]])
    assert out.dtype == np.float32


def test_chunks_give_every_sample_once_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dist_net.data.samples.CHUNK_BYTES", 3 * 8)
    for every, max_bytes in ((1, 100), (2, 64), (3, 30)):
        chunks = [(each, chunk.copy()) for each, chunk in chunks_of(Squares(8), max_bytes)]
        read = np.concatenate([chunk for _, chunk in chunks])[:, 0]
        np.testing.assert_array_equal(read, np.arange(0, 8, every) ** 2)
        assert [each[0] for each, _ in chunks] == list(range(0, 8, 3 * every))

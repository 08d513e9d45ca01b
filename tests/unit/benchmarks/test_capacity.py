"""The results of ``scripts/bench capacity``, from predictions and measurements."""

from benchmarks.capacity import case, ratios


def test_medians_are_compared() -> None:
    result = case((2, 32), [90.0, 120.0, 100.0], [80.0])
    assert result == {
        "workers": 2,
        "batch_size": 32,
        "predicted_samples_per_s": 100,
        "samples_per_s": 80,
    }
    assert ratios([result]) == {"predicted_to_measured_2_workers_batch_32": 1.25}

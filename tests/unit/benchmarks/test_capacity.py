"""What ``scripts/bench capacity`` makes of what was predicted and measured."""

from benchmarks.capacity import Outcome, case, ratios


def test_medians_are_compared() -> None:
    predicted = [Outcome(90.0, 3.0), Outcome(120.0, 2.0), Outcome(100.0, 1.0)]
    measured = [Outcome(80.0, 2.5)]
    result = case(2, 32, predicted, measured)
    assert result == {
        "workers": 2,
        "batch_size": 32,
        "predicted_samples_per_s": 100,
        "samples_per_s": 80,
        "predicted_staleness_mean": 2.0,
        "staleness_mean": 2.5,
    }
    assert ratios([result]) == {"predicted_to_measured_2_workers_batch_32": 1.25}

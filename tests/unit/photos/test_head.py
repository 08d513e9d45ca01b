"""The head: the minimum of its loss, folds that keep groups together, the same bits each time."""

import numpy as np
import pytest

from dist_net.photos import head
from dist_net.photos.head import (
    CONVERGED,
    PENALTIES,
    Components,
    HeadProblem,
    fold_of_each,
    train_heads,
)
from dist_net.photos.photo_statistics import calibrated_losses, mean_and_error


def drawn(count=90, width=12, classes=3, seed=0, spread=1.5):
    """Features around a mean for each class."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    means = generator.normal(size=(classes, width)) * spread
    features = means[labels] + generator.normal(size=(count, width))
    return features.astype(np.float32), labels


@pytest.mark.parametrize("width", [12, 200])
@pytest.mark.parametrize("penalty", [100.0, 3.0, 0.1, min(PENALTIES)])
def test_the_gradient_of_every_head_vanishes_for_strong_and_weak_penalties(width, penalty):
    features, labels = drawn(width=width, spread=0.3)
    folds = np.arange(len(labels)) // 3 % 5
    found = train_heads(features, labels, 3, folds, (penalty,))
    centred = features - features.mean(0, dtype=np.float64)
    scaled = centred / np.sqrt((centred**2).mean())
    for fold, of_fold in enumerate([*found.of_folds, found.final]):
        is_in = folds != fold
        kernel, bias = (each.astype(np.float64) for each in of_fold)
        powers = np.exp(features[is_in] @ kernel + bias)
        errors = powers / powers.sum(1, keepdims=True) - np.eye(3)[labels[is_in]]
        # On scaled features the kernel is scale times as large, and so is its penalty's gradient.
        of_penalty = penalty * kernel * np.sqrt((centred**2).mean())
        gradient = scaled[is_in].T @ errors + of_penalty
        norm = np.hypot(np.linalg.norm(gradient), np.linalg.norm(errors.sum(0)))
        assert norm < 1.5 * CONVERGED * np.linalg.norm(of_penalty)


def test_features_that_are_all_equal_are_no_hindrance():
    found = train_heads(np.ones((6, 4), np.float32), np.arange(6) % 3, 3, np.arange(6) // 3)
    np.testing.assert_allclose(found.logits, 0, atol=1e-4)


def test_each_row_is_judged_by_the_head_that_was_trained_without_its_fold():
    features, labels = drawn()
    folds = np.arange(len(labels)) // 3 % 5
    found = train_heads(features, labels, 3, folds)
    for fold, of_fold in enumerate(found.of_folds):
        is_out = folds == fold
        np.testing.assert_allclose(of_fold(features[is_out]), found.logits[is_out], atol=1e-3)
    changed = labels.copy()
    changed[folds == 0] = 2
    again = train_heads(features, changed, 3, folds, (found.penalty,))
    once = train_heads(features, labels, 3, folds, (found.penalty,))
    np.testing.assert_allclose(again.logits[folds == 0], once.logits[folds == 0], atol=0.02)


def test_labels_without_a_pattern_promise_nothing():
    generator = np.random.default_rng(1)
    features = generator.normal(size=(60, 40)).astype(np.float32)
    labels = generator.integers(0, 3, 60)
    found = train_heads(features, labels, 3, np.arange(60) % 10)
    assert calibrated_losses(found.logits, labels).mean() == pytest.approx(np.log(3), abs=0.15)


def test_the_weakest_penalty_within_a_standard_error_of_the_least_loss_is_used():
    features, labels = drawn(count=60, width=200, spread=0.1)
    folds = fold_of_each(labels, np.arange(60), 10, seed=0)
    losses = {
        penalty: calibrated_losses(
            train_heads(features, labels, 3, folds, (penalty,)).logits, labels
        )
        for penalty in PENALTIES
    }
    chosen = train_heads(features, labels, 3, folds).penalty
    least = min(losses, key=lambda penalty: losses[penalty].mean())
    assert chosen < least
    lead, error = mean_and_error(losses[chosen] - losses[least], np.arange(60))
    assert lead < 1.2 * error  # a head solved after stronger penalties differs a little


def test_the_same_features_give_the_same_bits_on_any_number_of_cores(monkeypatch):
    features, labels = drawn(count=1200, width=600, spread=0.1)
    folds = fold_of_each(labels, np.arange(1200), 3, seed=3)

    def trained_on(cores):
        monkeypatch.setattr(head, "available_cores", lambda: cores)
        return train_heads(features.copy(), labels, 3, folds, (100.0,))

    once, again = map(trained_on, (1, 3))
    assert once.final.kernel.tobytes() == again.final.kernel.tobytes()
    assert once.logits.tobytes() == again.logits.tobytes()


@pytest.mark.parametrize("width", [12, 200])
def test_a_head_of_features_that_came_later_is_that_of_all_at_once(width):
    features, labels = drawn(width=width, spread=0.3)
    features[-3:] *= 2
    first = Components.principal(features[:-3])
    logits = []
    for components in (Components.principal(features), first.with_features(features[-3:])):
        problem = HeadProblem(components, labels, 3)
        weights, _ = problem.solve(3.0, problem.zeros())
        logits.append(components.head(weights[:, 0])(features))
    apart = [each - each.mean(1, keepdims=True) for each in logits]
    # The scale of the features, and with it their penalty, is that of the first.
    assert np.abs(apart[0] - apart[1]).max() < 0.1 * np.abs(apart[0]).max()


@pytest.mark.parametrize("penalty", PENALTIES[::2])
@pytest.mark.parametrize("seed", range(3))
def test_one_other_label_of_many_changes_a_head_that_was_solved(penalty, seed):
    features, labels = drawn(1500, spread=0.3, seed=seed)
    components = Components.principal(features)
    before = HeadProblem(components, labels, 3)
    weights, _ = before.solve(penalty, before.zeros())
    for row in range(0, 1500, 150):
        others = labels.copy()
        others[row] = (others[row] + 1) % 3
        after, taken = HeadProblem(components, others, 3).solve(penalty, weights)
        change = (components.rows[row] @ (after - weights)[:, 0].T)[[labels[row], others[row]]]
        assert taken > 0
        assert change[0] < change[1]


def test_it_is_within_a_point_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, labels = drawn(count=1200, width=60, classes=6, spread=0.35)
    trained, tested = slice(0, 400), slice(400, None)
    folds = fold_of_each(labels[trained], np.arange(400), 10, seed=0)
    final = train_heads(features[trained], labels[trained], 6, folds).final
    accuracy = (final(features[tested]).argmax(1) == labels[tested]).mean()
    theirs = max(
        linear_model.LogisticRegression(C=strength, max_iter=2000)
        .fit(features[trained], labels[trained])
        .score(features[tested], labels[tested])
        for strength in (0.001, 0.01, 0.1, 1)
    )
    assert accuracy >= theirs - 0.01


def test_folds_keep_groups_together_and_classes_even():
    labels = np.repeat([0, 1, 2], 20)
    groups = np.arange(60) // 2
    folds = fold_of_each(labels, groups, 5, seed=0)
    assert all(len(set(folds[groups == group])) == 1 for group in groups)
    for label in range(3):
        assert np.bincount(folds[labels == label], minlength=5).tolist() == [4] * 5
    assert (folds == fold_of_each(labels, groups, 5, seed=0)).all()
    assert (folds != fold_of_each(labels, groups, 5, seed=1)).any()


def test_the_error_of_a_mean_counts_groups():
    values = np.random.default_rng(0).normal(size=50)
    mean, error = mean_and_error(values, np.arange(50))
    assert (mean, error) == pytest.approx((values.mean(), values.std(ddof=1) / 50**0.5))
    repeated = mean_and_error(np.repeat(values, 4), np.repeat(np.arange(50), 4))
    assert repeated == pytest.approx((mean, error))
    assert mean_and_error(values, np.zeros(50, int))[1] == np.inf


def test_heads_without_a_class_are_those_that_are_trained_without_its_rows():
    features, labels = drawn(spread=0.3)
    folds = np.arange(len(labels)) // 3 % 5
    found = train_heads(features, labels, 3, folds, (3.0,))
    is_known = labels != 1
    alone = train_heads(features[is_known], labels[is_known] // 2, 2, folds[is_known], (2.9,))
    logits = found.without_class(1, np.arange(len(labels)))
    apart = logits - logits.mean(1, keepdims=True)
    expected = np.empty_like(logits)
    expected[is_known], expected[~is_known] = alone.logits, alone.final(features[~is_known])
    expected -= expected.mean(1, keepdims=True)
    assert np.abs(apart - expected).max() < 0.1 * np.abs(expected).max()

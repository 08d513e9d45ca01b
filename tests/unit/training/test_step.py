"""A minibatch's gradient, a single process's training, and an evaluation, on the digits."""

from dataclasses import replace

import numpy as np
import pytest

from dist_net.data import Dataset, dataset_named, epoch_order
from dist_net.nn import Dense, Dropout, Flatten, Model, Rescale, Sequential
from dist_net.recipes.recipe import LoadedRecipe, load_recipe
from dist_net.training.evaluation import Evaluator
from dist_net.training.single_process import SingleProcess
from dist_net.training.step import TrainingStep
from dist_net.vector import Vector


@pytest.fixture(scope="module")
def loaded() -> LoadedRecipe:
    return load_recipe("digits")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return dataset_named("digits")


def test_a_gradient_of_a_minibatch_is_the_mean_of_its_samples(
    loaded: LoadedRecipe, digits: Dataset
) -> None:
    step = TrainingStep(loaded.recipe.model, digits, seed=5)
    weights = loaded.recipe.initial_weights(0)
    whole, single, total = (np.empty_like(weights) for _ in range(3))
    total[:] = 0
    step.gather(2, 30, 37)
    loss_sum, correct = step.run(weights, whole)
    singles = []
    for sample in range(30, 37):
        step.gather(2, sample, sample + 1)
        singles.append(step.run(weights, single))
        total += single
    np.testing.assert_allclose(whole, total / 7, rtol=1e-4, atol=1e-6)
    assert loss_sum == pytest.approx(sum(loss for loss, _ in singles), rel=1e-5)
    assert correct == sum(right for _, right in singles)


def test_a_minibatch_is_gathered_from_the_shuffled_order(
    loaded: LoadedRecipe, digits: Dataset
) -> None:
    step = TrainingStep(loaded.recipe.model, digits, seed=5)
    weights = loaded.recipe.initial_weights(0)
    by_order, by_hand = np.empty_like(weights), np.empty_like(weights)
    step.gather(3, 100, 132)
    step.run(weights, by_order)
    chosen = epoch_order(5, 3, len(digits.train_labels))[100:132]
    model = loaded.recipe.model
    plan = model.compile_training(32, np.random.default_rng(0))
    arrays = digits.train_images[chosen], digits.train_labels[chosen]
    model.bind_training(plan, *arrays, weights, by_hand).run()
    np.testing.assert_array_equal(by_order, by_hand)


def dropped(step: TrainingStep, model: Model, epoch: int, start: int, stop: int) -> Vector:
    """The gradient of a minibatch, which shows the inputs that were dropped."""
    gradient = np.empty(model.layout.size, np.float32)
    step.gather(epoch, start, stop)
    step.run(np.zeros_like(gradient), gradient)
    return gradient


def test_whoever_computes_a_minibatch_drops_the_same_and_no_two_minibatches_do(
    digits: Dataset,
) -> None:
    same_sample = replace(
        digits,
        train_images=np.repeat(digits.train_images[:1], 64, axis=0),
        train_labels=np.repeat(digits.train_labels[:1], 64),
    )
    network = Sequential(Rescale(), Flatten(), Dropout(0.5), Dense(10))
    model = Model(network, digits.train_images.shape[1:])
    one, other = (TrainingStep(model, same_sample, seed=5) for _ in range(2))
    minibatches = [(epoch, start, start + 8) for epoch in range(3) for start in range(0, 64, 8)]
    gradients = [dropped(one, model, *each) for each in minibatches]
    for minibatch, gradient in reversed(list(zip(minibatches, gradients, strict=True))):
        np.testing.assert_array_equal(dropped(other, model, *minibatch), gradient)
        np.testing.assert_array_equal(dropped(other, model, *minibatch), gradient)
    assert len({gradient.tobytes() for gradient in gradients}) == len(minibatches)
    another_seed = TrainingStep(model, same_sample, seed=6)
    assert not np.array_equal(dropped(another_seed, model, *minibatches[0]), gradients[0])


def test_a_new_vector_at_the_place_of_a_dropped_one_is_not_mistaken_for_it(
    loaded: LoadedRecipe, digits: Dataset
) -> None:
    step = TrainingStep(loaded.recipe.model, digits, seed=5)
    step.gather(0, 0, 8)
    losses = set()
    for seed in range(5):
        weights = loaded.recipe.initial_weights(seed)
        losses.add(step.run(weights, np.empty_like(weights))[0])
        del weights
    assert len(losses) == 5


def test_one_process_learns_the_digits(loaded: LoadedRecipe, digits: Dataset) -> None:
    training = SingleProcess(loaded.recipe, digits, seed=1)
    results = list(training.epochs())
    assert results[-1].loss < 0.2 * results[0].loss
    evaluation = Evaluator(loaded.recipe.model, digits)(training.weights)
    assert evaluation.accuracy > 0.9
    assert evaluation.samples == len(digits.test_labels)
    counts = np.bincount(digits.test_labels, minlength=10)
    np.testing.assert_array_equal(evaluation.confusion.sum(1), counts)


def test_an_evaluation_of_known_outputs(loaded: LoadedRecipe, digits: Dataset) -> None:
    weights = np.zeros(loaded.recipe.model.layout.size, np.float32)
    weights[-10:] = [0, 0, 0, 5, 0, 0, 0, 0, 0, 0]  # whatever it sees, it says 3
    evaluation = Evaluator(loaded.recipe.model, digits)(weights)
    share = float(np.mean(digits.test_labels == 3))
    assert evaluation.accuracy == pytest.approx(share)
    assert evaluation.confusion[:, 3].sum() == evaluation.samples
    surprise = np.log(np.exp(5) + 9)
    assert evaluation.loss == pytest.approx(surprise - 5 * share, rel=1e-5)

"""A minibatch's gradient, a single process's training, and an evaluation, on the digits."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from dist_net.autodiff import reshape
from dist_net.data import Dataset, dataset_named, epoch_order
from dist_net.data.samples import SampleIndices
from dist_net.ground.vector import Vector
from dist_net.nets.recipes.recipe import LoadedRecipe, Recipe, load_recipe
from dist_net.nn import (
    Dense,
    Dropout,
    Flatten,
    Lambda,
    Model,
    Rescale,
    Sequential,
    mean_squared_error,
)
from dist_net.training.run.evaluation import Evaluator
from dist_net.training.run.fit import SingleProcess
from dist_net.training.worker.local_steps import MAX_PLANS, Minibatch, TrainingStep


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
    total = np.zeros_like(weights)
    loss_sum, borrowed, correct = step(weights, Minibatch(2, 30, 37))
    whole = borrowed.copy()
    singles = []
    for sample in range(30, 37):
        singles.append(step(weights, Minibatch(2, sample, sample + 1)))
        total += singles[-1].gradient
    np.testing.assert_allclose(whole, total / 7, rtol=1e-4, atol=1e-6)
    assert loss_sum == pytest.approx(sum(each.loss_sum for each in singles), rel=1e-5)
    assert correct == sum(each.correct for each in singles)


def test_a_minibatch_is_gathered_from_the_shuffled_order(
    loaded: LoadedRecipe, digits: Dataset
) -> None:
    step = TrainingStep(loaded.recipe.model, digits, seed=5)
    weights = loaded.recipe.initial_weights(0)
    by_hand = np.empty_like(weights)
    _, by_order, _ = step(weights, Minibatch(3, 100, 132))
    chosen = epoch_order(5, 3, len(digits.train_targets))[100:132]
    model = loaded.recipe.model
    plan = model.compile_training(32, np.random.default_rng(0))
    arrays = digits.train_inputs[chosen], digits.train_targets[chosen]
    model.bind_training(plan, *arrays, weights, by_hand).run()
    np.testing.assert_array_equal(by_order, by_hand)


def dropped(step: TrainingStep, model: Model, epoch: int, start: int, stop: int) -> Vector:
    """The gradient of a minibatch, which shows the inputs that were dropped."""
    weights = np.zeros(model.layout.size, np.float32)
    return step(weights, Minibatch(epoch, start, stop)).gradient.copy()


def test_whoever_computes_a_minibatch_drops_the_same_and_no_two_minibatches_do(
    digits: Dataset,
) -> None:
    same_sample = replace(
        digits,
        train_inputs=np.repeat(digits.train_inputs[:1], 64, axis=0),
        train_targets=np.repeat(digits.train_targets[:1], 64),
    )
    network = Sequential(Rescale(), Flatten(), Dropout(0.5), Dense(10))
    model = Model(network, digits.train_inputs.shape[1:])
    one, other = (TrainingStep(model, same_sample, seed=5) for _ in range(2))
    minibatches = [(epoch, start, start + 8) for epoch in range(3) for start in range(0, 64, 8)]
    gradients = [dropped(one, model, *each) for each in minibatches]
    for minibatch, gradient in reversed(list(zip(minibatches, gradients, strict=True))):
        np.testing.assert_array_equal(dropped(other, model, *minibatch), gradient)
        np.testing.assert_array_equal(dropped(other, model, *minibatch), gradient)
    assert len({gradient.tobytes() for gradient in gradients}) == len(minibatches)
    another_seed = TrainingStep(model, same_sample, seed=6)
    assert not np.array_equal(dropped(another_seed, model, *minibatches[0]), gradients[0])


class BrighterByEpoch:
    """The digits; training sees them with the epoch, the seed and their index added."""

    shape = (8, 8)
    dtype = np.dtype(np.uint8)

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: SampleIndices, out: NDArray[np.uint8]) -> None:
        out[...] = self._images[indices]

    def read_augmented(
        self, indices: SampleIndices, out: NDArray[np.uint8], seed: int, epoch: int
    ) -> None:
        added = (seed + epoch + indices).astype(np.uint8)
        out[...] = self._images[indices] + added[:, np.newaxis, np.newaxis]


def test_training_sees_the_variants_of_its_epoch_and_evaluation_the_samples(
    loaded: LoadedRecipe, digits: Dataset
) -> None:
    augmented = replace(
        digits,
        train_inputs=BrighterByEpoch(digits.train_inputs),
        test_inputs=BrighterByEpoch(digits.test_inputs),
    )
    model, weights = loaded.recipe.model, loaded.recipe.initial_weights(0)
    by_hand = np.empty_like(weights)
    step = TrainingStep(model, augmented, seed=5)
    _, gradient, _ = step(weights, Minibatch(3, 100, 132))
    chosen = epoch_order(5, 3, len(augmented.train_inputs))[100:132]
    inputs = digits.train_inputs[chosen] + (8 + chosen).astype(np.uint8)[:, None, None]
    plan = model.compile_training(32, np.random.default_rng(0))
    model.bind_training(plan, inputs, digits.train_targets[chosen], weights, by_hand).run()
    np.testing.assert_array_equal(gradient, by_hand)
    assert Evaluator(model, augmented)(weights).loss == Evaluator(model, digits)(weights).loss


def test_numbers_of_any_shape_are_predicted_from_inputs_of_any_dtype() -> None:
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(64, 3))
    targets = inputs @ generator.normal(size=(3, 4)).reshape(3, 4)
    targets = targets.reshape(64, 2, 2)
    dataset = Dataset("plane", inputs, targets, inputs[:7], targets[:7])
    recipe = Recipe(
        Sequential(Rescale(1), Dense(4), Lambda(lambda x: reshape(x, (x.shape[0], 2, 2)))),
        lambda: dataset,
        (3,),
        loss=mean_squared_error,
        learning_rate=0.1,
        batch_size=16,
        epochs=60,
        input_dtype=np.float64,
    )
    training = SingleProcess(recipe, recipe.load_dataset())
    *_, last = training.epochs()
    assert last.loss < 1e-3
    assert last.accuracy is None
    evaluation = Evaluator(recipe.model, dataset)(training.weights)
    assert evaluation.loss < 1e-3
    assert evaluation.accuracy is None
    assert evaluation.samples == 7


def test_a_new_vector_at_the_place_of_a_dropped_one_is_not_mistaken_for_it(
    loaded: LoadedRecipe, digits: Dataset
) -> None:
    step = TrainingStep(loaded.recipe.model, digits, seed=5)
    losses = set()
    for seed in range(5):
        weights = loaded.recipe.initial_weights(seed)
        losses.add(step(weights, Minibatch(0, 0, 8)).loss_sum)
        del weights
    assert len(losses) == 5


def test_one_process_learns_the_digits(loaded: LoadedRecipe, digits: Dataset) -> None:
    training = SingleProcess(loaded.recipe, digits, seed=1)
    results = list(training.epochs())
    assert results[-1].loss < 0.2 * results[0].loss
    evaluation = Evaluator(loaded.recipe.model, digits)(training.weights)
    assert evaluation.accuracy > 0.9
    assert evaluation.samples == len(digits.test_targets)
    counts = np.bincount(digits.test_targets, minlength=10)
    np.testing.assert_array_equal(evaluation.confusion.sum(1), counts)


def test_an_evaluation_of_known_outputs(loaded: LoadedRecipe, digits: Dataset) -> None:
    weights = np.zeros(loaded.recipe.model.layout.size, np.float32)
    weights[-10:] = [0, 0, 0, 5, 0, 0, 0, 0, 0, 0]  # whatever it sees, it says 3
    evaluation = Evaluator(loaded.recipe.model, digits)(weights)
    share = float(np.mean(digits.test_targets == 3))
    assert evaluation.accuracy == pytest.approx(share)
    assert evaluation.confusion[:, 3].sum() == evaluation.samples
    surprise = np.log(np.exp(5) + 9)
    assert evaluation.loss == pytest.approx(surprise - 5 * share, rel=1e-5)


def test_plans_of_many_batch_sizes_do_not_pile_up(loaded: LoadedRecipe, digits: Dataset) -> None:
    step = TrainingStep(loaded.recipe.model, digits, seed=5)
    weights = loaded.recipe.initial_weights(0)
    gradients = {}
    for size in range(1, 12):
        gradients[size] = step(weights, Minibatch(0, 0, size)).gradient.copy()
        assert len(step._plans) <= MAX_PLANS
        assert {size for size, *_ in step._bound} <= step._plans.keys()
    for size, gradient in gradients.items():
        for _ in range(2):
            again = step(weights, Minibatch(0, 0, size)).gradient
            np.testing.assert_array_equal(again, gradient)

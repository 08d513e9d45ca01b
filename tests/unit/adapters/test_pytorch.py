"""A PyTorch module as a recipe: parameters and buffers in one vector."""

import copy
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dist_net.errors import RecipeError
from dist_net.training.worker.local_steps import Minibatch, ShuffledRows
from naming import naming

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from dist_net.adapters.pytorch import Task  # noqa: E402

torch.manual_seed(0)
INPUTS = torch.randn(40, 1, 6, 6)
LABELS = torch.arange(40) % 3
DATA = TensorDataset(INPUTS, LABELS)
ROWS = np.array([7, 0, 39, 12])


@pytest.fixture
def module():
    torch.manual_seed(1)
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    return nn.Sequential(*layers)


def test_a_loader_which_chooses_samples_itself_is_refused(module) -> None:
    with pytest.raises(RecipeError, match=r"DataLoader.*\.dataset"):
        Task(module, nn.functional.cross_entropy, DataLoader(DATA))


def test_a_step_is_the_modules_own_with_its_buffers(module) -> None:
    own = copy.deepcopy(module)
    recipe = Task(module, nn.functional.cross_entropy, DATA).recipe()
    mean = nn.functional.cross_entropy(own(INPUTS[ROWS]), LABELS[ROWS])
    mean.backward()
    loss_sum, gradient = recipe.trained.at(recipe.weights, ROWS)
    assert loss_sum == mean.item() * 4
    expected = [each.grad for each in own.parameters()]
    expected += [own[1].running_mean, own[1].running_var, own[1].num_batches_tracked.float()]
    np.testing.assert_array_equal(gradient, torch.cat([each.flatten() for each in expected]))
    names = [name for name, _ in recipe.layout.shapes]
    assert names[-3:] == ["1.running_mean", "1.running_var", "1.num_batches_tracked"]
    assert recipe.layout.momenta == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_the_buffers_of_several_steps_are_the_modules_own(module, momentum: float | None) -> None:
    """Without a momentum, batch norm keeps the mean of all its steps."""
    module[1].momentum = momentum
    own = copy.deepcopy(module)
    recipe = Task(module, nn.functional.cross_entropy, DATA, DATA).recipe()
    weights = recipe.weights.copy()
    for rows in np.split(np.arange(40), 5):
        _, gradient = recipe.trained.at(weights, rows)
        weights[-9:] = gradient[-9:]
        recipe.trained.evaluation_at(recipe.weights)
        own(INPUTS[rows])
    state = recipe.state_dict(weights)
    assert all(torch.equal(state[name], each) for name, each in own.state_dict().items())


def test_a_task_is_evaluated_in_one_thread_while_another_computes_gradients(module) -> None:
    task = Task(module, nn.functional.cross_entropy, DATA, DATA)
    weights = task.recipe().weights
    expected = task.gradient(weights, ROWS)[1].copy()
    with ThreadPoolExecutor(1) as other:
        evaluations = other.map(task.evaluate, [-weights] * 150)
        for _ in range(150):
            np.testing.assert_array_equal(task.gradient(weights, ROWS)[1], expected)
        assert len({str(each) for each in evaluations}) == 1


def test_rows_are_only_read(module) -> None:
    rows = ShuffledRows(0, 40).of(Minibatch(0, 0, 4))
    with pytest.raises(ValueError, match="read-only"):
        rows.sort()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recipe = Task(module, nn.functional.cross_entropy, DATA).recipe()
        recipe.trained.at(recipe.weights, rows)


def test_a_gradient_is_a_function_of_weights_and_rows_even_with_dropout(module) -> None:
    task = Task(nn.Sequential(nn.Dropout(0.5), module), nn.functional.cross_entropy, DATA, DATA)
    recipe = task.recipe()
    gradients = [recipe.trained.at(recipe.weights, ROWS)[1].copy()]
    recipe.trained.at(-recipe.weights, ROWS[::-1].copy())
    recipe.trained.evaluation_at(-recipe.weights)
    gradients.append(recipe.trained.at(recipe.weights, ROWS)[1].copy())
    np.testing.assert_array_equal(*gradients)
    assert not np.array_equal(recipe.trained.at(recipe.weights, ROWS[:2])[1], gradients[0])


def test_the_state_dict_is_the_modules_and_frozen_arrays_stay(module) -> None:
    module[0].weight.requires_grad = False
    module.register_buffer("mask", torch.tensor([0, -torch.inf]))
    first = copy.deepcopy(module.state_dict())
    recipe = Task(module, nn.functional.cross_entropy, DATA).recipe()
    _, gradient = recipe.trained.at(recipe.weights, ROWS)
    state = recipe.state_dict(gradient)
    assert state.keys() == first.keys()
    for name in ("0.weight", "mask"):
        assert torch.equal(state[name], first[name])
    assert state["1.num_batches_tracked"] == first["1.num_batches_tracked"] + 1
    assert not torch.equal(state["1.running_mean"], first["1.running_mean"])


def test_classes_have_an_accuracy_and_numbers_have_none(module) -> None:
    recipe = Task(module, nn.functional.cross_entropy, DATA, DATA).recipe()
    module.eval()
    right = (module(INPUTS).argmax(1) == LABELS).float().mean().item()
    assert recipe.trained.evaluation_at(recipe.weights)[1] == pytest.approx(right)
    pairs = [(image, image.mean().repeat(3)) for image in INPUTS]
    recipe = Task(module, nn.functional.mse_loss, pairs, pairs).recipe()
    loss, accuracy = recipe.trained.evaluation_at(recipe.weights)
    assert (loss > 0, accuracy) == (True, None)


def test_only_float32_is_trained(module) -> None:
    with pytest.raises(RecipeError, match=naming("float32", "0.weight")):
        Task(module.double(), nn.functional.cross_entropy, DATA)

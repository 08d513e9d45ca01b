"""Sorting, products, variances, masks and einsum: values and gradients are PyTorch's."""

from typing import Any

import numpy as np
import pytest

from dist_net import autodiff as ad

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((3, 4, 5))
WITH_ZEROS = np.where(RANDOM.random(X.shape) < 0.3, 0.0, X)
MASK = RANDOM.random((3, 4, 5)) < 0.5
ORDER = np.array([[3, 0, 0], [1, 2, 3], [0, 0, 0]])[..., None]


def theirs_of_mask(x: Any) -> Any:
    mask = torch.tensor(MASK)
    return torch.where(mask, x, 0.0).sum(1) / mask.sum(1).clamp(min=1)


CASES: dict[str, tuple[Any, Any, list[np.ndarray]]] = {
    "sort": (lambda x: ad.sort(x, 1), lambda x: torch.sort(x, 1).values, [X]),
    "sort, descending": (
        lambda x: ad.sort(x, -1, descending=True),
        lambda x: torch.sort(x, -1, descending=True).values,
        [X],
    ),
    "top_k": (lambda x: ad.top_k(x, 2)[0], lambda x: torch.topk(x, 2).values, [X]),
    "top_k, first axis": (
        lambda x: ad.top_k(x, 2, 0)[0],
        lambda x: torch.topk(x, 2, 0).values,
        [X],
    ),
    "take_along_axis": (
        lambda x: ad.take_along_axis(x[..., :1], ad.constant(ORDER), 1),
        lambda x: torch.gather(x[..., :1], 1, torch.tensor(ORDER)),
        [X],
    ),
    "prod": (lambda x: ad.prod(x, 1), lambda x: torch.prod(x, 1), [X]),
    "prod with zeros": (lambda x: ad.prod(x, 2), lambda x: torch.prod(x, 2), [WITH_ZEROS]),
    "prod of all": (ad.prod, torch.prod, [X]),
    "var": (
        lambda x: ad.var(x, (0, 2), keepdims=True, ddof=1),
        lambda x: torch.var(x, (0, 2), keepdim=True),
        [X],
    ),
    "var of all": (ad.var, lambda x: torch.var(x, correction=0), [X]),
    "std": (lambda x: ad.std(x, 1, ddof=1), lambda x: torch.std(x, 1), [X]),
    "masked_mean": (
        lambda x: ad.masked_mean(x, ad.constant(MASK), 1),
        theirs_of_mask,
        [X],
    ),
    "a mask as index": (lambda x: x[MASK], lambda x: x[torch.tensor(MASK)], [X]),
    "where a mask": (
        lambda x: ad.where((x > 0.0) | ad.constant(MASK), x, -1.0),
        lambda x: torch.where((x > 0) | torch.tensor(MASK), x, -1.0),
        [X],
    ),
    **{
        f"einsum {subscripts}": (
            lambda *x, subscripts=subscripts: ad.einsum(subscripts, *x),
            lambda *x, subscripts=subscripts: torch.einsum(subscripts, *x),
            [RANDOM.standard_normal(shape) for shape in shapes],
        )
        for subscripts, *shapes in (
            ("...ij,...jk->...ik", (3, 1, 4, 5), (2, 5, 2)),
            ("...i,...i->...", (3, 1, 4), (2, 4)),
            ("...i,...i->i", (3, 4), (1, 4)),
            ("a...,...b->ab", (3, 2, 2), (2, 5)),
        )
    },
}


@pytest.mark.parametrize(("ours", "theirs", "arrays"), CASES.values(), ids=CASES)
def test_values_and_gradients_are_pytorchs(ours: Any, theirs: Any, arrays: list[Any]) -> None:
    variables = [ad.variable(f"x{i}", each.shape, each.dtype) for i, each in enumerate(arrays)]
    output = ours(*variables)
    direction = RANDOM.standard_normal(output.shape)
    loss = ad.sum(output * ad.constant(direction))
    given = {f"x{i}": each for i, each in enumerate(arrays)}
    value, *slopes = ad.evaluate([output, *ad.gradients(loss, variables)], **given)
    tensors = [torch.tensor(each, requires_grad=True) for each in arrays]
    expected = theirs(*tensors)
    (expected * torch.tensor(direction)).sum().backward()
    np.testing.assert_allclose(value, expected.detach().numpy(), rtol=1e-12, atol=1e-14)
    for slope, tensor in zip(slopes, tensors, strict=True):
        np.testing.assert_allclose(slope, tensor.grad.numpy(), rtol=1e-10, atol=1e-13)


def test_indices_of_the_largest_are_pytorchs() -> None:
    _, indices = ad.top_k(ad.constant(X), 3, 1)
    found = ad.evaluate([indices, ad.argsort(ad.constant(X), 0, descending=True)])
    np.testing.assert_array_equal(found[0], torch.topk(torch.tensor(X), 3, 1).indices.numpy())
    expected = torch.argsort(torch.tensor(X), 0, descending=True).numpy()
    np.testing.assert_array_equal(found[1], expected)

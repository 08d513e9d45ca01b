"""Descriptions of models for tests: each test names only what it is about."""

from dataclasses import replace
from typing import Any

from dist_net.nets.architecture import RecipeArchitecture
from dist_net.nets.tensor_specs import TensorSpec
from dist_net.serving.pool.description import ModelDescription

ORDINARY: dict[str, Any] = {
    "labels": (),
    "takes_images": False,
    "has_logits": False,
    "architecture": RecipeArchitecture("digits", "digits", ()),
    "arrays_path": "arrays",
    "arrays_bytes": 1,
    "arrays_key": "0" * 64,
}


def described(
    name: str,
    version: int = 1,
    input_datatype: str = "FP32",
    input_shape: tuple[int, ...] = (4,),
    classes: int = 3,
    **others: Any,
) -> ModelDescription:
    """A version of a model that is ordinary but for ``others``."""
    output = "probabilities" if others.get("has_classes", True) else "values"
    tensors: dict[str, Any] = {
        "inputs": (TensorSpec("input", input_datatype, input_shape),),
        "outputs": (TensorSpec(output, "FP32", (classes,)),),
    }
    rest = ORDINARY | tensors | others
    return ModelDescription(name=name, version=version, classes=classes, **rest)


def with_input(description: ModelDescription, **changes: Any) -> ModelDescription:
    """The description with another datatype or shape of its input, and other changes."""
    (spec,) = description.inputs
    own = {name: changes.pop(name) for name in ("datatype", "shape") if name in changes}
    return replace(description, inputs=(spec._replace(**own),), **changes)

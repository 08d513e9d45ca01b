"""Descriptions of models for tests: each test names only what it is about."""

from typing import Any

from dist_net.nets.architecture import RecipeArchitecture
from dist_net.serving.pool.description import ModelDescription

ORDINARY: dict[str, Any] = {
    "input_datatype": "FP32",
    "input_shape": (4,),
    "classes": 3,
    "labels": (),
    "takes_images": False,
    "has_logits": False,
    "architecture": RecipeArchitecture("digits", "digits", ()),
    "arrays_path": "arrays",
    "arrays_bytes": 1,
    "arrays_key": "0" * 64,
}


def described(name: str, version: int = 1, **others: Any) -> ModelDescription:
    """A version of a model that is ordinary but for ``others``."""
    return ModelDescription(name=name, version=version, **ORDINARY | others)

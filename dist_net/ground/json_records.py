"""Dataclasses and named tuples from JSON, checked by the types of their fields. Pure."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

Made = TypeVar("Made")
cached_type_hints = cache(get_type_hints)


def record_from_json(kind: type[Made], values: Any, **made: Any) -> Made:
    """Return a record from a JSON object or, for a named tuple, an array of its fields' values.

    Arrays become tuples, and texts paths, where a field has that type. A missing field has its
    default. ``made`` are fields that need no conversion. Raise TypeError or ValueError for other
    fields, and for values of other types.
    """
    types = cached_type_hints(cast(Any, kind))
    if isinstance(values, list) and not is_dataclass(kind) and len(values) <= len(types):
        values = dict(zip(types, values, strict=False))
    if not isinstance(values, dict):
        raise TypeError(f"{values!r:.80}; expected the fields {', '.join(types)}")
    named = {name: _converted(name, types.get(name), each) for name, each in values.items()}
    return kind(**named, **made)


def _converted(name: str, kind: Any, value: Any) -> Any:
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any or type(value) is kind or (kind is float and type(value) is int):
        return value
    if origin is Literal and value in parts:
        return value
    if origin in (Union, UnionType):
        for each in parts:
            with suppress(TypeError, ValueError):
                return _converted(name, each, value)
    if origin is tuple and isinstance(value, list):
        kinds = parts[:1] * len(value) if parts[1:] == (...,) else parts
        return tuple(_converted(name, of, each) for of, each in zip(kinds, value, strict=True))
    if origin in (dict, Mapping) and isinstance(value, dict):
        return {key: _converted(name, parts[1], each) for key, each in value.items()}
    if kind is Path and isinstance(value, str):
        return Path(value)
    if hasattr(kind, "parsed"):
        return kind.parsed(value)
    if is_dataclass(kind) or hasattr(kind, "_fields"):
        return record_from_json(kind, value)
    raise TypeError(f"{name}={value!r:.80}; expected {kind}")

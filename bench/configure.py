"""Methods from names and hyperparameters, as a user, a suite or a specification gives them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from kdbench.bench.errors import InputError, unknown
from kdbench.bench.spec import Spec, explain, read_value
from kdbench.methods import OUTSIDE, REGISTRY
from kdbench.methods.base import Method


def configure(name: str, params: Mapping[str, Any]) -> Method:
    """A method by id with hyperparameters by name; strings are read as the field's type.

    A name with one of "+*(" is a composition: the method that composes others, with that composition.

    Raises:
        InputError: for an unknown method or hyperparameter, a value of the wrong type, or one out of range.
    """
    name, params = composed(name, params)
    if name not in (known := {**REGISTRY, **OUTSIDE}):
        raise unknown("method", name, known, see="kdbench methods (a file works too, as my_method.py:MyKD)")
    cls = known[name]
    fields = cls.__dataclass_fields__  # type: ignore[attr-defined]
    for param in params:
        if param not in fields:
            raise unknown(f"hyperparameter of {name}", param, fields, see=f"kdbench methods {name}")
    try:
        schema = _schema(cls)  # type: ignore[arg-type]  # the class can be hashed, whatever its instances can
        method: Method = schema.validate_python({key: read_value(value) for key, value in params.items()})
        return method
    except ValidationError as error:
        raise InputError(f"method {name}: {explain(error)}") from None


@functools.lru_cache(maxsize=256)
def _schema(cls: type[Method]) -> TypeAdapter[Any]:
    """What a method's hyperparameters are read by; making it takes longer than reading them."""
    return TypeAdapter(cls)


def composed(name: str, params: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """A method's id and hyperparameters, where a name that composes methods stands for the composing one."""
    if not set("+*(") & set(name):
        return name, params
    composer = next(method for method in REGISTRY.values() if method.composition)
    return composer.id, {**composer.composed_with, **params, composer.composition: name}


def by_role(role: Literal["control", "baseline"]) -> str:
    """The id of the method that says of itself that it has this role in comparisons."""
    return next(method.id for method in REGISTRY.values() if method.role == role)


def method_of(spec: Spec) -> Method:
    """The method of a run, with its hyperparameters."""
    return configure(spec.method, spec.params)


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters by name, where a name such as "weights.first" is an entry of one that is a dictionary."""
    params: dict[str, Any] = {}
    for name, value in values.items():
        outer, dot, entry = name.partition(".")
        params[outer] = {**params.get(outer, {}), entry: value} if dot else value
    return params


def flat(params: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters with the entries of those that are dictionaries by names such as "weights.first"."""
    values: dict[str, Any] = {}
    for name, value in params.items():
        values |= {f"{name}.{key}": each for key, each in value.items()} if isinstance(value, dict) else {name: value}
    return values

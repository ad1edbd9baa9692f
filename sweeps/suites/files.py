"""Suites as TOML files: those that come with kdbench, and a user's own."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench.errors import InputError, unknown
from bench.spec import explain
from sweeps.suites.suite import Suite


def bundled() -> list[str]:
    """Names of the suites that come with kdbench."""
    return sorted(path.name.removesuffix(".toml") for path in _folder().iterdir() if path.name.endswith(".toml"))


def load_suite(name: str) -> Suite:
    """A suite by name, or from a TOML file by path; one that says `extends` changes another.

    Raises:
        InputError: if there is none, or it breaks a rule.
    """
    try:
        return Suite.model_validate({"name": Path(name).stem, **_values(name)})
    except ValidationError as error:
        raise InputError(f"suite {name}: {explain(error)}") from None


def _values(name: str, extended: tuple[str, ...] = ()) -> dict[str, Any]:
    """What a suite's file says, on top of what it extends."""
    if name in extended:
        raise InputError(f"suite {name} extends itself, by {' and '.join(extended)}.")
    if name in bundled():
        text = (_folder() / f"{name}.toml").read_text()
    elif Path(name).is_file():
        text = Path(name).read_text()
    elif name.endswith(".toml"):
        raise InputError(f"there is no suite file {name}.")
    else:
        raise unknown("suite", name, bundled(), see="a path of a TOML file works too")
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"suite {name} is not TOML: {error}") from None
    base = values.pop("extends", None)
    return values if base is None else _changed(_values(str(base), (*extended, name)), values)


def _changed(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """A table with other values in it, tables within it likewise; lists are replaced."""
    both = {name: (base[name], value) for name, value in values.items() if isinstance(base.get(name), dict)}
    inner = {name: _changed(old, new) for name, (old, new) in both.items() if isinstance(new, dict)}
    return base | values | inner


def _folder() -> Any:
    return resources.files("sweeps") / "suites"

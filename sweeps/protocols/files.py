"""Protocols as TOML files: those that come with kdbench, and a user's own."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdbench.bench.errors import InputError, unknown
from kdbench.bench.outside import method_id
from kdbench.bench.spec import explain
from kdbench.sweeps.protocols.own_numbers import KEY, numbers_beside
from kdbench.sweeps.protocols.protocol import Protocol
from kdbench.sweeps.toml_files import read_toml

SAID = ("epochs", "batch_size", "optimizer", "lr", "momentum", "weight_decay", "schedule", "augment")
"""Fields of the recipe that a protocol must write, so that each has its source."""
UNSOURCED = ("about", "paper", "table", KEY, "departures", "short", "sources")


def written(values: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a protocol's file by its dotted name; a row by its label, a pair by its networks."""
    if isinstance(values, dict):
        for name, value in values.items():
            yield from written(value, f"{path}.{name}" if path else name)
    elif isinstance(values, list) and values and isinstance(values[0], dict):
        for number, value in enumerate(values):
            pair = f"{value['teacher']} -> {value['student']}" if {"teacher", "student"} <= value.keys() else ""
            name = value.get("label") or pair or value.get("name") or str(number)
            yield from written({k: v for k, v in value.items() if k != "label"}, f"{path}.{name}")
    else:
        yield path, values


def bundled() -> list[str]:
    """Names of the protocols that come with kdbench."""
    return sorted(path.name.removesuffix(".toml") for path in _folder().iterdir() if path.name.endswith(".toml"))


def read_protocol(name: str) -> tuple[dict[str, Any], Protocol]:
    """A protocol by name, or from a TOML file by path: as it is written, and checked.

    Raises:
        InputError: if there is none, it breaks a rule, or a value has no source.
    """
    if name in bundled():
        values = read_toml(_folder() / f"{name}.toml", f"protocol {name}")
    elif Path(name).is_file():
        values = read_toml(Path(name), f"protocol {name}")
    elif name.endswith(".toml"):
        raise InputError(f"there is no protocol file {name}.")
    else:
        raise unknown("table", name, bundled(), see="kdbench tables (a path of a TOML file works too)")
    try:
        for row in values.get("cells", []):
            if isinstance(row, dict) and "method" in row:
                row["method"] = method_id(str(row["method"]), Path(name).parent)
        if isinstance(values.get(KEY), str):
            values[KEY] = numbers_beside(Path(name).parent / values[KEY], name)
        for number in values.get(KEY, []):
            if isinstance(number, dict) and "method" in number:
                number["method"] = method_id(str(number["method"]), Path(name).parent)
        protocol = Protocol.model_validate({"name": Path(name).stem, "table": Path(name).stem, **values})
    except ValidationError as error:
        raise InputError(f"protocol {name}: {explain(error, Protocol)}") from None
    _check_said(name, values, protocol)
    return values, protocol


def load_protocol(name: str) -> Protocol:
    """A protocol by name or by path, checked; see `read_protocol`."""
    return read_protocol(name)[1]


def _check_said(name: str, values: dict[str, Any], protocol: Protocol) -> None:
    """Checks that the recipe is written out, and that every value has a source."""
    steps = ("milestones", "decay") if protocol.recipe.schedule == "step" else ()
    if unsaid := [field for field in (*SAID, *steps) if field not in values["recipe"]]:
        raise InputError(f"protocol {name}: the recipe must write out {', '.join(unsaid)}.")
    paths = [path for path, _ in written({key: value for key, value in values.items() if key not in UNSOURCED})]
    if bare := [path for path in paths if not protocol.source(path)]:
        raise InputError(f"protocol {name}: there is no source for {', '.join(bare[:5])}; add it to [sources].")


def _folder() -> Any:
    return resources.files("kdbench.sweeps") / "protocols"

"""Suites as TOML files: those that come with kdbench, and a user's own."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdbench.bench.data.images import DATASETS
from kdbench.bench.errors import InputError, unknown
from kdbench.bench.outside import brought, method_id
from kdbench.bench.spec import explain
from kdbench.sweeps.suites.suite import Suite
from kdbench.sweeps.toml_files import folder_beside, read_toml


def bundled() -> list[str]:
    """Names of the suites that come with kdbench."""
    return sorted(path.name.removesuffix(".toml") for path in _folder().iterdir() if path.name.endswith(".toml"))


def load_suite(name: str, cold: bool = False) -> Suite:
    """A suite by name, or from a TOML file by path; one that says `extends` changes another.

    Args:
        name: of a bundled suite, or a path.
        cold: whether to do without the settings that a longer tuning has found.

    Raises:
        InputError: if there is none, or it breaks a rule.
    """
    values = _values(name)
    tuning = values.get("tuning")
    if (source := tuning.get("warm_from") if isinstance(tuning, dict) else None) and not cold:
        values["tuning"] |= {"warm_trials": (known := warm(str(source)))["trials"], "warm": known["settings"]}
    elif source:
        del values["tuning"]["warm_from"]
    try:
        return Suite.model_validate({"name": Path(name).stem, **values})
    except ValidationError as error:
        raise InputError(f"suite {name}: {explain(error, Suite)}") from None


def warm(name: str) -> dict[str, Any]:
    """What a longer tuning of a suite has found: the number of its trials, and the best setting by pair and row.

    Raises:
        InputError: if kdbench comes with none of that suite.
    """
    file = _folder() / "warm" / f"{name}.json"
    if not file.is_file():
        raise InputError(f"kdbench comes with no settings that {name} has found: leave warm_from out.")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def _values(name: str, extended: tuple[str, ...] = ()) -> dict[str, Any]:
    """What a suite's file says, on top of what it extends."""
    if name in extended:
        raise InputError(f"suite {name} extends itself, by {' and '.join(extended)}.")
    if name in bundled():
        values = read_toml(_folder() / f"{name}.toml", f"suite {name}")
    elif Path(name).is_file():
        values = read_toml(Path(name), f"suite {name}")
        if isinstance(data := values.get("data"), dict) and isinstance(data.get("name"), str):
            known = (*DATASETS, *brought("datasets"))
            data["name"] = data["name"] if data["name"] in known else folder_beside(name, data["name"])
        for pair in pairs if isinstance(pairs := values.get("pairs"), list) else ():
            if isinstance(pair, dict) and isinstance(files := pair.get("teacher_weights"), list):
                pair["teacher_weights"] = [str(Path(name).parent / Path(str(file)).expanduser()) for file in files]
    elif name.endswith(".toml"):
        raise InputError(f"there is no suite file {name}.")
    else:
        raise unknown("suite", name, bundled(), see="a path of a TOML file works too")
    values = _referred(values, Path(name).parent)
    base = values.pop("extends", None)
    if base is None:
        return values
    inherited = _values(str(base), (*extended, name))
    inherited.get("tuning", {}).pop("warm_from", None)  # found for another protocol than this one
    return _changed(inherited, values)


def _referred(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a file says, methods from outside by their ids; a relative path starts at the file's own folder."""

    def named(rows: Any) -> Any:
        if isinstance(rows, dict):
            return {method_id(name, folder): each for name, each in rows.items()}
        return [method_id(name, folder) if isinstance(name, str) else name for name in rows]

    def within(table: Any, *keys: str) -> Any:
        if not isinstance(table, dict):
            return table
        return table | {key: named(table[key]) for key in keys if isinstance(table.get(key), dict | list)}

    values = within(values, "methods", "settings", "reasons")
    settings = values.get("settings")
    for row in settings.values() if isinstance(settings, dict) else ():
        if isinstance(row, dict) and isinstance(row.get("method"), str):
            row["method"] = method_id(row["method"], folder)
    for key, keys in (("pairs", ("methods",)), ("tuning", ("ranges", "starts"))):
        if isinstance(values.get(key), list):
            values[key] = [within(each, *keys) for each in values[key]]
        elif key in values:
            values[key] = within(values[key], *keys)
    return values


def _changed(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """A table with other values in it, tables within it likewise; lists are replaced."""
    both = {name: (base[name], value) for name, value in values.items() if isinstance(base.get(name), dict)}
    inner = {name: _changed(old, new) for name, (old, new) in both.items() if isinstance(new, dict)}
    return base | values | inner


def _folder() -> Any:
    return resources.files("kdbench.sweeps") / "suites"

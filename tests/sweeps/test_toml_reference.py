"""The page of all keys is what the schemas say, and its examples are taken by them."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from kdbench.sweeps.cli.toml_reference import Key, Table, keys_of, page, protocol_tables, suite_tables, toml

ROOT = Path(__file__).resolve().parents[2]
TABLES = [*suite_tables(), *protocol_tables()]
ALL = [(table, key) for table in TABLES for key in keys_of(table)]
PLAIN = {"data", "recipe", "tuning", "low", "high", "optimizer", "weight_decay", "teacher", "student"}
"""Keys whose names say all."""


def test_committed_page_is_that_of_the_schemas() -> None:
    assert (ROOT / "docs" / "toml.md").read_text() == page(), "make docs writes it anew"


@pytest.mark.parametrize(("table", "key"), ALL, ids=lambda each: getattr(each, "name", getattr(each, "header", "")))
def test_every_key_has_an_example_that_is_taken_and_a_meaning(table: Table, key: Key) -> None:
    field = table.model.model_fields[key.name]
    TypeAdapter(field.annotation).validate_python(key.example)
    assert key.meaning or key.name in PLAIN
    if key.example is not None:
        written = tomllib.loads(f"key = {toml(key.example)}")["key"] if "by its keys" not in toml(key.example) else None
        assert written is None or TypeAdapter(field.annotation).validate_python(written) == TypeAdapter(
            field.annotation
        ).validate_python(key.example)


def test_keys_that_kdbench_fills_in_are_left_out() -> None:
    names = {(table.model.__name__, key.name) for table, key in ALL}
    assert ("Suite", "name") not in names and ("DataSpec", "fingerprint") not in names
    assert ("PaperNetwork", "name") in names and ("Tuning", "trials") in names

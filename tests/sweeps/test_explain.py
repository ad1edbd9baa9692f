"""Real runs explained: their numbers, the store of explanations, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import kdbench.sweeps.cli.explain
from kdbench.bench.atomic import write
from kdbench.bench.errors import InputError
from kdbench.bench.spec import DataSpec, ModelSpec, Recipe, Spec
from kdbench.results.pages.explanation import explanation_report
from kdbench.results.pages.report import render
from kdbench.results.store.run_store import RunStore
from kdbench.sweeps.cli.explain import Settings, explain, spaced
from kdbench.sweeps.scheduling.workers import carry_out

CPU = torch.device("cpu")
NOWHERE = Path("/nonexistent")
FEW = Settings(images=4, snapshots=2, steps=10, samples=2)
RECIPE = Recipe(epochs=2, batch_size=32, augment="crop")
SPEC = Spec(
    method="student",
    student=ModelSpec(name="cifar_resnet8_quarter"),
    data=DataSpec(name="digits", train_fraction=0.1, validation=0.25),
    recipe=RECIPE,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    """A store with two runs of the same data, one of another split and one that was only begun."""
    store = RunStore(tmp_path_factory.mktemp("store"))
    split = SPEC.data.model_copy(update={"split_seed": 1})
    for changes in ({"seed": 0}, {"seed": 1}, {"data": split}):
        spec = SPEC.model_copy(update=changes)
        assert carry_out(spec, store, NOWHERE, CPU, lambda epoch: True).status == "done"
    folder = store.root / "runs" / key_of(seed=7)
    folder.mkdir()
    write(folder / "spec.json", SPEC.model_copy(update={"seed": 7}).canonical().encode())
    return store


def key_of(**changes: object) -> str:
    return SPEC.model_copy(update=changes).key


def test_two_runs_are_explained_once(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [key_of(seed=0), key_of(seed=1)[:8], key_of(seed=0)]
    rows = explain(keys, store, NOWHERE, CPU, FEW)
    assert [row.key for row in rows] == [key_of(seed=0), key_of(seed=1)]
    for row in rows:
        assert row.same_weights and row.epochs == [1, 2] and (row.stage, row.stages) == (3, 4)
        assert row.mask == "ink" and row.images == 4
        assert len(row.foreground) == len(row.background) == 2 and all(0 <= count <= 64 for count in row.foreground)
        assert row.discarded is None or 0 <= row.discarded <= 1
        assert row.d_mean is None or row.d_mean > 0
        assert row.score is not None and row.control
    files = sorted((store.root / "explain").iterdir())
    assert [path.name[:16] for path in files] == sorted(row.key for row in rows)

    def refuse(*_: object) -> None:
        raise AssertionError("nothing is repeated")

    monkeypatch.setattr(kdbench.sweeps.cli.explain, "repeat", refuse)
    assert explain(keys, store, NOWHERE, CPU, FEW) == rows
    with pytest.raises(AssertionError, match="nothing is repeated"):
        explain(keys, store, NOWHERE, CPU, dataclasses.replace(FEW, depth=1.0))
    monkeypatch.undo()
    json.dumps([row.model_dump(mode="json") for row in rows], allow_nan=False)
    files[0].write_text("{}")
    assert explain(keys, store, NOWHERE, CPU, FEW) == rows, "a damaged file is made anew, to the same numbers"


def test_other_weights_are_said(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunStore, "weights", lambda self, reference: b"others")
    (row,) = explain([key_of(seed=0)], store, NOWHERE, CPU, dataclasses.replace(FEW, seed=5))
    assert not row.same_weights
    assert "warning: trained again, it did not end in the stored weights" in render(explanation_report([row]))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([], "got none"),
        (["abc"], "at least 4 characters of it, but got 'abc'"),
        (["ffffffffffffffff0"], "unknown run 'ffffffffffffffff0'"),
        ([key_of(seed=0)[:-1] + "-"], f"did you mean {key_of(seed=0)}"),
        ([key_of(seed=7)], f"only a run that is done can be explained, but {key_of(seed=7)} is interrupted"),
        ([key_of(seed=0), key_of(data=SPEC.data.model_copy(update={"split_seed": 1}))], "split_seed: 0 and 1"),
    ],
)
def test_bad_keys_are_refused(store: RunStore, keys: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        explain(keys, store, NOWHERE, CPU, FEW)


def test_runs_of_other_tasks_are_refused(store: RunStore) -> None:
    spec = SPEC.model_copy(update={"data": DataSpec(name="composed-digits", task="segmentation")})
    run = dataclasses.replace(store.find(key_of(seed=0)), spec=spec)
    with pytest.raises(InputError, match="concepts are pixels of classified images, .* is of the task segmentation"):
        kdbench.sweeps.cli.explain._explain(run, store, NOWHERE, CPU, FEW)


def test_a_start_that_two_runs_share_is_refused(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    for key in ("abcd1111", "abcd2222"):
        (store.root / "runs" / key).mkdir()
        write(store.root / "runs" / key / "spec.json", SPEC.canonical().encode())
    with pytest.raises(InputError, match="2 runs start with 'abcd': abcd1111, abcd2222"):
        explain(["abcd"], store, NOWHERE, CPU, FEW)


@pytest.mark.parametrize(
    ("field", "value"), [("images", 0), ("snapshots", 0), ("depth", 1.5), ("noise", 0.0), ("threshold", float("nan"))]
)
def test_settings_say_the_rule_and_the_value(field: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{field} must be .*, but got {value}"):
        Settings(**{field: value})  # type: ignore[arg-type]


def test_snapshots_are_evenly_spaced_and_hold_the_last() -> None:
    assert spaced(range(1, 33), 8) == [4, 8, 12, 16, 20, 24, 28, 32]
    assert spaced(range(5, 8), 8) == [5, 6, 7]
    assert spaced(range(1, 11), 3) == [4, 7, 10]

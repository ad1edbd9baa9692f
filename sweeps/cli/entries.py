"""The bodies of `kdbench submit`, `verify` and `entries`: rows that verify themselves."""

from __future__ import annotations

import hashlib
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from kdbench.bench.environment import environment, in_threads, pick_device
from kdbench.bench.errors import InputError, unknown
from kdbench.bench.spec import NUMBERS, Recipe, Spec
from kdbench.results.analysis.entry import claims_of, entry_rows
from kdbench.results.pages.contract import CheckFacts, checks_report
from kdbench.results.pages.entry import ProtocolRows, entries_report
from kdbench.results.pages.report import Report
from kdbench.results.store.entry import Entry, packed, read_entry, store_of
from kdbench.results.store.files import done_of, sha256
from kdbench.results.store.plan import PairRecord, Planned, SuiteRecord, SweepPlan
from kdbench.results.store.run_store import TAUGHT_FROM, RunStore
from kdbench.results.store.sources import keep_source
from kdbench.results.store.stored_run import StoredRun
from kdbench.sweeps.scheduling.selection import best_trial
from kdbench.sweeps.scheduling.sources import provide
from kdbench.sweeps.scheduling.workers import carry_out
from kdbench.sweeps.suites.suite import RECIPE, of_recipe

LEAST = 0.02
"""A run again elsewhere may differ by this share of its metric, or three deviations of its seeds if they are more."""


def submit(plan: SweepPlan, store: RunStore, method: str) -> Entry:
    """The entry of a method of a suite.

    Raises:
        InputError: if the suite has no such method, or it or what it is compared with is not finished.
    """
    if method not in (known := {name for pair in plan.pairs() for name in plan.methods(pair)}):
        raise unknown(f"method of {plan.name}", method, known)
    fields = packed(plan, store, method)
    entry = Entry(suite=plan.name, method=method, claims={}, **fields)
    with tempfile.TemporaryDirectory(prefix="kdbench-") as folder:
        claims = claims_of(*store_of([entry], Path(folder)), method)
    for row in claims["rows"]:
        if row["seeds"] < plan.suite.seeds or (row["gain_control"] is None and method != plan.suite.control):
            raise InputError(f"{method} or {plan.suite.control} is not finished on {row['pair']}: sweep it to its end.")
    return Entry.model_validate_json(Entry(suite=plan.name, method=method, claims=claims, **fields).text())


def verify(path: Path, rerun: int, data_dir: Path, device: str) -> Report:
    """Checks an entry, and runs some of its cheapest seeds again.

    Raises:
        InputError: if it is no entry, or cannot be run again here.
    """
    entry, checks = read_entry(path), list[CheckFacts]()
    if entry.seal() != entry.sha256:
        checks.append(CheckFacts("the file is as it was written", "its SHA-256 is another: take it from its author"))
        return checks_report(f"{entry.method} on {entry.suite}", checks, "entry")
    checks.append(CheckFacts("the file is as it was written", ""))
    with tempfile.TemporaryDirectory(prefix="kdbench-") as folder:
        plan, store = store_of([entry], Path(folder))
        checks.append(CheckFacts("records are those of the runs", ""))
        runs = [(each, run) for each in plan.started() if (run := store.get(each.key))]
        for title, problems in (
            ("keys are the hashes of specifications", _keys(store, runs)),
            ("teachers and data are those that were there", _provenance(store, runs)),
            ("settings are the best on validation", _settings(plan, runs)),
            ("seeds are run by the protocol", _seeds(plan, runs)),
            ("the method is of its source", _sources(entry)),
            ("the row follows from the runs", _claims(entry, plan, store)),
        ):
            checks.append(CheckFacts(title, "; ".join(list(problems)[:3])))
        if rerun and not any(each.problem for each in checks):
            checks += _rerun(entry, plan, runs, rerun, Path(folder), data_dir, device)
    return checks_report(f"{entry.method} on {entry.suite}", checks, "entry")


def _keys(store: RunStore, runs: list[tuple[Planned, StoredRun]]) -> Iterator[str]:
    for _, run in runs:
        text = json.dumps(json.loads((store.root / "runs" / run.key / "spec.json").read_text()), sort_keys=True)
        if hashlib.sha256(text.encode()).hexdigest()[:16] != run.key:
            yield f"the specification of {run.key} has another hash"


def _provenance(store: RunStore, runs: list[tuple[Planned, StoredRun]]) -> Iterator[str]:
    """Students learn from runs of the entry, from the very file that each has left, and from the data that they say.

    Of a checkpoint that was brought to the store, the reference itself is the file's SHA-256.
    """
    known = {f"run:{run.key}" for _, run in runs}
    for _, run in runs:
        seen = run.outcome.provenance if run.outcome else None
        if seen and seen.data != run.spec.data.fingerprint:
            yield f"{run.key} was run on other data than it says"
        for teacher in run.spec.teachers:
            left = teacher.weights.removeprefix("sha256:") if teacher.ready else _left(store, teacher.weights)
            if teacher.weights not in known and not teacher.ready:
                yield f"{run.key} learns from {teacher.weights}, which is no run of the entry"
            elif seen and seen.weights.get(teacher.weights) != left:
                yield f"{run.key} learned from another file than {teacher.weights} names"


def _left(store: RunStore, reference: str) -> str:
    """The SHA-256 of the weights from which a run teaches."""
    done = done_of(store.root / "runs" / reference.removeprefix("run:")) or {}
    return str({**done.get("left_out", {}), **done.get("files", {})}.get(TAUGHT_FROM, ""))


def _settings(plan: SweepPlan, runs: list[tuple[Planned, StoredRun]]) -> Iterator[str]:
    suite = plan.suite
    for pair in plan.pairs():
        for method in plan.methods(pair):
            trials = [each for each in runs if each[0].place[:3] == (pair, method, "trial")]
            seeds = [each for each, _ in runs if each.place[:3] == (pair, method, "seed")]
            best = best_trial(trials, suite.show, suite.metric)
            if len(trials) > suite.tuning.trials:
                yield f"{method} has {len(trials)} trials, and the protocol {suite.tuning.trials}"
            if best and any(each.setting != best.setting for each in seeds):
                yield f"{method}'s seeds have another setting than its best trial"
            if any(run.spec.test for _, run in trials):
                yield f"a trial of {method} was scored on test"


def _seeds(plan: SweepPlan, runs: list[tuple[Planned, StoredRun]]) -> Iterator[str]:
    suite = plan.suite
    for each, run in runs:
        if each.phase == "teacher":
            continue
        spec, number = run.spec, each.number if each.phase == "seed" else 0
        data = suite.data.model_copy(update={"split_seed": number, "fingerprint": spec.data.fingerprint})
        pair = next(pair for pair in suite.pairs if pair.name == each.pair)
        if (spec.seed, spec.data) != (number, data):
            yield f"{each.method} {each.phase} {each.number} has another seed or other data than the protocol"
        if spec.recipe != _recipe(suite, pair, each):
            yield f"{each.method} {each.phase} {each.number} is trained by another recipe than the protocol's"
        if spec.student.name != pair.student or {t.name for t in spec.teachers} - set(pair.teachers):
            yield f"{each.method} {each.phase} {each.number} has other networks than its pair"


def _recipe(suite: SuiteRecord, pair: PairRecord, each: Planned) -> Recipe:
    """The protocol's, with what the pair, the row and the setting say of it."""
    own = {**(suite.model_extra or {}).get("settings", {}).get(each.method, {}), **each.setting}
    changed = {name.removeprefix(RECIPE): value for name, value in own.items() if of_recipe(name)}
    return Recipe.model_validate(suite.recipe.model_dump() | (pair.model_extra or {}).get("recipe", {}) | changed)


def _sources(entry: Entry) -> Iterator[str]:
    digests = {sha256(source.code.encode())[:8] for source in entry.sources}
    if "@" in entry.method and entry.method.rpartition("@")[2] not in digests:
        yield f"{entry.method} comes without its file"


def _claims(entry: Entry, plan: SweepPlan, store: RunStore) -> Iterator[str]:
    again = json.loads(json.dumps(claims_of(plan, store, entry.method)))
    for name in again.keys() | entry.claims.keys():
        if _known(again.get(name)) != _known(entry.claims.get(name)):
            yield f"its {name} are not what its runs give"


def _known(claim: Any) -> Any:
    """A claim without the figures that its rows lack, which an older kdbench did not claim at all."""
    if not isinstance(claim, list):
        return claim
    return [_known_of(row) if isinstance(row, dict) else row for row in claim]


def _known_of(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None}


def _rerun(
    entry: Entry,
    plan: SweepPlan,
    runs: list[tuple[Planned, StoredRun]],
    count: int,
    folder: Path,
    data_dir: Path,
    device: str,
) -> list[CheckFacts]:
    """Runs the cheapest seeds of the method again, with teachers that are trained anew."""
    old, new = {run.key: run for _, run in runs}, RunStore(folder / "again")
    place, show = pick_device(device), plan.suite.show
    cells = [run for each, run in runs if each.phase == "seed" and each.method == entry.method and run.outcome]
    values = [value for run in cells if run.outcome and (value := run.outcome.headline(show, "test")) is not None]
    tolerance = max(LEAST, 3 * statistics.stdev(values)) if len(values) > 1 else LEAST
    found = []
    for run in sorted(cells, key=lambda run: float(run.outcome.cost["seconds"]) if run.outcome else 0.0)[:count]:
        assert run.outcome
        for source in entry.sources:
            keep_source(new.root, source.module, source.code.encode())
        if brought := [each.weights for each in run.spec.teachers if each.ready]:
            raise InputError(
                f"{entry.method} cannot be run again from its entry alone: it learns from {', '.join(brought)}, a "
                "checkpoint of its author's that the entry names by its SHA-256 and does not carry."
            )
        taught = [old[each.weights.removeprefix("run:")].spec for each in run.spec.teachers]
        with in_threads(run.outcome.environment.threads or 1):
            again = [_again(spec, new, data_dir, place) for spec in (*taught, run.spec)][-1]
            exact = _machine(run.outcome.environment) == _machine(environment(place))
        was = run.outcome.headline(show, "test")
        here = again.outcome.headline(show, "test") if again.outcome else None
        found.append(CheckFacts(f"seed {run.spec.seed} gives its score again", _differs(was, here, exact, tolerance)))
    return found


def _again(spec: Spec, store: RunStore, data_dir: Path, device: torch.device) -> StoredRun:
    provide(spec.canonical(), store.root)
    if spec.numbers != NUMBERS:
        raise InputError(
            f"the entry is of numbers {spec.numbers}, and this kdbench computes numbers {NUMBERS}: run it again with "
            "the commit that it names."
        )
    Console(stderr=True).print(f"running {spec.method} on {spec.data.name} again ...", markup=False)
    return carry_out(spec, store, data_dir, device, lambda epoch: True)


def _machine(where: Any) -> tuple[Any, ...]:
    """What two machines of one kind have in common."""
    return (where.device, where.hardware, where.threads, where.torch)


def _differs(was: float | None, here: float | None, exact: bool, tolerance: float) -> str:
    if was is None or here is None:
        return "" if was == here else f"it was {was}, and is {here} now"
    if exact:
        return "" if was == here else f"it was {was!r}, and is {here!r} now on a machine of the same kind"
    if abs(was - here) <= tolerance:
        return ""
    return f"it was {was:.4f}, and is {here:.4f} now: more than {tolerance:.4f} apart (another kind of machine)"


def report_of_entries(folder: Path) -> Report:
    """The accepted entries of a folder, a table for each protocol, pair and what methods are given.

    Raises:
        InputError: if there is none, or one was edited.
    """
    protocols: dict[str, list[Entry]] = {}
    for path in sorted(folder.glob("*.json")):
        entry = read_entry(path)
        if entry.seal() != entry.sha256:
            raise InputError(f"{path} was edited: kdbench verify {path} says more.")
        protocols.setdefault(entry.suite, []).append(entry)
    if not protocols:
        raise InputError(f"there is no entry in {folder}: kdbench submit writes one.")
    found = []
    for suite, entries in sorted(protocols.items()):
        with tempfile.TemporaryDirectory(prefix="kdbench-") as place:
            plan, store = store_of(entries, Path(place))
            rows = entry_rows(plan, store, [each.method for each in entries])
            found.append(ProtocolRows(suite, plan.suite.metric, plan.suite.control, plan.suite.show, rows))
    return entries_report(found)

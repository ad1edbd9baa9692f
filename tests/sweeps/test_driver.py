"""What a driver does when workers are stopped, killed or kept from their files: real processes, tiny runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from kdbench.bench.errors import InputError
from kdbench.bench.spec import ModelSpec, Spec
from kdbench.methods import REGISTRY
from kdbench.results.store.attempt import Attempt
from kdbench.results.store.files import done_of
from kdbench.results.store.plan import Planned, SweepPlan
from kdbench.results.store.run_store import RunStore
from kdbench.results.store.stored_run import Damaged, StoredRun
from kdbench.sweeps.scheduling import driver as driver_module
from kdbench.sweeps.scheduling.driver import LIVES, Driver, News
from kdbench.sweeps.scheduling.study import Chain, Job
from kdbench.sweeps.scheduling.workers import AGAIN, Machine, carry_out, fault_of
from kdbench.sweeps.suites.files import load_suite
from tests.conftest import Figure

NOWHERE, CPU = Path("/nonexistent"), torch.device("cpu")
MACHINE = Machine(NOWHERE, "cpu", "fp32", 2, lease=10.0)


@pytest.fixture
def spec(tiny: Path) -> Spec:
    """A student alone on digits, for four short epochs."""
    suite = load_suite(str(tiny))
    spec = suite.spec(suite.resolve(suite.pairs[0], seed=0), "student", {}, test=False)
    return spec.model_copy(update={"teachers": ()})


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "store")


class Bed:
    """A driver in a store, chains of one run each, and what becomes of them."""

    def __init__(self, store: RunStore, tiny: Path, report: Callable[..., None], machine: Machine) -> None:
        suite = load_suite(str(tiny))
        self.plan = SweepPlan.create(store.root, suite.name, "abcd", suite.model_dump(mode="json"))
        self.received: list[StoredRun] = []
        self.driver = Driver(
            store, self.plan, machine, lambda _: None, lambda planned, news: report(self.driver, planned, news)
        )

    def chain(self, spec: Spec, number: int = 0) -> Chain:
        planned = Planned("cifar_resnet8 -> cifar_resnet8_quarter", "student", "trial", number, spec.key)
        self.received += yield [Job(planned, spec)]

    def carry_out(self, *specs: Spec) -> list[str]:
        with self.driver:
            self.driver.carry_out([self.chain(spec, number) for number, spec in enumerate(specs)])
        return [run.status for run in self.received]


@pytest.fixture
def bed(store: RunStore, tiny: Path) -> Callable[..., Bed]:
    def make(report: Callable[..., None] = lambda *_: None, machine: Machine = MACHINE) -> Bed:
        return Bed(store, tiny, report, machine)

    return make


def signalled(number: signal.Signals, times: int = 1, key: str = "") -> Callable[..., None]:
    """Sends a signal to the worker at a run, or at any, after an epoch, to so many workers."""
    sent: list[int] = []

    def report(driver: Driver, planned: Planned, news: News) -> None:
        if news is None:
            return
        for worker, tickets in driver.busy.items():
            keys = {batch.jobs[index].spec.key for batch, index in tickets.values()}
            pid = worker.process.pid
            if planned.key in keys and key in ("", planned.key) and len(sent) < times and pid and pid not in sent:
                sent.append(pid)
                os.kill(pid, number)

    return report


@pytest.mark.fault("9")
def test_stopped_worker_is_noticed_and_its_run_goes_on_in_another(
    bed: Callable[..., Bed], spec: Spec, store: RunStore, figure: Figure
) -> None:
    """The stopped one is killed, so that none of its writes comes later."""
    begun = time.monotonic()
    driven = bed(signalled(signal.SIGSTOP))
    assert driven.carry_out(spec) == ["done"]
    assert list(driven.driver.tried.values()) == [1] and driven.driver.failures == {}
    assert len(list(store.root.glob("runs/*/DONE.json"))) == 1
    figure(f"1 result, {time.monotonic() - begun:.0f} s with a lease of {MACHINE.lease:.0f} s")


ORPHANS = """
import os, signal, sys, time
from pathlib import Path
from kdbench.sweeps.scheduling.processes import LocalWorker
from kdbench.sweeps.scheduling.workers import Machine
if __name__ == "__main__":
    workers = [LocalWorker(Path(sys.argv[1]), Machine(Path("/nonexistent"), "cpu", "fp32", 2)) for _ in range(2)]
    while len(list(Path(sys.argv[1]).glob("workers/*.log"))) < 2:
        time.sleep(0.05)
    os.kill(workers[0].process.pid, signal.SIGSTOP)
    print(*(worker.process.pid for worker in workers), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_within_two_seconds_of_their_driver_and_stopped_ones_with_their_server(
    store: RunStore, tmp_path: Path
) -> None:
    (tmp_path / "orphans.py").write_text(ORPHANS)
    command = [sys.executable, str(tmp_path / "orphans.py"), str(store.root)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    )
    assert process.stdout is not None
    stopped, running = (int(pid) for pid in process.stdout.readline().split())
    process.wait()
    for pid, seconds in ((running, 2 + 2), (stopped, 60)):  # on a busy machine
        deadline = time.monotonic() + seconds
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_worker_that_lives_but_makes_no_update_is_ended(bed: Callable[..., Bed], spec: Spec, store: RunStore) -> None:
    """It waits for a file of its teacher for ever, in a thread of its own it shows life."""
    (store.root / "runs" / "feed").mkdir()
    os.mkfifo(store.root / "runs" / "feed" / "DONE.json")
    teacher = ModelSpec(**spec.student.model_dump() | {"weights": "run:feed"})
    driven = bed(machine=Machine(NOWHERE, "cpu", "fp32", 1, lease=60.0, patience=2.0))
    assert driven.carry_out(spec.model_copy(update={"method": "kd", "params": {}, "teachers": (teacher,)})) == []
    assert "given up after 3 tries: its worker made no update for 2 s" in "".join(driven.driver.failures.values())


@pytest.mark.fault("13")
def test_run_whose_worker_dies_each_time_is_given_up_with_how_it_died_and_others_finish(
    bed: Callable[..., Bed], spec: Spec, store: RunStore, figure: Figure
) -> None:
    other = spec.model_copy(update={"seed": 7})
    driven = bed(signalled(signal.SIGSEGV, times=LIVES, key=spec.key))
    assert driven.carry_out(spec, other) == ["done"], "the chain of the first is told nothing"
    (reason,) = driven.driver.failures.values()
    assert (
        driven.driver.given_up and f"student trial 0 of cifar_resnet8 -> cifar_resnet8_quarter ({spec.key})" in reason
    )
    assert f"given up after {LIVES} tries: its worker was ended by SIGSEGV" in reason
    assert "Fatal Python error: Segmentation fault" in reason
    run = store.get(spec.key)
    assert run is not None and run.status == "failed" and "SIGSEGV" in run.reason
    assert list((store.root / "workers").iterdir()) == []
    figure(f"given up after {LIVES} tries, with signal and standard error; the other run is done")


def test_fault_of_the_machine_that_passes_is_no_result(
    bed: Callable[..., Bed], spec: Spec, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = store.root / "runs" / spec.key
    blocked.touch()  # a file where the run's folder should be
    driven = bed()
    tried = driven.driver._try_again

    def try_again(ticket: Any, reason: str) -> None:
        assert "FileExistsError" in reason
        blocked.unlink()
        tried(ticket, reason)

    monkeypatch.setattr(driven.driver, "_try_again", try_again)
    assert driven.carry_out(spec) == ["done"] and driven.driver.failures == {}


def holding(store: RunStore, spec: Spec, end: Callable[[Attempt], None]) -> threading.Thread:
    """Holds a run for a while, as another process does, and ends in a way of its own."""
    begun = threading.Event()

    def hold() -> None:
        with store.attempt(spec.key, spec.canonical(), lambda _: None) as attempt:
            begun.set()
            time.sleep(2.5 * AGAIN)
            end(attempt)

    thread = threading.Thread(target=hold)
    thread.start()
    begun.wait()
    return thread


def test_run_that_another_process_holds_is_waited_for(bed: Callable[..., Bed], spec: Spec, store: RunStore) -> None:
    held = holding(store, spec, lambda attempt: None)
    driven = bed()
    assert driven.carry_out(spec) == ["done"]
    assert driven.driver.tried == {} and driven.driver.failures == {}
    held.join()


def test_run_command_waits_for_a_run_under_way_and_does_not_repeat_it(
    spec: Spec, store: RunStore, tmp_path: Path
) -> None:
    elsewhere = RunStore(tmp_path / "elsewhere")
    carry_out(spec, elsewhere, NOWHERE, CPU, lambda _: True)
    result = elsewhere.get(spec.key)
    assert result is not None and result.outcome is not None
    outcome = result.outcome
    held = holding(store, spec, lambda attempt: attempt.finish(outcome, {"last": b"weights"}))
    waits: list[str] = []
    run = carry_out(spec, store, NOWHERE, CPU, lambda _: True, waits=waits.append)
    assert run.finished and run.epochs == [], "it is the other process's"
    assert len(waits) == 1 and f"another process is carrying out run {spec.key}" in waits[0]
    assert f":{os.getpid()}" in waits[0]
    held.join()


def test_method_that_calls_exit_is_a_failed_run_with_its_traceback(
    spec: Spec, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(REGISTRY["student"], "loss", lambda self, step: sys.exit(5))
    with pytest.raises(RuntimeError, match=r"called sys.exit\(5\)"):
        carry_out(spec, store, NOWHERE, CPU, lambda _: True)
    run = store.get(spec.key)
    assert run is not None and (run.status, run.reason) == ("failed", "SystemExit: 5")
    assert run.folder is not None and "Traceback" in (run.folder / "records.jsonl").read_text()


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (OSError(28, "No space left on device"), "machine"),
        (MemoryError(), "machine"),
        (torch.OutOfMemoryError("CUDA out of memory"), "machine"),
        (Damaged("weights"), "machine"),
        (InputError("no such layer"), "input"),
        (ValueError("shapes"), "method"),
        (RuntimeError("mat1 and mat2"), "method"),
    ],
)
def test_faults_are_told_apart(error: Exception, fault: str) -> None:
    assert fault_of(error) == fault


def test_torch_without_memory_on_a_cpu_is_the_machines_fault() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert fault_of(caught.value) == "machine"


def test_finished_run_whose_weights_are_damaged_is_made_anew(
    bed: Callable[..., Bed], spec: Spec, store: RunStore
) -> None:
    carry_out(spec, store, NOWHERE, CPU, lambda _: True)
    folder = store.root / "runs" / spec.key
    before = done_of(folder)
    weights = folder / "attempt-1" / "best.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    assert "best.safetensors is damaged" in store.damage(spec.key)
    assert bed().carry_out(spec) == ["done"]
    after = done_of(folder)
    assert before and after and after["attempt"] != before["attempt"] and store.damage(spec.key) == ""
    assert after["files"]["best.safetensors"] == before["files"]["best.safetensors"]


def test_damaged_teacher_is_not_told_to_the_chain_of_its_student(
    bed: Callable[..., Bed], spec: Spec, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "AGAIN", 0.01)
    carry_out(spec, store, NOWHERE, CPU, lambda _: True)
    teacher = ModelSpec(**spec.student.model_dump() | {"weights": f"run:{spec.key}"})
    (store.root / "runs" / spec.key / "attempt-1" / "last.safetensors").write_bytes(b"torn")
    student = spec.model_copy(update={"method": "kd", "params": {}, "teachers": (teacher,)})
    driven = bed()
    assert driven.carry_out(student) == [] and driven.driver.given_up
    assert "last.safetensors is damaged" in "".join(driven.driver.failures.values())

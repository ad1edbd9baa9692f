"""Runs on a real Ray cluster of two nodes: equal to the bit, and taken up again when a worker or a node is lost."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from kdbench.bench.errors import InputError
from kdbench.bench.spec import Spec
from kdbench.results.store.files import done_of
from kdbench.results.store.plan import Planned, SweepPlan
from kdbench.results.store.run_store import RunStore
from kdbench.results.store.stored_run import StoredRun
from kdbench.sweeps.cli.place import Place
from kdbench.sweeps.scheduling.driver import Driver, News
from kdbench.sweeps.scheduling.study import Chain, Job
from kdbench.sweeps.scheduling.workers import Cluster, Machine, carry_out
from kdbench.sweeps.suites.files import load_suite
from tests.sweeps.commands import kdbench
from tests.sweeps.test_driver import CPU, NOWHERE

os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = "of-these-tests-alone"
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (else runs wait for whatever else a busy machine does)
ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'kdbench[ray]'")
from ray.cluster_utils import Cluster as Nodes  # noqa: E402

SHORT = ("--methods", "student,kd", "--trials", "1", "--seeds", "1", "--precision", "fp32", "--json")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A head that says it has one core, and a node that says it has two."""
    cluster = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=2)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def spec(tiny: Path) -> Spec:
    suite = load_suite(str(tiny))
    spec = suite.spec(suite.resolve(suite.pairs[0], seed=0), "student", {}, test=False)
    return spec.model_copy(update={"teachers": ()})


def driven(
    cluster: Cluster, store: RunStore, tiny: Path, spec: Spec, report: Callable[[News], None], far: bool = False
) -> Driver:
    """Carries one run out on a cluster; a store that is far is one whose folder no node sees."""
    from kdbench.sweeps.scheduling import ray_cluster

    ray_cluster.connect(cluster.address)
    suite, received = load_suite(str(tiny)), list[StoredRun]()
    plan = SweepPlan.create(store.root, suite.name, "abcd", suite.model_dump(mode="json"))

    def chain() -> Chain:
        received.extend((yield [Job(Planned("a -> b", "student", "trial", 0, spec.key), spec)]))

    machine = Machine(NOWHERE, "cpu", "fp32", 2, cluster=cluster)
    driver = Driver(store, plan, machine, lambda _: None, lambda _, news: report(news))
    with driver:
        if far:
            for mark in (store.root / "workers").glob("seen-*"):
                mark.unlink()
        driver.carry_out([chain()])
    assert [run.status for run in received] == ["done"]
    return driver


def once(action: Callable[[], None]) -> Callable[[News], None]:
    """Does something after the first epoch."""
    left = [action]

    def report(news: News) -> None:
        if news is not None and left:
            left.pop()()

    return report


def raylet(node: Any) -> int:
    """The process of a node from which its actors are started."""
    (started,) = node.all_processes["raylet"]
    pid: int = started.process.pid
    return pid


def carriers(nodes: Nodes) -> list[psutil.Process]:
    """The processes of the actors that are on these nodes."""
    children = [child for node in nodes.list_all_nodes() for child in psutil.Process(raylet(node)).children()]
    return [child for child in children if "ray::Carrier" in " ".join(child.cmdline())]


def kill(nodes: Nodes) -> None:
    (actor,) = carriers(nodes)
    actor.kill()


def files(store: RunStore, key: str) -> dict[str, str]:
    """The SHA-256 of each file of weights of a finished run."""
    done = done_of(store.root / "runs" / key)
    assert done is not None and store.damage(key) == ""
    return {name: digest for name, digest in done["files"].items() if name.endswith(".safetensors")}


@pytest.mark.slow
def test_sweep_on_a_cluster_is_equal_to_the_bit_to_one_on_this_machine(
    nodes: Nodes, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    boards, stores = [], []
    for name, extra in (("far", ("--ray", nodes.address, "--workers", "2")), ("near", ("--workers", "2"))):
        code, out, err = kdbench("sweep", str(tiny), "--store", name, *SHORT, *extra)
        assert code == 0, err
        boards.append(json.loads(out))
        stores.append(RunStore(tmp_path / name))
    ours, theirs = ({row["method"]: row["accuracy"] for row in board["rows"]} for board in boards)
    assert ours == theirs and len(ours) == 2
    keys = stores[0].keys()
    assert keys == stores[1].keys() and len(keys) == 6
    for key in keys:
        assert files(stores[0], key) == files(stores[1], key)
    deadline = time.monotonic() + 30
    while carriers(nodes):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_run_whose_actor_is_killed_goes_on_in_another_and_has_one_result(
    nodes: Nodes, tiny: Path, tmp_path: Path, spec: Spec
) -> None:
    alone, store = RunStore(tmp_path / "alone"), RunStore(tmp_path / "store")
    carry_out(spec, alone, NOWHERE, CPU, lambda _: True)
    driver = driven(Cluster(nodes.address), store, tiny, spec, once(lambda: kill(nodes)))
    assert driver.tried == {spec.key: 1} and driver.failures == {}
    assert files(store, spec.key) == files(alone, spec.key)
    assert [path.name for path in (store.root / "runs" / spec.key).glob("attempt-*")] == ["attempt-2"]


def test_store_that_no_node_sees_gets_all_over_the_line_also_after_a_death(
    nodes: Nodes, tiny: Path, tmp_path: Path, spec: Spec
) -> None:
    alone, store = RunStore(tmp_path / "alone"), RunStore(tmp_path / "store")
    carry_out(spec, alone, NOWHERE, CPU, lambda _: True)
    driver = driven(Cluster(nodes.address), store, tiny, spec, once(lambda: kill(nodes)), far=True)
    assert driver.tried == {spec.key: 1}
    assert files(store, spec.key) == files(alone, spec.key)
    run = store.get(spec.key)
    assert run is not None and run.folder is not None and len(run.epochs) == 4
    claim = json.loads((run.folder / "records.jsonl").read_text().splitlines()[0])
    assert claim["pid"] == os.getpid(), "the driver has written it"


@pytest.mark.slow
def test_node_that_is_lost_costs_no_run(nodes: Nodes, tiny: Path, tmp_path: Path, spec: Spec) -> None:
    store = RunStore(tmp_path / "store")
    nodes.add_node(num_cpus=2)

    def lose() -> None:
        (actor,) = carriers(nodes)
        (node,) = (node for node in nodes.worker_nodes if raylet(node) == actor.ppid())
        nodes.remove_node(node, allow_graceful=False)

    driver = driven(Cluster(nodes.address, cpus=2), store, tiny, spec, once(lose))
    assert driver.tried == {spec.key: 1} and driver.failures == {}


def test_run_that_fits_on_no_node_is_refused_with_what_there_is(nodes: Nodes, tmp_path: Path) -> None:
    place = Place(tmp_path, ray=nodes.address, cpus_per_run=64, gpus_per_run=0.25)
    with pytest.raises(InputError, match=r"no node .* has 64 CPUs and 0.25 GPUs for a run; it has .*: 1 CPUs, 0 G"):
        place.machine()
    assert Place(tmp_path, ray=nodes.address, cpus_per_run=0.5).machine().workers == 6
    assert Place(tmp_path, ray=nodes.address, cpus_per_run=0.5, workers=3).machine().workers == 3
    ray.shutdown()


def test_cluster_that_is_not_there_and_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for place, reason in (
        (Place(tmp_path, ray="ray://head:10001"), "takes auto, or the HOST:PORT"),
        (Place(tmp_path, ray="auto", device="cuda:1"), "chosen by --gpus-per-run"),
        (Place(tmp_path, ray="auto", precision="measured"), "precision is auto, fp32 or bf16"),
        (Place(tmp_path, gpus_per_run=0.5), "are of a Ray cluster"),
        (Place(tmp_path, ray=address), f"no Ray cluster at '{address}'"),
    ):
        with pytest.raises(InputError, match=reason):
            place.machine()


def test_without_ray_one_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known: Any = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else known(name))
    with pytest.raises(InputError, match=r"pip install 'kdbench\[ray\]'"):
        Place(tmp_path, ray="auto").machine()

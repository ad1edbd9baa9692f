"""The calibrated loss weights of a plan: measured once for each method and pair, and read from the plan ever after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kdbench.bench.data.splits import Splits
from kdbench.bench.record import Epoch
from kdbench.bench.training.calibration import calibrated
from kdbench.methods.base import Unsupported
from kdbench.results.store.plan import SweepPlan
from kdbench.results.store.run_store import RunStore
from kdbench.sweeps.scheduling.study import Calibrate
from kdbench.sweeps.scheduling.workers import Machine
from kdbench.sweeps.suites.suite import ResolvedPair, Suite


def weights_of(suite: Suite, plan: SweepPlan, store: RunStore, data: Splits, machine: Machine) -> Calibrate:
    """Gives the calibrated weights of a method on a pair: the plan's, or measured now and written into it.

    They are measured by the run of the first trial, before its first update, with the teachers of the tuning.

    Args:
        suite: which weights are searched.
        plan: the suite's.
        store: where its teachers are.
        data: split as tuning has them.
        machine: where to compute.
    """

    def calibrate(resolved: ResolvedPair, method: str) -> dict[str, float]:
        pair, names = resolved.pair.name, suite.weights(method)
        known = plan.suite.calibrated.get(pair, {})
        if not names or method in known:
            return known.get(method, {})
        (start, *_) = suite.starts(method, pair, {})
        spec = suite.spec(resolved, method, start, test=False)
        try:
            values = calibrated(spec, data, Loading(store), machine.here)
        except Unsupported:  # its trials will say so
            values = {}
        values = {name: value for name, value in values.items() if name in names}
        plan.keep_calibrated(pair, method, values)
        return plan.suite.calibrated[pair][method]

    return calibrate


@dataclass(frozen=True)
class Loading:
    """A recorder of a run that is not carried out: it gives stored weights, and keeps nothing."""

    store: RunStore

    def weights(self, reference: str) -> bytes:
        """See `kdbench.bench.record.Recorder`."""
        return self.store.weights(reference)

    def checkpoint(self) -> None:
        """None: nothing was begun."""

    def epoch(self, epoch: Epoch, checkpoint: Any) -> None:
        """Keeps nothing."""

"""What a student predicts, and what that costs: parameters, multiply-adds, latency."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kdbench.bench.data.splits import EVALUATION_BATCH, Part
from kdbench.bench.evaluation.latency import Timing, timed
from kdbench.bench.networks.network import Network
from kdbench.bench.networks.signals import GRADIENTS
from kdbench.methods.base import SIGNALS, Method, Signals
from kdbench.methods.rows import Rows, split, take

LATENCY_RUNS = 30
"""Timed passes of one sample."""


class ObservingTask(Protocol):
    """What evaluation needs of the task; `kdbench.bench.tasks.Task` has it."""

    def prepared(self, inputs: Rows, device: torch.device) -> Rows:
        """Inputs as networks take them."""

    def observe(
        self, network: Network, inputs: Rows, targets: Rows | None, needs: frozenset[str], training: bool = False
    ) -> Signals:
        """Signals of a network."""


@torch.no_grad()
def predict(
    task: ObservingTask, method: Method, network: Network, auxiliary: nn.ModuleDict, part: Part
) -> dict[str, Tensor]:
    """Logits (M, K) of every named prediction of a method, on the CPU in float32, in evaluation mode."""
    network.eval()
    auxiliary.eval()
    needs = evaluation_needs(method)
    outputs: dict[str, list[Tensor]] = {}
    for batch in split(part.inputs, EVALUATION_BATCH):
        signals = task.observe(network, task.prepared(batch, network.device), None, needs)
        for name, logits in method.predictions(signals, auxiliary).items():
            outputs.setdefault(name, []).append(logits.float().cpu())
    return {name: torch.cat(batches) for name, batches in outputs.items()}


def evaluation_needs(method: Method) -> frozenset[str]:
    """Signals that a method's predictions may read; gradients are of use in training alone."""
    return (method.needed() & SIGNALS) - GRADIENTS


def sizes(
    task: ObservingTask,
    method: Method,
    student: Network,
    auxiliary: nn.ModuleDict,
    teacher: Network | None,
    inputs: Rows,
) -> dict[str, float]:
    """Parameters and multiply-adds of the student and of its teacher, and the student's latency if the core is quiet.

    The student's parameters are those that its headline prediction uses, in the network and in the auxiliary modules;
    multiply-adds and latency are the network's, and those modules' too where the method deploys them.

    Args:
        task: what the networks are for.
        method: gives the prediction.
        student: what would be deployed.
        auxiliary: the method's modules for it.
        teacher: what it is compared with.
        inputs: of a part; the first sample is used.
    """
    costs = Costs(task, method, student, auxiliary, inputs)
    values = {"parameters": float(costs.used_parameters()), "multiply_adds": costs.multiply_adds() + costs.deployed()}
    if teacher:
        values["teacher_parameters"] = teacher.parameter_count()
        values["teacher_multiply_adds"] = Costs(task, method, teacher, auxiliary, inputs).multiply_adds()
    time = costs.latency()
    found = {"latency_ms": time.median, "latency_low_ms": time.low, "latency_high_ms": time.high}
    return values | (found if time.quiet else {})


@dataclass(frozen=True)
class Costs:
    """Costs of a network for one sample in evaluation mode."""

    task: ObservingTask
    method: Method
    network: Network
    auxiliary: nn.ModuleDict
    inputs: Rows
    """Of a part; the first sample is used."""

    def of_predictions(self, names: list[str]) -> dict[str, float]:
        """Multiply-adds of each named prediction, where the method says how many stages each runs; else nothing.

        To the stages comes what a prediction uses of the auxiliary modules.
        """
        stages = {name: self.method.stages_run(name) for name in names}
        if all(count is None for count in stages.values()):
            return {}
        heads = self._heads()
        return {name: float(self.multiply_adds(count or 0) + heads[name]) for name, count in stages.items()}

    def multiply_adds(self, stages: int = 0) -> int:
        """Of convolutions and matrix products, for so many stages without the classifier; 0 is the whole network."""
        sample, network = self._sample(), self.network.eval()
        if not stages:
            return _multiply_adds(network, sample)
        model: Any = network.model
        passed = functools.partial(model.forward_intermediates, indices=[stages - 1], stop_early=True)
        return _multiply_adds(passed, network.normalised(sample))

    def used_parameters(self) -> int:
        """How many numbers the headline prediction depends on; frozen ones only in modules that are deployed."""
        modules = nn.ModuleList([self.network.eval(), self.auxiliary.eval()])
        frozen = [each for each in modules.parameters() if not each.requires_grad and self.method.deploys_modules]
        for parameter in frozen:
            parameter.requires_grad_(True)
        parameters = [parameter for parameter in modules.parameters() if parameter.requires_grad]
        signals = self._observed(training=True)
        headline = next(iter(self.method.predictions(signals, self.auxiliary).values()))
        grads = torch.autograd.grad(headline.sum(), parameters, allow_unused=True)
        for parameter in frozen:
            parameter.requires_grad_(False)
        return sum(p.numel() for p, grad in zip(parameters, grads, strict=True) if grad is not None)

    def deployed(self) -> int:
        """Multiply-adds of the modules that are deployed with the network, if the method has such."""
        return next(iter(self._heads().values())) if self.method.deploys_modules else 0

    @torch.no_grad()
    def latency(self) -> Timing:
        """Of one sample, measured once: a run of a sweep does not wait for a core to be quiet."""
        network, sample = self.network.eval(), self._sample()
        self.auxiliary.eval()

        def call() -> None:
            if self.method.deploys_modules:
                self.method.predictions(self._observed(), self.auxiliary)
            else:
                with network.precision():
                    network(sample)
            if network.device.type == "cuda":
                torch.cuda.synchronize(network.device)

        return timed({"": call}, LATENCY_RUNS, warm_up=5, rounds=1)[""]

    @torch.no_grad()
    def _heads(self) -> dict[str, int]:
        """Multiply-adds of those auxiliary modules that each named prediction depends on.

        A prediction depends on a module if it is NaN where the module's output is.
        """
        self.network.eval()
        signals = self._observed()
        calls: list[tuple[nn.Module, Any]] = []
        with contextlib.ExitStack() as hooks:
            for module in self.auxiliary.eval().values():
                note = module.register_forward_pre_hook(lambda module, inputs: calls.append((module, inputs)))
                hooks.callback(note.remove)
            costs = dict.fromkeys(self.method.predictions(signals, self.auxiliary), 0)
        for module, inputs in calls:
            cost = _multiply_adds(module, *inputs)
            spoil = module.register_forward_hook(lambda module, inputs, output: output * math.nan)
            for name, logits in self.method.predictions(signals, self.auxiliary).items():
                costs[name] += cost if logits.isnan().any() else 0
            spoil.remove()
        return costs

    def _sample(self) -> Any:
        return self.task.prepared(take(self.inputs, slice(0, 1)), self.network.device)

    def _observed(self, training: bool = False) -> Signals:
        return self.task.observe(self.network, self._sample(), None, evaluation_needs(self.method), training)


@torch.no_grad()
def _multiply_adds(function: Callable[..., Any], *inputs: Any) -> int:
    """Of the convolutions and matrix products of one call."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        function(*inputs)
    return int(counter.get_total_flops()) // 2

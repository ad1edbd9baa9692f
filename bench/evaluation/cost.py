"""What a trained student is worth: accuracy, calibration, agreement with the teacher, size and speed."""

from __future__ import annotations

import contextlib
import functools
import math
import re
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

from bench.data.datasets import Part
from bench.data.splits import EVALUATION_BATCH
from bench.networks.network import Network
from bench.networks.signals import GRADIENTS, observe
from methods.base import Method

LATENCY_RUNS = 30


@torch.no_grad()
def predict(method: Method, network: Network, auxiliary: nn.ModuleDict, part: Part) -> dict[str, Tensor]:
    """Logits (N, K) of every named prediction of a method, on the CPU in float32, in evaluation mode."""
    network.eval()
    auxiliary.eval()
    device = network.mean.device
    needs = method.needed() - GRADIENTS
    outputs: dict[str, list[Tensor]] = {}
    for images, labels in zip(*(tensor.split(EVALUATION_BATCH) for tensor in part), strict=True):
        inputs = images.to(device).float().div_(255)
        signals = observe(network, inputs, labels.to(device), needs)
        for name, logits in method.predictions(signals, auxiliary).items():
            outputs.setdefault(name, []).append(logits.float().cpu())
    return {name: torch.cat(batches) for name, batches in outputs.items()}


def score(
    logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor | None = None,
    groups: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, float]:
    """Metrics of one prediction.

    Args:
        logits: (N, K)
        labels: (N,)
        teacher_logits: (N, K) of the pair's teacher, if there is one.
        groups: classes by name of a group, which are scored apart too.

    Returns:
        accuracy and top5 (with more than 5 classes) as shares; nll in nats; calibration_error (expected, 15 bins);
        with a teacher: agreement (share of equal decisions) and teacher_kl (KL(teacher || student) in nats);
        accuracy_NAME of each group that has images, among all classes.
    """
    classes = logits.shape[1]
    probabilities = logits.softmax(dim=1)
    metrics = {
        "accuracy": multiclass_accuracy(logits, labels, classes, average="micro"),
        "nll": F.cross_entropy(logits, labels),
        "calibration_error": multiclass_calibration_error(probabilities, labels, classes, n_bins=15),
    }
    if classes > 5:
        metrics["top5"] = multiclass_accuracy(logits, labels, classes, average="micro", top_k=5)
    if teacher_logits is not None:
        metrics["agreement"] = (logits.argmax(dim=1) == teacher_logits.argmax(dim=1)).float().mean()
        log_student, log_teacher = logits.log_softmax(dim=1), teacher_logits.log_softmax(dim=1)
        metrics["teacher_kl"] = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    correct = (logits.argmax(dim=1) == labels).float()
    for name, members in (groups or {}).items():
        chosen = torch.isin(labels, torch.tensor(members))
        if chosen.any():
            metrics[f"accuracy_{name}"] = correct[chosen].mean()
    return {name: float(value) for name, value in metrics.items()}


def scored(
    predictions: dict[str, Tensor],
    method: Method,
    network: Network,
    auxiliary: nn.ModuleDict,
    part: Part,
    teacher_logits: Tensor | None,
    groups: Mapping[str, tuple[int, ...]],
) -> dict[str, dict[str, float]]:
    """`score` of each named prediction, and its multiply_adds where some are named stage_K or first_K.

    These run K stages and the others the whole network; to either comes what a prediction uses of the auxiliary.
    """
    scores = {name: score(logits, part.labels, teacher_logits, groups) for name, logits in predictions.items()}
    stages = {name: int(found[1]) for name in predictions if (found := re.fullmatch(r"(?:stage|first)_(\d+)", name))}
    heads = head_costs(method, network, auxiliary, part.images) if stages else {}
    for name in predictions if stages else ():
        body = multiply_adds(network, part.images, stages.get(name, 0))
        scores[name]["multiply_adds"] = float(body + heads[name])
    return scores


def sizes(
    method: Method, student: Network, auxiliary: nn.ModuleDict, teacher: Network | None, images: Tensor
) -> dict[str, float]:
    """Parameters and multiply-adds of the student and of its teacher, and the student's latency.

    The student's parameters are those that its headline prediction uses, in the network and in the auxiliary;
    multiply-adds and latency are the network's.

    Args:
        method: gives the prediction.
        student: what would be deployed.
        auxiliary: the method's modules for it.
        teacher: what it is compared with.
        images: (N, C, H, W) uint8; the first is used.
    """
    values = {
        "parameters": float(used_parameters(method, student, auxiliary, images)),
        "multiply_adds": multiply_adds(student, images),
    }
    if teacher:
        values["teacher_parameters"] = teacher.parameter_count()
        values["teacher_multiply_adds"] = multiply_adds(teacher, images)
    return values | {"latency_ms": latency(student, images)}


def used_parameters(method: Method, student: Network, auxiliary: nn.ModuleDict, images: Tensor) -> int:
    """How many trainable numbers the headline prediction depends on."""
    parameters = [p for p in nn.ModuleList([student.eval(), auxiliary.eval()]).parameters() if p.requires_grad]
    image = images[:1].to(student.mean.device).float() / 255
    labels = torch.zeros(1, dtype=torch.long, device=image.device)
    signals = observe(student, image, labels, method.needed() - GRADIENTS, training=True)
    headline = next(iter(method.predictions(signals, auxiliary).values()))
    grads = torch.autograd.grad(headline.sum(), parameters, allow_unused=True)
    return sum(p.numel() for p, grad in zip(parameters, grads, strict=True) if grad is not None)


def confusion(logits: Tensor, labels: Tensor) -> list[list[int]]:
    """Counts of images: rows are classes, columns decisions."""
    matrix: list[list[int]] = multiclass_confusion_matrix(logits, labels, logits.shape[1]).tolist()
    return matrix


@torch.no_grad()
def head_costs(method: Method, network: Network, auxiliary: nn.ModuleDict, images: Tensor) -> dict[str, int]:
    """Multiply-adds for one image of those modules of the method that each named prediction depends on.

    A prediction depends on a module if it is NaN where the module's output is.
    """
    image = images[:1].to(network.mean.device).float() / 255
    labels = torch.zeros(1, dtype=torch.long, device=image.device)
    signals = observe(network.eval(), image, labels, method.needed() - GRADIENTS)
    calls: list[tuple[nn.Module, Any]] = []
    with contextlib.ExitStack() as hooks:
        for module in auxiliary.eval().values():
            note = module.register_forward_pre_hook(lambda module, inputs: calls.append((module, inputs)))
            hooks.callback(note.remove)
        costs = dict.fromkeys(method.predictions(signals, auxiliary), 0)
    for module, inputs in calls:
        cost = _multiply_adds(module, *inputs)
        spoil = module.register_forward_hook(lambda module, inputs, output: output * math.nan)
        for name, logits in method.predictions(signals, auxiliary).items():
            costs[name] += cost if logits.isnan().any() else 0
        spoil.remove()
    return costs


@torch.no_grad()
def _multiply_adds(function: Callable[..., Any], *inputs: Any) -> int:
    """Of the convolutions and matrix products of one call."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        function(*inputs)
    return int(counter.get_total_flops()) // 2


def multiply_adds(network: Network, images: Tensor, stages: int = 0) -> int:
    """Multiply-adds for one image in evaluation mode, of convolutions and matrix products.

    Args:
        network: what is counted.
        images: (N, C, H, W) uint8; the first is used.
        stages: how many of its stages are run, without its classifier; 0 is the whole network.
    """
    image = images[:1].to(network.mean.device).float() / 255
    model: Any = network.eval().model
    if not stages:
        return _multiply_adds(network, image)
    passed = functools.partial(model.forward_intermediates, indices=[stages - 1], stop_early=True)
    return _multiply_adds(passed, network.normalised(image))


@torch.no_grad()
def latency(network: Network, images: Tensor) -> float:
    """Milliseconds for one image in evaluation mode: the median of 30 runs after 5, as the machine was.

    Args:
        network: what is timed, on its device.
        images: (N, C, H, W) uint8; the first is used.
    """
    network.eval()
    device = network.mean.device
    image = images[:1].to(device).float() / 255
    times = []
    for _ in range(LATENCY_RUNS + 5):
        start = time.perf_counter()
        with network.precision():
            network(image)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[5:]) * 1000

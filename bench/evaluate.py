"""What a trained student is worth: accuracy, calibration, agreement with the teacher, size and speed."""

from __future__ import annotations

import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from bench.data import Part
from bench.networks import EVALUATION_BATCH, Network
from bench.signals import observe
from methods.base import Method

LATENCY_RUNS = 30


@torch.no_grad()
def predict(method: Method, network: Network, extras: nn.ModuleDict, part: Part, precision: str) -> dict[str, Tensor]:
    """Logits (N, K) of every named prediction of a method, on the CPU in float32, in evaluation mode."""
    network.eval()
    extras.eval()
    device = network.mean.device
    needs = method.needs - {"input_grad"}
    outputs: dict[str, list[Tensor]] = {}
    for images, labels in zip(*(tensor.split(EVALUATION_BATCH) for tensor in part), strict=True):
        inputs = images.to(device).float().div_(255)
        signals = observe(network, inputs, labels.to(device), needs, precision)
        for name, logits in method.predictions(signals, extras).items():
            outputs.setdefault(name, []).append(logits.float().cpu())
    return {name: torch.cat(batches) for name, batches in outputs.items()}


def score(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None) -> dict[str, float]:
    """Metrics of one prediction.

    Args:
        logits: (N, K)
        labels: (N,)
        teacher_logits: (N, K) of the pair's teacher, if there is one.

    Returns:
        accuracy and top5 (with more than 5 classes) as shares; nll in nats; calibration_error (expected, 15 bins);
        with a teacher: agreement (share of equal decisions) and teacher_kl (KL(teacher || student) in nats).
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
    return {name: float(value) for name, value in metrics.items()}


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
        network(image)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[5:]) * 1000

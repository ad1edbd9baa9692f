"""Metrics of decisions among K classes: accuracy, calibration, agreement with the teacher, confusion."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric as RunningMetric
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)


def decision_metrics(
    logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor | None = None,
    groups: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, float]:
    """Metrics of one prediction.

    Args:
        logits: (M, K)
        labels: (M,) int64.
        teacher_logits: (M, K) of the pair's teacher, if there is one.
        groups: classes by name of a group, which are scored apart too.

    Returns:
        accuracy and top5 (with more than 5 classes) as shares; nll in nats; calibration_error (expected, 15 bins);
        with a teacher: agreement (share of equal decisions) and teacher_kl (KL(teacher || student) in nats);
        accuracy_NAME of each group that has decisions, among all classes.
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


def confusion(logits: Tensor, labels: Tensor) -> list[list[int]]:
    """Counts of decisions (M, K) for labels (M,): rows are classes, columns decisions."""
    matrix: list[list[int]] = multiclass_confusion_matrix(logits, labels, logits.shape[1]).tolist()
    return matrix


class LabelledAccuracy(RunningMetric):
    """Share of the labelled samples that are classified as their (largest) label; 0 if none was labelled."""

    full_state_update = False
    correct: Tensor
    labelled: Tensor

    def __init__(self) -> None:
        """Has counted nothing yet."""
        super().__init__()
        self.add_state("correct", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("labelled", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Takes a batch.

        Args:
            logits: (B, K)
            labels: (B,) classes, or (B, K), where a row of zeros is a sample without a label.
        """
        labelled = torch.ones_like(labels, dtype=torch.bool) if labels.dim() == 1 else labels.ne(0).any(dim=1)
        classes = labels if labels.dim() == 1 else labels.argmax(dim=1)
        self.correct += ((logits.argmax(dim=1) == classes) & labelled).sum()
        self.labelled += labelled.sum()

    def compute(self) -> Tensor:
        """The share of the labelled samples that were classified right, a tensor without dimensions."""
        return self.correct / self.labelled.clamp_min(1)

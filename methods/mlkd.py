"""Aligns predictions of two views at several temperatures, image by image, class by class, and in the batch: MLKD."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

import torch
import torch.nn.functional as F
from optuna.distributions import FloatDistribution
from torch import Tensor

from kdbench.methods.base import Data, Losses, Method, Net, Networks, Paper, Stage, Step, method, tuned
from kdbench.methods.checks import non_negative, one_of, positive, same_batch, same_shape

STRONG_TEMPERATURES = (4.0, 3.0, 5.0)
"""At which the program compares predictions of the strong view; at the others it takes the weak one there too."""
FORMS = ("program", "corrected")


def class_correlation_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    r"""$\|P_t^\top P_t - P_s^\top P_s\|_F^2 / K$ of the softmax at T.

    Args:
        student_logits: (B, K)
        teacher_logits: (B, K)
        temperature: T, positive.

    Raises:
        ValueError: if the shapes differ, or are not (B, K).
    """
    return class_correlations(student_logits, teacher_logits, temperature).sum() / student_logits.shape[1]


def class_correlations(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Squared differences (K, K) of the products of classes over the batch; see `class_correlation_loss`."""
    mine, theirs = _softened(student_logits, teacher_logits, temperature)
    return (theirs.T @ theirs - mine.T @ mine).square()


def batch_correlation_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    r"""$\|P_t P_t^\top - P_s P_s^\top\|_F^2 / B$ of the softmax at T.

    Arguments and errors are those of `class_correlation_loss`.
    """
    return batch_correlations(student_logits, teacher_logits, temperature).sum() / student_logits.shape[0]


def batch_correlations(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Squared differences (B, B) of the products of images over classes; see `batch_correlation_loss`."""
    mine, theirs = _softened(student_logits, teacher_logits, temperature)
    return (theirs @ theirs.T - mine @ mine.T).square()


def instance_losses(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 * KL (B,) of each image."""
    mine, theirs = (F.log_softmax(each / temperature, dim=1) for each in (student_logits, teacher_logits))
    return F.kl_div(mine, theirs, reduction="none", log_target=True).sum(dim=1) * temperature**2


def unsure(teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Images (B,) and classes (K,) whose confidence is at most the median, 1 there and 0 elsewhere.

    An image's is its largest probability, a class's its mean over the batch; both at T = 1.

    Args:
        teacher_logits: (B, K)
    """
    probabilities = F.softmax(teacher_logits, dim=1)
    both = probabilities.amax(dim=1), probabilities.mean(dim=0)
    images, classes = ((each <= each.quantile(0.5)).to(teacher_logits.dtype) for each in both)
    return images, classes


def two_views(data: Data, networks: Networks) -> Data:
    """Each sample twice: as the recipe augments it, and with RandAugment besides: a stage's `data`."""
    own = [name for name in data.augment.split("+") if name not in ("none", "randaugment")]
    return dataclasses.replace(data, second="+".join([*own, "randaugment"]), magnitude=10)


@method
class MLKD(Method):
    """Loss = hard_weight * (CE_weak + CE_strong) + weight * (instances + m * images + k * classes).

    Every image is seen in two views, weak as the recipe augments it and strong with RandAugment(2, 10) besides, by both
    networks. At each of `temperatures`: T^2 KL of predictions, `class_correlation_loss` and `batch_correlation_loss`.
    m and k are shares of the images, and of the classes, whose confidence by the teacher is at most the median.

    `form` = "program", the default, is what the published tables come from: masks of unsure images and classes multiply
    scalars that are averages already, so that only their shares count; of the strong view predictions count at T = 4, 3
    and 5, and at 2 and 6 the weak view takes its place; correlations of the strong view are computed and not added.
    "corrected" lets masks choose images and classes, takes the strong view at every temperature, and adds its
    correlations. hard_weight = 0.1 and weight = 0.9 are the program's for CIFAR-100; on ImageNet both are 0.5, with one
    temperature of 1.

    Departure: both views go through the student in one batch, of which batch norm sees both; the program makes two
    passes. A run sees twice as many images as one of another method, which its costs say; published numbers are of 480
    and 960 epochs for some pairs, and a learning rate of 0.025.
    """

    collection = "modern"
    paper = Paper(
        "Multi-level Logit Distillation",
        "Jin, Wang, Lin",
        2023,
        "https://openaccess.thecvf.com/content/CVPR2023/html/Jin_Multi-Level_Logit_Distillation_CVPR_2023_paper.html",
    )
    equation: ClassVar[str] = (
        r"L = h (L_{task}^{weak} + L_{task}^{strong}) + w \sum_T \left[m A^{weak}_T + A^{strong}_T + k C^{weak}_T "
        r"+ m D^{weak}_T\right], \quad A = T^2 \, \mathrm{KL}(p_t \| p_s), \; C = \|P_t^\top P_t - P_s^\top P_s\|_F^2 "
        r"/ K, \; D = \|P_t P_t^\top - P_s P_s^\top\|_F^2 / B"
    )
    needs = frozenset({"views"})
    weight: float = tuned(0.9, FloatDistribution(0.1, 10.0, log=True))
    hard_weight: float = 0.1
    temperatures: tuple[float, ...] = (4.0, 3.0, 5.0, 2.0, 6.0)
    form: str = "program"

    def __post_init__(self) -> None:
        """Checks the ranges."""
        non_negative(hard_weight=self.hard_weight, weight=self.weight)
        one_of(FORMS, form=self.form)
        if not self.temperatures:
            raise ValueError("temperatures must name at least one, but is empty.")
        for temperature in self.temperatures:
            positive(temperatures=temperature)

    def stages(self, teachers: tuple[Net, ...]) -> Iterable[Stage]:
        """One stage, on two views of each image."""
        return (Stage("train", self.loss, teachers=teachers, data=two_views),)

    def loss(self, step: Step) -> Losses:
        """Labels of both views, and the logits (2 B, K), of each image's weak and strong view in turn."""
        (weak, strong), (weak_t, strong_t) = (
            each.logits.unflatten(0, (-1, 2)).unbind(dim=1) for each in (step.student, step.teacher)
        )
        images, classes = unsure(weak_t)
        program, terms = self.form == "program", []
        for temperature in self.temperatures:
            late = program and temperature not in STRONG_TEMPERATURES
            other = (weak, weak_t) if late else (strong, strong_t)
            terms.append(_masked(weak, weak_t, temperature, images, classes, program))
            terms.append(instance_losses(*other, temperature).mean())
            if not program:
                relations = _relations(strong, strong_t, temperature, images, classes, program)
                terms.append(relations)
        return {**step.task_loss(2 * self.hard_weight), "mlkd": self.weight * torch.stack(terms).sum()}


def _masked(mine: Tensor, theirs: Tensor, temperature: float, images: Tensor, classes: Tensor, shares: bool) -> Tensor:
    """Of one view: predictions, and relations, of unsure images and classes; or all, times their shares."""
    instances = instance_losses(mine, theirs, temperature)
    kept = instances.mean() * images.mean() if shares else (instances * images).mean()
    return kept + _relations(mine, theirs, temperature, images, classes, shares)


def _relations(
    mine: Tensor, theirs: Tensor, temperature: float, images: Tensor, classes: Tensor, shares: bool
) -> Tensor:
    """Correlations of unsure classes and images with all others; or of all, times their shares."""
    of_classes, of_images = (each(mine, theirs, temperature) for each in (class_correlations, batch_correlations))
    both = ((of_classes, classes), (of_images, images))
    parts = [each.sum() * mask.mean() if shares else (each * mask[:, None]).sum() for each, mask in both]
    return parts[0] / len(classes) + parts[1] / len(images)


def _softened(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    same_shape(student_logits, teacher_logits)
    same_batch(student_logits, teacher_logits, dims=2)
    return F.softmax(student_logits / temperature, dim=1), F.softmax(teacher_logits / temperature, dim=1)

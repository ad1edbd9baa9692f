"""Distills the mean of several teachers' predictions, and their vote on which images are alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from optuna.distributions import FloatDistribution
from torch import Tensor

from kdbench.methods.base import Losses, Method, Paper, Step, features_of, loss_weight, method, tuned
from kdbench.methods.checks import fraction, non_negative, positive, same_batch, same_shape
from kdbench.methods.functional import at_depth


def averaged_kd_loss(student_logits: Tensor, teacher_logits: Sequence[Tensor], temperature: float) -> Tensor:
    r"""$T^2 \, KL(\frac{1}{m} \sum_t softmax(z_t / T) \| softmax(z_s / T))$, mean over the batch.

    Args:
        student_logits: (B, K)
        teacher_logits: one (B, K) for each teacher.
        temperature: T, positive.

    Raises:
        ValueError: if there is no teacher, or a shape differs from the student's.
    """
    if not teacher_logits:
        raise ValueError("averaged distillation takes at least one teacher, but got none.")
    for logits in teacher_logits:
        same_shape(student_logits, logits)
        same_batch(student_logits, logits, dims=2)
    targets = torch.stack([F.softmax(logits / temperature, dim=1) for logits in teacher_logits]).mean(dim=0)
    student = F.log_softmax(student_logits / temperature, dim=1)
    return F.kl_div(student, targets, reduction="batchmean") * temperature**2


def relative_dissimilarity_loss(student_feature: Tensor, teacher_features: Sequence[Tensor], margin: float) -> Tensor:
    r"""Triplet loss on distances between images, whose order the teachers vote on.

    For images i, j, k of the batch each teacher votes sign(d(i, k) - d(i, j)): +1 if j is the nearer to i. With v the
    sign of the sum of votes, the loss is the mean of max(0, margin - v (d_s(i, k) - d_s(i, j))) over the triplets, ties
    left out. d is the squared Euclidean distance between L2-normalised features.

    Args:
        student_feature: (B, ...)
        teacher_features: one (B, ...) for each teacher, flattened like the student's.
        margin: by how much the student's distances should differ.

    Raises:
        ValueError: if there is no teacher, or batch sizes differ.
    """
    if not teacher_features:
        raise ValueError("relative dissimilarity takes at least one teacher, but got none.")
    for feature in teacher_features:
        if len(feature) != len(student_feature):
            shapes = f"{tuple(student_feature.shape)} and {tuple(feature.shape)}"
            raise ValueError(f"features must have one batch size, but got {shapes}.")
    order = _order(student_feature)
    votes = torch.stack([_order(feature).sign() for feature in teacher_features]).sum(dim=0).sign()
    chosen = _triplets(len(order), order.device) & (votes != 0)
    return F.relu(margin - votes * order)[chosen].sum() / chosen.sum().clamp_min(1)


def _order(feature: Tensor) -> Tensor:
    """d(i, k) - d(i, j) of every triplet, (B, B, B) by i, j, k."""
    rows = F.normalize(feature.flatten(1), dim=1)
    distances = 2 - 2 * rows @ rows.T
    return distances[:, None, :] - distances[:, :, None]


def _triplets(size: int, device: torch.device) -> Tensor:
    """Which (i, j, k) are three different images with j before k, (B, B, B)."""
    i, j, k = torch.meshgrid(*[torch.arange(size, device=device)] * 3, indexing="ij")
    return (j < k) & (i != j) & (i != k)


@method
class MultiTeacher(Method):
    """Loss = (1 - alpha) * cross-entropy + alpha * `averaged_kd_loss` + beta * `relative_dissimilarity_loss`.

    Any number of teachers of any architecture. The relative dissimilarity is that between the images of a batch, at the
    layer of relative depth `depth`; each teacher votes, and the majority's order is taught by triplets.

    Choices, as the paper's text was not at hand beyond its abstract: the form of the triplet loss above, all triplets
    of a batch in place of sampled ones, distances of normalised features so that networks of all widths vote alike,
    and every weight. With one teacher this is distillation with that teacher's triplets; with `beta` = 0 it is the part
    that the abstract says in full, the mean of the teachers' softened outputs, and no features are read.
    """

    collection = "survey"
    paper = Paper(
        "Learning from Multiple Teacher Networks", "You, Xu, Xu, Tao", 2017, "https://doi.org/10.1145/3097983.3098135"
    )
    equation = (
        r"\mathcal{L} = (1-\alpha)\,\mathcal{L}_{\text{task}}(z_s, y) + "
        r"\alpha\,T^2\,\text{KL}\Big(\frac{1}{m} \sum_{t=1}^{m} \sigma(z_t/T) \parallel \sigma(z_s/T)\Big) + "
        r"\beta \, \mathcal{L}_{\text{triplets}}"
        "\n"
        r"\mathcal{L}_{\text{triplets}} = \underset{i,j,k:\, v_{ijk} \neq 0}{\text{mean}} \max(0, \delta - "
        r"v_{ijk}\,(d_s(i,k) - d_s(i,j)))"
        "\n"
        r"v_{ijk} = \text{sign} \sum_{t=1}^{m} \text{sign}(d_t(i,k) - d_t(i,j)), \quad \delta = \text{margin}"
    )
    needs = frozenset({"features"})
    several_teachers = True
    temperature: float = tuned(4.0, FloatDistribution(1.0, 20.0, log=True))
    alpha: float = tuned(0.9, FloatDistribution(0.1, 1.0))
    beta: float = loss_weight(1.0, "triplets")
    margin: float = 0.1
    depth: float = 1.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        positive(temperature=self.temperature)
        fraction(alpha=self.alpha)
        non_negative(beta=self.beta, margin=self.margin)
        at_depth(2, self.depth)

    def needed(self) -> frozenset[str]:
        """Features, if their triplets count."""
        return self.needs if self.beta else frozenset()

    def loss(self, step: Step) -> Losses:
        """Labels, the teachers' mean probabilities (B, K), and their votes on triplets of features (B, C, H, W)."""
        soft = averaged_kd_loss(step.student.logits, [t.logits for t in step.teachers], self.temperature)
        losses = {**step.task_loss(1 - self.alpha), "kd": self.alpha * soft}
        if self.beta:
            features = [features_of(signals) for signals in (step.student, *step.teachers)]
            student, *teachers = [layers[at_depth(len(layers), self.depth)] for layers in features]
            losses["triplets"] = self.beta * relative_dissimilarity_loss(student, teachers, self.margin)
        return losses

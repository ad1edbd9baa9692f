"""Classifies by similarity to class embeddings, which lets the student name classes that it has no labels of: ViLD."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from optuna.distributions import FloatDistribution
from torch import Tensor, nn

from kdbench.methods.base import (
    Data,
    Losses,
    Method,
    Net,
    Networks,
    Paper,
    Signals,
    Stage,
    Step,
    loss_weight,
    method,
    tuned,
)
from kdbench.methods.checks import fraction, non_negative, positive, require, same_shape
from kdbench.methods.functional import class_targets, with_unlabelled
from kdbench.methods.rows import take, whole


def similarity_logits(embedding: Tensor, class_embeddings: Tensor, temperature: float) -> Tensor:
    """Cosine similarity to each class over the temperature, (B, K).

    Args:
        embedding: (B, D)
        class_embeddings: (K, D)
        temperature: positive.

    Raises:
        ValueError: if the widths differ.
    """
    if embedding.dim() != 2 or class_embeddings.dim() != 2 or embedding.shape[1] != class_embeddings.shape[1]:
        shapes = f"{tuple(embedding.shape)} and {tuple(class_embeddings.shape)}"
        raise ValueError(f"embeddings must be (B, D) and (K, D), but got {shapes}.")
    return F.normalize(embedding, dim=1) @ F.normalize(class_embeddings, dim=1).T / temperature


def embedding_loss(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    """L1 norm of the difference of the two L2-normalised embeddings, mean over the batch.

    Args:
        student_embedding: (B, D)
        teacher_embedding: (B, D)

    Raises:
        ValueError: if the shapes differ.
    """
    same_shape(student_embedding, teacher_embedding)
    difference = F.normalize(student_embedding, dim=1) - F.normalize(teacher_embedding, dim=1)
    return difference.abs().sum(dim=1).mean()


class ClassEmbeddings(nn.Module):
    """The class embeddings, which are not trained."""

    vectors: Tensor

    def __init__(self, vectors: Tensor) -> None:
        """Keeps a copy of the vectors (K, D)."""
        super().__init__()
        self.register_buffer("vectors", vectors.detach().clone())


@method
class ViLD(Method):
    """Loss = cross-entropy of `similarity_logits` over base classes + weight * `embedding_loss` to the teacher.

    The last `novel_share` of the classes are novel: their labels are withheld, while their images, like all unlabelled
    ones, still align the student's embedding with the teacher's. A novel class is named by the similarity to its
    embedding. Accuracy on base and on novel classes is reported apart, each among all classes.

    The class embeddings are the rows of the teacher's classifier, in the space of what it classifies: what a teacher
    has learned of each class. For a zero-shot classifier made of text embeddings, given as the teacher's checkpoint,
    they come from the class names. The student's pooled output goes through a learned projection into that space, and
    its own classifier is not used.

    Departures: the teacher's classifier stands for the text encoder of the paper, so unless it is a zero-shot one, the
    teacher has seen labels of the novel classes, which only the student has not. Whole images in place of detected
    regions, so there is no background class. A share of 0.28 is that of LVIS's rare classes (337 of 1203). The
    temperature of 0.01 is the paper's; its weight of the L1 loss is 0.5.
    """

    collection = "survey"
    paper = Paper(
        "Open-vocabulary Object Detection via Vision and Language Knowledge Distillation",
        "Gu, Lin, Kuo, Cui",
        2022,
        "https://arxiv.org/abs/2104.13921",
    )
    equation = (
        r"\mathcal{L} = \mathcal{L}_{\text{task}}(z_{\text{base}}, y) + \lambda \, \Vert \hat{e}_s - "
        r"\hat{f}_t \Vert_1, \quad z_k = \langle \hat{e}_s, \hat{c}_k \rangle / T"
        "\n"
        r"e_s = \text{projection}(f_s), \quad c_k = \text{embedding of class } k, \quad \hat{v} = v / \Vert v "
        r"\Vert_2, \quad \lambda = \text{weight}"
    )
    knowledge = "cross-modal"
    needs = frozenset({"pooled", "classifier", "class_targets"})
    weight: float = loss_weight(0.5, "embedding")
    temperature: float = tuned(0.01, FloatDistribution(0.005, 0.5, log=True))
    novel_share: float = 0.28
    unlabelled: bool = True

    def __post_init__(self) -> None:
        """Checks the ranges."""
        non_negative(weight=self.weight)
        positive(temperature=self.temperature)
        fraction(novel_share=self.novel_share)

    def uses_unlabelled(self) -> bool:
        """They align embeddings, if so asked."""
        return self.unlabelled

    def class_groups(self, classes: int) -> dict[str, tuple[int, ...]]:
        """The base classes and the novel ones; at least two are base."""
        base = max(2, classes - round(self.novel_share * classes))
        return {"base": tuple(range(base)), "novel": tuple(range(base, classes))}

    def stages(self, teachers: tuple[Net, ...]) -> Iterable[Stage]:
        """One stage, without the labels of novel classes."""
        return (Stage("align", self.loss, teachers=teachers, data=self.base_labels),)

    def auxiliary_modules(self, student: Signals, teachers: tuple[Signals, ...]) -> nn.ModuleDict:
        """The projection into the teacher's space, and the class embeddings."""
        classes = require("classifier", teachers[0].classifier)
        projection = nn.Linear(require("pooled", student.pooled).shape[1], classes.shape[1])
        return nn.ModuleDict({"projection": projection, "classes": ClassEmbeddings(classes)})

    def predictions(self, student: Signals, auxiliary: nn.ModuleDict) -> dict[str, Tensor]:
        """Similarities (B, K) to all classes, base and novel."""
        embedding = auxiliary["projection"](require("pooled", student.pooled))
        classes = auxiliary["classes"].vectors
        assert isinstance(classes, Tensor)
        return {"similarity": similarity_logits(embedding, classes, self.temperature)}

    def base_labels(self, data: Data, networks: Networks) -> Data:
        """The data with the labels of novel classes withheld."""
        labels = F.one_hot(class_targets(data), data.classes).float()
        labels[:, list(self.class_groups(data.classes)["novel"])] = 0
        data = dataclasses.replace(data, targets=labels)
        return with_unlabelled(data, networks) if self.unlabelled else data

    def fine_tuning_loss(self, step: Step) -> Losses:
        """Cross-entropy among base classes (B, K')."""
        base, targets = list(self.class_groups(step.student.logits.shape[1])["base"]), whole(step.targets)
        similarity = self.predictions(step.student, step.auxiliary)["similarity"]
        return step.task_loss(logits=similarity[:, base], targets=targets if targets.dim() == 1 else targets[:, base])

    def fine_tuning_data(self, data: Data, networks: Networks) -> Data:
        """Fine-tuning sees images of base classes alone."""
        base = torch.isin(class_targets(data), torch.tensor(self.class_groups(data.classes)["base"]))
        return dataclasses.replace(data, inputs=take(data.inputs, base), targets=take(data.targets, base))

    def loss(self, step: Step) -> Losses:
        """Labels among base classes (B, K'), and the teacher's embedding (B, D)."""
        targets = whole(step.targets)
        base = list(self.class_groups(targets.shape[1])["base"])
        similarity = self.predictions(step.student, step.auxiliary)["similarity"]
        embedding = step.auxiliary["projection"](require("pooled", step.student.pooled))
        return {
            **step.task_loss(logits=similarity[:, base], targets=targets[:, base]),
            "embedding": self.weight * embedding_loss(embedding, require("pooled", step.teacher.pooled)),
        }

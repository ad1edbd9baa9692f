"""Trains a noised student on labels and on pseudo-labels, then lets it label for the next: noisy student."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from optuna.distributions import FloatDistribution, IntDistribution
from torch import Tensor

from kdbench.methods.base import Data, Losses, Method, Net, Networks, Paper, Stage, Step, Unsupported, method, tuned
from kdbench.methods.checks import fraction, positive
from kdbench.methods.functional import class_targets
from kdbench.methods.rows import count, join, take


def select_confident(probabilities: Tensor, threshold: float, balance: bool) -> Tensor:
    """Indices (M,) of the pseudo-labelled images to train on.

    Images whose largest probability reaches the threshold are kept. With `balance`, each class then has as many as the
    mean over classes: the most confident where there are more, repeats in order of confidence where there are fewer,
    and nothing for a class that has none.

    Args:
        probabilities: (N, K)
        threshold: smallest confidence that is kept.
        balance: whether to balance the classes.
    """
    confidence, predicted = probabilities.max(dim=1)
    order = confidence.argsort(descending=True, stable=True)
    order = order[confidence[order] >= threshold]
    if not balance or not len(order):
        return order
    groups = [order[predicted[order] == label] for label in range(probabilities.shape[1])]
    size = max(1, round(len(order) / len(groups)))
    return torch.cat([group.repeat(-(-size // len(group)))[:size] for group in groups if len(group)])


def with_randaugment(augment: str) -> str:
    """Augmentations joined by "+", and RandAugment."""
    return "randaugment" if augment == "none" else f"{augment}+randaugment"


@method
class NoisyStudent(Method):
    """Rounds of: the teacher labels the unlabelled part, clean; a student learns labels and pseudo-labels, noised.

    Noise on the student only: RandAugment on images, dropout, stochastic depth. The teacher of the first round is the
    pair's teacher; of every later round, the student of the one before. Each student starts from random weights.

    Noise starts as the authors' program has it for their smallest student, EfficientNet-B0: dropout of 0.2, stochastic
    depth of 0.2 and no RandAugment (B7's are 0.5, 0.2 and 27). All three are searched down to none. A network that does
    not take one of the first two goes without it, and the outcome says so. `magnitude` is on torchvision's scale of 30,
    and 0 is no RandAugment at all; the authors' has 10 levels and goes beyond them, so their m is 3 m here, at most 30.

    Every round has the whole schedule. One is the default, as for the authors' small students, whose teacher is the
    last of three; more are a matter of compute, so their number is not searched.

    Departures: the first teacher is the pair's, where the paper's first teacher is an EfficientNet of the student's
    size or smaller; the student here is as a rule smaller, as this is a benchmark of compression. A batch has as many
    pseudo-labelled images as the recipe gives every method of unlabelled ones.

    Pseudo-labels are soft by default, as the paper recommends for out-of-domain images; `soft` = false gives hard ones.
    """

    collection = "survey"
    paper = Paper(
        "Self-training with Noisy Student improves ImageNet classification",
        "Xie, Luong, Hovy, Le",
        2020,
        "https://arxiv.org/abs/1911.04252",
    )
    equation = (
        r"\mathcal{L} = - \sum_k \tilde{y}_k \log \sigma(z_s(\tilde{x}))_k, \quad \tilde{x} = \text{noised } x"
        "\n"
        r"\tilde{y} = \begin{cases} y & \text{where } x \text{ has a label} \\ \sigma(z_t(x)) & \text{where "
        r"it has none, and } \max_k \sigma(z_t(x))_k \geq \text{threshold} \end{cases}"
    )
    needs = frozenset({"class_targets"})
    threshold: float = tuned(0.3, FloatDistribution(0.0, 0.9))
    dropout: float = tuned(0.2, FloatDistribution(0.0, 0.2))
    stochastic_depth: float = tuned(0.2, FloatDistribution(0.0, 0.2))
    magnitude: int = tuned(0, IntDistribution(0, 9))
    """Of RandAugment, 0 to 30 as torchvision counts; three for one of the authors' ten levels; 0 is off."""
    rounds: int = 1
    round_epochs: float = 1.0
    soft: bool = True
    balance: bool = True

    def __post_init__(self) -> None:
        """Checks the ranges."""
        fraction(threshold=self.threshold, dropout=self.dropout, stochastic_depth=self.stochastic_depth)
        if not 0 <= self.magnitude <= 30:
            raise ValueError(f"magnitude must lie between 0 and 30, but got magnitude={self.magnitude}.")
        positive(round_epochs=self.round_epochs)
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, but got rounds={self.rounds}.")

    def uses_unlabelled(self) -> bool:
        """They get pseudo-labels."""
        return True

    def stages(self, teachers: tuple[Net, ...]) -> Iterable[Stage]:
        """One stage a round; the last round's student is the run's result."""
        noise = {"drop_rate": self.dropout, "drop_path_rate": self.stochastic_depth}
        teacher = teachers[0]
        for index in range(self.rounds):
            copy = "" if index == self.rounds - 1 else f"round_{index + 1}"
            student = Net("student", copy, tuple((name, value) for name, value in noise.items() if value))
            labels = self.pseudo_labels(teacher)
            yield Stage(f"round_{index + 1}", self.loss, (student,), (), epochs=self.round_epochs, data=labels)
            teacher = student

    def loss(self, step: Step) -> Losses:
        """Cross-entropy with labels and pseudo-labels (B, K)."""
        return step.task_loss()

    def pseudo_labels(self, teacher: Net) -> Callable[[Data, Networks], Data]:
        """The data of a round whose pseudo-labels come from `teacher`."""

        def label(data: Data, networks: Networks) -> Data:
            if not count(data.unlabelled):
                raise Unsupported("there are no unlabelled samples: give a train_fraction below 1.")
            probabilities = F.softmax(networks.predict(teacher, data.unlabelled), dim=1)
            chosen = select_confident(probabilities, self.threshold, self.balance)
            if not self.soft:
                probabilities = F.one_hot(probabilities.argmax(dim=1), data.classes).to(probabilities.dtype)
            labels = F.one_hot(class_targets(data), data.classes).to(probabilities.dtype)
            return dataclasses.replace(
                data,
                inputs=join([data.inputs, take(data.unlabelled, chosen)]),
                targets=torch.cat([labels, probabilities[chosen]]),
                additional=len(chosen),
                augment=with_randaugment(data.augment) if self.magnitude else data.augment,
                magnitude=self.magnitude,
            )

        return label

"""Trains several students together, each taught by the others' predictions: deep mutual learning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from optuna.distributions import FloatDistribution
from torch import Tensor

from kdbench.methods.base import STUDENT, Losses, Method, Net, Paper, Stage, Step, method, tuned
from kdbench.methods.checks import non_negative, one_of
from kdbench.methods.functional import kd_loss
from kdbench.methods.hooks import StageOptions


def mutual_loss(student_logits: Tensor, peer_logits: Sequence[Tensor]) -> Tensor:
    """Mean over peers and batch of KL(p_peer || p_student) at temperature 1.

    Args:
        student_logits: (B, K)
        peer_logits: one (B, K) for each peer.

    Raises:
        ValueError: if there is no peer, or a shape differs from the student's.
    """
    if not peer_logits:
        raise ValueError("mutual learning takes at least one peer, but got none.")
    losses = [kd_loss(student_logits, peer, temperature=1.0) for peer in peer_logits]
    return sum(losses[1:], losses[0]) / len(losses)


@method
class DML(Method):
    """Loss of each student = cross-entropy + weight * `mutual_loss` with its peers; no teacher is trained first.

    Peers are updated in turn, as in the paper's algorithm 1: each predicts again once it is updated, before the next
    one learns. `in_turn` = false updates all together on one set of predictions, as many programs do; it saves a
    forward pass a peer. (Batch-norm statistics move at both predictions.)

    `weight` is fixed at 1 in the paper; it is searched here, as every method has something to search, in a range: peers
    that know nothing agree, so its term cannot be measured against cross-entropy before training. `peer_models` are the
    architectures of the peers: "student", or "teacher" for that of the pair's teacher, from random weights; as many
    as there are peers. The result is the first student, which starts from the weights that every method starts from.
    """

    collection = "survey"
    paper = Paper("Deep Mutual Learning", "Zhang, Xiang, Hospedales, Lu", 2018, "https://arxiv.org/abs/1706.00384")
    equation = (
        r"\mathcal{L}_i = \mathcal{L}_{\text{task}}(z_i, y) + \lambda \, \frac{1}{n-1} \sum_{j \neq i} "
        r"\text{KL}(\sigma(z_j) \parallel \sigma(z_i)), \quad i = 1, \dots, n"
        "\n"
        r"\lambda = \text{weight}"
    )
    needs_teacher = False
    weight: float = tuned(1.0, FloatDistribution(0.1, 10.0, log=True))
    peer_models: tuple[str, ...] = ("student",)
    in_turn: bool = True

    def __post_init__(self) -> None:
        """Checks the ranges."""
        non_negative(weight=self.weight)
        for model in self.peer_models:
            one_of(("student", "teacher"), peer_models=model)
        if not self.peer_models:
            raise ValueError("peer_models must name at least one peer, but is empty.")

    def stages(self, teachers: tuple[Net, ...]) -> Iterable[Stage]:
        """One stage, with all students."""
        peers = tuple(Net(model, copy=f"peer_{index + 1}") for index, model in enumerate(self.peer_models))
        return (
            Stage(
                "mutual", self.loss, students=(STUDENT, *peers), teachers=(), options=StageOptions(in_turn=self.in_turn)
            ),
        )

    def loss(self, step: Step) -> Losses:
        """Labels, and the peers' predictions (B, K)."""
        return {
            **step.task_loss(),
            "mutual": self.weight * mutual_loss(step.student.logits, [peer.logits for peer in step.teachers]),
        }

"""Makes the student's loss depend on the pixels as the teacher's does: attention transfer by gradients."""

from __future__ import annotations

import torch.nn.functional as F
from optuna.distributions import FloatDistribution
from torch import Tensor

from methods.base import Losses, Method, Paper, Step, method, non_negative, same_shape, tuned


def gradient_attention_loss(student_grad: Tensor, teacher_grad: Tensor) -> Tensor:
    r"""Half the squared L2 norm of $J_s - J_t$ for each image, mean over the batch (equations 3 to 5).

    Args:
        student_grad: (B, C, H, W), gradient of the student's cross-entropy with respect to the image.
        teacher_grad: (B, C, H, W), the teacher's.

    Raises:
        ValueError: if the shapes differ.
    """
    same_shape(student_grad, teacher_grad)
    return (student_grad - teacher_grad).flatten(1).square().sum(dim=1).mean() / 2


@method
class ATGrad(Method):
    """Loss = cross-entropy + beta * `gradient_attention_loss`; training differentiates twice.

    Equation 3 prints beta / 2 times the norm, and the gradient in equation 5 shows the squared form: half the square is
    inside the loss here. The paper gives no beta for gradients; 1 is our choice for pixels in [0, 1], searched over
    four decades. The gradient is of each image's own cross-entropy, not of the batch mean, so that beta does not
    depend on the batch size; batch normalisation still couples the images of a batch. The flip-symmetry norm of
    equation 6 is not here yet.
    """

    paper = Paper(
        "Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks via "
        "Attention Transfer",
        "Zagoruyko, Komodakis",
        2017,
        "https://arxiv.org/abs/1612.03928",
    )
    knowledge = "feature"
    needs = frozenset({"input_grad"})
    beta: float = tuned(1.0, FloatDistribution(0.01, 100.0, log=True))

    def __post_init__(self) -> None:
        """Checks the range."""
        non_negative(beta=self.beta)

    def loss(self, step: Step) -> Losses:
        """Labels, and input gradients (B, C, H, W)."""
        student, teacher = step.student.input_grad, step.teacher.input_grad
        assert student is not None and teacher is not None
        return {
            "ce": F.cross_entropy(step.student.logits, step.labels),
            "at_grad": self.beta * gradient_attention_loss(student, teacher),
        }

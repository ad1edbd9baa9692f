"""Makes the student's loss depend on the pixels as the teacher's does: attention transfer by gradients."""

from __future__ import annotations

from torch import Tensor

from kdbench.methods.base import Losses, Method, Paper, Step, loss_weight, method
from kdbench.methods.checks import non_negative, require, same_shape


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


def symmetry_loss(grad: Tensor, mirrored_grad: Tensor) -> Tensor:
    r"""Half the squared L2 norm of $J(x) - flip(J(flip(x)))$ for each image, mean over the batch (equation 6).

    Args:
        grad: (B, C, H, W), gradient of the cross-entropy with respect to the image.
        mirrored_grad: (B, C, H, W), that of the mirrored image, mirrored back.

    Raises:
        ValueError: if the shapes differ.
    """
    return gradient_attention_loss(grad, mirrored_grad)


@method
class ATGrad(Method):
    """Loss = cross-entropy + beta * `gradient_attention_loss`; training differentiates twice.

    The paper prints beta / 2 times the norm, and its gradient in equation 5 shows the squared form: half the square is
    inside the loss here. The paper gives no beta for gradients; 1 is our choice for pixels in [0, 1]. The gradient is
    of each image's own cross-entropy, not of the batch mean, so that beta does not depend on the batch size; batch
    normalisation still couples the images of a batch.

    `symmetry` is the weight of `symmetry_loss` (equation 6), the paper's other use of input gradients, which needs no
    teacher: the student's gradient should mirror with the image. It costs another forward and backward pass, and is 0
    by default; the square and the half are as in equation 5.
    """

    collection = "survey"
    paper = Paper(
        "Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks via "
        "Attention Transfer",
        "Zagoruyko, Komodakis",
        2017,
        "https://arxiv.org/abs/1612.03928",
    )
    equation = (
        r"\mathcal{L} = \mathcal{L}_{\text{task}}(z_s, y) + \frac{\beta}{2} \Vert J_s(x) - J_t(x) \Vert_2^2 + "
        r"\frac{\gamma}{2} \Vert J_s(x) - \text{flip}(J_s(\text{flip}(x))) \Vert_2^2"
        "\n"
        r"J(x) = \frac{\partial}{\partial x} \mathcal{L}_{\text{CE}}(z(x), y), \quad \gamma = \text{symmetry}"
    )
    knowledge = "feature"
    needs = frozenset({"input_grad"})
    beta: float = loss_weight(1.0, "at_grad")
    symmetry: float = 0.0

    def __post_init__(self) -> None:
        """Checks the range."""
        non_negative(beta=self.beta, symmetry=self.symmetry)

    def needed(self) -> frozenset[str]:
        """Input gradients, of the mirrored image too if its symmetry counts."""
        return self.needs | {"mirrored_grad"} if self.symmetry else self.needs

    def loss(self, step: Step) -> Losses:
        """Labels, and input gradients (B, C, H, W)."""
        student, teacher = (require("input_grad", signals.input_grad) for signals in (step.student, step.teacher))
        losses = {
            **step.task_loss(),
            "at_grad": self.beta * gradient_attention_loss(student, teacher),
        }
        if self.symmetry:
            mirrored = require("mirrored_grad", step.student.mirrored_grad)
            losses["symmetry"] = self.symmetry * symmetry_loss(student, mirrored)
        return losses

"""Trains the student to mimic the teachers on synthetic images that they have labelled: model compression."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from optuna.distributions import CategoricalDistribution, FloatDistribution
from torch import Tensor

from kdbench.methods.base import Data, Losses, Method, Net, Networks, Paper, Stage, Step, method, tuned
from kdbench.methods.checks import fraction, one_of, positive
from kdbench.methods.rows import count, join, whole

NEIGHBOUR_ROWS = 1024
"""Rows of the distance matrix that are held at a time."""


def nearest(vectors: Tensor) -> Tensor:
    """The index (N,) of each vector's nearest other one, by Euclidean distance.

    Args:
        vectors: (N, D), at least two.

    Raises:
        ValueError: if there are fewer than two.
    """
    if len(vectors) < 2:
        raise ValueError(f"a neighbour needs at least two vectors, but got {tuple(vectors.shape)}.")
    found = []
    for start in range(0, len(vectors), NEIGHBOUR_ROWS):
        rows = vectors[start : start + NEIGHBOUR_ROWS]
        distances = torch.cdist(rows, vectors)
        distances[torch.arange(len(rows)), torch.arange(start, start + len(rows))] = torch.inf
        found.append(distances.argmin(dim=1))
    return torch.cat(found)


def munge(vectors: Tensor, probability: float, local_variance: float, generator: torch.Generator) -> Tensor:
    """One synthetic vector for each: attributes drawn near the nearest neighbour's (MUNGE, for continuous attributes).

    With the probability given, an attribute e_a becomes a draw from a normal distribution of mean e'_a, the nearest
    neighbour's, and standard deviation |e_a - e'_a| / local_variance.

    Args:
        vectors: (N, D)
        probability: of each attribute to be drawn anew.
        local_variance: s, positive; the larger, the nearer to the neighbour.
        generator: of the random draws.
    """
    neighbours = vectors[nearest(vectors)]
    swapped = torch.rand(vectors.shape, generator=generator) < probability
    return torch.where(swapped, _drawn(vectors, neighbours, local_variance, generator), vectors)


def munge_images(
    images: Tensor,
    probability: float,
    local_variance: float,
    block: int,
    generator: torch.Generator,
    neighbours: Tensor | None = None,
) -> Tensor:
    """One synthetic image for each, in blocks: an attribute is a square of pixels with all its channels.

    Args:
        images: (N, C, H, W) uint8
        probability: of each block to be drawn anew, pixel by pixel as in `munge`.
        local_variance: s, positive.
        block: height and width of a block in pixels.
        generator: of the random draws.
        neighbours: (N,), the index of each image's neighbour, where it is known.
    """
    pixels = images.float()
    chosen = pixels[nearest(pixels.flatten(1)) if neighbours is None else neighbours]
    count, _, height, width = images.shape
    coins = torch.rand((count, 1, -(-height // block), -(-width // block)), generator=generator) < probability
    swapped = coins.repeat_interleave(block, dim=2).repeat_interleave(block, dim=3)[:, :, :height, :width]
    drawn = torch.where(swapped, _drawn(pixels, chosen, local_variance, generator), pixels)
    return drawn.round().clamp(0, 255).to(torch.uint8)


def _drawn(values: Tensor, neighbours: Tensor, local_variance: float, generator: torch.Generator) -> Tensor:
    spread = (values - neighbours).abs() / local_variance
    return neighbours + spread * torch.randn(values.shape, generator=generator, dtype=values.dtype)


@method
class ModelCompression(Method):
    """Loss = mean squared error to the teachers' outputs on the transfer set; the labels are not used.

    The transfer set is `copies` munged versions of every image of the training part, labelled or not, and the images
    themselves if `originals` is set. The teachers label it once, by the mean of their logits, or of their probabilities
    (`target`), as an ensemble does; it is not augmented further.

    Departures: `munge` draws all vectors anew at once from the set as it is; the paper's algorithm goes through a
    working copy and also draws the neighbour's attribute anew, near the vector's. Attributes are continuous; there is
    no exchange of nominal ones. The paper compresses ensembles of hundreds of models on tables of attributes. On
    images, attributes are blocks of pixels that are exchanged together: pixels drawn one by one make noise that no
    teacher has seen. The student regresses logits by default, as later work found better (Ba & Caruana 2014); the paper
    regresses probabilities. Probability, local variance and block size are searched; the paper sets them on each
    problem.
    """

    collection = "survey"
    paper = Paper(
        "Model Compression",
        "Bucilua, Caruana, Niculescu-Mizil",
        2006,
        "https://doi.org/10.1145/1150402.1150464",
    )
    equation = (
        r"\mathcal{L} = \frac{1}{K} \Vert o(z_s(\tilde{x})) - \frac{1}{m} \sum_{t=1}^{m} o(z_t(\tilde{x})) "
        r"\Vert_2^2, \quad \tilde{x} \in \text{munged images}"
        "\n"
        r"o(z) = \begin{cases} z & \text{target} = \text{logits} \\ \sigma(z) & \text{target} = "
        r"\text{probabilities} \end{cases}"
    )
    needs = frozenset({"pixels", "class_targets"})
    several_teachers = True
    probability: float = tuned(0.3, FloatDistribution(0.05, 0.9))
    local_variance: float = tuned(1.0, FloatDistribution(0.5, 10.0, log=True))
    block: int = tuned(2, CategoricalDistribution((1, 2, 4)))
    target: str = tuned("logits", CategoricalDistribution(("logits", "probabilities")))
    copies: int = 4
    originals: bool = True

    def __post_init__(self) -> None:
        """Checks the ranges."""
        fraction(probability=self.probability)
        positive(local_variance=self.local_variance, block=self.block, copies=self.copies)
        one_of(("logits", "probabilities"), target=self.target)

    def uses_unlabelled(self) -> bool:
        """The transfer set is made of all images."""
        return True

    def stages(self, teachers: tuple[Net, ...]) -> Iterable[Stage]:
        """One stage on the transfer set."""
        return (Stage("mimic", self.loss, teachers=(), data=self.transfer_set(teachers)),)

    def loss(self, step: Step) -> Losses:
        """Squared error to the targets (B, K)."""
        outputs = step.student.logits
        if self.target == "probabilities":
            outputs = F.softmax(outputs, dim=1)
        return {"mimic": F.mse_loss(outputs, whole(step.targets))}

    def transfer_set(self, teachers: tuple[Net, ...]) -> Callable[[Data, Networks], Data]:
        """The stage's data: synthetic images, labelled by the teachers."""

        def make(data: Data, networks: Networks) -> Data:
            images, draws = whole(join([data.inputs, data.unlabelled])), networks.generator("munge")
            neighbours = nearest(images.float().flatten(1))
            knobs = (self.probability, self.local_variance, self.block, draws, neighbours)
            copies = [munge_images(images, *knobs) for _ in range(self.copies)]
            transfer = torch.cat([images, *copies] if self.originals else copies)
            outputs = torch.stack([networks.predict(teacher, transfer) for teacher in teachers])
            targets = outputs.mean(dim=0) if self.target == "logits" else outputs.softmax(dim=-1).mean(dim=0)
            more = len(transfer) - count(data.inputs)
            return dataclasses.replace(data, inputs=transfer, targets=targets, additional=more, augment="none")

        return make

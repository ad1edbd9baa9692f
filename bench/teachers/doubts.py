"""Whether a teacher that was brought along knows the data at all, or would if its images were normalised otherwise."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.bench.data.images import ImageSplits
from kdbench.bench.data.splits import EVALUATION_BATCH
from kdbench.bench.networks.network import Network
from kdbench.bench.tasks import Task
from kdbench.methods.rows import Rows, count, split, take, whole

ASKED = 512
"""Validation images that a teacher is asked about."""
GAP = 0.05
"""Accuracy by which another normalisation is worth a warning."""
NORMALISATIONS = {
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "halves": ((0.5,) * 3, (0.5,) * 3),
    "none": ((0.0,) * 3, (1.0,) * 3),
}
"""Means and deviations of channels in [0, 1] with which networks are often trained."""


def doubts(task: Task, network: Network, name: str, data: ImageSplits) -> list[str]:
    """What speaks against a teacher: it is near chance, or another normalisation would do better.

    Args:
        task: makes of images what networks take.
        network: with its weights, on its device.
        name: of the teacher.
        data: it is asked about their validation part.
    """
    part = data.validation
    places = torch.linspace(0, count(part.inputs) - 1, min(ASKED, count(part.inputs))).long()
    images, targets = take(part.inputs, places), whole(part.targets)[places]
    score = _accuracy(task, network, images, targets)
    chance = float(torch.bincount(targets).max()) / len(targets)
    found = [chance_doubt(name, score, chance, "validation")]
    if found[0]:
        classes = ", ".join(data.class_names[:4]) + ("" if len(data.class_names) <= 4 else ", ...")
        found.append(f"Its classes must be in the order of the data's ({classes}).")
    return [*filter(None, [" ".join(found)]), *_better_normalised(task, network, name, data, images, targets, score)]


def chance_doubt(name: str, score: float, chance: float, where: str) -> str:
    """Says of a teacher that it is near chance; empty if it is not.

    Args:
        name: of the teacher.
        score: its accuracy, as a share.
        chance: share of the commonest class.
        where: both were measured.
    """
    if score >= chance + min(chance, (1 - chance) / 4):
        return ""
    own = f"{100 * score:.1f} % on {where}, the commonest class alone {100 * chance:.1f} %"
    return f"teacher {name} is near chance: {own}."


def _better_normalised(
    task: Task, network: Network, name: str, data: ImageSplits, images: Rows, targets: Tensor, score: float
) -> list[str]:
    own = network.mean.clone(), network.std.clone()
    best, how = score + GAP, ""
    for mean, std in {"data": (data.mean, data.std), **NORMALISATIONS}.values():
        channels = own[0].shape[1]
        if len(mean) != channels:
            mean, std = ((sum(values) / len(values),) * channels for values in (mean, std))
        network.mean.copy_(torch.tensor(mean).view(1, -1, 1, 1))
        network.std.copy_(torch.tensor(std).view(1, -1, 1, 1))
        if (other := _accuracy(task, network, images, targets)) > best:
            best, (means, deviations) = other, ([round(v, 4) for v in values] for values in (mean, std))
            how = f"mean={means} and std={deviations}".replace(" ", "").replace("and", " and ")
    network.mean.copy_(own[0])
    network.std.copy_(own[1])
    if not how:
        return []
    return [
        f"teacher {name} seems to be normalised otherwise than it was trained: {100 * score:.1f} % on validation, "
        f"but {100 * best:.1f} % with the arguments {how}."
    ]


@torch.no_grad()
def _accuracy(task: Task, network: Network, images: Rows, targets: Tensor) -> float:
    network.eval()
    right = 0
    for batch, expected in zip(split(images, EVALUATION_BATCH), targets.split(EVALUATION_BATCH), strict=True):
        logits = network(task.prepared(batch, network.device))
        right += int((logits.argmax(dim=1).cpu() == expected).sum())
    return right / len(targets)

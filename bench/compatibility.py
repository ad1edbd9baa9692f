"""Which methods work on which pairs of timm's families: one real update of every stage on random images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import safetensors.torch
import torch

from kdbench.bench.configure import configure
from kdbench.bench.data.images import ImageSplits
from kdbench.bench.data.splits import Part
from kdbench.bench.networks.build import build
from kdbench.bench.record import Epoch
from kdbench.bench.spec import DataSpec, ModelSpec, Recipe, Spec
from kdbench.bench.training.engine import rehearse
from kdbench.methods.base import Data, Unsupported

SIZE, CLASSES, TEACHER = 32, 4, "run:teacher"


def _family(name: str, teacher: dict[str, object], student: dict[str, object]) -> tuple[ModelSpec, ModelSpec]:
    return ModelSpec(name=name, args=teacher), ModelSpec(name=name, args=student)


FAMILIES: dict[str, tuple[ModelSpec, ModelSpec]] = {
    "resnet": _family("resnet10t", {}, {}),
    "mobilenetv3": _family("mobilenetv3_small_050", {}, {}),
    "efficientnet": _family("efficientnet_lite0", {}, {}),
    "convnext": _family("convnext_atto", {}, {}),
    "vit": _family(
        "vit_tiny_patch16_224",
        {"patch_size": 8, "embed_dim": 48, "num_heads": 3, "depth": 4},
        {"patch_size": 8, "embed_dim": 48, "num_heads": 3, "depth": 2},
    ),
    "swin": _family(
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 24, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8)},
        {"embed_dim": 24, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)},
    ),
    "mixer": _family("mixer_s16_224", {}, {}),
}
"""A teacher and a student of each family, small, for images of 32x32 pixels."""


@dataclass(frozen=True)
class Answer:
    """Whether a method works on a pair of families."""

    method: str
    teacher: str
    student: str
    reason: str
    """Why not; empty if it does."""


class _Weights:
    """A recorder that only gives the teacher's weights."""

    def __init__(self, file: bytes) -> None:
        self.file = file

    def checkpoint(self) -> None:
        """No checkpoint: nothing was begun before."""

    def epoch(self, record: Epoch, state: Callable[[], bytes]) -> None:
        """Keeps nothing, as no epoch comes to its end."""

    def weights(self, reference: str) -> bytes:
        """The weights of the only teacher."""
        return self.file


def compatibility(methods: Iterable[str], teachers: Iterable[str], students: Iterable[str]) -> Iterator[Answer]:
    """Tries every method on every pair of families, one after the other.

    Args:
        methods: by id, or compositions.
        teachers: families.
        students: families.
    """
    data, methods, students = _images(), list(methods), list(students)
    for teacher in teachers:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            file = safetensors.torch.save(build(FAMILIES[teacher][0], data).state_dict())
        for student in students:
            for method in methods:
                yield Answer(method, teacher, student, _reason(method, teacher, student, data, _Weights(file)))


def _reason(method: str, teacher: str, student: str, data: ImageSplits, recorder: _Weights) -> str:
    configured = configure(method, {})
    spec = Spec(
        method=configured.id,
        params=configured.hyperparameters(),
        student=FAMILIES[student][1],
        teachers=(FAMILIES[teacher][0].model_copy(update={"weights": TEACHER}),),
        data=DataSpec(name="random"),
        recipe=Recipe(epochs=4, batch_size=4, augment="none"),
    )
    try:
        rehearse(spec, data, recorder, torch.device("cpu"))
    except Unsupported as reason:
        return str(reason)
    return ""


def _images() -> ImageSplits:
    """Random images, every class in every part, some unlabelled."""
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4 * CLASSES, 3, SIZE, SIZE), generator=draws, dtype=torch.uint8)
    labels = torch.arange(4 * CLASSES) % CLASSES
    held_out = Part(images[:CLASSES], labels[:CLASSES])
    train = Data(images[: 2 * CLASSES], labels[: 2 * CLASSES], images[2 * CLASSES :], CLASSES)
    return ImageSplits(train, held_out, held_out, tuple(map(str, range(CLASSES))), (0.5,) * 3, (0.3,) * 3)

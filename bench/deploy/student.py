"""A trained student as it is handed out: on the CPU, in float32, with the scaling of its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.bench.configure import method_of
from kdbench.bench.data.images import FOLDER, ImageSplits
from kdbench.bench.data.splits import Splits
from kdbench.bench.errors import InputError
from kdbench.bench.networks.checkpoints import load_weights
from kdbench.bench.networks.network import Network
from kdbench.bench.networks.run_networks import RunNetworks
from kdbench.bench.spec import Compute, Spec
from kdbench.bench.tasks import Task, task_of
from kdbench.bench.teachers.cache import TeacherCache
from kdbench.bench.training.stage_plan import result_of
from kdbench.methods.base import Unsupported


@dataclass(frozen=True)
class Student:
    """The network that is a run's result, and all that who uses it must know."""

    spec: Spec
    task: Task
    network: Network
    """In evaluation mode, without gradients."""
    class_names: tuple[str, ...]
    channels: int
    """Of the images that it is given: 1 for grey ones, 3 for RGB."""
    size: int
    """Height and width in pixels of the images that it is given."""

    @property
    def name(self) -> str:
        """Of its architecture."""
        return self.spec.student.name

    @property
    def mean(self) -> tuple[float, ...]:
        """Of the pixels in [0, 1], for each channel that the network takes."""
        return tuple(self.network.mean.flatten().tolist())

    @property
    def std(self) -> tuple[float, ...]:
        """Likewise, the standard deviation."""
        return tuple(self.network.std.flatten().tolist())

    @property
    def interpolation(self) -> str:
        """How images of other sizes were brought to this one when its data were read."""
        return "bilinear" if self.spec.data.name.startswith(FOLDER) else "bicubic"

    def graph(self) -> Pixels:
        """The network with the scaling of its pixels before it."""
        return Pixels(self.network).eval()

    def example(self, count: int = 2) -> Tensor:
        """Pixels (count, C, S, S) uint8, drawn evenly, from which a graph is traced."""
        shape = torch.Size((count, self.channels, self.size, self.size))
        return torch.arange(shape.numel()).remainder(256).to(torch.uint8).reshape(shape)

    def config(self) -> dict[str, Any]:
        """What a program must know of it, as JSON values; names as in timm's config.json."""
        side = self.network.input_size or self.size
        return {
            "architecture": self.name,
            "model_args": self.spec.student.args,
            "task": self.task.name,
            "num_classes": len(self.class_names),
            "label_names": list(self.class_names),
            "input": {"dtype": "uint8", "shape": ["N", self.channels, self.size, self.size]},
            "pretrained_cfg": {
                "input_size": [len(self.mean), side, side],
                "mean": list(self.mean),
                "std": list(self.std),
                "interpolation": self.interpolation,
            },
        }


class Pixels(nn.Module):
    """A network with the scaling of its pixels before it."""

    def __init__(self, network: Network) -> None:
        """Wraps a network."""
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K), or (N, K, S, S) of a class for each pixel, of images (N, C, S, S) uint8."""
        return self.network.answer(images.float() / 255)


def student_of(spec: Spec, data: Splits, file: bytes) -> Student:
    """The student that a run has trained.

    Args:
        spec: of the run.
        data: of the run.
        file: the safetensors file of its weights.

    Raises:
        InputError: if it does not decide on images, or cannot be built again from these weights.
    """
    task = task_of(spec.data.task)
    if not isinstance(data, ImageSplits):
        raise InputError(f"the student of a run is exported if it decides on images; those of {task.name} do not.")
    if method_of(spec).deploys_modules:
        raise InputError(
            f"the student of {spec.method} is its network with modules of the method, which no format holds yet: its "
            "weights and its modules' are in the run's files."
        )
    weights = "scratch" if spec.student.weights.startswith("start:") else spec.student.weights
    model = spec.student.model_copy(update={"weights": weights, "compute": Compute()})
    net, _ = result_of(spec)
    networks = RunNetworks(
        task, {"student": model}, data, spec.seed, torch.device("cpu"), _no_weights, TeacherCache().predictions
    )
    try:
        network = networks.student(net)
    except Unsupported as reason:
        raise InputError(f"the student of this run cannot be built again: {reason}") from None
    load_weights(network, file, spec.student.name)
    network.requires_grad_(False).eval()
    return Student(spec, task, network, data.class_names, data.channels, data.size)


def _no_weights(reference: str) -> bytes:
    """A student's own weights take the place of those that it started from."""
    raise Unsupported(f"it starts from {reference}.")

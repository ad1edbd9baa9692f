"""The loops that are compared: what the field writes today, and the engine in its ways."""

from __future__ import annotations

import contextlib
import io
import itertools
import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import v2 as transforms

from kdbench.bench.configure import by_role, configure
from kdbench.bench.data.images import ImageSplits
from kdbench.bench.data.splits import Part
from kdbench.bench.errors import InputError
from kdbench.bench.networks.build import build
from kdbench.bench.networks.network import Network
from kdbench.bench.networks.signals import observe
from kdbench.bench.record import Epoch
from kdbench.bench.spec import Compute, DataSpec, ModelSpec, Recipe, Spec
from kdbench.bench.tasks import task_of
from kdbench.bench.teachers.backends import Memory
from kdbench.bench.teachers.cache import TeacherCache
from kdbench.bench.training.engine import updates
from kdbench.methods.base import SIGNALS, TEACHER, Data, Method, Step
from kdbench.methods.rows import take, whole

CLASSES, SIZE = 100, 32
NOISE = DataSpec(name="noise")
"""What the loops are trained on: images of CIFAR-100's shape."""
Updates = Generator[None, None, object]


@dataclass(frozen=True)
class Setting:
    """What is trained: a pair, a method, a batch, on noise of CIFAR-100's shape."""

    teacher: ModelSpec
    student: ModelSpec
    method: str
    batch_size: int
    batches: int
    """Batches of an epoch."""
    device: torch.device

    def data(self) -> ImageSplits:
        """Noise; speed does not depend on what is seen."""
        draws = torch.Generator().manual_seed(0)

        def part(count: int) -> Part:
            images = torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=draws, dtype=torch.uint8)
            return Part(images, torch.randint(0, CLASSES, (count,), generator=draws))

        train, rest = part(self.batches * self.batch_size), part(2)
        names, flat = tuple(map(str, range(CLASSES))), (0.5, 0.5, 0.5)
        return ImageSplits(
            Data(*train, take(train.inputs, slice(0)), CLASSES), rest, rest, names, flat, (0.25, 0.25, 0.25)
        )

    def recipe(self, lr: float = 0.05) -> Recipe:
        """The recipe by which the field trains on CIFAR-100, for one epoch."""
        return Recipe(epochs=1, batch_size=self.batch_size, lr=lr)


@dataclass
class Loop:
    """A training loop that is measured."""

    name: str
    images: int
    """Images that students are trained on in a step."""
    step: Callable[[], object]


def plain(setting: Setting, workers: int) -> Loop:
    """What the field writes: eager float32, the teacher run every batch, torchvision's transforms in a DataLoader."""
    data, device = setting.data(), setting.device
    student, teacher = (_network(model, data, device) for model in (setting.student, setting.teacher))
    method = one_stage(setting.method)
    batches = _loaded(data, setting, workers)
    probe = torch.zeros(2, 3, SIZE, SIZE, device=device), torch.zeros(2, dtype=torch.long, device=device)
    needs, hard_loss = method.needed() & SIGNALS, task_of(NOISE.task).loss
    probes = observe(student.eval(), *probe, needs), (observe(teacher.eval(), *probe, needs),)
    auxiliary = method.modules_of_data(*probes, data.train).to(device)
    parameters = [*student.parameters(), *auxiliary.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)
    student.train()

    def step() -> None:
        images, labels = (tensor.to(device) for tensor in next(batches))
        taught = observe(teacher, images, labels, needs)
        seen = observe(student, images, labels, needs, training=True)
        loss = torch.stack(
            list(method.loss(Step(images, labels, seen, (taught,), auxiliary, hard_loss, 0.5)).values())
        ).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return Loop("plain loop", setting.batch_size, step)


def one_stage(name: str) -> Method:
    """A method that trains one student in one stage.

    Raises:
        InputError: if it does not.
    """
    method = configure(name, {})
    stages = tuple(method.stages((TEACHER,)))
    if len(stages) != 1 or len(stages[0].students) != 1 or not stages[0].teachers:
        raise InputError(f"the plain loop is that of one student, taught in one stage, which {name} is not.")
    return method


def _network(model: ModelSpec, data: ImageSplits, device: torch.device) -> Network:
    return build(model.model_copy(update={"compute": Compute()}), data).to(device)


class _Pictures(Dataset[tuple[Tensor, Any]]):
    """Images as PIL reads them, through transforms; as torchvision's CIFAR100."""

    def __init__(self, part: Data, indexed: bool) -> None:
        self.pixels, self.labels = whole(part.inputs).permute(0, 2, 3, 1).numpy(), whole(part.targets).tolist()
        self.indexed = indexed
        steps = [transforms.RandomCrop(SIZE, padding=4), transforms.RandomHorizontalFlip()]
        self.transform = transforms.Compose([transforms.ToPILImage(), *steps, transforms.PILToTensor()])
        self.scale = transforms.ToDtype(torch.float32, scale=True)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        image = self.scale(self.transform(self.pixels[index]))
        return (image, self.labels[index], index) if self.indexed else (image, self.labels[index])


def _loaded(data: ImageSplits, setting: Setting, workers: int, indexed: bool = False) -> Iterator[Any]:
    """Batches of a DataLoader, epoch after epoch without end."""
    loader: DataLoader[Any] = DataLoader(
        _Pictures(data.train, indexed),
        setting.batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        pin_memory=setting.device.type == "cuda",
        persistent_workers=workers > 0,
    )
    return itertools.chain.from_iterable(itertools.repeat(loader))


class _Recorder:
    """A kdbench.bench.record.Recorder that keeps nothing and gives the teacher's weights."""

    def __init__(self, teacher: bytes) -> None:
        self.teacher = teacher

    def checkpoint(self) -> None:
        return None

    def epoch(self, record: Epoch, state: Callable[[], bytes]) -> None:
        pass

    def weights(self, reference: str) -> bytes:
        return self.teacher


def engine(setting: Setting, name: str, students: int = 1, cached: bool = False) -> Loop:
    """The engine: one student, or several side by side; with the teacher run, or its answers at hand."""
    data = setting.data()
    network = _network(setting.teacher, data, torch.device("cpu"))
    recorder = _Recorder(safetensors.torch.save({k: v.contiguous() for k, v in network.state_dict().items()}))
    cache = TeacherCache(Memory(2**36)) if cached else TeacherCache()

    def started(student: ModelSpec, lr: float) -> Updates:
        taught = setting.teacher.model_copy(update={"weights": "run:teacher"})
        method = configure(setting.method, {})
        spec = Spec(
            method=method.id,
            params=method.hyperparameters(),
            student=student,
            teachers=(taught,),
            data=NOISE,
            recipe=setting.recipe(lr),
            test=False,
        )
        return updates(spec, data, recorder, setting.device, cache)

    if cached:
        for _ in started(ModelSpec(name="cifar_resnet8"), 0.05):
            pass
    trained = [started(setting.student, 0.05 * 0.9**number) for number in range(students)]

    def step() -> None:
        for each in trained:
            next(each)

    return Loop(name, students * setting.batch_size, step)


def repdistiller(setting: Setting, folder: Path, workers: int) -> Loop:
    """RepDistiller's own training function on its own networks, from a checkout of its repository.

    Raises:
        InputError: if the folder does not hold it, or it lacks one of the networks.
    """
    if not (folder / "helper" / "loops.py").is_file():
        raise InputError(f"{folder} holds no checkout of RepDistiller (no helper/loops.py).")
    sys.path.insert(0, str(folder))
    try:
        from distiller_zoo import DistillKL  # type: ignore[import-not-found]
        from helper.loops import train_distill  # type: ignore[import-not-found]
        from models import model_dict  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(folder))
    names = [model.name.removeprefix("cifar_") for model in (setting.student, setting.teacher)]
    if missing := [name for name in names if name not in model_dict]:
        raise InputError(f"RepDistiller has no network {', '.join(missing)}.")
    networks = nn.ModuleList([model_dict[name](num_classes=CLASSES).to(setting.device) for name in names])
    optimizer = torch.optim.SGD(networks[0].parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    criteria = [nn.CrossEntropyLoss(), DistillKL(4), DistillKL(4)]
    options = SimpleNamespace(distill=by_role("baseline"), gamma=0.1, alpha=0.9, beta=0, print_freq=100)
    batches = _loaded(setting.data(), setting, workers, indexed=True)

    def step() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            train_distill(1, [next(batches)], networks, criteria, optimizer, options)

    return Loop("RepDistiller", setting.batch_size, step)


def operations(setting: Setting) -> dict[str, float]:
    """Floating-point operations for one image: "teacher" forward, "student" forward and backward."""
    data, cpu = setting.data(), torch.device("cpu")
    images = torch.zeros(2, 3, SIZE, SIZE)
    teacher, student = (_network(model, data, cpu) for model in (setting.teacher, setting.student))
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        teacher(images)
    with FlopCounterMode(display=False) as both:
        student(images).sum().backward()
    return {"teacher": forward.get_total_flops() / 2, "student": both.get_total_flops() / 2}

"""Toy runs of a method: a tenth of the digits labelled, small networks, teachers from random weights."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch

from kdbench.bench.configure import configure
from kdbench.bench.contract.memory import Memory
from kdbench.bench.contract.open_run import OpenRun
from kdbench.bench.data.images import ImageSplits
from kdbench.bench.data.splits import Part
from kdbench.bench.networks.build import build
from kdbench.bench.record import Outcome
from kdbench.bench.spec import DataSpec, ModelSpec, Recipe, Spec
from kdbench.bench.tasks import load
from kdbench.bench.training.engine import run
from kdbench.methods.base import Method
from kdbench.methods.rows import take

CPU = torch.device("cpu")
DATA = DataSpec(name="digits", train_fraction=0.1, validation=0.25)
"""107 labelled images of 8x8 pixels; they come with scikit-learn and need no folder."""
EVALUATED = 64
"""Images of the validation and of the test part: a toy's scores need not be exact."""
RECIPE = Recipe(epochs=3, batch_size=54, lr=0.02, augment="crop", schedule="cosine")
CNN = (ModelSpec(name="cifar_resnet8"), ModelSpec(name="cifar_resnet8_quarter"))
VIT = tuple(
    ModelSpec(name="vit_tiny_patch16_224", args={"patch_size": 4, "embed_dim": 24, "num_heads": 2, "depth": depth})
    for depth in (4, 2)
)
DISTILLED = ModelSpec(
    name="deit_tiny_distilled_patch16_224", args={"patch_size": 4, "embed_dim": 24, "num_heads": 2, "depth": 2}
)
PAIRS = {"cnn to cnn": CNN, "vit to vit": VIT, "vit to cnn": (VIT[0], CNN[1]), "cnn to vit": (CNN[0], VIT[1])}
HOMES = {"cnn to two heads": (CNN[0], DISTILLED)}
"""Pairs on which only those methods must work that read what others lack."""
TEACHER = "run:t"


class Ended(NamedTuple):
    """A toy run that has ended."""

    outcome: Outcome
    files: dict[str, bytes]
    """Of weights, by name."""
    memory: Memory


@functools.cache
def toy_data() -> ImageSplits:
    """A tenth of the digits, and a few to evaluate on."""
    data = load(DATA, Path("/nonexistent"))
    assert isinstance(data, ImageSplits)
    few = slice(EVALUATED)
    validation, test = (Part(*(take(rows, few) for rows in part)) for part in (data.validation, data.test))
    return dataclasses.replace(data, validation=validation, test=test)


def untrained_file(model: ModelSpec) -> bytes:
    """The safetensors file of a network from seeded random weights."""
    return _untrained(model.model_dump_json())


@functools.cache
def _untrained(model: str) -> bytes:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = build(ModelSpec.model_validate_json(model), toy_data()).state_dict()
        return safetensors.torch.save({name: tensor.contiguous() for name, tensor in state.items()})


@dataclass
class Toy:
    """A method on toy data."""

    name: str
    """Its id, or a composition."""

    @property
    def method(self) -> Method:
        """The method with its defaults."""
        return configure(self.name, {})

    @property
    def home(self) -> str:
        """The pair on which it must work: of the networks that have what it reads."""
        if "heads" in self.method.needed():
            return "cnn to two heads"
        return "vit to vit" if self.method.needed() & {"tokens", "qkv"} else "cnn to cnn"

    @property
    def teacher(self) -> bytes:
        """The weights of the home pair's teacher."""
        return untrained_file({**PAIRS, **HOMES}[self.home][0])

    def spec(self, pair: str = "", params: dict[str, Any] | None = None, **changes: Any) -> Spec:
        """A run on a pair, by default the home one."""
        teacher, student = {**PAIRS, **HOMES}[pair or self.home]
        method = configure(self.name, params or {})
        spec = Spec(
            method=method.id,
            params=method.hyperparameters(),
            student=student,
            teachers=(teacher.model_copy(update={"weights": TEACHER}),),
            data=DATA,
            recipe=RECIPE,
            seed=1,
        )
        return spec.model_copy(update=changes)

    def memory(self, spec: Spec, **options: Any) -> Memory:
        """A recorder that gives a run its teacher."""
        return Memory({TEACHER: untrained_file(_plain(spec.teachers[0]))}, **options)

    def run(self, spec: Spec | None = None, **options: Any) -> Ended:
        """A run to its end; `options` are the recorder's."""
        spec = spec or self.spec()
        memory = self.memory(spec, **options)
        outcome, files = run(spec, toy_data(), memory, CPU)
        return Ended(outcome, files, memory)

    def opened(self, spec: Spec | None = None) -> OpenRun:
        """A run that can be looked into."""
        spec = spec or self.spec()
        return OpenRun(spec, toy_data(), self.memory(spec))

    @functools.cached_property
    def whole(self) -> Ended:
        """The undisturbed run, once, with the checkpoints of all epochs."""
        return self.run(keep_all=True)


def _plain(teacher: ModelSpec) -> ModelSpec:
    """The network whose weights a teacher has, however it is computed."""
    return ModelSpec(name=teacher.name, args=teacher.args)

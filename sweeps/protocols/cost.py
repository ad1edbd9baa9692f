"""What a protocol costs before it is run: images to train on, and about how many hours on this machine.

A step of each network of the bundled protocols was measured on one core, and is kept beside them; how fast another CPU
is, is known from one small network, measured there once and remembered. Other networks, and all on a GPU, are measured
where they are asked for. A frozen teacher takes a third of a step, and one that comes with published weights is never
trained. What keeping the teachers' answers saves is not counted.

    python -m kdbench.sweeps.protocols.cost > sweeps/protocols/speeds.json

measures all networks of the bundled protocols anew.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from kdbench.bench.atomic import write
from kdbench.bench.configure import method_of
from kdbench.bench.data.images import ImageSplits
from kdbench.bench.data.info import DataInfo, data_info, training_images
from kdbench.bench.data.splits import Part
from kdbench.bench.environment import hardware, in_threads
from kdbench.bench.networks.build import build
from kdbench.bench.networks.signals import observe
from kdbench.bench.spec import ModelSpec, Recipe, Spec
from kdbench.bench.training.precision import timed
from kdbench.bench.training.train_state import TrainState
from kdbench.methods.base import STUDENT, TEACHER, Data
from kdbench.sweeps.protocols.files import bundled, load_protocol
from kdbench.sweeps.protocols.request import SCALES, TableRequest, table_request

FORWARD = 1 / 3
"""What asking a frozen network about a batch takes, as a share of a training step."""
PROBE = 8
"""Images of the first, small step; a step of a whole batch is measured too if it should take less than `LONGEST`."""
PIXELS = 2**15
"""Pixels that the images of the first step have together at most, if they are more than two."""
LONGEST = 0.5
"""Seconds that a measured step of a whole batch may take."""
SPEEDS = "speeds.json"
"""The file of a store in which measured speeds are remembered, and that beside the protocols."""
ON = " on "
PACE = ("wrn_16_1", "cifar10", 128)
"""The network, data and batch size whose step says how fast a CPU is."""


@dataclass(frozen=True)
class Cost:
    """What a whole table takes."""

    runs: int
    """Runs, those of teachers among them."""
    images: float
    """Images that networks are trained on; an image counts once for each network and epoch."""
    hours: float | None
    """Hours on this machine, about; None if nothing was measured."""


def cost_of(request: TableRequest, seconds: Callable[[ModelSpec, DataInfo, int, bool], float] | None) -> Cost:
    """What a request takes if none of its runs is there yet.

    Args:
        request: what would be done.
        seconds: gives the seconds of an image in a step of a network, from the model, the data, the batch size, and
            whether only forward passes are made.
    """
    specs: dict[str, Spec] = {}
    for pair in request.protocol.pairs:
        specs |= {spec.key: spec for spec in request.teachers(pair)}
    specs |= {spec.key: spec for row in request.rows() for spec in request.specs(*row)}
    images, time = 0.0, 0.0
    for spec in specs.values():
        info, epochs = data_info(spec.data.name), spec.recipe.epochs * training_images(spec.data)
        models = {"student": spec.student, "teacher": (*spec.teachers, spec.student)[0]}
        for stage in method_of(spec).stages((TEACHER,) if spec.teachers else ()):
            images += len(stage.students) * stage.epochs * epochs
            for nets, share in ((stage.students, 1.0), (stage.teachers, FORWARD)):
                for net in nets if seconds else ():
                    model = models[net.model]
                    forward_only = model.weights == "pretrained"
                    took = seconds(model, info, spec.recipe.batch_size, forward_only)  # type: ignore[misc]
                    time += stage.epochs * epochs * took * (1.0 if forward_only else share)
    return Cost(len(specs), images, time / 3600 if seconds else None)


class Speeds:
    """Seconds an image in a step of a network, measured once for each and remembered in the store."""

    def __init__(self, root: Path, device: torch.device) -> None:
        """Reads the speeds that are remembered.

        Args:
            root: the store's folder.
            device: where networks are measured.
        """
        self.path, self.device = root / SPEEDS, device
        self.known: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def __call__(self, model: ModelSpec, info: DataInfo, batch_size: int, forward_only: bool = False) -> float:
        """Seconds that an image takes in a training step, or in a forward pass if nothing is trained."""
        asked = _asked(model, info, batch_size, forward_only)
        if self.device.type == "cpu" and asked in reference() and self._name(asked) not in self.known:
            return reference()[asked] * self.pace
        return self.measured(model, info, batch_size, forward_only)

    def measured(self, model: ModelSpec, info: DataInfo, batch_size: int, forward_only: bool = False) -> float:
        """The same, measured on this machine unless that is remembered."""
        name = self._name(_asked(model, info, batch_size, forward_only))
        if name not in self.known:
            with in_threads(1):
                plain = ModelSpec(name=model.name, args=model.args)
                self.known[name] = self._measured(plain, info, batch_size, forward_only)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write(self.path, json.dumps(self.known, indent=1, sort_keys=True).encode())
        return float(self.known[name])

    def _name(self, asked: str) -> str:
        where = hardware(self.device) if self.device.type == "cuda" else f"{cores()} cores of {hardware(self.device)}"
        return f"{asked}{ON}{where}"

    @functools.cached_property
    def pace(self) -> float:
        """How many times as long as the core of the reference this machine takes for an image."""
        model, info, batch_size = ModelSpec(name=PACE[0]), data_info(PACE[1]), PACE[2]
        return self.measured(model, info, batch_size) / reference()[_asked(model, info, batch_size)]

    def _measured(self, model: ModelSpec, info: DataInfo, batch_size: int, forward_only: bool) -> float:
        shape = (1, info.channels, info.size, info.size)
        image, label = torch.zeros(shape, dtype=torch.uint8), torch.zeros(1, dtype=torch.long)
        part, flat = Part(image, label), (0.5,) * info.channels
        data = ImageSplits(Data(image, label, image[:0], info.classes), part, part, (), flat, flat)
        with torch.random.fork_rng(devices=[]):
            network = build(model, data).to(self.device)
        if forward_only:
            with torch.inference_mode():
                return self._timed(lambda: network.eval()(torch.rand(shape).to(self.device)))
        state = TrainState.start(STUDENT, network, torch.nn.ModuleDict(), Recipe(), 1000)
        state.train()

        def step(count: int) -> float:
            images = torch.rand(count, *shape[1:]).to(self.device)
            labels = torch.zeros(count, dtype=torch.long, device=self.device)

            def update() -> None:
                state.optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(observe(network, images, labels, frozenset(), training=True).logits, labels).backward()
                state.optimizer.step()

            return min(self._timed(update) for _ in range(2)) / count

        count = min(PROBE, batch_size, max(2, PIXELS // info.size**2))
        seconds = step(count)
        return step(batch_size) if count < batch_size and seconds * batch_size < LONGEST else seconds

    def _timed(self, update: Callable[[], None]) -> float:
        """Seconds of the GPU; or of one core, shared among all: what else the machine does is not counted."""
        if self.device.type == "cuda":
            return timed(update, self.device)
        start = time.process_time()
        update()
        return (time.process_time() - start) / cores()


@functools.cache
def reference() -> dict[str, float]:
    """Seconds of an image on one core, by network, data and batch, that are kept beside the protocols."""
    values: dict[str, float] = json.loads((resources.files("kdbench.sweeps") / "protocols" / SPEEDS).read_text())
    return values


def networks_of(name: str) -> Iterator[tuple[ModelSpec, DataInfo, int, bool]]:
    """What the cost of a bundled protocol asks for."""
    found: list[tuple[ModelSpec, DataInfo, int, bool]] = []

    def asked(*network: Any) -> float:
        found.append(network)
        return 0.0

    for scale in SCALES:
        cost_of(table_request(load_protocol(name), scale), asked)
    yield from found


def _asked(model: ModelSpec, info: DataInfo, batch_size: int, forward_only: bool = False) -> str:
    """Names a network, its data and its batches."""
    size = f"{info.channels}x{info.size} to {info.classes} in batches of {batch_size}"
    passes = "a pass of " if forward_only else ""
    return f"{passes}{model.name} {json.dumps(model.args, sort_keys=True)} {size}"


def main() -> None:
    """Measures the networks of all bundled protocols, and prints what is kept beside them."""
    with tempfile.TemporaryDirectory() as folder:
        speeds = Speeds(Path(folder), torch.device("cpu"))
        for network in (network for name in bundled() for network in networks_of(name)):
            speeds.measured(*network)
    found = {name.partition(ON)[0]: float(f"{seconds * cores():.3g}") for name, seconds in speeds.known.items()}
    print(json.dumps(found, indent=1, sort_keys=True))


def cores() -> int:
    """Cores of this machine; a worker takes one of them."""
    return os.cpu_count() or 1


if __name__ == "__main__":
    main()

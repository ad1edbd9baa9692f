"""`kdbench explain`: repeats finished runs with snapshots, and counts the visual concepts that their students learned.

The test images are looked at, never their labels: nothing is chosen by what is found here.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from kdbench.bench.atomic import write
from kdbench.bench.configure import method_of
from kdbench.bench.data.splits import Splits
from kdbench.bench.environment import in_threads
from kdbench.bench.errors import InputError
from kdbench.bench.evaluation.concepts import (
    Concepts,
    centre,
    concepts,
    discarded,
    ink,
    learning_speed,
    pixel_entropies,
    ratio,
    stage_feature,
)
from kdbench.bench.networks.network import Network
from kdbench.bench.networks.run_networks import RunNetworks
from kdbench.bench.record import Epoch
from kdbench.bench.spec import Spec
from kdbench.bench.tasks import task_of
from kdbench.bench.tasks.image import ImageClassification
from kdbench.bench.teachers.cache import TeacherCache
from kdbench.bench.training.engine import run as repeat
from kdbench.bench.training.stage_plan import result_of
from kdbench.methods.base import Unsupported
from kdbench.methods.rows import whole
from kdbench.results.analysis.explanation import INK, Explained
from kdbench.results.store.run_store import RunStore
from kdbench.results.store.stored_run import StoredRun
from kdbench.sweeps.cli.progress import Live
from kdbench.sweeps.scheduling.sources import provide

VERSION = 1
"""Raised by hand with every change here or in kdbench.bench.evaluation.concepts that moves numbers; then none are read
from before."""


@dataclass(frozen=True)
class Settings:
    """What decides the numbers of an explanation, besides the run."""

    images: int = 32
    """Test images, evenly drawn; all if there are fewer."""
    snapshots: int = 8
    """Epochs at which concepts are counted, evenly spaced, the last among them."""
    depth: float = 0.5
    """Relative depth of the stage whose feature is explained: 0 is the network's first, 1 its last."""
    threshold: float = 0.2
    """b in the paper: nats by which a concept's entropy is below the background's."""
    noise: float = 0.1
    """Deviation that a pixel of average influence bears, in units of a pixel's range; beta is twice its square."""
    steps: int = 200
    """Steps of Adam on the deviations of the noise."""
    samples: int = 4
    """Draws of noise for each image and step."""
    seed: int = 0
    """Seed of the noise."""

    def __post_init__(self) -> None:
        """Checks the ranges of the settings."""
        for name in ("images", "snapshots", "steps", "samples"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, but got {getattr(self, name)}.")
        if not 0 <= self.depth <= 1:
            raise InputError(f"depth must be from 0 (the first stage) to 1 (the last), but got {self.depth}.")
        if not 0 < self.noise <= 1:
            raise InputError(f"noise must be above 0 and at most 1, but got {self.noise}.")
        if not (self.threshold > 0 and math.isfinite(self.threshold)):
            raise InputError(f"threshold must be positive, but got {self.threshold}.")


def explain(
    keys: Sequence[str], store: RunStore, data_dir: Path, device: torch.device, settings: Settings
) -> list[Explained]:
    """Explains finished runs of the same test images, each once; what was explained before is only read.

    Args:
        keys: whole, or the first characters of them.
        store: where the runs are, and explanations are kept: STORE/explain/KEY-SETTINGS.json.
        data_dir: where data sets lie.
        device: where to compute.
        settings: what decides the numbers.

    Raises:
        InputError: if a run is not known, not done, of other data, or of a network without stages.
    """
    runs = list({(run := _done(store.find(key), store)).key: run for key in keys}.values())
    if not runs:
        raise InputError("explain takes the keys of finished runs, but got none.")
    _check_same_images(runs)
    return [_kept(run, store, data_dir, device, settings) for run in runs]


def _done(run: StoredRun, store: RunStore) -> StoredRun:
    """A run that is done, as only those can be explained, its method at hand."""
    provide(run.spec.canonical(), store.root)
    if run.status != "done":
        raise InputError(f"only a run that is done can be explained, but {run.key} is {run.status}.")
    return run


def _check_same_images(runs: list[StoredRun]) -> None:
    """Checks that all runs share their test images; the labelled share may differ."""
    first = runs[0]
    for run in runs[1:]:
        for name in ("name", "image_size", "test", "split_seed", "fingerprint"):
            ours, theirs = getattr(first.spec.data, name), getattr(run.spec.data, name)
            if ours != theirs:
                raise InputError(
                    f"runs are compared on the same test images, but {first.key} and {run.key} differ in their data's "
                    f"{name}: {ours!r} and {theirs!r}. Explain them one by one."
                )


def _kept(run: StoredRun, store: RunStore, data_dir: Path, device: torch.device, settings: Settings) -> Explained:
    """An explanation from the store, or computed and put there; a file that cannot be read is made anew."""
    text = json.dumps({"version": VERSION, **asdict(settings)}, sort_keys=True)
    path = store.root / "explain" / f"{run.key}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
        return Explained.model_validate(json.loads(path.read_text()) | {"control": _is_control(run)})
    explained = _explain(run, store, data_dir, device, settings)
    path.parent.mkdir(exist_ok=True)
    write(path, explained.model_dump_json(indent=1).encode())
    return explained


def _is_control(run: StoredRun) -> bool:
    """Whether a run is of the method without a teacher, which the others are compared with."""
    return method_of(run.spec).role == "control"


class Snapshots:
    """A kdbench.bench.record.Recorder in memory that keeps one network's weights at chosen epochs."""

    def __init__(self, store: RunStore, name: str, epochs: Sequence[int], watch: Callable[[Epoch], object]) -> None:
        """Starts without a snapshot.

        Args:
            store: gives teachers' weights.
            name: the network's name in the run.
            epochs: numbers of the epochs after which a snapshot is taken.
            watch: sees every epoch.
        """
        self.store, self.name, self.epochs, self.watch = store, name, list(epochs), watch
        self.weights_at: dict[int, dict[str, Tensor]] = {}

    def checkpoint(self) -> None:
        """There is no checkpoint to go on from: the run is repeated from its start."""

    def epoch(self, record: Epoch, state: Callable[[], bytes]) -> None:
        """Takes a snapshot if one is due."""
        if record.number in self.epochs:
            saved: dict[str, Any] = torch.load(io.BytesIO(state()), map_location="cpu", weights_only=True)
            self.weights_at[record.number] = saved["networks"][self.name]
        self.watch(record)

    def weights(self, reference: str) -> bytes:
        """The safetensors file of a stored network, verified by the store."""
        return self.store.weights(reference)


def _explain(run: StoredRun, store: RunStore, data_dir: Path, device: torch.device, settings: Settings) -> Explained:
    spec = run.spec
    task, title = task_of(spec.data.task), f"{spec.method} {run.key[:8]}"
    if not isinstance(task, ImageClassification):
        raise InputError(f"concepts are pixels of classified images, but {run.key} is of the task {task.name}.")
    data = task.load(spec.data, data_dir)
    net, trained = result_of(spec)
    recall = TeacherCache().predictions
    models = {"student": spec.student}
    network = RunNetworks(task, models, data, spec.seed, device, store.weights, recall).student(net)
    try:
        feature, stage, stages = stage_feature(network, settings.depth)
    except Unsupported as reason:
        raise InputError(f"{run.key} cannot be explained: {reason}") from None
    start = {name: tensor.cpu().clone() for name, tensor in network.state_dict().items()}
    live = Live(f"{title} again", task.primary)
    snapshots = Snapshots(store, net.name, spaced(trained, settings.snapshots), live)
    same = _repeated(run, spec, data, snapshots, device)
    states = [snapshots.weights_at[number] for number in snapshots.epochs]
    images = _drawn(whole(data.test.inputs), settings.images)
    mask, foreground = (INK, ink(images)) if data.channels == 1 else ("central half", centre(images))
    found = []
    for _ in _loaded(network, states, f"{title} concepts"):
        inputs = images.to(device).float() / 255
        entropies = pixel_entropies(
            feature, inputs, settings.noise, settings.steps, settings.samples, settings.seed
        ).cpu()
        found.append(concepts(entropies, foreground, settings.threshold))
    names = [name for name, _ in network.named_parameters()]
    return Explained(
        key=run.key,
        method=spec.method,
        control=_is_control(run),
        model=spec.student.name,
        stage=stage,
        stages=stages,
        mask=mask,
        images=len(images),
        epochs=snapshots.epochs,
        metric=task.primary,
        score=run.outcome.headline("last", "test") if run.outcome else None,
        same_weights=same,
        **_metrics(found, [[state[name] for name in names] for state in (start, *states)]),
    )


def _metrics(found: list[Concepts], weights: list[list[Tensor]]) -> dict[str, Any]:
    """The fields of an explanation that come from concepts at each snapshot, and weights at the start and there."""
    foreground = torch.stack([each.foreground for each in found])
    counts = foreground.sum(dim=(2, 3))
    peaks = counts.argmax(dim=0)[counts.amax(dim=0) > 0]
    d_mean, d_std = learning_speed(counts, weights)
    return {
        "foreground": counts.double().mean(dim=1).tolist(),
        "background": [float(each.background.sum()) / counts.shape[1] for each in found],
        "ratio": ratio(found[-1]),
        "d_mean": d_mean,
        "d_std": d_std,
        "peaks_first": float((peaks == 0).double().mean()) if len(peaks) else None,
        "discarded": discarded(foreground),
    }


def spaced(numbers: Sequence[int], count: int) -> list[int]:
    """About `count` evenly spaced numbers, the last among them."""
    return sorted({numbers[math.ceil((index + 1) * len(numbers) / count) - 1] for index in range(count)})


def _drawn(images: Tensor, count: int) -> Tensor:
    """Evenly drawn images, the first and the last among them."""
    return images[torch.linspace(0, len(images) - 1, min(count, len(images)), dtype=torch.float64).round().long()]


def _repeated(run: StoredRun, spec: Spec, data: Splits, snapshots: Snapshots, device: torch.device) -> bool:
    """Repeats the training, without a score on test; answers whether it ended in the stored weights."""
    threads = run.outcome.environment.threads if run.outcome else 0
    with in_threads(threads or torch.get_num_threads()):
        outcome, files = repeat(spec.model_copy(update={"test": False}), data, snapshots, device)
    if outcome.status != "done":
        raise InputError(f"{run.key} was done, but repeated here it is {outcome.status}: {outcome.reason}")
    return files["last"] == snapshots.store.weights(f"run:{run.key}")


def _loaded(network: Network, states: list[dict[str, Tensor]], title: str) -> Iterator[None]:
    """Puts one state after the other into the network, with a bar on a terminal and a line elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(f"{title}: {len(states)} snapshots", highlight=False, soft_wrap=True)
    for state in track(states, title, console=console, disable=not console.is_terminal):
        network.load_state_dict(state)
        yield

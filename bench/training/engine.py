"""run(): carries out specifications. It knows stages, students and teachers, and no method by name."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import time
from collections.abc import Generator
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from bench.configure import method_of
from bench.data.batches import Batch, Views, steps_per_epoch
from bench.data.datasets import Part
from bench.data.splits import Splits
from bench.environment import environment
from bench.evaluation.cost import confusion, predict, score, scored, sizes
from bench.networks.run_networks import Networks
from bench.networks.signals import GRADIENTS, differentiation, observe
from bench.record import Epoch, EpochScores, Outcome, Provenance, Recorder
from bench.seeds import seed_of
from bench.spec import Spec
from bench.teachers.cache import FrozenTeacher, TeacherCache
from bench.training.averages import EpochAverages
from bench.training.interleave import interleave
from bench.training.stage_plan import finetuned, stage_epochs
from bench.training.train_state import TrainState
from methods.base import TEACHER, Method, Net, Signals, Stage, Step, Unsupported


class Diverged(Exception):
    """A loss is no longer a finite number."""


Result = tuple[Outcome, dict[str, bytes]]
"""The outcome, and the safetensors files "last" and "best" of the first student of the last stage, with
"last_auxiliary" and "best_auxiliary" where its predictions are made with modules of the method."""


def run(
    spec: Spec, data: Splits, recorder: Recorder, device: torch.device, cache: TeacherCache | None = None
) -> Result:
    """Trains and scores what a specification says; goes on from the recorder's checkpoint if there is one.

    Args:
        spec: what to do.
        data: split as the spec says.
        recorder: receives epochs, keeps checkpoints, and gives stored weights.
        device: where to compute.
        cache: gives what teachers have said before.

    Raises:
        Stopped: if the recorder ends the run.
        InputError: if the specification cannot be carried out.
    """
    (result,) = interleave([updates(spec, data, recorder, device, cache or TeacherCache())], device)
    if isinstance(result, Exception):
        raise result
    return result


def updates(
    spec: Spec, data: Splits, recorder: Recorder, device: torch.device, cache: TeacherCache
) -> Generator[None, None, Result]:
    """`run`, which pauses after every update so that others may be trained side by side.

    Those that share `cache` and ask the same teachers about the same views are given the same answers; each ends as
    it would alone.
    """
    try:
        return (yield from _Run(spec, data, recorder, device, cache).execute())
    except Unsupported as reason:
        return Outcome(status="unsupported", reason=str(reason), environment=environment(device)), {}
    except Diverged as reason:
        return Outcome(status="diverged", reason=str(reason), environment=environment(device)), {}


def rehearse(spec: Spec, data: Splits, recorder: Recorder, device: torch.device) -> None:
    """Makes one update of every stage and scores nothing, to see whether a method works on a pair.

    Raises:
        Unsupported: if it does not; the message names what is missing.
    """
    with torch.random.fork_rng():
        _Run(spec, data, recorder, device, TeacherCache()).rehearse()


TEACHING = ("teacher_forwards", "teacher_cached", "teacher_seconds")
"""Costs of teachers: images that they were asked about, those whose answers were at hand, the time that others took."""


class _Run:
    def __init__(self, spec: Spec, data: Splits, recorder: Recorder, device: torch.device, cache: TeacherCache) -> None:
        self.spec, self.data, self.recorder, self.device, self.cache = spec, data, recorder, device, cache
        self.method = method_of(spec)
        names = ("teacher" if index == 0 else f"teacher_{index + 1}" for index in range(len(spec.teachers)))
        models = {**dict(zip(names, spec.teachers, strict=False)), "student": spec.student}
        self.digests: dict[str, str] = {}
        self.networks = Networks(models, data, spec.seed, device, self._stored, cache.predictions)
        self.needs, self.groups = self.method.needed(), self.method.groups(data.train.classes)
        if self.method.needs_teacher and not spec.teachers:
            raise Unsupported(f"{spec.method} learns from a teacher, and the run has none.")
        if len(spec.teachers) > 1 and not self.method.several_teachers:
            raise Unsupported(f"{spec.method} takes one teacher, and the run has {len(spec.teachers)}.")
        stages = self.method.stages(tuple(Net(name) for name in models if name != "student"))
        self.stages = finetuned(self.method, list(stages), spec.recipe)
        self.lengths = stage_epochs([stage.epochs for stage in self.stages], spec.recipe.epochs)
        self.steps = steps_per_epoch(len(data.train.images), spec.recipe.batch_size)
        self.auxiliary: dict[str, nn.ModuleDict] = {}
        self.trainees: list[TrainState] = []
        self.stage, self.epoch, self.number = 0, 0, 0
        self.best: dict[str, Any] = {"number": 0, "accuracy": -1.0, "students": {}}
        self.probes: dict[Net, Signals] = {}
        """Of the stage's teachers, for two images."""
        self.identities: dict[Net, str] = {}
        self.cost: dict[str, float] = dict.fromkeys(("seconds", "samples", *TEACHING, "epochs", "training_set"), 0)

    def execute(self) -> Generator[None, None, Result]:
        if (file := self.recorder.checkpoint()) is not None:
            self._restore(file)
        else:
            self.trainees = self._enter(0)
        yield from self._train()
        while self.stage + 1 < len(self.stages):
            self.stage, self.epoch = self.stage + 1, 0
            self.trainees = self._enter(self.stage)
            yield from self._train()
        return self._result()

    def rehearse(self) -> None:
        for index, stage in enumerate(self.stages):
            self.stage, self.trainees = index, self._enter(index)
            views = self._views(stage)
            for trainee in self.trainees:
                trainee.train()
            self._step(stage, next(views.epoch(self.spec.seed, 1)), self._tutors(stage, views), 0)

    def _enter(self, index: int) -> list[TrainState]:
        """The students of a stage, with auxiliary sized by a probe and fresh optimizers."""
        stage = self.stages[index]
        networks = [self.networks.student(net) for net in stage.students]
        teachers = [self.networks.teacher(net) for net in stage.teachers]
        images = self.data.train.images[:2].to(self.device).float() / 255
        labels = torch.zeros(2, dtype=torch.long, device=self.device)
        probes = [observe(network.eval(), images, labels, self.needs) for network in (*networks, *teachers)]
        students, taught = probes[: len(networks)], tuple(probes[len(networks) :])
        self.probes = dict(zip(stage.teachers, taught, strict=True))
        for position, net in enumerate(stage.students):
            if net.name not in self.auxiliary:
                torch.manual_seed(seed_of(self.spec.seed, "extras", net.name))
                others = taught + _without(students, position)
                self.auxiliary[net.name] = self.method.auxiliary(students[position], others).to(self.device)
        stage.prepare(self.networks)
        self.identities = {net: self.networks.identity(net) for net in stage.teachers}
        recipe, updates = self.spec.recipe, self.lengths[index] * self.steps
        changes = {"lr": recipe.lr * stage.lr, "clip_norm": stage.clip_norm or recipe.clip_norm}
        recipe = recipe.model_copy(update=changes)
        return [
            TrainState.start(net, network, self.auxiliary[net.name], recipe, updates)
            for net, network in zip(stage.students, networks, strict=True)
        ]

    def _train(self) -> Generator[None, None, None]:
        """What is left of the current stage."""
        stage, length = self.stages[self.stage], self.lengths[self.stage]
        if self.epoch >= length:
            return
        before = (self.networks.asked, self.networks.cached, self.networks.seconds)
        views = self._views(stage)
        if self.epoch == 0:
            after = (self.networks.asked, self.networks.cached, self.networks.seconds)
            for name, new, old in zip(TEACHING, after, before, strict=True):
                self.cost[name] += new - old
        while self.epoch < length:
            yield from self._epoch(stage, views)

    def _views(self, stage: Stage) -> Views:
        data = stage.data(dataclasses.replace(self.data.train, augment=self.spec.recipe.augment), self.networks)
        self.cost["training_set"] = max(self.cost["training_set"], len(data.images))
        return Views(data, self.spec.recipe.batch_size, self.steps, self.device)

    def _tutors(self, stage: Stage, views: Views) -> list[FrozenTeacher]:
        """The stage's teachers for the coming epoch."""
        epoch, length, needs = (self.spec.seed, self.number + 1), self.lengths[self.stage], self._needs(stage)
        tutors = []
        for net in stage.teachers:
            network, identity, probe, outputs = self.networks.teacher(net), self.identities[net], self.probes[net], None
            if identity and not needs & GRADIENTS:
                name = identity + " ".join(sorted(needs)) * network.compute.compiled  # each is a pass with its own bits
                outputs = self.cache.outputs(name, views, epoch, length, needs, probe)
            tutors.append(FrozenTeacher(network, needs, outputs, probe.classifier))
        return tutors

    def _needs(self, stage: Stage) -> frozenset[str]:
        return self.needs if stage.needs is None else stage.needs

    def _epoch(self, stage: Stage, views: Views) -> Generator[None, None, None]:
        start, elsewhere, number = time.perf_counter(), 0.0, self.number + 1
        torch.manual_seed(seed_of(self.spec.seed, "noise", number))
        for trainee in self.trainees:
            trainee.train()
        meter, tutors = EpochAverages(self.device), self._tutors(stage, views)
        for update, batch in enumerate(views.epoch(self.spec.seed, number), start=self.epoch * self.steps):
            losses, first = self._step(stage, batch, tutors, update)
            meter.add(losses, self._headline(first), batch.labels)
            paused = time.perf_counter()
            yield
            elsewhere += time.perf_counter() - paused
        for tutor in tutors:
            tutor.close(update % self.steps + 1)
        if bad := meter.infinite():
            raise Diverged(f"in epoch {number} of {sum(self.lengths)} (stage {stage.name}) {', '.join(bad)}.")
        self.number, self.epoch = number, self.epoch + 1
        record = Epoch(
            number=number,
            of=sum(self.lengths),
            stage=stage.name,
            losses=meter.means(),
            train=meter.accuracy(),
            validation=self._validate(),
            learning_rate=self.trainees[0].optimizer.param_groups[0]["lr"],
            samples=meter.images * len(self.trainees),
            teacher_forwards=meter.images * len(tutors),
            teacher_cached=sum(max(0, meter.images - tutor.images) for tutor in tutors),
            seconds=time.perf_counter() - start - elsewhere,
        )
        for name in ("seconds", "samples", "teacher_forwards", "teacher_cached"):
            self.cost[name] += getattr(record, name)
        self.cost["teacher_seconds"] += sum(tutor.seconds for tutor in tutors)
        self.cost["epochs"] = number
        self.recorder.epoch(record, self._state)

    def _step(
        self, stage: Stage, batch: Batch, tutors: list[FrozenTeacher], update: int
    ) -> tuple[dict[str, Tensor], Signals]:
        """Trains every student on one batch, together or in turn; its losses, and the first student's signals."""
        epoch, progress = update / self.steps, update / (self.lengths[self.stage] * self.steps)
        inputs, labels, needs = batch.inputs, batch.labels, self._needs(stage)
        look = functools.partial(observe, images=inputs, labels=labels, needs=needs)
        taught = tuple(tutor.answer(update % self.steps, batch) for tutor in tutors)
        students = [look(trainee.network, training=True) for trainee in self.trainees]
        fellows = [student.detached() for student in students] if len(students) > 1 else []
        everyone = range(len(students))
        turns = [[position] for position in everyone] if stage.in_turn else [list(everyone)]
        losses: dict[str, Tensor] = {}
        for turn in turns:
            mine: dict[str, Tensor] = {}
            for position in turn:
                trainee, student = self.trainees[position], students[position]
                trainee.optimizer.zero_grad(set_to_none=True)
                others = taught + _without(fellows, position)
                step = Step(inputs, labels, student, others, trainee.auxiliary, progress, epoch)
                mine |= {f"{trainee.net.name}/{name}": value for name, value in stage.loss(step).items()}
            with differentiation(needs):
                torch.stack(list(mine.values())).sum().backward()
            for position in turn:
                self.trainees[position].update(update + 1)
                if turn is not turns[-1]:
                    fellows[position] = look(self.trainees[position].network)
            losses |= mine
        return losses, students[0]

    @torch.no_grad()
    def _headline(self, first: Signals) -> Tensor:
        """The first student's headline prediction (B, K) from its signals, without a trace in its auxiliary."""
        auxiliary = self.trainees[0].auxiliary.eval()
        logits = next(iter(self.method.predictions(first, auxiliary).values()))
        auxiliary.train()
        return logits

    def _validate(self) -> float:
        """Validation accuracy of the first student's headline; in the last stage, keeps the best epoch's weights."""
        part = self.data.validation
        logits = next(iter(self._predict(self.trainees[0], part).values()))
        accuracy = float((logits.argmax(dim=1) == part.labels).float().mean())
        if self.stage == len(self.stages) - 1 and accuracy > self.best["accuracy"]:
            students = {trainee.net.name: trainee.state(clone=True) for trainee in self.trainees}
            self.best = {"number": self.number, "accuracy": accuracy, "students": students}
        return accuracy

    def _predict(self, trainee: TrainState, part: Part) -> dict[str, Tensor]:
        return predict(self.method, trainee.network, trainee.auxiliary, part)

    def _result(self) -> Result:
        """Scores the last epoch and the best on validation and, unless this is a tuning run, on test: once."""
        parts = {"validation": self.data.validation, **({"test": self.data.test} if self.spec.test else {})}
        teacher = self.networks.teacher(TEACHER) if self.spec.teachers else None
        taught = {name: self.networks.predict(TEACHER, part.images) for name, part in parts.items() if teacher}
        last, confused = self._scores(parts, taught)
        scores, files = {"last": last, "best": last}, self._files("last")
        if self.best["number"] != self.number:
            for trainee in self.trainees:
                trainee.load(self.best["students"][trainee.net.name])
            scores["best"], _ = self._scores(parts, taught)
            scores["best"]["epoch"] = self.best["number"]
        files |= self._files("best")
        measured = {name: score(logits, parts[name].labels, None, self.groups) for name, logits in taught.items()}
        first = self.trainees[0]
        cost = self.cost | sizes(self.method, first.network, first.auxiliary, teacher, self.data.validation.images)
        outcome = Outcome(
            status="done",
            scores={name: EpochScores.model_validate(each) for name, each in scores.items()},
            cost=cost,
            environment=environment(self.device),
            provenance=Provenance(weights=self.digests, data=self.spec.data.fingerprint),
            teacher=measured,
            confusion=confused,
        )
        return outcome, files

    def _scores(self, parts: dict[str, Part], taught: dict[str, Tensor]) -> tuple[dict[str, Any], list[list[int]]]:
        """Metrics of every prediction of every student on each part, and the headline's confusion on the last part."""
        scores: dict[str, Any] = {"epoch": self.number}
        for name, part in parts.items():
            outputs = {trainee.net.name: self._predict(trainee, part) for trainee in self.trainees}
            scores[name] = {
                trainee.net.name: scored(
                    outputs[trainee.net.name],
                    self.method,
                    trainee.network,
                    trainee.auxiliary,
                    part,
                    taught.get(name),
                    self.groups,
                )
                for trainee in self.trainees
            }
        headline = next(iter(outputs[self.trainees[0].net.name].values()))
        return scores, confusion(headline, part.labels)

    def _files(self, which: str) -> dict[str, bytes]:
        """The first student's weights as a safetensors file, and its auxiliary' if predictions are made with them."""
        first = self.trainees[0]
        states = {which: first.network.state_dict()}
        if type(self.method).predictions is not Method.predictions:
            states[f"{which}_extras"] = first.auxiliary.state_dict()
        return {
            name: safetensors.torch.save({key: value.cpu().contiguous() for key, value in state.items()})
            for name, state in states.items()
            if state
        }

    def _stored(self, reference: str) -> bytes:
        file = self.recorder.weights(reference)
        self.digests[reference] = hashlib.sha256(file).hexdigest()
        return file

    def _state(self) -> bytes:
        """A checkpoint: all that the rest of the run depends on; random draws depend on seed and epoch alone."""
        buffer = io.BytesIO()
        state = {
            "place": (self.stage, self.epoch, self.number),
            "cost": self.cost,
            "networks": {name: self.networks.built[name].state_dict() for name in self.networks.trained},
            "auxiliary": {name: auxiliary.state_dict() for name, auxiliary in self.auxiliary.items()},
            "optimizers": [trainee.optimizer.state_dict() for trainee in self.trainees],
            "best": self.best,
        }
        torch.save(state, buffer)
        return buffer.getvalue()

    def _restore(self, file: bytes) -> None:
        """Puts the run where its checkpoint left it; walks the stages so far to name and build their networks."""
        state: dict[str, Any] = torch.load(io.BytesIO(file), map_location=self.device, weights_only=True)
        self.stage, self.epoch, self.number = state["place"]
        for index in range(self.stage + 1):
            self.trainees = self._enter(index)
        for name, weights in state["networks"].items():
            self.networks.built[name].load_state_dict(weights)
        for name, weights in state["auxiliary"].items():
            self.auxiliary[name].load_state_dict(weights)
        for trainee, optimizer in zip(self.trainees, state["optimizers"], strict=True):
            trainee.optimizer.load_state_dict(optimizer)
        self.cost, self.best = state["cost"], state["best"]


def _without(signals: list[Signals], position: int) -> tuple[Signals, ...]:
    return (*signals[:position], *signals[position + 1 :])

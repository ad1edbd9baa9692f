"""Scores of a run: on validation after every epoch, and at its end, once, on the test part."""

from __future__ import annotations

import dataclasses

import safetensors.torch
from torch import Tensor

from kdbench.bench.data.splits import Part
from kdbench.bench.environment import environment
from kdbench.bench.evaluation.cost import Costs, predict, sizes
from kdbench.bench.evaluation.decisions import confusion
from kdbench.bench.record import EpochScores, Metrics, Outcome, Provenance, Scores
from kdbench.bench.training.run_state import Best, Diverged, RunState
from kdbench.bench.training.setup import Setup
from kdbench.bench.training.train_state import TrainState
from kdbench.methods.base import TEACHER, Method

Result = tuple[Outcome, dict[str, bytes]]
"""The outcome, and the safetensors files "last" and "best" of the first student of the last stage, with
"last_auxiliary" and "best_auxiliary" where its predictions are made with modules of the method."""


@dataclasses.dataclass(frozen=True)
class Scorer:
    """Scores the students of a stage as they are."""

    setup: Setup
    state: RunState
    students: list[TrainState]

    def validate(self) -> float:
        """The primary metric of the first student's headline; in the last stage, keeps the best epoch's weights.

        Raises:
            Diverged: if a prediction is not finite.
        """
        task, part = self.setup.task, self.setup.data.validation
        headline = next(iter(self._predictions(self.students[0], part).values()))
        score = task.primary_value(headline, part.targets)
        if self.state.stage == len(self.setup.plan.stages) - 1 and self.state.best.beaten_by(score, task.primary):
            students = {student.net.name: student.copied_weights() for student in self.students}
            self.state.best = Best(self.state.number, score, students)
        return score

    def result(self) -> Result:
        """Scores the last epoch and the best on validation and, unless this is a tuning run, on test: once."""
        setup, best = self.setup, self.state.best
        parts = {"validation": setup.data.validation, **({"test": setup.data.test} if setup.spec.test else {})}
        networks = setup.networks
        teacher = networks.teacher(TEACHER) if setup.spec.teachers else None
        taught = {name: networks.predict(TEACHER, part.inputs) for name, part in parts.items() if teacher}
        last, headline = self._scores(self.state.number, parts, taught)
        decided = setup.task.decided(list(parts.values())[-1].targets)
        counted = decided >= 0
        scores, files = {"last": last, "best": last}, self._files("last")
        if best.students and best.number != self.state.number:
            for student in self.students:
                student.load(best.students[student.net.name])
            scores["best"], _ = self._scores(best.number, parts, taught)
        files |= self._files("best")
        first = self.students[0]
        cost = sizes(setup.task, setup.method, first.network, first.auxiliary, teacher, setup.data.validation.inputs)
        predictions = next(iter(last.validation.values()))
        outcome = Outcome(
            status="done",
            metric=setup.task.primary,
            scores=scores,
            cost=self._cost(cost),
            environment=environment(setup.device),
            provenance=Provenance(weights=setup.weights, data=setup.spec.data.fingerprint),
            teacher={
                name: setup.task.evaluate(each, parts[name].targets, None, self._groups)
                for name, each in taught.items()
            },
            confusion=confusion(headline[counted], decided[counted]),
            combined=tuple(name for name in predictions if setup.method.combines_exits(name)),
            notes=tuple(f"{net} does not take {', '.join(names)}" for net, names in networks.left_out.items()),
        )
        return outcome, files

    def _cost(self, sizes: dict[str, float]) -> dict[str, float]:
        """What the run has cost, with the sizes; of the parameters that it held, those that are not deployed."""
        cost = dict(self.state.cost)
        if held := cost.pop("held_parameters", 0):
            cost["training_parameters"] = held - sizes["parameters"]
        return cost | sizes

    @property
    def _groups(self) -> dict[str, tuple[int, ...]]:
        return self.setup.method.class_groups(self.setup.data.train.classes)

    def _predictions(self, student: TrainState, part: Part) -> dict[str, Tensor]:
        predictions = predict(self.setup.task, self.setup.method, student.network, student.auxiliary, part)
        if bad := [name for name, logits in predictions.items() if not logits.isfinite().all()]:
            net, number = student.net.name, self.state.number
            raise Diverged(f"after epoch {number} predictions of {net} are not finite: {', '.join(bad)}.")
        return predictions

    def _scores(self, epoch: int, parts: dict[str, Part], taught: dict[str, Tensor]) -> tuple[EpochScores, Tensor]:
        """Metrics of every prediction of every student on each part, and the headline's logits for the last part."""
        scores: dict[str, Scores] = {}
        for name, part in parts.items():
            outputs = {student.net.name: self._predictions(student, part) for student in self.students}
            scores[name] = {
                student.net.name: self._metrics(student, outputs[student.net.name], part, taught.get(name))
                for student in self.students
            }
        headline = next(iter(outputs[self.students[0].net.name].values()))
        return EpochScores(epoch=epoch, **scores), headline

    def _metrics(
        self, student: TrainState, outputs: dict[str, Tensor], part: Part, teacher_logits: Tensor | None
    ) -> dict[str, Metrics]:
        """Metrics of each prediction, and its multiply-adds where predictions are costed one by one."""
        evaluate, groups = self.setup.task.evaluate, self._groups
        scores = {name: evaluate(each, part.targets, teacher_logits, groups) for name, each in outputs.items()}
        costs = Costs(self.setup.task, self.setup.method, student.network, student.auxiliary, part.inputs)
        for name, cost in costs.of_predictions(list(outputs)).items():
            scores[name]["multiply_adds"] = cost
        return scores

    def _files(self, which: str) -> dict[str, bytes]:
        """The first student's weights, and its auxiliary modules' if predictions are made with them."""
        first = self.students[0]
        states = {which: first.network.state_dict()}
        if type(self.setup.method).predictions is not Method.predictions:
            states[f"{which}_auxiliary"] = first.auxiliary.state_dict()
        return {
            name: safetensors.torch.save({key: value.cpu().contiguous() for key, value in state.items()})
            for name, state in states.items()
            if state
        }

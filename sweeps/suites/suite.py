"""A suite: the data, pairs, recipe, methods and budget of a comparison, checked on load."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from kdbench.bench.configure import by_role, configure, flat, nested
from kdbench.bench.data.augment import check_augment
from kdbench.bench.record import Metric
from kdbench.bench.schema import Frozen
from kdbench.bench.spec import NUMBERS, DataSpec, ModelSpec, Recipe, Spec
from kdbench.bench.tasks import task_of
from kdbench.methods import REGISTRY
from kdbench.methods.base import Method
from kdbench.results.store.plan import LABELS_ALONE, UNLABELLED, PairRecord
from kdbench.sweeps.suites.tuning import Space, Tuning, containing

RECIPE = "recipe."
"""Prefix of a recipe's field among searched names."""
AGAIN = 1000
"""Between the seeds of two teachers of one architecture."""


class Pair(PairRecord):
    """A teacher, or several, and a student, by timm name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: dict[str, Any] = {}
    """Fields of the recipe in which this pair's training differs."""
    teaching: dict[str, Any] = {}
    """Fields of the recipe in which, beyond that, its teachers' training differs."""
    teacher_weights: tuple[str, ...] = ()
    """Checkpoints that teach untrained, one for each teacher, beside the suite's file; none for teachers that a sweep
    trains."""
    teacher_args: dict[str, Any] = {}
    """Arguments of the teachers' constructors; mean, std and input_size are their input's."""

    @model_validator(mode="after")
    def _one_for_each(self) -> Self:
        if self.teacher_weights and len(self.teacher_weights) != len(self.teachers):
            raise ValueError(f"teacher_weights are one for each of {len(self.teachers)} teachers")
        return self


@dataclass(frozen=True)
class ResolvedPair:
    """A pair as it is carried out under one seed: split, labels and teachers are drawn anew with each."""

    pair: Pair
    student: ModelSpec
    """The student's network, with the way in which it is computed."""
    teachers: tuple[Spec, ...]
    """The runs that train its teachers; none of those that come with weights for these data."""
    seed: int
    untrained: tuple[tuple[int, ModelSpec], ...] = ()
    """Teachers that come with their weights, with their places among all."""

    @property
    def taught(self) -> tuple[ModelSpec, ...]:
        """The networks of all teachers, the first one first."""
        networks = list(map(taught_by, self.teachers))
        for place, model in self.untrained:
            networks.insert(place, model)
        return tuple(networks)


Way = Callable[[ModelSpec, Recipe], ModelSpec]
"""Gives a model that is trained by a recipe the way in which it is computed."""


def plainly(model: ModelSpec, recipe: Recipe) -> ModelSpec:
    """The model as it is: where nothing is chosen it is computed eagerly in float32."""
    return model


class Suite(Frozen):
    """A comparison under one protocol."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    about: str = ""
    """A sentence that its tables show."""
    data: DataSpec
    pairs: Annotated[tuple[Pair, ...], Field(min_length=1)]
    """Each gets tables of its own."""
    methods: Annotated[tuple[str, ...], Field(min_length=1)] = tuple(sorted(REGISTRY))
    """The rows: ids of methods, compositions such as "kd+at", or names of `settings`."""
    settings: dict[str, dict[str, Any]] = {}
    """Hyperparameters of methods, by id, that are fixed in this suite rather than at their defaults or searched.

    One that says its `method`, as { method = "kd", temperature = 1.0 } does, is a row of its own under the name it has.
    `recipe.` names are fields of the recipe in which the row's training differs, as { "recipe.epochs" = 96 }.
    """
    recipe: Recipe = Recipe()
    teacher: dict[str, Any] = {}
    """Fields of the recipe in which teachers' training differs."""
    teacher_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Labelled share of the training part for teachers; by default the students'."""
    tuning: Tuning = Tuning()
    seeds: Annotated[int, Field(ge=0)] = 5
    """How often the best setting is trained again, with seeds 1, 2, ...; tuning uses seed 0, and 0 is tuning alone."""
    precision: Literal["auto", "measured", "fp32", "bf16"] = "auto"
    """How networks are computed unless the command says otherwise; see `kdbench.bench.training.precision.chosen`."""
    reasons: dict[str, str] = {}
    """Why a method does worse than the control, by row; tables say it."""
    show: Literal["last", "best"] = "last"
    """Which epoch tables show, and tuning judges by its validation score: the last, or the best on validation."""

    @field_validator("methods")
    @classmethod
    def _once(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(methods))

    @model_validator(mode="after")
    def _known(self) -> Self:
        for pair in self.pairs:
            rows = [self.recipe_of(pair, row) for row in self.methods_of(pair)]
            for recipe in (*rows, self.teacher_recipe(pair)):
                check_augment(recipe.augment)
        for name, values in self.settings.items():
            if "method" in values and name in REGISTRY:
                raise ValueError(
                    f"settings of {name} are those of a method, so they cannot say another: rename the row"
                )
        for name in sorted({*self.methods, *self.settings, *(name for pair in self.pairs for name in pair.methods)}):
            self.starts(name, "", {})
        if len({pair.name for pair in self.pairs}) < len(self.pairs):
            raise ValueError("pairs must differ in their teachers, their student or their note")
        return self

    def methods_of(self, pair: Pair) -> tuple[str, ...]:
        """The methods that are compared on a pair."""
        return pair.methods or self.methods

    def configured(self, method: str, params: dict[str, Any]) -> Method:
        """A method with the suite's settings and these hyperparameters."""
        fixed = {"method": method} | self.settings.get(method, {})
        return configure(fixed.pop("method"), nested({k: v for k, v in fixed.items() if not of_recipe(k)} | params))

    def recipe_of(self, pair: Pair, method: str = "", setting: Mapping[str, Any] = MappingProxyType({})) -> Recipe:
        """The recipe by which a pair's students are trained, by a method with a setting of what is searched."""
        own = {**self.settings.get(method, {}), **setting}
        changed = {name.removeprefix(RECIPE): value for name, value in own.items() if of_recipe(name)}
        return Recipe.model_validate(self.recipe.model_dump() | pair.recipe | changed)

    def teacher_recipe(self, pair: Pair) -> Recipe:
        """The recipe by which a pair's teachers are trained."""
        return Recipe.model_validate(self.recipe.model_dump() | pair.recipe | self.teacher | pair.teaching)

    def resolve(self, pair: Pair, way: Way = plainly, seed: int = 0) -> ResolvedPair:
        """A pair's student, and the runs that train its teachers, without distillation, on the split of a seed.

        Args:
            pair: one of this suite's.
            way: gives each network the way in which it is computed.
            seed: of the runs that learn from these teachers.
        """
        fraction = self.teacher_fraction or self.data.train_fraction
        data = self.data.model_copy(update={"train_fraction": fraction, "split_seed": seed})
        recipe = self.teacher_recipe(pair)
        weights = pair.teacher_weights or ("scratch",) * len(pair.teachers)
        named = [
            ModelSpec(name=n, weights=w, args=pair.teacher_args) for n, w in zip(pair.teachers, weights, strict=True)
        ]
        models = [way(model, recipe) for model in named]
        untrained = tuple((place, model) for place, model in enumerate(models) if model.ready)
        trained = [model for model in models if not model.ready]
        student = way(ModelSpec(name=pair.student), self.recipe_of(pair)).learning
        return ResolvedPair(pair, student, teacher_runs(trained, data, recipe, seed), seed, untrained)

    def spec(self, resolved: ResolvedPair, method: str, setting: dict[str, Any], test: bool) -> Spec:
        """A run of a method with a setting of what is searched; `recipe.` names go to the recipe.

        A method that takes one teacher is given the first.
        """
        configured = self.configured(method, {k: v for k, v in setting.items() if not of_recipe(k)})
        return Spec(
            method=configured.id,
            params=configured.hyperparameters(),
            student=resolved.student,
            teachers=resolved.taught if configured.several_teachers else resolved.taught[:1],
            data=self.data.model_copy(update={"split_seed": resolved.seed}),
            recipe=self.recipe_of(resolved.pair, method, setting),
            seed=resolved.seed,
            test=test,
        )

    def weights(self, method: str) -> tuple[str, ...]:
        """The weights of loss terms that tuning a method searches in units of their calibrated value."""
        fixed = self.settings.get(method, {}).keys() | self.tuning.ranges.get(method, {}).keys()
        return tuple(name for name in self.configured(method, {}).loss_weights() if name not in fixed)

    def space(self, method: str, calibrated: Mapping[str, float]) -> Space:
        """What tuning a method searches: its weights, its other hyperparameters, and the suite's of the recipe.

        Args:
            method: a row.
            calibrated: the calibrated value of each of `weights`; one without is searched around the paper's.
        """
        fixed, configured = self.settings.get(method, {}), self.configured(method, {})
        start = flat(configured.hyperparameters())
        weights = {name: calibrated.get(name) or start.get(name, 1.0) for name in self.weights(method)}
        own = configured.space() | self.tuning.around(weights) | self.tuning.distributions(method)
        recipe = {f"{RECIPE}{name}": each.distribution for name, each in self.tuning.search.items()}
        return {name: space for name, space in (own | recipe).items() if name not in fixed}

    def starts(self, method: str, pair: str, calibrated: Mapping[str, float]) -> list[dict[str, Any]]:
        """The settings of the first trials: the paper's, the calibrated, and what a longer tuning has found before.

        Args:
            method: a row.
            pair: name of the pair.
            calibrated: as `space` takes it.
        """
        space = self.space(method, calibrated)
        values = flat(self.configured(method, {}).hyperparameters())
        values |= {name: 1.0 for name in self.weights(method) if name not in values}
        values |= {f"{RECIPE}{name}": getattr(self.recipe, name) for name in self.tuning.search}
        paper = {name: values[name] for name in space} | self.tuning.starts.get(method, {})
        known = {name: value for name, value in calibrated.items() if name in space}
        found = self.tuning.warm.get(pair, {}).get(method)
        starts = [paper, *([paper | known] if known else []), *([paper | found] if found else [])]
        for start in starts:
            self.configured(method, {name: value for name, value in start.items() if not of_recipe(name)})
            containing(space, start)
        return starts

    def record(self) -> dict[str, Any]:
        """What a plan keeps of the suite, as JSON values."""
        rows = dict.fromkeys(row for pair in self.pairs for row in self.methods_of(pair))
        given = {row: given_to(self.configured(row, {})) for row in rows}
        role = {row: self.configured(row, {}).role for row in rows}
        baselines = {given[row]: row for row in reversed(rows) if role[row] == "baseline"}
        return self.model_dump(mode="json") | compared_by(self.data) | {"given": given, "baselines": baselines}

    def digest(self, precision: str) -> str:
        """8 hexadecimal digits of the protocol: all but which methods and pairs, and how many seeds.

        Args:
            precision: that was asked for, and the kind of device that it is on.
        """
        protocol = self.model_dump(
            mode="json", exclude={"methods", "pairs", "seeds", "about", "name", "precision", "reasons"}
        )
        for pair in self.pairs:
            name = pair.name
            own: dict[str, Any] = {name: pair.recipe, f"teaching of {name}": pair.teaching}
            own |= {f"weights of {name}": list(pair.teacher_weights), f"arguments of {name}": pair.teacher_args}
            protocol |= {key: values for key, values in own.items() if values}
        text = json.dumps(protocol | {"precision": precision, "numbers": NUMBERS}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def given_to(method: Method) -> str:
    """What a method learns from, in the words of tables."""
    if method.uses_unlabelled():
        return UNLABELLED
    return "labels and a teacher" if method.needs_teacher else LABELS_ALONE


def primary_of(data: DataSpec) -> Metric:
    """The primary metric of a data set's task."""
    return task_of(data.task).primary


def compared_by(data: DataSpec) -> dict[str, Any]:
    """By what a plan's runs on such data are compared: the control, the baseline and the primary metric."""
    metric = primary_of(data).model_dump(mode="json")
    return {"control": by_role("control"), "baseline": by_role("baseline"), "metric": metric}


def teacher_runs(models: Sequence[ModelSpec], data: DataSpec, recipe: Recipe, seed: int = 0) -> tuple[Spec, ...]:
    """The runs that train teachers, by hard labels alone; a model that comes again is trained from another seed."""
    return tuple(
        Spec(
            method=by_role("control"),
            student=model,
            data=data,
            recipe=recipe,
            seed=seed + AGAIN * models[:place].count(model),
        )
        for place, model in enumerate(models)
    )


def taught_by(teacher: Spec) -> ModelSpec:
    """The network that a run has trained, as another run's teacher."""
    return teacher.student.model_copy(update={"weights": f"run:{teacher.key}"})


def of_recipe(name: str) -> bool:
    """Whether a name of a setting is a recipe's field."""
    return name.startswith(RECIPE)

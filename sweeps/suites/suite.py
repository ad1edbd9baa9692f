"""A suite: the data, pairs, recipe, methods and budget of a comparison, checked on load."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from optuna.distributions import BaseDistribution, FloatDistribution
from pydantic import ConfigDict, Field, field_validator, model_validator

from bench.configure import by_role, configure
from bench.data.augment import check_augment
from bench.record import Metric
from bench.schema import Frozen
from bench.spec import NUMBERS, DataSpec, ModelSpec, Recipe, Spec
from bench.tasks import task_of
from methods import REGISTRY
from methods.base import Method
from results.store.plan import PairRecord

RECIPE = "recipe."
"""Prefix of a recipe's field among searched names."""


class Pair(PairRecord):
    """A teacher, or several, and a student, by timm name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: dict[str, Any] = {}
    """Fields of the recipe in which this pair's training differs."""
    teaching: dict[str, Any] = {}
    """Fields of the recipe in which, beyond that, its teachers' training differs."""


@dataclass(frozen=True)
class ResolvedPair:
    """A pair as it is carried out."""

    pair: Pair
    student: ModelSpec
    """The student's network, with the way in which it is computed."""
    teachers: tuple[Spec, ...]
    """The runs that train its teachers."""


Way = Callable[[ModelSpec, Recipe], ModelSpec]
"""Gives a model that is trained by a recipe the way in which it is computed."""


def plainly(model: ModelSpec, recipe: Recipe) -> ModelSpec:
    """The model as it is: where nothing is chosen it is computed eagerly in float32."""
    return model


class Range(Frozen):
    """The range in which tuning searches a number of the recipe."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError("low must be below high, and positive on a log scale")
        return self


class Tuning(Frozen):
    """The tuning budget, the same for every method."""

    trials: Annotated[int, Field(ge=1)] = 20
    prune: bool = True
    """Whether trials below the median of earlier ones are stopped after half of their epochs."""
    search: dict[str, Range] = {}
    """Numbers of the recipe that every method searches beside its own."""

    @field_validator("search")
    @classmethod
    def _numbers(cls, search: dict[str, Range]) -> dict[str, Range]:
        searchable = [name for name, field in Recipe.model_fields.items() if isinstance(field.default, float)]
        for name in search:
            if name not in searchable:
                raise ValueError(f"{name} is not a searchable number of the recipe; there are {', '.join(searchable)}")
        return search


class Suite(Frozen):
    """A comparison under one protocol."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    about: str = ""
    data: DataSpec
    pairs: Annotated[tuple[Pair, ...], Field(min_length=1)]
    methods: tuple[str, ...] = tuple(sorted(REGISTRY))
    """The rows: ids of methods, compositions such as "kd+at", or names of `settings`."""
    settings: dict[str, dict[str, Any]] = {}
    """Hyperparameters of methods, by id, that are fixed in this suite rather than at their defaults or searched.

    One that says its `method`, as { method = "kd", temperature = 1.0 } does, is a row of its own under the name it has.
    """
    recipe: Recipe = Recipe()
    teacher: dict[str, Any] = {}
    """Fields of the recipe in which teachers' training differs."""
    teacher_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Labelled share of the training part for teachers; by default the students'."""
    tuning: Tuning = Tuning()
    seeds: Annotated[int, Field(ge=1)] = 5
    """How often the best setting is trained again, with seeds 1, 2, ...; tuning uses seed 0."""
    precision: Literal["auto", "measured", "fp32", "bf16"] = "auto"
    """How networks are computed unless the command says otherwise; see `bench.training.precision.chosen`."""
    show: Literal["last", "best"] = "last"
    """Which epoch tables show, and tuning judges by its validation score: the last, or the best on validation."""

    @field_validator("methods")
    @classmethod
    def _once(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(methods))

    @model_validator(mode="after")
    def _known(self) -> Self:
        for pair in self.pairs:
            for recipe in (self.recipe_of(pair), self.teacher_recipe(pair)):
                check_augment(recipe.augment)
        for name, values in self.settings.items():
            if "method" in values and name in REGISTRY:
                raise ValueError(
                    f"settings of {name} are those of a method, so they cannot say another: rename the row"
                )
        for name in {*self.methods, *self.settings, *(name for pair in self.pairs for name in pair.methods)}:
            self.configured(name, {})
        if len({pair.name for pair in self.pairs}) < len(self.pairs):
            raise ValueError("pairs must differ in their teachers, their student or their note")
        return self

    def methods_of(self, pair: Pair) -> tuple[str, ...]:
        """The methods that are compared on a pair."""
        return pair.methods or self.methods

    def configured(self, method: str, params: dict[str, Any]) -> Method:
        """A method with the suite's settings and these hyperparameters."""
        fixed = {"method": method} | self.settings.get(method, {})
        return configure(fixed.pop("method"), fixed | params)

    def recipe_of(self, pair: Pair) -> Recipe:
        """The recipe by which a pair's students are trained."""
        return Recipe.model_validate(self.recipe.model_dump() | pair.recipe)

    def teacher_recipe(self, pair: Pair) -> Recipe:
        """The recipe by which a pair's teachers are trained."""
        return Recipe.model_validate(self.recipe.model_dump() | pair.recipe | self.teacher | pair.teaching)

    def resolve(self, pair: Pair, way: Way = plainly) -> ResolvedPair:
        """A pair's student, and the runs that train its teachers, without distillation.

        Args:
            pair: one of this suite's.
            way: gives each network the way in which it is computed.
        """
        fraction = self.teacher_fraction or self.data.train_fraction
        data, recipe = self.data.model_copy(update={"train_fraction": fraction}), self.teacher_recipe(pair)
        teachers = teacher_runs([way(ModelSpec(name=name), recipe) for name in pair.teachers], data, recipe)
        return ResolvedPair(pair, way(ModelSpec(name=pair.student), self.recipe_of(pair)), teachers)

    def spec(self, resolved: ResolvedPair, method: str, setting: dict[str, Any], seed: int, test: bool) -> Spec:
        """A run of a method with a setting of what is searched; `recipe.` names go to the recipe.

        A method that takes one teacher is given the first.
        """
        recipe = {k.removeprefix(RECIPE): v for k, v in setting.items() if k.startswith(RECIPE)}
        configured = self.configured(method, {k: v for k, v in setting.items() if not k.startswith(RECIPE)})
        return Spec(
            method=configured.id,
            params=configured.hyperparameters(),
            student=resolved.student,
            teachers=tuple(map(taught_by, resolved.teachers if configured.several_teachers else resolved.teachers[:1])),
            data=self.data,
            recipe=self.recipe_of(resolved.pair).model_copy(update=recipe),
            seed=seed,
            test=test,
        )

    def space(self, method: str) -> dict[str, BaseDistribution]:
        """What tuning a method searches: its own hyperparameters, and the recipe's numbers of this suite."""
        ranges, fixed = self.tuning.search.items(), self.settings.get(method, {})
        recipe = {f"{RECIPE}{name}": FloatDistribution(r.low, r.high, log=r.log) for name, r in ranges}
        own = self.configured(method, {}).space()
        return {name: space for name, space in own.items() if name not in fixed} | recipe

    def defaults(self, method: str) -> dict[str, Any]:
        """The setting of trial 0: the paper's own hyperparameters and the suite's own recipe."""
        values = self.configured(method, {}).hyperparameters()
        values |= {f"{RECIPE}{name}": getattr(self.recipe, name) for name in self.tuning.search}
        return {name: values[name] for name in self.space(method)}

    def record(self) -> dict[str, Any]:
        """What a plan keeps of the suite, as JSON values."""
        return self.model_dump(mode="json") | compared_by(self.data)

    def digest(self, precision: str) -> str:
        """8 hexadecimal digits of the protocol: all but which methods and pairs, and how many seeds.

        Args:
            precision: that was asked for, and the kind of device that it is on.
        """
        protocol = self.model_dump(mode="json", exclude={"methods", "pairs", "seeds", "about", "name", "precision"})
        for pair in self.pairs:
            name = pair.name
            own = {name: pair.recipe, f"teaching of {name}": pair.teaching}
            protocol |= {key: values for key, values in own.items() if values}
        text = json.dumps(protocol | {"precision": precision, "numbers": NUMBERS}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def primary_of(data: DataSpec) -> Metric:
    """The primary metric of a data set's task."""
    return task_of(data.task).primary


def compared_by(data: DataSpec) -> dict[str, Any]:
    """By what a plan's runs on such data are compared: the control, the baseline and the primary metric."""
    metric = primary_of(data).model_dump(mode="json")
    return {"control": by_role("control"), "baseline": by_role("baseline"), "metric": metric}


def teacher_runs(models: Sequence[ModelSpec], data: DataSpec, recipe: Recipe) -> tuple[Spec, ...]:
    """The runs that train teachers, by hard labels alone; a model that comes again is trained from another seed."""
    return tuple(
        Spec(
            method=by_role("control"),
            student=model,
            data=data,
            recipe=recipe,
            seed=models[:place].count(model),
        )
        for place, model in enumerate(models)
    )


def taught_by(teacher: Spec) -> ModelSpec:
    """The network that a run has trained, as another run's teacher."""
    return teacher.student.model_copy(update={"weights": f"run:{teacher.key}"})

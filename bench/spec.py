"""The frozen specification of a run, and the key that names it: the hash of all that decides the result."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from kdbench.bench.errors import unknown
from kdbench.bench.schema import Finite, Frozen, schema_at

NUMBERS = 4
"""Raised by hand with every change of the code that moves numbers, so that old results are not taken for new ones."""


KEYS = "docs/toml.md, all keys with an example each"

FROM_OUTSIDE = re.compile(r"\b[A-Za-z_]\w*@[0-9a-f]{8}\b")
"""The id of a method that is no part of this package: CLASS@HASH, of its file's SHA-256."""


def ids_from_outside(text: str) -> list[str]:
    """The ids of methods from outside that stand in a text, as in a specification."""
    return sorted(set(FROM_OUTSIDE.findall(text)))


class Compute(Frozen):
    """How a network is computed; the default is the plain path. Weights, losses and optimizers are float32 always."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """fp32, or bf16 by autocast: weights, losses and optimizers stay in float32."""
    layout: Literal["contiguous", "channels_last"] = "contiguous"
    """Of images, feature maps and the weights of convolutions in memory."""
    compiled: bool = False
    """Whether torch.compile makes the network's passes, with CUDA graphs on a GPU."""


class ModelSpec(Frozen):
    """A network: a timm name, where its first weights come from, constructor arguments, and how it is computed."""

    name: str
    weights: Annotated[str, Field(pattern=r"^(scratch|pretrained|(run|sha256|start):\w+)$")] = "scratch"
    """scratch; pretrained (timm's weights for the name); run:KEY (a finished run's); sha256:HASH (an import, as it is);
    or start:HASH (an import from which a network's training starts)."""
    args: dict[str, Any] = {}
    compute: Compute = Compute()

    @property
    def ready(self) -> bool:
        """Whether it comes with the weights with which it is used."""
        return self.weights.startswith("sha256:")

    @property
    def learning(self) -> ModelSpec:
        """The same network as one that is trained: imported weights are where it starts."""
        return self.model_copy(update={"weights": self.weights.replace("sha256:", "start:")})


class DataSpec(Finite):
    """A data set of a task, its split, and how much of the training part is labelled."""

    name: str
    """Of a data set, or the path of a folder of images, beside the file."""
    task: str = "image"
    """What is to be learned: the name of a file of `kdbench.bench.tasks`."""
    image_size: Annotated[int, Field(ge=0, le=1024)] = 0
    """Height and width in pixels; 0 is the data set's own (folders of images need it)."""
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of what is not test."""
    test: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of all, where the data set has no test part of its own."""
    split_seed: int = 0
    """Of the split and the labelled subset; in a suite each seed has its own."""
    train_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Labelled share of the training part; the rest is unlabelled."""
    fingerprint: str = ""
    """Hash of inputs and targets; filled in when the data are read."""

    @model_serializer(mode="wrap")
    def _without_the_first_task(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves the first task out, so that keys of runs from before there were others hold."""
        values: dict[str, Any] = handler(self)
        if values.get("task") == "image":
            del values["task"]
        return values


class Recipe(Finite):
    """How every network of a run is trained."""

    epochs: Annotated[int, Field(ge=1, le=10**6)] = 240
    """Passes over the labelled samples, of all stages together."""
    batch_size: Annotated[int, Field(ge=2, le=10**6)] = 64
    """Labelled samples of a batch."""
    optimizer: Literal["sgd", "nesterov", "adam", "adamw", "rmsprop"] = "sgd"
    lr: Annotated[float, Field(gt=0)] = 0.05
    """The learning rate at its highest."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of sgd, nesterov and rmsprop."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    schedule: Literal["constant", "cosine", "step"] = "step"
    """Of the learning rate within a stage, after the warm-up."""
    milestones: tuple[float, ...] = (0.625, 0.75, 0.875)
    """Of schedule "step": as shares of a stage's epochs."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Of schedule "step": the factor at each milestone."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a stage's epochs in which the learning rate rises linearly from zero."""
    unlabelled_ratio: Annotated[float, Field(gt=0, le=32)] = 1.0
    """Of methods that are given more than the labelled samples: how many others a batch has for each labelled one."""
    augment: str = "crop+flip"
    """none, or several of crop, flip, randaugment and the like with + between them."""
    clip_norm: Annotated[float, Field(ge=0)] = 0.0
    """Largest gradient norm of a student; 0 is no clipping."""
    finetune: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the epochs, at the end, in which the student learns from hard labels alone."""
    finetune_lr: Annotated[float, Field(gt=0)] = 0.1
    """A factor on the learning rate while fine-tuning."""


class Spec(Frozen):
    """Everything that decides the result of a run, and nothing that does not (device, workers, folders)."""

    method: str
    params: dict[str, Any] = {}
    student: ModelSpec
    teachers: tuple[ModelSpec, ...] = ()
    data: DataSpec
    recipe: Recipe = Recipe()
    seed: int = 0
    test: bool = True
    """Whether the test part is scored at the end; a tuning run never touches it."""
    numbers: int = NUMBERS

    @property
    def key(self) -> str:
        """16 hexadecimal digits: the name of this run wherever it is kept."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()[:16]

    def canonical(self) -> str:
        """The specification as JSON with sorted names: what is hashed and stored."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True)

    def views(self) -> str:
        """What runs have in common that may ask the same teachers about the same views; empty without teachers."""
        if not self.teachers:
            return ""
        own = {"method", "params", "student", "recipe", "test"}
        shared = self.recipe.model_dump(include={"batch_size", "augment", "epochs", "unlabelled_ratio"})
        return json.dumps([self.model_dump(mode="json", exclude=own), shared], sort_keys=True)


def explain(error: ValidationError, schema: type[BaseModel] | None = None) -> str:
    """A pydantic error as one line: where, the rule, the value.

    Of a file by its schema, a key that it does not have comes with the near ones, and where all keys are told.
    """
    parts, see = [], ""
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"] if part != "__root__")
        message = item["msg"].removeprefix("Value error, ")
        got = "" if item["type"] in ("value_error", "missing") else f", but got {item['input']!r}"
        if schema and item["type"] in ("extra_forbidden", "missing"):
            see = f" (see {KEYS})"
        if schema and item["type"] == "extra_forbidden" and (table := schema_at(schema, item["loc"][:-1])):
            message, got = str(unknown("key", str(item["loc"][-1]), table.model_fields)).rstrip("."), ""
        parts.append(f"{where}: {message}{got}" if where else f"{message}{got}")
    return "; ".join(parts) + see


def read_value(value: Any) -> Any:
    """A value from the command line as JSON where it is JSON, else as the text it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value

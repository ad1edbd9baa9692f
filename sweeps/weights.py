"""Weights that networks come with: published ones, of timm's tags, the Hugging Face hub or a folder, and a user's own.

All are imported into the store first, so that a run's key names them by their hash, and workers need no network.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import safetensors.torch
import timm
import torch

from kdbench.bench.data.images import ImageSplits
from kdbench.bench.data.splits import Splits
from kdbench.bench.errors import InputError
from kdbench.bench.networks.build import SOURCES, build, published_config
from kdbench.bench.networks.checkpoints import import_checkpoint, load_weights
from kdbench.bench.record import ACCURACY, Outcome
from kdbench.bench.spec import ModelSpec, Recipe
from kdbench.bench.tasks import Task
from kdbench.bench.teachers.doubts import chance_doubt, doubts
from kdbench.results.store.plan import Planned
from kdbench.results.store.run_store import RunStore
from kdbench.results.store.stored_run import StoredRun
from kdbench.sweeps.scheduling.driver import News
from kdbench.sweeps.suites.suite import Pair, Suite, Way

Import = Callable[[ModelSpec], ModelSpec]
"""Puts a model's weights into the store; models without any as they are."""


def with_weights(way: Way, imports: Import) -> Way:
    """The same way of computing, of models whose weights are imported first, once for each model."""
    known: dict[str, ModelSpec] = {}

    def imported_first(model: ModelSpec, recipe: Recipe) -> ModelSpec:
        name = model.model_dump_json()
        if name not in known:
            known[name] = imports(model)
        return way(known[name], recipe)

    return imported_first


def named(name: str) -> str:
    """A model's name; the path of a folder as timm has it, local-dir:PATH.

    Raises:
        InputError: for a path where there is no model.
    """
    if name.startswith(SOURCES) or os.sep not in name:
        return name
    folder = Path(name).expanduser().resolve()
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} holds no model that timm can read: there is no config.json in it.")
    return f"local-dir:{folder}"


def started(model: ModelSpec, data: Splits, store: RunStore, say: Callable[[str], None]) -> ModelSpec:
    """A model with the weights that its name means, in the store; one that is named plainly has random ones.

    `name.tag` is timm's published weights, `hf-hub:OWNER/NAME` those of the hub, `local-dir:PATH` a folder's; the
    argument `pretrained` says it of any name. Weights that tell as many classes as the data have are kept as they are
    (sha256:HASH); of others a new classifier, drawn once, takes the place of theirs (start:HASH).

    Args:
        model: by name, without weights.
        data: for which it is.
        store: keeps the weights.
        say: is told what the name means, where that may be asked.

    Raises:
        InputError: if there are no such weights, or they cannot be had.
    """
    if model.weights != "scratch":
        return model
    model, args = model.model_copy(update={"name": named(model.name)}), dict(model.args)
    wanted = args.pop("pretrained", model.name.startswith(SOURCES) or "." in model.name)
    model = model.model_copy(update={"args": args})
    if not isinstance(wanted, bool):
        raise InputError(f"pretrained of {model.name} is true or false, but got {wanted!r}.")
    if not isinstance(data, ImageSplits):
        return model
    if not wanted:
        if timm.is_model_pretrained(model.name):
            say(f"{model.name}: starts from random weights; published ones are named {_tagged(model.name)}.")
        return model
    found, classes = _published(model, data, store, "or --teacher-arg pretrained=false for random weights.")
    if classes == data.train.classes:
        say(f"{model.name}: published weights for {classes} classes, as they are.")
        return found
    say(
        f"{model.name}: published weights for {classes} classes; a new classifier tells the {data.train.classes} of "
        "these data, and all of it is trained here."
    )
    return found.learning


def checkpoint(task: Task, model: ModelSpec, path: Path, data: Splits, store: RunStore) -> ModelSpec:
    """A model with a user's own weights, in the store.

    Raises:
        InputError: if the file is missing, is not a checkpoint of tensors, or does not fit the model.
    """
    network = task.build(model, data)
    return model.model_copy(update={"weights": store.import_weights(import_checkpoint(path, network, model.name))})


def doubted(
    task: Task, models: Sequence[ModelSpec], data: Splits, store: RunStore, device: torch.device
) -> Iterator[str]:
    """What speaks against imported teachers, each once; nothing where the task decides on no class for each image."""
    for model in {each.model_dump_json(): each for each in models if each.ready}.values():
        if isinstance(data, ImageSplits):
            network = task.build(model, data)
            load_weights(network, store.weights(model.weights), model.name)
            yield from doubts(task, network.to(device), model.name, data)


def near_chance(outcome: Outcome, name: str) -> str:
    """Says of a teacher that was trained here that it is near chance on validation; empty if it is not."""
    counts = [sum(row) for row in outcome.confusion]
    score = outcome.headline("last", "validation")
    if outcome.metric != ACCURACY or score is None or not counts:
        return ""
    return chance_doubt(name, score, max(counts) / sum(counts), "validation")


def doubting(report: Callable[[Planned, News], None], say: Callable[[str], None]) -> Callable[[Planned, News], None]:
    """The same report, which also says, once of each, that a teacher that was trained here is near chance."""
    told: set[str] = set()

    def both(planned: Planned, news: News) -> None:
        report(planned, news)
        if planned.phase == "teacher" and isinstance(news, StoredRun) and news.outcome and news.key not in told:
            told.add(news.key)
            if doubt := near_chance(news.outcome, f"{news.spec.student.name} (seed {news.spec.seed})"):
                say(doubt)

    return both


def with_checkpoints(suite: Suite, task: Task, data: Splits, store: RunStore) -> Suite:
    """A suite whose pairs' own checkpoints are in the store, named by their hashes.

    Raises:
        InputError: as `checkpoint` does.
    """

    def reference(pair: Pair, name: str, path: str) -> str:
        return checkpoint(task, ModelSpec(name=name, args=pair.teacher_args), Path(path), data, store).weights

    pairs = [
        pair.model_copy(
            update={
                "teacher_weights": tuple(
                    reference(pair, name, path) for name, path in zip(pair.teachers, pair.teacher_weights, strict=False)
                )
            }
        )
        for pair in suite.pairs
    ]
    return suite.model_copy(update={"pairs": tuple(pairs)})


def imported(model: ModelSpec, data: ImageSplits, store: RunStore) -> ModelSpec:
    """A model whose published weights for these classes are kept in the store; others are as they are.

    Raises:
        InputError: that says how to get them, that there are none or for other classes, or that no model can be built.
    """
    if model.weights != "pretrained":
        return model
    instead = "or leave pretrained out, so that the teacher is trained here."
    return _published(model, data, store, instead, classes=data.train.classes)[0]


def _published(
    model: ModelSpec, data: ImageSplits, store: RunStore, instead: str, classes: int = 0
) -> tuple[ModelSpec, int]:
    """A model whose published weights are in the store, with what they take; and how many classes they tell."""
    config, name, args = published_config(model.name)
    if not (config and config.has_weights):
        raise InputError(f"timm has no weights of {model.name}: name others, as resnet34.tv_in1k, {instead}")
    if classes and config.num_classes != classes:
        raise InputError(
            f"the weights of {model.name} tell {config.num_classes} classes, but the data have {classes}: name weights "
            f"for {classes} classes, {instead}"
        )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # of a new classifier
            network = build(model.model_copy(update={"weights": "pretrained"}), data)
    except InputError as error:
        takes = {"in_chans": 3, "input_size": config.input_size[-1], "mean": config.mean, "std": config.std}
        untrained = ModelSpec(name=name, args=args | takes | model.args)
        build(untrained, data)  # says what is wrong, unless it is the weights
        raise InputError(_missing(model.name, error) + f" Or {instead.removeprefix('or ')}") from None
    state = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
    reference = store.import_weights(safetensors.torch.save(state))
    mean, std = (tuple(values.flatten().tolist()) for values in (network.mean, network.std))
    takes = {"in_chans": len(mean), "input_size": network.input_size, "mean": mean, "std": std}
    kept = ModelSpec(name=name, weights=reference, args=args | model.args | takes, compute=model.compute)
    return kept, config.num_classes


def _missing(name: str, error: InputError) -> str:
    """What to do where published weights cannot be had."""
    kind, _, place = name.partition(":")
    if kind == "local-dir":
        return f"the weights in {place} cannot be read ({error})."
    folder = f"models--{place.partition('@')[0].replace('/', '--')}" if place else f"models--timm--{name}"
    return (
        f"the published weights of {name} are missing: run once connected to the Hugging Face hub, or "
        f"copy its folder {folder} into the hub's cache, ~/.cache/huggingface/hub. ({error})"
    )


def _tagged(name: str) -> str:
    """A model with the tag of its usual weights."""
    return f"{name}.{timm.get_pretrained_cfg(name).tag}"

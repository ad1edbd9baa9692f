"""The model card of an exported student: how it is used, how it was made, and how good it is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from kdbench.bench.record import Metric, Outcome
from kdbench.results.pages.numbers import printed, setting_text
from kdbench.results.store.stored_run import StoredRun


@dataclass(frozen=True)
class Use:
    """How an exported student is used."""

    format: str
    lines: tuple[str, ...]
    """Python that loads it, from within its folder."""
    use: str
    """How logits come of that."""
    takes: str
    """What that is given."""
    shape: tuple[int, int, int]
    """(C, H, W) of its images."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Shown:
    """What was measured of an exported student on the test part."""

    ours: float
    """Score of the network here, in float32 on the CPU."""
    theirs: float
    """Score of what was written."""
    difference: float
    """The largest absolute difference of two logits."""
    tolerance: float
    images: int
    speed: dict[str, str]
    """Milliseconds for one image, by what was timed."""
    timing: str
    """How that was timed."""
    int8: str = ""
    """How it was quantised; empty if it was not."""
    int8_score: float = math.nan
    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes of the files that hold it."""


@dataclass(frozen=True)
class Origin:
    """Where an exported student comes from."""

    epoch: str
    """last, or best on validation."""
    about: str
    """The method's paper; empty if it has none."""
    version: str
    """Of kdbench."""
    board: str = ""
    """The score of its suite's board over all seeds, if that was asked for."""


def student_card(run: StoredRun, outcome: Outcome, use: Use, shown: Shown, origin: Origin) -> str:
    """The card in markdown, with the header that model hubs read."""
    spec = run.spec
    taught = f", distilled by {spec.method}" if spec.teachers else f", trained by {spec.method} without a teacher"
    parts = [
        _header(run, use),
        f"# {spec.student.name}{taught}, on {spec.data.name}",
        _loading(use),
        _making(run, outcome, origin),
        _worth(outcome, origin),
        _same(outcome.metric, use, shown),
    ]
    return "\n\n".join(parts) + "\n"


def _header(run: StoredRun, use: Use) -> str:
    task = {"image": "image-classification", "segmentation": "image-segmentation"}.get(run.spec.data.task, "other")
    tags = "".join(f"\n- {tag}" for tag in ("knowledge-distillation", "kdbench", use.format))
    return f"---\npipeline_tag: {task}\ntags:{tags}\n---"


def _loading(use: Use) -> str:
    channels, height, width = use.shape
    kind = "grey" if channels == 1 else "RGB"
    names = ", ".join(use.class_names[:20]) + (", ... (config.json)" if len(use.class_names) > 20 else "")
    code = "\n".join(["```python", *use.lines, "```"])
    return "\n".join(
        [
            "## Use\n\nFrom within this folder, without kdbench:\n",
            code,
            f"\nThen `{use.use}`, of {use.takes}.\n",
            f"- Images: {kind}, {height} x {width} pixels, as (N, {channels}, {height}, {width}).",
            f"- Normalised by mean {_numbers(use.mean)} and deviation {_numbers(use.std)} of pixels from 0 to 1.",
            f"- {len(use.class_names)} classes, in the order of the logits: {names}.",
        ]
    )


def _making(run: StoredRun, outcome: Outcome, origin: Origin) -> str:
    spec, recipe = run.spec, run.spec.recipe
    teachers = ", ".join(f"{each.name} ({each.weights})" for each in spec.teachers)
    split = f"split {spec.data.split_seed}, {100 * spec.data.train_fraction:.3g} % of the training part labelled"
    settings = setting_text({key: value for key, value in recipe.model_dump().items() if value})
    rows = {
        "method": f"{spec.method}{f' ({origin.about})' if origin.about else ''}",
        "settings": setting_text(spec.params) or "none",
        "teacher": teachers or "none",
        "data": f"{spec.data.name} (fingerprint {spec.data.fingerprint or outcome.provenance.data}), {split}",
        "recipe": settings,
        "seed": str(spec.seed),
        "epoch": _epoch(outcome, origin),
        "run": run.key,
        "made by": f"kdbench {origin.version}, torch {outcome.environment.torch}, timm {outcome.environment.timm}, "
        f"{outcome.environment.hardware}",
    }
    lines = [f"| {name} | {_cell(text)} |" for name, text in rows.items()]
    return "\n".join(["## How it was made\n", "| | |", "| --- | --- |", *lines])


def _worth(outcome: Outcome, origin: Origin) -> str:
    metric, lines = outcome.metric, []
    for part in ("test", "validation"):
        value = outcome.headline(origin.epoch, part)
        lines.append(f"| {part} | {'' if value is None else printed(value, metric, 2)} |")
    if taught := outcome.teacher.get("test", {}).get(metric.name):
        lines.append(f"| its teacher, test | {printed(taught, metric, 2)} |")
    cost = outcome.cost
    said = "This is one run of one seed: trained again from another, it would have another score."
    if origin.board:
        said += f" {origin.board}"
    size = f"{cost['parameters']:,.0f} parameters, {cost['multiply_adds']:,.0f} multiply-adds an image."
    return "\n".join(
        [
            "## How good it is\n",
            f"| {metric.name} | |",
            "| --- | --- |",
            *lines,
            "",
            said,
            "",
            size,
        ]
    )


def _same(metric: Metric, use: Use, shown: Shown) -> str:
    lines = [
        "## Checked before it was handed out\n",
        f"On all {shown.images} images of the test part its logits differ from those of the network that was trained "
        f"by at most {shown.difference:.2g} (tolerance {shown.tolerance:g}).\n",
        f"- {metric.name}, network that was trained: {printed(shown.ours, metric, 2)}",
        f"- {metric.name}, {use.format}: {printed(shown.theirs, metric, 2)}",
    ]
    if shown.int8:
        lines.append(f"- {metric.name}, int8 ({shown.int8}): {printed(shown.int8_score, metric, 2)}")
    lines += [f"- one image, {name}: {text}" for name, text in shown.speed.items()]
    lines += [f"- {name}: {size:,} bytes" for name, size in shown.sizes.items()]
    return "\n".join([*lines, f"\n{shown.timing}"])


def values_of(run: StoredRun, use: Use, shown: Shown, origin: Origin) -> dict[str, Any]:
    """What was measured and where it comes from, as JSON values."""
    values: dict[str, Any] = {"run": run.key, "format": use.format, "epoch": origin.epoch, "version": origin.version}
    values |= {"test": shown.ours, "test_exported": shown.theirs, "max_abs_difference": shown.difference}
    values |= {"tolerance": shown.tolerance, "images": shown.images, "one_image": shown.speed, "bytes": shown.sizes}
    if shown.int8:
        values |= {"int8": shown.int8, "test_int8": shown.int8_score}
    return values


def _epoch(outcome: Outcome, origin: Origin) -> str:
    number = outcome.scores[origin.epoch].epoch
    return f"{number}, the {'last' if origin.epoch == 'last' else 'best on validation'}"


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")

from __future__ import annotations

import io
import math
import re

import pytest
import torch
from torchmetrics import MeanMetric

import kdbench.bench.training.engine
from kdbench.bench.data.splits import Splits
from kdbench.bench.record import Metric, Stopped
from kdbench.bench.spec import Recipe
from kdbench.bench.training.averages import EpochAverages
from kdbench.bench.training.run_state import FORMAT, Best
from kdbench.bench.training.stage_plan import stage_epochs
from kdbench.bench.training.train_state import schedule
from tests.harness import CPU
from tests.methods.options import CNN, carried_out, memory_of, spec_of


@pytest.mark.parametrize(
    ("shares", "epochs", "lengths"),
    [
        ([1.0], 32, [32]),
        ([0.3, 0.7], 30, [9, 21]),
        ([1 / 3] * 3, 32, [11, 10, 11]),
        ([0.5, 0.5], 1, [1, 1]),
        ([1.0, 1.0], 5, [5, 5]),
    ],
)
def test_stages_share_the_runs_epochs(shares: list[float], epochs: int, lengths: list[int]) -> None:
    assert stage_epochs(shares, epochs) == lengths


def rates(recipe: Recipe, updates: int) -> list[float]:
    """The learning rate of every update."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe.lr)
    scheduler = schedule(optimizer, recipe, updates)
    found = []
    for update in range(updates):
        found.append(optimizer.param_groups[0]["lr"])
        scheduler.step_update(update + 1)
    return found


def test_step_schedule_falls_at_its_milestones() -> None:
    found = rates(Recipe(lr=1.0, schedule="step", milestones=(0.5, 0.8), decay=0.1), 10)
    assert found == pytest.approx([1.0] * 5 + [0.1] * 3 + [0.01] * 2)


def test_cosine_schedule_starts_at_the_rate_and_ends_near_zero() -> None:
    found = rates(Recipe(lr=1.0, schedule="cosine"), 100)
    assert found[0] == 1.0 and found[50] == pytest.approx(0.5) and found[99] < 0.001
    assert found == sorted(found, reverse=True)


def test_warmup_rises_linearly_and_constant_stays() -> None:
    found = rates(Recipe(lr=1.0, schedule="constant", warmup=0.4), 10)
    assert found == pytest.approx([0.0, 0.25, 0.5, 0.75] + [1.0] * 6)


@pytest.mark.parametrize("change", [{"format": FORMAT - 1}, {"format": FORMAT + 1}, {}], ids=["older", "newer", "none"])
def test_a_checkpoint_of_another_format_is_not_taken_up_and_the_run_starts_anew(
    change: dict[str, int], digits: Splits
) -> None:
    spec = spec_of("kd", *CNN, recipe={"epochs": 3})
    outcome, files, memory = carried_out(spec, digits)
    first = memory_of(spec, digits, stop_after=2)
    with pytest.raises(Stopped):
        kdbench.bench.training.engine.run(spec, digits, first, CPU)
    assert first.state is not None
    values = torch.load(io.BytesIO(first.state), weights_only=True)
    del values["format"]
    buffer = io.BytesIO()
    torch.save(values | change, buffer)
    anew, same, rest = carried_out(spec, digits, resume=buffer.getvalue())
    assert [epoch.number for epoch in rest.epochs] == [1, 2, 3]
    assert same == files and anew.scores == outcome.scores and anew.cost["epochs"] == 3
    assert [epoch.losses for epoch in rest.epochs] == [epoch.losses for epoch in memory.epochs]


@pytest.mark.parametrize("higher", [True, False])
def test_the_best_epoch_is_the_first_of_the_best_scores_in_the_metrics_direction(higher: bool) -> None:
    metric, best = Metric(name="m", unit="", higher_is_better=higher), Best()
    assert not best.beaten_by(math.nan, metric)
    for number, score in enumerate([-3.0, 0.5, math.nan, 0.5, 0.25, 0.75], start=1):
        if best.beaten_by(score, metric):
            best = Best(number, score)
    assert (best.number, best.score) == ((6, 0.75) if higher else (1, -3.0))


def test_averages_of_an_epoch_are_over_samples_and_name_what_is_not_finite() -> None:
    class Share(MeanMetric):
        """Of rows whose decision is the target."""

        def update(self, logits: torch.Tensor, targets: torch.Tensor) -> None:
            super().update((logits.argmax(dim=1) == targets).float())

    averages = EpochAverages(Share(), CPU)
    for size, loss in ((4, 1.0), (2, 4.0)):
        losses = {"student/ce": torch.tensor(loss, requires_grad=True), "student/kd": torch.tensor(math.inf)}
        averages.add(losses, torch.eye(2).repeat(size // 2, 1), torch.zeros(size, dtype=torch.long), size)
    assert averages.samples == 6 and averages.value() == 0.5
    assert averages.losses() == {"student/ce": 2.0, "student/kd": math.inf}
    assert averages.infinite() == ["student/kd is inf"]


@pytest.mark.parametrize(
    ("lr", "reason"),
    [
        (1e39, r"in epoch 1 of 1 \(stage train\) student/.* is not finite"),
        (1e30, r"after epoch 1 predictions of student are not finite: logits\."),
    ],
    ids=["weights", "predictions"],
)
def test_a_run_whose_last_update_ruins_it_has_diverged(lr: float, reason: str, digits: Splits) -> None:
    batch = len(digits.train.targets)  # one update, whose loss is finite
    recipe = {"epochs": 1, "batch_size": batch, "lr": lr, "schedule": "constant"}
    outcome, files, memory = carried_out(spec_of("student", *CNN, recipe=recipe), digits)
    assert outcome.status == "diverged" and re.match(reason, outcome.reason), outcome.reason
    assert not files and not memory.epochs

"""A student in a stage, with what trains it: its auxiliary modules, optimizer and learning-rate schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.scheduler.multistep_lr import MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn

from kdbench.bench.networks.network import Network
from kdbench.bench.spec import Recipe
from kdbench.methods.base import Net

OPTIMIZERS = {"sgd": "momentum", "nesterov": "sgd"}
"""timm's names where they differ from ours: timm's "sgd" is Nesterov's."""
FUSED = frozenset({"sgd", "nesterov", "adam", "adamw"})
"""Optimizers of which torch has one kernel for all parameters."""

Weights = dict[str, dict[str, Any]]
"""State dicts of a "network" and of its "auxiliary" modules."""


@dataclass
class TrainState:
    """A student in a stage."""

    net: Net
    network: Network
    auxiliary: nn.ModuleDict
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler
    clip_norm: float

    @classmethod
    def start(cls, net: Net, network: Network, auxiliary: nn.ModuleDict, recipe: Recipe, updates: int) -> TrainState:
        """A student at the start of a stage of so many updates; weight decay acts on every parameter."""
        optimizer = create_optimizer_v2(
            nn.ModuleList([network, auxiliary]).parameters(),
            opt=OPTIMIZERS.get(recipe.optimizer, recipe.optimizer),
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            momentum=recipe.momentum,
            **({"fused": True} if recipe.optimizer in FUSED else {}),
        )
        return cls(net, network, auxiliary, optimizer, schedule(optimizer, recipe, updates), recipe.clip_norm)

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next update."""
        return float(self.optimizer.param_groups[0]["lr"])

    def train(self) -> None:
        """Puts the student into training mode."""
        self.network.train()
        self.auxiliary.train()

    def update(self, number: int) -> None:
        """Steps the optimizer from the gradients at hand, as the stage's update `number`, from 1."""
        if self.clip_norm:
            parameters = [*self.network.parameters(), *self.auxiliary.parameters()]
            nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        self.optimizer.step()
        self.scheduler.step_update(number)

    @torch.no_grad()
    def infinite(self) -> list[str]:
        """The weights of the student and its auxiliary modules that are no finite numbers, as text."""
        named = [*self.network.named_parameters(), *self.auxiliary.named_parameters()]
        whole = torch.stack([parameter.isfinite().all() for _, parameter in named]).tolist() if named else []
        bad = [name for (name, _), finite in zip(named, whole, strict=True) if not finite]
        return [f"{self.net.name}/{name} is not finite" for name in bad]

    def copied_weights(self) -> Weights:
        """Copies of the weights of the student and its auxiliary modules."""
        states = {"network": self.network.state_dict(), "auxiliary": self.auxiliary.state_dict()}
        return {name: {key: value.clone() for key, value in state.items()} for name, state in states.items()}

    def load(self, weights: Weights) -> None:
        """Puts weights back that `copied_weights` gave."""
        self.network.load_state_dict(weights["network"])
        self.auxiliary.load_state_dict(weights["auxiliary"])


def schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, updates: int) -> Scheduler:
    """The learning rate over a stage's updates.

    timm lowers the rate one update before a milestone; the 1 below undoes that.
    """
    warmup: dict[str, Any] = {"warmup_t": round(recipe.warmup * updates), "warmup_prefix": False, "t_in_epochs": False}
    if recipe.schedule == "cosine":
        return CosineLRScheduler(optimizer, t_initial=updates, **warmup)
    milestones = [round(share * updates) + 1 for share in recipe.milestones] if recipe.schedule == "step" else []
    return MultiStepLRScheduler(optimizer, decay_t=milestones, decay_rate=recipe.decay, **warmup)
